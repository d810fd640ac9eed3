"""What the online store answers, whatever face one asks and whatever store is under it: one suite over all of them.

Statuses, times, last write wins, keys, services, pushing. Every store has one server, which all its tests share, each
with keys of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from feast.protos.feast.serving.GrpcServer_pb2 import PushRequest
from feast.protos.feast.serving.ServingService_pb2 import (
    FeatureList,
    GetFeastServingInfoRequest,
    GetOnlineFeaturesRequest,
)
from feast.protos.feast.types import Value_pb2 as values
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.types import Float64, Int64

from conftest import StartLarder
from faces import NEVER, Answer, Face, Grpc, Http, Row, now
from online import Cell, micros
from rides import DAY, DRIVER, Rides, badge, fresh, pushed_view, stats
from stores import DURABLE, STORES, settings_of

MINUTE = timedelta(minutes=1)
AT = now().replace(microsecond=123_456) - timedelta(hours=1)
"""An hour ago: the time of most rows here."""


def us(at: datetime) -> int:
    """µs since 1970."""
    found = micros(at)
    assert found is not None
    return found


@pytest.fixture(scope="module", params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    """Every store in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def settings(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store's settings."""
    with settings_of(kind, tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture(scope="module")
def served(settings: str, module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """The rides on a server on that store."""
    return Rides.start(tmp_path_factory.mktemp("semantics") / "repo", module_larder, settings)


def assert_named(face: Face, answer: Answer, keys: list[str], features: list[str]) -> None:
    """The entity columns come first, as they were sent (in a protobuf they have no order); then the features."""
    ours, rest = answer.names[: len(keys)], answer.names[len(keys) :]
    assert (sorted(ours) if face.name == "grpc" else ours) == (sorted(keys) if face.name == "grpc" else keys)
    assert rest == features


# --- statuses and times ------------------------------------------------------------------------------------------


def test_every_status_with_its_true_time(face: Face) -> None:
    full, hole, stale, absent = fresh(), fresh(), fresh(), fresh()
    long_ago = now() - timedelta(hours=25)
    face.push("driver_stats_push", [stats(full, 5, AT), stats(hole, 6, AT, rating=None), stats(stale, 7, long_ago)])
    answer = face.read(["driver_stats:trips", "driver_stats:rating"], {"driver_id": [full, hole, stale, absent]})
    assert answer.names == ["driver_id", "trips", "rating"]
    assert answer.values("driver_id") == [full, hole, stale, absent]
    assert answer.statuses("driver_id") == ["PRESENT"] * 4
    assert answer.values("trips") == [5, 6, None, None]
    assert answer.statuses("trips") == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert answer.values("rating") == ["good", None, None, None]
    assert answer.statuses("rating") == ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    if face.has_times:
        for feature in ("trips", "rating"):
            assert [cell.event_ts for cell in answer[feature]] == [us(AT), us(AT), us(long_ago), NEVER]


def test_without_a_ttl_nothing_is_too_old(face: Face) -> None:
    driver, long_ago = fresh(), datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC)
    face.write("driver_forever", [badge(driver, 1, long_ago)])
    cell = face.read(["driver_forever:trips"], {"driver_id": [driver]})["trips"][0]
    assert (cell.value, cell.status) == (1, "PRESENT")
    assert cell.event_ts == (us(long_ago) if face.has_times else None)


def test_a_time_before_1970_is_kept(wire: Face) -> None:
    driver, moon = fresh(), datetime(1969, 7, 20, 20, 17, 40, 500_000, tzinfo=UTC)
    wire.write("driver_forever", [{"driver_id": driver, "trips": 1, "event_timestamp": moon}])
    assert wire.read(["driver_forever:trips"], {"driver_id": [driver]})["trips"] == [Cell(1, "PRESENT", us(moon))]


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("2026-01-02T03:04:05", "2026-01-02T03:04:05Z"),
        ("2026-01-02 03:04:05.000007", "2026-01-02T03:04:05.000007Z"),
        ("2026-01-02T03:04:05.25+05:30", "2026-01-01T21:34:05.250Z"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("2026-01-02", "2026-01-02T00:00:00Z"),
        (1_767_323_045, "2026-01-02T03:04:05Z"),
        (1_767_323_045_250, "2026-01-02T03:04:05.250Z"),
        (1_767_323_045_000_007, "2026-01-02T03:04:05.000007Z"),
    ],
)
def test_timestamps_as_clients_write_them(http: Http, sent: object, meant: str) -> None:
    """Naive is UTC; the answer has RFC 3339 with the fewest digits that lose nothing."""
    driver = fresh()
    http.write("driver_forever", [{"driver_id": driver, "trips": 1, "event_timestamp": sent}])
    body = {"features": ["driver_forever:trips"], "entities": {"driver_id": [driver]}}
    answer = http.larder.post("/get-online-features", body).json()
    assert answer["results"][1]["event_timestamps"] == [meant]


# --- last write wins, column-wise --------------------------------------------------------------------------------


def test_the_newest_event_wins_whatever_arrives_last(face: Face) -> None:
    driver = fresh()

    def after(trips: int, at: datetime, created: datetime) -> object:
        face.push("driver_stats_push", [stats(driver, trips, at, created=created)])
        return face.read(["driver_stats:trips"], {"driver_id": [driver]}).values("trips")[0]

    assert after(1, AT, AT) == 1
    assert after(2, AT - MINUTE, AT + MINUTE) == 1, "an older event is ignored, however late it was recorded"
    assert after(3, AT + MINUTE, AT) == 3, "a newer event wins, however early it was recorded"
    assert after(4, AT + MINUTE, AT - MINUTE) == 3, "the same event time, recorded before: ignored"
    assert after(5, AT + MINUTE, AT + MINUTE) == 5, "the same event time, recorded later: wins"
    assert after(6, AT + MINUTE, AT + MINUTE) == 6, "equal times are a correction: the later arrival wins"


def test_within_one_write_the_newest_event_wins(face: Face) -> None:
    driver = fresh()
    face.push("driver_stats_push", [stats(driver, trips, AT + trips * MINUTE) for trips in (2, 3, 1)])
    assert face.read(["driver_stats:trips"], {"driver_id": [driver]}).values("trips") == [3]


def test_a_write_of_some_columns_leaves_the_others_as_they_are(wire: Face) -> None:
    driver, later, latest = fresh(), AT + MINUTE, AT + 2 * MINUTE
    key: dict[str, object] = {"driver_id": driver}
    wire.push("driver_stats_push", [key | {"trips": 1, "rating": "first", "event_timestamp": AT, "created": AT}])
    wire.push("driver_stats_push", [key | {"trips": 2, "event_timestamp": latest, "created": latest}])
    wire.push("driver_stats_push", [key | {"trips": 3, "rating": "second", "event_timestamp": later, "created": later}])
    answer = wire.read(["driver_stats:trips", "driver_stats:rating", "driver_stats:conv_rate"], {"driver_id": [driver]})
    assert answer["trips"] == [Cell(2, "PRESENT", us(latest))]
    assert answer["rating"] == [Cell("second", "PRESENT", us(later))]
    assert answer["conv_rate"] == [Cell(None, "NULL_VALUE", us(latest))], "never written for this row"


def test_a_column_may_be_too_old_beside_one_that_is_not(wire: Face) -> None:
    driver, long_ago = fresh(), now() - 2 * DAY
    key: dict[str, object] = {"driver_id": driver}
    wire.write("driver_stats", [key | {"rating": "old", "event_timestamp": long_ago, "created": long_ago}])
    wire.write("driver_stats", [key | {"trips": 9, "event_timestamp": AT, "created": AT}])
    answer = wire.read(["driver_stats:trips", "driver_stats:rating"], {"driver_id": [driver]})
    assert answer["trips"] == [Cell(9, "PRESENT", us(AT))]
    assert answer["rating"] == [Cell(None, "OUTSIDE_MAX_AGE", us(long_ago))]


def test_a_newer_null_replaces_a_value(face: Face) -> None:
    driver = fresh()
    face.push("driver_stats_push", [stats(driver, 1, AT, rating="known")])
    face.push("driver_stats_push", [stats(driver, 2, AT + MINUTE, rating=None)])
    answer = face.read(["driver_stats:rating"], {"driver_id": [driver]})
    assert (answer.values("rating"), answer.statuses("rating")) == ([None], ["NULL_VALUE"])


# --- keys --------------------------------------------------------------------------------------------------------


def trip(driver: int, rider: str, fare: float) -> Row:
    """A row of trip_stats."""
    times = {"event_timestamp": AT, "created": AT}
    return {"driver_id": driver, "rider_id": rider, "fare": fare, "seats": 4} | times


def test_composite_keys_in_any_order(face: Face) -> None:
    one, two = fresh(), fresh()
    face.push("trip_stats_push", [trip(one, "ann", 1.0), trip(two, "ann", 2.0), trip(one, "bob", 3.0)])
    asked: dict[str, list[object]] = {"driver_id": [one, two, one, two], "rider_id": ["ann", "ann", "bob", "bob"]}
    for entities in (asked, dict(reversed(asked.items()))):
        answer = face.read(["trip_stats:fare", "trip_stats:seats"], entities)
        assert_named(face, answer, [*entities], ["fare", "seats"])
        assert answer.values("fare") == [1.0, 2.0, 3.0, None]
        assert answer.statuses("seats") == ["PRESENT", "PRESENT", "PRESENT", "NOT_FOUND"]


def test_keys_are_coerced_to_the_type_of_their_entity(face: Face) -> None:
    """An INT32 and an INT64 key found by an integer and by its text, a STRING key by text and by an integer."""
    number = fresh()
    times: dict[str, object] = {"event_timestamp": AT, "created": AT}
    face.push("zone_stats_push", [{"zone_id": number, "busy": True} | times])
    face.push("rider_stats_push", [{"rider_id": str(number), "rides": 12} | times])
    face.push("driver_stats_push", [stats(number, 3, AT)])
    for asked in (number, str(number)):
        assert face.read(["zone_stats:busy"], {"zone_id": [asked]}).values("busy") == [True]
        assert face.read(["driver_stats:trips"], {"driver_id": [asked]}).values("trips") == [3]
        assert face.read(["rider_stats:rides"], {"rider_id": [asked]}).values("rides") == [12]


def test_keys_at_the_ends_of_their_range(face: Face) -> None:
    for driver in (2**63 - 1, -(2**63), 0, -1):
        face.push("driver_stats_push", [stats(driver, 1, now())])
        assert face.read(["driver_stats:trips"], {"driver_id": [driver]}).values("trips") == [1]
    for rider in ("", "Zürich ✈", "x" * 10_000, " 7 "):
        face.push("rider_stats_push", [{"rider_id": rider, "rides": 1, "event_timestamp": now(), "created": now()}])
        assert face.read(["rider_stats:rides"], {"rider_id": [rider]}).values("rides") == [1]


def test_a_view_without_entities(face: Face) -> None:
    """One row for everybody: beside other views, and alone."""
    surge, at, driver = fresh() / 8, now(), fresh()
    face.push("city_push", [{"surge": surge, "mood": "calm", "event_timestamp": at, "created": at}])
    answer = face.read(["city:surge", "driver_stats:trips"], {"driver_id": [driver, driver + 1]})
    assert answer.names == ["driver_id", "surge", "trips"]
    assert answer.values("surge") == [surge, surge]
    alone = face.read(["city:surge", "city:mood"], {"__dummy_id": ["__dummy"]})
    assert alone.names == ["surge", "mood"]
    assert (alone.values("surge"), alone.values("mood")) == ([surge], ["calm"])


def test_one_entity_asked_for_often_is_answered_as_often(face: Face) -> None:
    one, two, absent = fresh(), fresh(), fresh()
    face.push("driver_stats_push", [stats(one, 1, AT), stats(two, 2, AT)])
    asked = [two, one, absent, two, two, one]
    answer = face.read(["driver_stats:trips"], {"driver_id": asked})
    assert answer.values("driver_id") == asked
    assert answer.values("trips") == [2, 1, None, 2, 2, 1]


def test_a_join_key_that_no_view_of_the_request_needs_is_repeated(face: Face) -> None:
    """As in Feast: a client may send the same entity rows to every request."""
    driver = fresh()
    face.push("driver_stats_push", [stats(driver, 1, AT)])
    answer = face.read(["driver_stats:trips"], {"rider_id": ["r"], "driver_id": [driver]})
    assert_named(face, answer, ["rider_id", "driver_id"], ["trips"])
    assert (answer.values("rider_id"), answer.values("trips")) == (["r"], [1])


def test_an_entity_may_be_named_in_place_of_its_join_key(face: Face) -> None:
    driver = fresh()
    face.push("driver_stats_push", [stats(driver, 1, AT)])
    answer = face.read(["driver_stats:trips"], {"driver": [driver]})
    assert (answer.names, answer.values("trips")) == (["driver_id", "trips"], [1])


# --- what is asked for -------------------------------------------------------------------------------------------


def test_a_feature_service_is_its_projections(face: Face) -> None:
    driver = fresh()
    face.push("driver_stats_push", [stats(driver, 7, AT)])
    face.push("trip_stats_push", [trip(driver, "ann", 2.5)])
    entities: dict[str, list[object]] = {"driver_id": [driver], "rider_id": ["ann"]}
    answer = face.read("two_views", entities)
    assert_named(face, answer, [*entities], ["trips", "rating", "fare", "seats"])
    assert [column[0].value for column in answer.columns] == [driver, "ann", 7, "good", 2.5, 4]
    full = face.read("two_views", entities, full_feature_names=True)
    assert full.names[2:] == ["driver_stats__trips", "driver_stats__rating", "trip_stats__fare", "trip_stats__seats"]
    assert full.columns == answer.columns


def test_one_view_under_two_names_with_two_keys(face: Face) -> None:
    here, there = fresh(), fresh()
    face.push("driver_stats_push", [stats(here, 1, AT), stats(there, 2, AT)])
    entities = {"origin_id": [here, there], "destination_id": [there, here]}
    answer = face.read("both_ends", entities, full_feature_names=True)
    features = [f"{end}__{name}" for end in ("origin", "destination") for name in ("trips", "conv_rate", "rating")]
    assert_named(face, answer, [*entities], features)
    assert answer.values("origin_id") == [here, there]
    assert answer.values("origin__trips") == [1, 2]
    assert answer.values("destination__trips") == [2, 1]


def test_an_alias_names_the_view_in_full_names_only(face: Face) -> None:
    driver = fresh()
    face.push("driver_stats_push", [stats(driver, 4, AT)])
    face.push("driver_forever_push", [badge(driver, 1, AT, "gold")])
    assert face.read("renamed", {"driver_id": [driver]}).names == ["driver_id", "trips", "badge"]
    full = face.read("renamed", {"driver_id": [driver]}, full_feature_names=True)
    assert full.names == ["driver_id", "work__trips", "driver_forever__badge"]
    assert [column[0].value for column in full.columns] == [driver, 4, "gold"]


def test_full_names_resolve_what_would_collide(face: Face) -> None:
    driver = fresh()
    face.push("driver_stats_push", [stats(driver, 4, AT)])
    face.push("driver_forever_push", [badge(driver, 9, AT)])
    answer = face.read(["driver_forever:trips", "driver_stats:trips"], {"driver_id": [driver]}, full_feature_names=True)
    assert answer.names == ["driver_id", "driver_forever__trips", "driver_stats__trips"]
    assert [column[0].value for column in answer.columns] == [driver, 9, 4]


def test_features_are_answered_view_by_view(face: Face) -> None:
    """In the order of first mention of the view, then of the feature."""
    driver = fresh()
    refs = ["driver_stats:rating", "driver_forever:badge", "driver_stats:trips"]
    assert face.read(refs, {"driver_id": [driver]}).names == ["driver_id", "rating", "trips", "badge"]


def test_a_request_may_ask_for_the_versions_of_its_views(http: Http, rpc: Grpc) -> None:
    body = {"features": ["city:mood", "driver_stats:trips"], "entities": {"driver_id": [1]}}
    answer = http.larder.post("/get-online-features", body | {"include_feature_view_version_metadata": True}).json()
    assert [view["name"] for view in answer["metadata"]["feature_view_metadata"]] == ["city", "driver_stats"]
    assert "feature_view_metadata" not in http.larder.post("/get-online-features", body).json()["metadata"]
    request = GetOnlineFeaturesRequest(
        features=FeatureList(val=["city:mood", "driver_stats:trips"]),
        entities={"driver_id": RepeatedValue(val=[Value(int64_val=1)])},
        include_feature_view_version_metadata=True,
    )
    named = rpc.serving.GetOnlineFeatures(request).metadata.feature_view_metadata
    assert [view.name for view in named] == ["city", "driver_stats"]


def test_the_server_says_its_version(rpc: Grpc) -> None:
    assert rpc.serving.GetFeastServingInfo(GetFeastServingInfoRequest()).version.count(".") == 2


# --- pushing -----------------------------------------------------------------------------------------------------


def test_a_push_source_feeds_all_its_views(wire: Face) -> None:
    """Also those whose columns are only some of the pushed ones."""
    driver = fresh()
    times: dict[str, object] = {"event_timestamp": AT, "created": AT}
    wire.push("twin_push", [{"driver_id": driver, "left_count": 1, "right_count": 2} | times])
    answer = wire.read(["twin_left:left_count", "twin_right:right_count"], {"driver_id": [driver]})
    assert [column[0].value for column in answer.columns] == [driver, 1, 2]


def test_grpc_push_of_texts(rpc: Grpc) -> None:
    driver = fresh()
    texts = {
        "driver_id": str(driver),
        "trips": "12",
        "conv_rate": "0.25",
        "rating": "12",
        "event_timestamp": AT.isoformat(),
        "created": AT.isoformat(),
    }
    assert rpc.feature_server.Push(
        PushRequest(stream_feature_view="driver_stats_push", features=texts, to="online")
    ).status
    refs = ["driver_stats:trips", "driver_stats:conv_rate", "driver_stats:rating"]
    answer = rpc.read(refs, {"driver_id": [driver]})
    assert [column[0].value for column in answer.columns] == [driver, 12, 0.25, "12"]
    assert answer["trips"][0].event_ts == us(AT)


def test_grpc_push_of_typed_timestamps(rpc: Grpc) -> None:
    driver, at = fresh(), AT.replace(microsecond=0)
    typed = {
        "driver_id": Value(int32_val=driver),
        "trips": Value(int32_val=3),
        "event_timestamp": Value(unix_timestamp_val=int(at.timestamp())),
        "created": Value(null_val=values.NULL),
    }
    assert rpc.feature_server.Push(
        PushRequest(stream_feature_view="driver_stats_push", typed_features=typed, to="online")
    ).status
    assert rpc.read(["driver_stats:trips"], {"driver_id": [driver]})["trips"] == [Cell(3, "PRESENT", us(at))]


def test_both_json_shapes_of_a_frame(http: Http) -> None:
    """`{column: [..]}`, and `{column: {index: value}}` as `DataFrame.to_dict()` gives it."""
    one, two = fresh(), fresh()
    table = pd.DataFrame([stats(one, 1, AT), stats(two, 2, AT)], index=[7, 3])
    for column in ("event_timestamp", "created"):
        table[column] = table[column].map(datetime.isoformat)
    for path, target in (("/push", {"push_source_name": "driver_stats_push"}), ("/write-to-online-store", None)):
        for df in (table.to_dict(orient="list"), {name: cells.to_dict() for name, cells in table.items()}):
            response = http.larder.post(path, (target or {"feature_view_name": "driver_stats"}) | {"df": df})
            assert response.status_code == 200, response.text
            answer = http.read(["driver_stats:trips"], {"driver_id": [one, two]})
            assert answer.values("trips") == [1, 2]


def test_columns_that_no_view_has_are_left_out(http: Http) -> None:
    """Feast's clients may send them."""
    driver = fresh()
    http.push("driver_stats_push", [stats(driver, 1, AT, shoe_size=44)])
    assert http.read(["driver_stats:trips"], {"driver_id": [driver]}).values("trips") == [1]


def test_a_view_applied_later_is_served_at_once(served: Rides, face: Face) -> None:
    name, driver = f"late_{fresh()}", fresh()
    view = pushed_view(name, [DRIVER], DAY, {"height": Float64})
    served.store.apply([DRIVER, view])
    face.push(f"{name}_push", [{"driver_id": driver, "height": 1.75, "event_timestamp": AT, "created": AT}])
    assert face.read([f"{name}:height"], {"driver_id": [driver]}).values("height") == [1.75]


# --- the SDK -----------------------------------------------------------------------------------------------------


def test_what_a_model_server_gets_from_the_sdk(served: Rides) -> None:
    one, two = fresh(), fresh()
    served.store.push("driver_stats_push", pd.DataFrame([stats(one, 1, AT), stats(two, 2, AT, rating=None)]))
    rows = [{"driver_id": two}, {"driver_id": one}]
    response = served.store.get_online_features(["driver_stats:trips", "driver_stats:rating"], rows)
    assert response.to_dict() == {"driver_id": [two, one], "trips": [2, 1], "rating": [None, "good"]}
    wanted = pd.DataFrame({"driver_id": [two, one], "trips": [2, 1], "rating": [None, "good"]})
    pd.testing.assert_frame_equal(response.to_df(), wanted)


# --- many at once ------------------------------------------------------------------------------------------------


def test_a_large_request_is_one_answer(http: Http, wire: Face) -> None:
    drivers = [fresh() for _ in range(2000)]
    http.push("driver_stats_push", [stats(driver, driver * 2, AT) for driver in drivers[::2]])
    answer = wire.read(["driver_stats:trips"], {"driver_id": drivers[::-1]})
    assert answer.values("trips")[::-1] == [d * 2 if i % 2 == 0 else None for i, d in enumerate(drivers)]


def test_no_entities_is_an_answer_without_rows(wire: Face) -> None:
    answer = wire.read(["driver_stats:trips"], {"driver_id": []})
    assert answer == Answer(["driver_id", "trips"], [[], []])


# --- the edge of a ttl -------------------------------------------------------------------------------------------


def test_a_row_is_too_old_when_it_is_older_than_its_ttl_and_not_before(served: Rides, http: Http, rpc: Grpc) -> None:
    """The answer is the same up to event time + ttl, and another one after it."""
    name, driver, ttl = f"brief_{fresh()}", fresh(), timedelta(milliseconds=400)
    served.store.apply([DRIVER, pushed_view(name, [DRIVER], ttl, {"height": Int64})])
    at = now() + timedelta(milliseconds=600)
    http.push(f"{name}_push", [{"driver_id": driver, "height": 5, "event_timestamp": at, "created": at}])
    seen = []
    while "OUTSIDE_MAX_AGE" not in seen:
        before = now()
        (cell,) = http.read([f"{name}:height"], {"driver_id": [driver]})["height"]
        after = now()
        assert after - at < timedelta(seconds=60), "it should have been too old long ago"
        if cell.status == "PRESENT":
            assert (cell.value, before - at <= ttl) == (5, True)
        else:
            assert (cell.value, after - at > ttl) == (None, True)
        assert cell.event_ts == us(at)
        seen.append(cell.status)
    assert seen[0] == "PRESENT"
    assert rpc.read([f"{name}:height"], {"driver_id": [driver]})["height"] == [Cell(None, "OUTSIDE_MAX_AGE", us(at))]


# --- at random ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_random_writes_merge_as_a_naive_oracle_does(wire: Face, seed: int) -> None:
    """Whole rows and some of the columns, in any order of events; each column keeps its newest (event, created)."""
    choose = random.Random(seed)
    columns = ("trips", "rating", "conv_rate")
    newest: dict[tuple[int, str], tuple[datetime, datetime, object]] = {}
    drivers = [fresh() for _ in range(3)]
    for step in range(40):
        driver = choose.choice(drivers)
        at, created = (AT + choose.randrange(4) * timedelta(milliseconds=choose.choice([1, 500])) for _ in range(2))
        made: dict[str, object] = {"trips": step, "rating": f"r{step}", "conv_rate": step / 8}
        sent = {c: choose.choice([made[c], made[c], None]) for c in choose.sample(columns, choose.randint(1, 3))}
        wire.push("driver_stats_push", [{"driver_id": driver, "event_timestamp": at, "created": created} | sent])
        for column, value in sent.items():
            old = newest.get((driver, column))
            if old is None or (at, created) >= old[:2]:
                newest[driver, column] = (at, created, value)
    answer = wire.read([f"driver_stats:{column}" for column in columns], {"driver_id": drivers})
    for row, driver in enumerate(drivers):
        latest = max((newest[driver, c][0] for c in columns if (driver, c) in newest), default=None)
        for column in columns:
            at_created_value = newest.get((driver, column))
            if at_created_value is not None:
                at, _, value = at_created_value
                wanted = Cell(value, "NULL_VALUE" if value is None else "PRESENT", us(at))
            elif latest is not None:
                wanted = Cell(None, "NULL_VALUE", us(latest))
            else:
                wanted = Cell(None, "NOT_FOUND", NEVER)
            assert answer[column][row] == wanted, (driver, column)


# --- a restart ---------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_outlives_a_kill(served: Rides, kind: str) -> None:
    """Rows, columns with times of their own, and the registry; in memory only the registry."""
    face, driver, later = Http(served.larder), fresh(), AT + MINUTE
    face.push("driver_stats_push", [stats(driver, 1, AT, rating=None)])
    face.push("driver_stats_push", [{"driver_id": driver, "trips": 2, "event_timestamp": later, "created": later}])
    refs = ["driver_stats:trips", "driver_stats:rating", "driver_stats:conv_rate"]
    before = face.read(refs, {"driver_id": [driver]})
    assert before.columns[1:] == [
        [Cell(2, "PRESENT", us(later))],
        [Cell(None, "NULL_VALUE", us(AT))],
        before.columns[3],
    ]
    served.larder.kill()
    served.larder.start()
    for again in (Http(served.larder), Grpc(served.larder)):
        after = again.read(refs, {"driver_id": [driver]})
        if kind in DURABLE:
            assert after == before
        else:
            assert after.statuses("trips") == ["NOT_FOUND"]

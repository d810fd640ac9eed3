"""Exactness, beside Feast's own server: the same steps go to `feast serve` (0.67, SQLite) and to Larder, over HTTP.

Where Feast is right, both answers are equal to the letter; where it is not, the test asserts what Feast really
answers beside the right answer, so that it documents the difference ("Better than Feast" in FEAST_CONTRACT.md).
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import requests
from feast import FeatureStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore

import rides
from conftest import StartLarder
from faces import Grpc, Http, Row, Sdk, frame, now
from feast_server import FeastServer
from larder_env.server import Larder
from online import metric
from rides import DAY, Rides, badge, fresh, stats

MINUTE = timedelta(minutes=1)
AT = now().replace(microsecond=0) - timedelta(hours=1)
"""An hour ago, in whole seconds: Feast's SQLite store keeps no more."""
EPOCH = "1970-01-01T00:00:00Z"
Answered = dict[str, Any]
"""An answer of /get-online-features, as it came."""


def rfc3339(at: datetime) -> str:
    """A time as the answers write it: the fewest of 0, 3 or 6 digits that lose nothing."""
    digits = "seconds" if at.microsecond == 0 else "milliseconds" if at.microsecond % 1000 == 0 else "microseconds"
    return at.isoformat(timespec=digits).replace("+00:00", "Z")


@dataclass
class Beside:
    """Feast's server and ours, with the same objects."""

    feast: FeastServer
    larder: Rides

    def post(self, path: str, body: object) -> tuple[requests.Response, requests.Response]:
        """The same call on both: Feast's response, Larder's response."""
        return self.feast.post(path, body), self.larder.larder.post(path, body)

    def push(self, source: str, rows: Sequence[Row]) -> None:
        """Push the same rows to both; both take them."""
        for response in self.post("/push", {"push_source_name": source, "df": frame(rows), "to": "online"}):
            assert response.status_code == 200, response.text

    def read(
        self, features: Sequence[str] | str, entities: Mapping[str, Sequence[object]], **more: object
    ) -> tuple[Answered, Answered]:
        """Read the same from both: the whole JSON of Feast, and of Larder."""
        what: dict[str, object] = {"feature_service": features} if isinstance(features, str) else {"features": features}
        answers = self.post("/get-online-features", what | {"entities": entities} | more)
        for response in answers:
            assert response.status_code == 200, response.text
        feast, larder = (response.json() for response in answers)
        return feast, larder


def assert_alike(larder: Answered, feast: Answered) -> None:
    """Every column, and all else; on failure the columns that differ."""
    ours, feasts = by_name(larder), by_name(feast)
    differ = {n: (c, feasts["results"].get(n)) for n, c in ours["results"].items() if c != feasts["results"].get(n)}
    assert not differ, "columns of ours, of Feast"
    assert ours == feasts


def by_name(answer: Answered) -> Answered:
    """The answer with its columns by name: Feast puts a view's features into another order on every start."""
    names, columns = answer["metadata"].pop("feature_names"), answer.pop("results")
    return answer | {"results": dict(zip(names, columns, strict=True))}


Cells = dict[str, list[tuple[object, str, str]]]


def cells(answer: Answered) -> Cells:
    """(value, status, event timestamp) of every entity row, by feature name."""
    names, results = answer["metadata"]["feature_names"], answer["results"]
    return {
        name: [*zip(column["values"], column["statuses"], column["event_timestamps"], strict=True)]
        for name, column in zip(names, results, strict=True)
    }


@pytest.fixture(scope="module")
def both(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """One of each for the whole file."""
    path = tmp_path_factory.mktemp("exact")
    feast = FeastServer(path / "feast", rides.PROJECT).start(rides.objects())
    yield Beside(feast, Rides.start(path / "larder", module_larder))
    feast.stop()


# --- 1. last write wins by event time ----------------------------------------------------------------------------

TRIPS = ["driver_stats:trips"]


def test_an_old_event_that_arrives_late_does_not_win(both: Beside) -> None:
    driver = fresh()
    both.push("driver_stats_push", [stats(driver, 2, AT)])
    both.push("driver_stats_push", [stats(driver, 1, AT - MINUTE)])
    feast, larder = both.read(TRIPS, {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(2, "PRESENT", rfc3339(AT))]
    assert cells(feast)["trips"] == [(1, "PRESENT", rfc3339(AT - MINUTE))], "Feast goes back in time"


def test_within_one_push_the_newest_event_wins(both: Beside) -> None:
    driver = fresh()
    both.push("driver_stats_push", [stats(driver, trips, AT + trips * MINUTE) for trips in (2, 3, 1)])
    feast, larder = both.read(TRIPS, {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(3, "PRESENT", rfc3339(AT + 3 * MINUTE))]
    assert cells(feast)["trips"] == [(1, "PRESENT", rfc3339(AT + MINUTE))], "Feast lets the last row win"


def test_of_one_event_the_later_record_wins(both: Beside) -> None:
    """Equal event times: the created timestamp decides."""
    driver = fresh()
    both.push("driver_stats_push", [stats(driver, 2, AT, created=AT + MINUTE)])
    both.push("driver_stats_push", [stats(driver, 1, AT, created=AT)])
    feast, larder = both.read(TRIPS, {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(2, "PRESENT", rfc3339(AT))]
    assert cells(feast)["trips"] == [(1, "PRESENT", rfc3339(AT))], "Feast does not look at created"


def test_equal_times_are_a_correction(both: Beside) -> None:
    """Feast is right here: what arrives later wins."""
    driver = fresh()
    for trips in (1, 2):
        both.push("driver_stats_push", [stats(driver, trips, AT)])
    feast, larder = both.read(TRIPS, {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(2, "PRESENT", rfc3339(AT))]
    assert_alike(larder, feast)


# --- 2. the ttl, on every read path ------------------------------------------------------------------------------


def test_what_is_older_than_its_ttl_is_not_served(both: Beside) -> None:
    driver, long_ago = fresh(), AT - 3 * DAY
    both.push("driver_stats_push", [stats(driver, 2, long_ago, rating=None)])
    both.push("trip_stats_push", [trip(driver, "ann", 1.0)])
    keys: dict[str, list[object]] = {"driver_id": [driver], "rider_id": ["ann"]}
    refs = ["driver_stats:trips", "driver_stats:rating", "trip_stats:fare"]
    for asked in (refs, "two_views"):
        feast, larder = both.read(asked, keys)
        outside = [(None, "OUTSIDE_MAX_AGE", rfc3339(long_ago))]
        assert {name: cells(larder)[name] for name in ("trips", "rating")} == {"trips": outside, "rating": outside}
        assert cells(larder)["fare"] == [(1.0, "PRESENT", rfc3339(AT))], "another view's row has its own age"
        assert cells(feast)["trips"] == [(2, "PRESENT", rfc3339(long_ago))], "Feast serves it as if it were fresh"
        assert cells(feast)["rating"] == [(None, "PRESENT", rfc3339(long_ago))], "Feast serves even a stale null"
    for face in (Http(both.larder.larder), Grpc(both.larder.larder), Sdk(both.larder.store)):
        for path in (face.read(refs, keys), face.read("two_views", keys)):
            assert path.statuses("trips") == path.statuses("rating") == ["OUTSIDE_MAX_AGE"]
            assert path.values("trips") == path.values("rating") == [None]
            assert path.statuses("fare") == ["PRESENT"]


def test_a_null_is_not_present(both: Beside) -> None:
    driver = fresh()
    both.push("driver_stats_push", [stats(driver, 2, AT, rating=None)])
    feast, larder = both.read(["driver_stats:rating"], {"driver_id": [driver]})
    assert cells(larder)["rating"] == [(None, "NULL_VALUE", rfc3339(AT))]
    assert cells(feast)["rating"] == [(None, "PRESENT", rfc3339(AT))], "Feast calls a null PRESENT"


# --- 3. true event timestamps ------------------------------------------------------------------------------------


def test_event_timestamps_keep_their_microseconds(both: Beside) -> None:
    driver, at = fresh(), AT + timedelta(microseconds=123_456)
    both.push("driver_stats_push", [stats(driver, 2, at)])
    feast, larder = both.read(TRIPS, {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(2, "PRESENT", rfc3339(at))]
    assert cells(feast)["trips"] == [(2, "PRESENT", rfc3339(AT))], "Feast's SQLite store cuts them"


def test_events_of_one_second_keep_their_order(both: Beside) -> None:
    driver, later, earlier = fresh(), AT + timedelta(milliseconds=700), AT + timedelta(milliseconds=200)
    both.push("driver_stats_push", [stats(driver, 2, later)])
    both.push("driver_stats_push", [stats(driver, 1, earlier)])
    feast, larder = both.read(TRIPS, {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(2, "PRESENT", rfc3339(later))]
    assert cells(feast)["trips"] == [(1, "PRESENT", rfc3339(AT))]


def test_a_row_without_an_event_time_is_refused(both: Beside) -> None:
    """A null time is nobody's 1970."""
    driver = fresh()
    row = {**stats(driver, 2, AT), "event_timestamp": None}
    body = {"push_source_name": "driver_stats_push", "df": frame([row, stats(driver, 3, AT)]), "to": "online"}
    theirs, ours = both.post("/push", body)
    assert ours.status_code == 422
    assert "event_timestamp" in json.loads(ours.json())["message"]
    assert theirs.status_code == 500, "Feast says that it is its own fault, and the client tries again"
    _, larder = both.read(TRIPS, {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(None, "NOT_FOUND", EPOCH)], "a push is all or nothing"


# --- 4. partial writes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/push", {"push_source_name": "driver_stats_push", "to": "online"}),
        ("/write-to-online-store", {"feature_view_name": "driver_stats"}),
    ],
)
def test_a_write_may_carry_some_columns(both: Beside, path: str, target: Mapping[str, str]) -> None:
    driver = fresh()
    both.push("driver_stats_push", [stats(driver, 1, AT, rating="first")])
    row: Row = {"driver_id": driver, "trips": 2, "event_timestamp": AT + MINUTE, "created": AT + MINUTE}
    theirs, ours = both.post(path, dict(target) | {"df": frame([row])})
    assert ours.status_code == 200
    assert (theirs.status_code, theirs.json()) == (500, "\"['conv_rate', 'rating'] not in index\"")
    feast, larder = both.read(["driver_stats:trips", "driver_stats:rating"], {"driver_id": [driver]})
    assert cells(larder)["trips"] == [(2, "PRESENT", rfc3339(AT + MINUTE))]
    assert cells(larder)["rating"] == [("first", "PRESENT", rfc3339(AT))], "with its own time"
    assert cells(feast)["trips"] == [(1, "PRESENT", rfc3339(AT))]


# --- 5. and 6. reads of several views ----------------------------------------------------------------------------


def trip(driver: int, rider: str, fare: float, at: datetime = AT) -> Row:
    """A row of trip_stats."""
    return {"driver_id": driver, "rider_id": rider, "fare": fare, "seats": 4, "event_timestamp": at, "created": at}


def rows_read(larder: Larder) -> float:
    """Rows that the server has looked up in its store so far."""
    return sum(metric(larder, "larder_online_rows_read_total"))


def test_several_views_are_one_pass_over_the_store(both: Beside) -> None:
    """Each key of each view is looked up once; Feast goes to its store once a view, one after the other."""
    driver, larder = fresh(), both.larder.larder
    both.push("driver_stats_push", [stats(driver, 7, AT)])
    both.push("trip_stats_push", [trip(driver, "ann", 2.5)])
    both.push("driver_forever_push", [badge(driver, 9, AT, "gold")])
    refs = ["driver_stats:trips", "trip_stats:fare", "driver_forever:badge"]
    keys: dict[str, list[object]] = {"driver_id": [driver], "rider_id": ["ann"]}
    before = rows_read(larder)
    feasts, ours = both.read(refs, keys)
    assert_alike(ours, feasts)
    assert rows_read(larder) - before == len(refs)
    read = SqliteOnlineStore.online_read
    with mock.patch.object(SqliteOnlineStore, "online_read", autospec=True, side_effect=read) as reads:
        both.feast.store.get_online_features(refs, keys)
    assert reads.call_count == len(refs)


def test_a_view_without_entities_beside_another(both: Beside) -> None:
    driver = fresh()
    both.push("city_push", [{"surge": 1.5, "mood": "calm", "event_timestamp": AT, "created": AT}])
    feast, larder = both.read(["city:surge", "driver_stats:trips"], {"driver_id": [driver]})
    assert cells(larder)["surge"] == [(1.5, "PRESENT", rfc3339(AT))]
    assert cells(feast)["surge"] == [(None, "NOT_FOUND", EPOCH)], "Feast does not find what was pushed to it"


# --- projections -------------------------------------------------------------------------------------------------

Asked = tuple[Sequence[str] | str, dict[str, list[object]], bool]
PROJECTED: dict[str, Asked] = {
    "a view twice, by two keys": ("both_ends", {"origin_id": [1, 2], "destination_id": [2, 9]}, True),
    "an alias": ("renamed", {"driver_id": [1, 9]}, False),
    "an alias in full names": ("renamed", {"driver_id": [1, 9]}, True),
    "a composite key": (["trip_stats:fare"], {"rider_id": ["ann", "bob", "ann"], "driver_id": [1, 1, 9]}, False),
    "a composite key beside its part": ("two_views", {"driver_id": [1, 2], "rider_id": ["ann", "ann"]}, False),
    "full names of what would collide": (["driver_stats:trips", "driver_forever:trips"], {"driver_id": [1, 2]}, True),
    "some features of a view": (["driver_stats:rating", "driver_stats:trips"], {"driver_id": [2, 1, 2]}, False),
}


@pytest.mark.parametrize("name", PROJECTED)
def test_projections_are_answered_as_feast_does(both: Beside, name: str) -> None:
    """Over HTTP the very answer of Feast; over gRPC the same cells."""
    asked, keys, full = PROJECTED[name]
    ids = {1: fresh(), 2: fresh(), 9: fresh()}
    both.push("driver_stats_push", [stats(ids[1], 1, AT), stats(ids[2], 2, AT + MINUTE)])
    both.push("driver_forever_push", [badge(ids[1], 3, AT, "gold"), badge(ids[2], 4, AT, "tin")])
    both.push("trip_stats_push", [trip(ids[1], "ann", 1.5), trip(ids[2], "ann", 2.5)])
    keys = {column: [ids.get(value, value) for value in values] for column, values in keys.items()}  # type: ignore[call-overload]
    feasts, ours = both.read(asked, keys, full_feature_names=full)
    assert_alike(ours, feasts)
    http, rpc = (face.read(asked, keys, full) for face in (Http(both.larder.larder), Grpc(both.larder.larder)))
    assert sorted(http.names) == sorted(rpc.names)
    for column in http.names:
        assert http.values(column) == rpc.values(column)
        assert http.statuses(column) == rpc.statuses(column)
        if column not in keys:
            assert http[column] == rpc[column]


# --- errors ------------------------------------------------------------------------------------------------------

READ = "/get-online-features"
ONE: dict[str, object] = {"driver_id": [1]}


def ask(features: object, entities: object) -> tuple[str, dict[str, object]]:
    """A read."""
    return READ, {"features": features, "entities": entities}


def send(**columns: list[object]) -> tuple[str, dict[str, object]]:
    """A push of one driver, with some columns replaced; `[]` leaves one out."""
    df = frame([stats(1, 1, AT)]) | columns
    kept = {name: cells for name, cells in df.items() if cells}
    return "/push", {"push_source_name": "driver_stats_push", "df": kept, "to": "online"}


WRONG: dict[str, tuple[tuple[str, dict[str, object]], int, int, str]] = {
    # what is sent; Feast's status, ours; a word of our message
    "unknown feature": (ask(["driver_stats:nope"], ONE), 500, 404, "nope"),
    "no reference": (ask(["driver_stats"], ONE), 500, 422, "'driver_stats'"),
    "nothing asked for": (ask([], ONE), 500, 422, "No features"),
    "collision": (ask(["driver_stats:trips", "driver_forever:trips"], ONE), 500, 422, "Duplicate features named trips"),
    "no entities": (ask(TRIPS, {}), 500, 422, "no entity rows"),
    "missing join key": (ask(TRIPS, {"rider_id": ["ann"]}), 500, 422, "'driver_id'"),
    "unequal columns": (ask(["trip_stats:fare"], {"driver_id": [1, 2], "rider_id": ["a"]}), 500, 422, "same columns"),
    "unknown column": (ask(TRIPS, {"driver_id": [1], "nope": [1]}), 200, 422, "'nope'"),
    "a text for a number": (ask(TRIPS, {"driver_id": ["abc"]}), 500, 422, "abc"),
    "a fraction for a number": (ask(TRIPS, {"driver_id": [1.5]}), 200, 422, "1.5"),
    "a null key": (ask(TRIPS, {"driver_id": [None]}), 500, 422, "null"),
    "push: a text for a number": (send(trips=["abc"]), 500, 422, "abc"),
    "push: a lossy cast": (send(trips=[1.5]), 200, 422, "1.5"),
    "push: no event time": (send(event_timestamp=[]), 500, 422, "'event_timestamp'"),
    "push: no join key": (send(driver_id=[]), 500, 422, "'driver_id'"),
    "push: ragged": (send(trips=[1, 2]), 500, 422, "same length"),
    "push: nowhere": (("/push", send()[1] | {"to": "sideways"}), 500, 422, "sideways is not a supported push format"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_callers_fault_is_a_4xx(both: Beside, name: str) -> None:
    """Feast's client tries a 5xx again; Feast answers 500 to most of these, and 200 to some."""
    (path, body), feasts, ours, word = WRONG[name]
    theirs, larder = both.post(path, body)
    assert theirs.status_code == feasts, theirs.text
    assert larder.status_code == ours
    detail = json.loads(larder.json())
    assert detail["module"] == "feast.errors"
    assert word in detail["message"]


RIGHT = {
    "unknown view": ask(["nope:trips"], ONE),
    "unknown service": (READ, {"feature_service": "nope", "entities": ONE}),
    "unknown push source": ("/push", send()[1] | {"push_source_name": "nope"}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_where_feast_names_the_error_ours_is_the_same(both: Beside, name: str) -> None:
    theirs, ours = both.post(*RIGHT[name])
    assert ours.status_code == theirs.status_code
    assert json.loads(ours.json()) == json.loads(theirs.json())


# --- and where Feast is right ------------------------------------------------------------------------------------

NAMES = ["ann", "bob", "Zürich ✈", "", " 7 "]


def random_step(choose: random.Random, drivers: Sequence[int], at: datetime) -> tuple[str, list[Row]]:
    """A push within what Feast gets right: whole rows without nulls, in whole seconds, never older than the last."""
    source = choose.choice(["driver_stats_push", "driver_forever_push", "trip_stats_push", "zone_stats_push"])
    rows: list[Row] = []
    for driver in choose.sample(drivers, choose.randint(1, len(drivers))):
        number, times = choose.randint(-(2**31), 2**31 - 1), {"event_timestamp": at, "created": at}
        match source:
            case "driver_stats_push":
                rows.append(
                    stats(driver, number, at, choose.choice(NAMES), conv_rate=choose.randint(-9999, 9999) / 1000)
                )
            case "driver_forever_push":
                rows.append(badge(driver, 2**53 + number, at, choose.choice(NAMES)))
            case "trip_stats_push":
                rows.append({**trip(driver, choose.choice(NAMES), number / 1000, at), "seats": number})
            case _:
                rows.append({"zone_id": driver, "busy": choose.random() < 0.5, **times})
    return source, rows


def test_answers_are_laid_out_as_feasts(both: Beside) -> None:
    """Where Feast is right, the SDK's answer is the same; the order of Feast's columns changes from run to run."""
    one, two = fresh(), fresh()
    stores = both.larder.store, both.feast.store
    for each in stores:
        each.push("driver_stats_push", pd.DataFrame([stats(one, 1, AT), stats(two, 2, AT)]))
        each.push("trip_stats_push", pd.DataFrame([trip(one, "ann", 1.5), trip(two, "bob", 2.5)]))
    rows = [{"driver_id": one, "rider_id": "ann"}, {"driver_id": two, "rider_id": "ann"}]

    def answers(store: FeatureStore) -> list[dict[str, list[object]]]:
        service = store.get_feature_service("two_views")
        ends = store.get_feature_service("both_ends")
        asked: list[tuple[object, list[dict[str, object]], bool]] = [
            (["driver_stats:rating", "trip_stats:fare", "driver_stats:trips"], rows, False),
            (["driver_stats:trips", "driver_forever:trips"], rows, True),
            (["driver_stats:trips"], [{"driver": one}], False),
            (["trip_stats:fare"], [{"rider_id": "bob", "driver_id": str(two)}], False),
            (service, rows, False),
            (service, rows, True),
            (ends, [{"origin_id": one, "destination_id": two}], True),
        ]
        return [
            store.get_online_features(features, entities, full_feature_names=full).to_dict()  # type: ignore[arg-type]
            for features, entities, full in asked
        ]

    ours, feasts = map(answers, stores)
    assert ours == feasts


def test_a_double_is_read_to_its_last_bit(both: Beside) -> None:
    rates = [0.12345678901234567, 8.560566209714753e299, 5e-324, 2.2250738585072014e-308, 1 / 3]
    drivers = [fresh() for _ in rates]
    both.push("driver_stats_push", [stats(d, 1, AT, conv_rate=r) for d, r in zip(drivers, rates, strict=True)])
    feast, larder = both.read(["driver_stats:conv_rate"], {"driver_id": drivers})
    assert [value for value, *_ in cells(feast)["conv_rate"]] == rates
    assert_alike(larder, feast)


@pytest.mark.parametrize("seed", range(4))
def test_random_steps_have_the_same_answers(both: Beside, seed: int) -> None:
    """Values, statuses, times and their format, names and their order: the whole JSON."""
    choose = random.Random(seed)
    drivers, absent = [fresh() for _ in range(6)], fresh()
    at = AT
    features = {
        "driver_id": ["driver_stats:trips", "driver_stats:conv_rate", "driver_stats:rating", "driver_forever:badge"],
        "rider_id": ["trip_stats:fare", "trip_stats:seats"],
        "zone_id": ["zone_stats:busy"],
    }
    for _ in range(8):
        both.push(*random_step(choose, drivers, at))
        at += choose.choice([timedelta(0), timedelta(seconds=1), MINUTE])
        views = choose.choice(["driver_id", "rider_id", "zone_id", "all"])
        asked = [drivers[choose.randrange(6)] if choose.random() < 0.9 else absent for _ in range(choose.randint(1, 8))]
        riders = [choose.choice(NAMES) for _ in asked]
        entities: dict[str, list[object]] = {}
        match views:
            case "driver_id" | "zone_id":
                entities[views] = [*asked]
                refs = features[views]
            case "rider_id":
                entities |= {"driver_id": [*asked], "rider_id": [*riders]}
                refs = features[views]
            case _:
                entities |= {"rider_id": [*riders], "driver_id": [*asked], "zone_id": [*asked[::-1]]}
                refs = [*itertools.chain(*features.values())]
        one_view = {ref.split(":")[0] for ref in refs}
        refs = choose.sample(refs, choose.randint(1, len(refs))) if len(one_view) == 1 else refs
        feast, larder = both.read(
            refs,
            entities,
            full_feature_names=choose.random() < 0.5,
            include_feature_view_version_metadata=choose.random() < 0.5,
        )
        assert_alike(larder, feast)
    keys: dict[str, list[object]] = {"driver_id": [*drivers], "rider_id": [choose.choice(NAMES) for _ in drivers]}
    services: dict[str, dict[str, list[object]]] = {
        "two_views": keys,
        "renamed": {"driver_id": [*drivers]},
        "both_ends": {"origin_id": [*drivers], "destination_id": [*drivers[::-1]]},
    }
    for service, entities in services.items():
        feast, larder = both.read(service, entities, full_feature_names=True)
        assert_alike(larder, feast)

"""Label views: what people say about entities, pushed, served and kept, beside Feast's own feature server.

Feast enforces a conflict policy when history is read, and only in its UI's pages (`feast/ui_server.py`): online the
last write wins whatever the policy (`feast/labeling/conflict_policy.py`). So it is here, with one difference, which
holds for every write of Larder: the last is the latest by event time, not by arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.errors import ConflictingFeatureViewNames, FeatureViewNotFoundException
from feast.labeling import ConflictPolicy, LabelView
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.types import Float64, Int64, String

from conftest import StartLarder
from faces import Face, Grpc, Http, Sdk
from feast_server import FeastServer
from larder_env.process import wait_until
from larder_env.repo import feast, store, write_config
from larder_env.server import Larder, Ports
from test_registry import rpc

PROJECT = "labels"
POLICIES = [policy.value for policy in ConflictPolicy]
NOW = datetime.now(UTC).replace(microsecond=0)
START = NOW - timedelta(hours=5)
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
TRIP = Entity(name="trip", join_keys=["trip_id"], value_type=ValueType.STRING)
LABELS = {"is_fraud": Int64, "score": Float64, "labeler": String}
KEPT = ["driver_id", "is_fraud", "score", "labeler", "event_timestamp"]


def label_view(name: str, data: Path, policy: ConflictPolicy = ConflictPolicy.LAST_WRITE_WINS) -> LabelView:
    """A label view that is filled by the push source `<name>_push`."""
    file = FileSource(name=f"{name}_file", path=str(data / f"{name}.parquet"), timestamp_field="event_timestamp")
    return LabelView(
        name=name,
        entities=[DRIVER],
        source=PushSource(name=f"{name}_push", batch_source=file),
        schema=[Field(name=field, dtype=dtype) for field, dtype in LABELS.items()],
        conflict_policy=policy,
        labeler_field="labeler",
        reference_feature_view="stats",
        description=f"by {policy.value}",
        tags={"team": "x"},
    )


def objects(data: Path) -> list[object]:
    """A label view for each policy, one on two keys that expires, one without a source, and a service."""
    stats_file = FileSource(name="stats_file", path=str(data / "stats.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name="trips", dtype=Int64)]
    stats = FeatureView(name="stats", entities=[DRIVER], ttl=timedelta(0), source=stats_file, schema=schema)
    views = [label_view(policy, data, ConflictPolicy(policy)) for policy in POLICIES]
    two_file = FileSource(name="two_file", path=str(data / "two.parquet"), timestamp_field="event_timestamp")
    two = LabelView(
        name="two_keys",
        entities=[DRIVER, TRIP],
        ttl=timedelta(hours=2),
        source=PushSource(name="two_push", batch_source=two_file),
        schema=[Field(name="verdict", dtype=String), Field(name="labeler", dtype=String)],
    )
    written = LabelView(name="written", entities=[DRIVER], schema=[Field(name="note", dtype=String)])
    service = FeatureService(name="training", features=[stats, views[0][["is_fraud"]]])
    return [DRIVER, TRIP, stats_file, stats, *views, two, written, service]


def tables(data: Path) -> None:
    """The files behind them, with one old row each."""
    data.mkdir(parents=True)
    old = {"driver_id": [0], "event_timestamp": [pd.Timestamp(START - timedelta(days=1))]}
    pd.DataFrame(old | {"trips": [1]}).to_parquet(data / "stats.parquet", index=False)
    for policy in POLICIES:
        frame = pd.DataFrame(old | {"is_fraud": [0], "score": [0.5], "labeler": ["old"]})
        frame[KEPT].to_parquet(data / f"{policy}.parquet", index=False)
    two = pd.DataFrame(old | {"trip_id": ["t"], "verdict": ["fine"], "labeler": ["old"]})
    two.to_parquet(data / "two.parquet", index=False)


def said(driver: int, is_fraud: int, labeler: str, minute: int, score: float | None = None) -> dict[str, object]:
    """What a labeler says of a driver."""
    at = START + timedelta(minutes=minute)
    row = {"driver_id": driver, "is_fraud": is_fraud, "score": score, "labeler": labeler}
    return row | {"event_timestamp": at}


# three against one, and the one is the last: a majority and a list of priorities would say 1
DISPUTE = [
    said(1, 1, "ann", 1, 0.1),
    said(1, 1, "bob", 2, 0.2),
    said(2, 0, "bob", 2),
    said(1, 1, "eve", 3, 0.3),
    said(1, 0, "zoe", 4),
]


@dataclass
class Pair:
    """Our server and Feast's, each over files of its own."""

    larder: Larder
    repo: Path
    data: Path
    feasts: FeastServer
    theirs: Path

    @property
    def store(self) -> FeatureStore:
        """The SDK on our server."""
        return store(self.repo)

    def post(self, path: str, body: object) -> None:
        """The same to both."""
        for server in (self.larder, self.feasts):
            response = server.post(path, body)
            assert response.status_code == 200, response.text

    def read(self, features: list[str] | str, entities: dict[str, list[object]]) -> tuple[object, object]:
        """What both say, statuses and times as well."""
        asked = {"feature_service": features} if isinstance(features, str) else {"features": features}
        answers = [
            server.post("/get-online-features", asked | {"entities": entities}) for server in (self.larder, self.feasts)
        ]
        assert [a.status_code for a in answers] == [200, 200], answers
        columns = []
        for answer in answers:
            body = answer.json()
            columns.append(dict(zip(body["metadata"]["feature_names"], body["results"], strict=True)))
        return columns[0], columns[1]


@pytest.fixture(scope="module")
def pair(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers with the same objects."""
    work = tmp_path_factory.mktemp("labels")
    for where in ("ours", "feasts"):
        tables(work / where)
    repo, ports = work / "repo", Ports.free()
    write_config(repo, PROJECT, ports)
    larder = module_larder(repo, ports=ports)
    store(repo).apply(objects(work / "ours"))  # type: ignore[arg-type]
    theirs = FeastServer(work / "feast", PROJECT).start(objects(work / "feasts"))
    yield Pair(larder, repo, work / "ours", theirs, work / "feasts")
    theirs.stop()


def frame(rows: list[dict[str, object]]) -> dict[str, list[object]]:
    """Rows as columns of JSON."""
    plain = [{k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()} for row in rows]
    return {name: [row[name] for row in plain] for name in plain[0]}


def values(answer: object) -> dict[str, list[object]]:
    """The values of a JSON answer by column."""
    assert isinstance(answer, dict)
    return {name: column["values"] for name, column in answer.items()}


def test_they_are_listed_and_described_as_feast_does(pair: Pair) -> None:
    ours, feasts = pair.store, pair.feasts.store
    names = {*POLICIES, "two_keys", "written"}
    assert {view.name for view in ours.list_label_views()} == {view.name for view in feasts.list_label_views()} == names
    for name in names:
        mine, theirs = ours.get_label_view(name), feasts.get_label_view(name)
        for what in ("name", "entities", "ttl", "online", "description", "tags", "owner", "reference_feature_view"):
            assert getattr(mine, what) == getattr(theirs, what), what
        assert (mine.labeler_field, mine.conflict_policy) == (theirs.labeler_field, theirs.conflict_policy)
        assert set(mine.schema) == set(theirs.schema)
        assert mine.conflict_policy.value == (name if name in POLICIES else "last_write_wins")
    assert {v.name for v in ours.list_label_views(tags={"team": "x"})} == set(POLICIES)
    listed = [feast(repo, "label-views", "list").splitlines() for repo in (pair.repo, pair.feasts.repo)]
    assert sorted(listed[0]) == sorted(listed[1])
    assert any("majority_vote" in line for line in listed[0])
    described = feast(pair.repo, "label-views", "describe", "majority_vote")
    assert "MAJORITY_VOTE" in described
    assert "stats" in described


@pytest.mark.parametrize("policy", POLICIES)
def test_online_the_last_write_wins_whatever_the_policy(pair: Pair, policy: str) -> None:
    for row in DISPUTE:
        pair.post("/push", {"push_source_name": f"{policy}_push", "df": frame([row]), "to": "online"})
    entities: dict[str, list[object]] = {"driver_id": [1, 2, 3]}
    mine, theirs = pair.read([f"{policy}:is_fraud", f"{policy}:labeler"], entities)
    assert mine == theirs
    assert values(mine)["is_fraud"] == [0, 0, None]
    assert values(mine)["labeler"] == ["zoe", "bob", None]
    # a null that the last one wrote is what they said (Feast makes a NaN of it, and calls that present)
    mine, theirs = pair.read([f"{policy}:score"], entities)
    assert isinstance(mine, dict)
    assert mine["score"]["statuses"] == ["NULL_VALUE", "NULL_VALUE", "NOT_FOUND"]
    assert isinstance(theirs, dict)
    assert theirs["score"]["statuses"] == ["PRESENT", "PRESENT", "NOT_FOUND"]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_last_is_the_latest_and_not_who_comes_last(pair: Pair, policy: str) -> None:
    rows = [said(5, 1, "ann", 10, 0.1), said(5, 0, "bob", 5, 0.2)]
    for row in rows:
        pair.post("/push", {"push_source_name": f"{policy}_push", "df": frame([row]), "to": "online"})
    mine, theirs = pair.read([f"{policy}:is_fraud", f"{policy}:labeler"], {"driver_id": [5]})
    assert values(mine)["labeler"] == ["ann"]
    # Feast takes the older word for the newer
    assert values(theirs)["labeler"] == ["bob"]
    # one who says it again at the same time corrects it
    pair.post(
        "/push", {"push_source_name": f"{policy}_push", "df": frame([said(5, 0, "ann", 10, 0.9)]), "to": "online"}
    )
    mine, theirs = pair.read([f"{policy}:is_fraud", f"{policy}:score"], {"driver_id": [5]})
    assert mine == theirs
    assert values(mine)["score"] == [0.9]


@pytest.mark.parametrize("name", ["http", "grpc", "sdk"])
def test_every_face_pushes_and_reads(pair: Pair, name: str) -> None:
    faces: dict[str, Face] = {"http": Http(pair.larder), "grpc": Grpc(pair.larder), "sdk": Sdk(pair.store)}
    face, driver = faces[name], 100 + list(faces).index(name)
    face.push("majority_vote_push", [said(driver, 1, "ann", 1, 0.5), said(driver, 0, "bob", 2, 0.25)])
    answer = face.read([f"majority_vote:{label}" for label in LABELS], {"driver_id": [driver]})
    assert [answer.values(label) for label in LABELS] == [[0], [0.25], ["bob"]]


@pytest.mark.parametrize("name", ["http", "grpc"])
def test_label_views_are_written_to_by_name(pair: Pair, name: str) -> None:
    face: Face = Http(pair.larder) if name == "http" else Grpc(pair.larder)
    driver = 110 + (name == "http")
    face.write("written", [{"driver_id": driver, "note": "by hand", "event_timestamp": START}])
    assert face.read(["written:note"], {"driver_id": [driver, -1]}).values("note") == ["by hand", None]
    face.write("majority_vote", [said(driver, 1, "ann", 1, 0.5)])
    assert face.read(["majority_vote:labeler"], {"driver_id": [driver]}).values("labeler") == ["ann"]
    # Feast knows no label views there: what has no push source can be applied, and never be filled
    body = {"feature_view_name": "written", "df": frame([{"driver_id": 1, "note": "", "event_timestamp": START}])}
    assert pair.feasts.post("/write-to-online-store", body).status_code == 404


def test_labels_expire(pair: Pair) -> None:
    rows = [
        {"driver_id": 1, "trip_id": trip, "verdict": verdict, "labeler": "ann", "event_timestamp": at}
        for trip, verdict, at in (("old", "fine", NOW - timedelta(hours=3)), ("new", "odd", NOW - timedelta(hours=1)))
    ]
    pair.post("/push", {"push_source_name": "two_push", "df": frame(rows), "to": "online"})
    entities: dict[str, list[object]] = {"driver_id": [1, 1, 2], "trip_id": ["old", "new", "new"]}
    mine, theirs = pair.read(["two_keys:verdict"], entities)
    assert isinstance(mine, dict)
    assert isinstance(theirs, dict)
    assert mine["verdict"]["statuses"] == ["OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND"]
    assert values(mine)["verdict"] == [None, "odd", None]
    assert values(theirs)["verdict"][1:] == ["odd", None]


def test_a_service_reads_labels_beside_features(pair: Pair) -> None:
    pair.post(
        "/push", {"push_source_name": "last_write_wins_push", "df": frame([said(30, 1, "ann", 1)]), "to": "online"}
    )
    row = {"driver_id": 30, "trips": 12, "event_timestamp": START}
    pair.post("/write-to-online-store", {"feature_view_name": "stats", "df": frame([row])})
    mine, theirs = pair.read("training", {"driver_id": [30, 31]})
    assert mine == theirs
    assert values(mine) == {"driver_id": [30, 31], "trips": [12, None], "is_fraud": [1, None]}


def rows_of(file: Path) -> pd.DataFrame:
    """All rows of a file, in order of driver, time and labeler."""
    found = pd.read_parquet(file)[KEPT]
    found["event_timestamp"] = pd.to_datetime(found["event_timestamp"], utc=True).astype("datetime64[us, UTC]")
    return found.sort_values(["driver_id", "event_timestamp", "labeler"]).reset_index(drop=True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("to", ["offline", "online_and_offline"])
def test_offline_every_word_is_kept(pair: Pair, policy: str, to: str) -> None:
    driver = 200 + (to == "offline")
    rows = [row | {"driver_id": driver} for row in DISPUTE if row["driver_id"] == 1]
    ours, theirs = (data / f"{policy}.parquet" for data in (pair.data, pair.theirs))
    before = len(rows_of(ours))
    pair.post("/push", {"push_source_name": f"{policy}_push", "df": frame(rows), "to": to})
    pd.testing.assert_frame_equal(rows_of(ours), rows_of(theirs))
    assert len(rows_of(ours)) == before + 4
    mine, feasts = pair.read([f"{policy}:labeler"], {"driver_id": [driver]})
    assert mine == feasts
    assert values(mine)["labeler"] == [None if to == "offline" else "zoe"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_training_set_has_the_last_word_of_its_time(pair: Pair, policy: str) -> None:
    driver = 300
    rows = [row | {"driver_id": driver} for row in DISPUTE if row["driver_id"] == 1]
    pair.post("/push", {"push_source_name": f"{policy}_push", "df": frame(rows), "to": "offline"})
    times = [START + timedelta(minutes=minute, seconds=30) for minute in (0, 1, 2, 3, 4)]
    asked = pd.DataFrame({"driver_id": [driver] * 5, "event_timestamp": times})
    features = [f"{policy}:is_fraud", f"{policy}:labeler"]
    ours, feasts = (
        sdk.get_historical_features(asked, features).to_df().sort_values("event_timestamp").reset_index(drop=True)
        for sdk in (pair.store, pair.feasts.store)
    )
    # whatever the policy, in both: Feast resolves by it in the pages of its UI and nowhere else
    assert ours["labeler"].tolist() == [None, "ann", "bob", "eve", "zoe"]
    assert ours["is_fraud"].tolist()[1:] == [1, 1, 1, 0]
    # Feast loses the row of whom nobody has spoken yet
    pd.testing.assert_series_equal(ours["labeler"][1:].reset_index(drop=True), feasts["labeler"])
    assert feasts["is_fraud"].tolist() == [1, 1, 1, 0]


def test_they_are_not_materialized(pair: Pair) -> None:
    body = {"start_ts": START.isoformat(), "end_ts": NOW.isoformat(), "feature_views": ["majority_vote"]}
    response = pair.larder.post("/materialize", body)
    assert response.status_code == 422, response.text
    said_so = (
        "LabelView majority_vote cannot be materialized via materialize(). Use FeatureStore.push() to write labels."
    )
    assert said_so in response.text
    with pytest.raises(ValueError, match="cannot be materialized"):
        pair.feasts.store.materialize(START, NOW, ["majority_vote"])
    # all views are all that can be: labels are left out and nobody is refused
    everything = pair.larder.post("/materialize", {"start_ts": START.isoformat(), "end_ts": NOW.isoformat()})
    assert everything.status_code == 200, everything.text


def test_a_changed_policy_keeps_the_labels(pair: Pair) -> None:
    view = label_view("changing", pair.data)
    pd.DataFrame([said(0, 0, "old", 0, 0.5)]).to_parquet(pair.data / "changing.parquet", index=False)
    pair.store.apply([DRIVER, view])
    face = Http(pair.larder)
    face.push("changing_push", [said(1, 1, "ann", 1)])
    created = pair.store.get_label_view("changing").created_timestamp
    changed = label_view("changing", pair.data, ConflictPolicy.MAJORITY_VOTE)
    changed.labeler_field = "who"
    pair.store.apply([DRIVER, changed])
    got = pair.store.get_label_view("changing")
    assert (got.conflict_policy, got.labeler_field) == (ConflictPolicy.MAJORITY_VOTE, "who")
    assert got.created_timestamp == created
    assert got.last_updated_timestamp is not None
    assert created is not None
    assert got.last_updated_timestamp > created
    assert face.read(["changing:labeler"], {"driver_id": [1]}).values("labeler") == ["ann"]


def test_views_of_all_kinds_share_their_names(pair: Pair) -> None:
    file = FileSource(name="stats_file", path=str(pair.data / "stats.parquet"), timestamp_field="event_timestamp")
    taken = FeatureView(name="majority_vote", entities=[DRIVER], source=file, schema=[Field(name="trips", dtype=Int64)])
    request = pb.ApplyFeatureViewRequest(feature_view=taken.to_proto(), project=PROJECT)
    with pytest.raises(grpc.RpcError) as raised:
        rpc(pair.larder.ports).ApplyFeatureView(request)
    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert ConflictingFeatureViewNames.__name__ in raised.value.details()


def test_a_deleted_label_view_takes_its_labels_along(pair: Pair) -> None:
    pd.DataFrame([said(0, 0, "old", 0, 0.5)]).to_parquet(pair.data / "gone.parquet", index=False)
    pair.store.apply([DRIVER, label_view("gone", pair.data)])
    face = Http(pair.larder)
    face.push("gone_push", [said(1, 1, "ann", 1)])
    assert face.read(["gone:labeler"], {"driver_id": [1]}).values("labeler") == ["ann"]
    pair.store.registry.delete_feature_view("gone", PROJECT)
    with pytest.raises(FeatureViewNotFoundException):
        pair.store.get_label_view("gone")
    asked = {"features": ["gone:labeler"], "entities": {"driver_id": [1]}}
    wait_until(lambda: pair.larder.post("/get-online-features", asked).status_code == 404, "the view to be unknown")
    # the same name again, and nothing of before
    pair.store.apply([DRIVER, label_view("gone", pair.data)])
    assert face.read(["gone:labeler"], {"driver_id": [1]}).values("labeler") == [None]

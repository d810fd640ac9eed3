"""Delta tables with deletion vectors: what is deleted is in no training set, pull, materialization or count.

What is left is held against another reader of Delta tables (`deltalake`'s query engine).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.remote import RemoteOfflineStore
from feast.types import Int64
from feast.value_type import ValueType

from conftest import StartLarder
from deletion_vectors import Commits
from larder_env.repo import store, write_config
from larder_env.s3 import S3
from larder_env.server import Larder, Ports

BEGIN = pd.Timestamp("2024-01-01", tz="UTC")
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
DRIVERS = 50
FILE = 70_000
"""The rows of a file: so many that it is read in pieces."""
GROUP = 7000
"""Of a row group."""
STEP = pd.Timedelta(seconds=10)
DELETED: dict[str, list[set[int]]] = {
    # of three files; every kind of container, a whole row group, the first row and the last, a whole file
    "u": [{*range(0, FILE, 3), *range(3 * GROUP, 4 * GROUP)}, {FILE - 1}, set(range(1500, 68_000))],
    "i": [{0, 1, 2, GROUP, 5555}, set(), {FILE - 1}],
    "p": [set(range(FILE)), set(range(1, FILE, 2)), {*range(10), *range(4 * GROUP, 6 * GROUP + 1)}],
}


@dataclass
class World:
    """A server and its client."""

    larder: Larder
    features: FeatureStore
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    @property
    def data(self) -> Path:
        """Where the tables are."""
        return self.larder.repo / "data"

    def view(self, name: str, tags: dict[str, str] | None = None, path: str = "") -> FeatureView:
        """Apply a view over a table."""
        source = FileSource(
            name=f"{name}_source",
            path=path or f"data/{name.split('__')[0]}",
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
            file_format=DeltaFormat(),
        )
        schema = [Field(name="driver_id", dtype=Int64), Field(name="trips", dtype=Int64)]
        ttl = timedelta(0)
        view = FeatureView(name=name, entities=[DRIVER], ttl=ttl, schema=schema, source=source, tags=tags or {})
        self.features.apply([DRIVER, source, view])
        return view

    def asked(self, count: int) -> pd.DataFrame:
        """Entity rows at any time."""
        at = BEGIN + self.rng.integers(0, 3 * FILE, count) * STEP + pd.Timedelta(seconds=5)
        return pd.DataFrame({"driver_id": self.rng.integers(0, DRIVERS, count), "event_timestamp": at})

    def trips(self, view: str, asked: pd.DataFrame | str) -> list[object]:
        """The feature of these rows."""
        found: pa.Table = self.features.get_historical_features(asked, [f"{view}:trips"]).to_arrow()
        return list(found["trips"].to_pylist())

    def fails(self, view: str, *words: str) -> None:
        """Reading it is a clear error with these words."""
        with pytest.raises(Exception, match=r".") as raised:
            self.trips(view, self.asked(1))
        assert not isinstance(raised.value, fl.FlightInternalError), raised.value
        for word in words:
            assert word in str(raised.value), raised.value


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A server without tables."""
    repo = tmp_path_factory.mktemp("deletions") / "repo"
    write_config(repo, "deletions", Ports.free())
    larder = module_larder(repo)
    (repo / "data").mkdir(exist_ok=True)
    return World(larder, store(repo))


def rows(rng: np.random.Generator, number: int) -> pa.Table:
    """The rows of a file, in no order; trips tell all of them apart."""
    places = rng.permutation(FILE) * 3 + number
    at = BEGIN + places * STEP
    frame = pd.DataFrame({"driver_id": rng.integers(0, DRIVERS, FILE), "trips": places, "event_timestamp": at})
    frame["event_timestamp"] = frame["event_timestamp"].astype("datetime64[us, UTC]")
    frame["created"] = frame["event_timestamp"]
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def table(world: World, name: str) -> tuple[Commits, list[str]]:
    """Three files of several row groups and pages, and their names in the order of their rows."""
    commits, names = Commits(world.data / name), list[str]()
    for number in range(3):
        whole = rows(world.rng, number)
        write_deltalake(str(commits.table), whole, mode="append")
        (new,) = set(commits.files()) - set(names)
        pages = {"row_group_size": GROUP, "data_page_size": 1000, "write_page_index": True, "write_batch_size": 100}
        pq.write_table(whole, commits.table / new, **pages)
        # written anew, it is of another size than the log says
        log, size = commits.log[-1], commits.files()[new]["size"]
        assert f'"size":{size},' in log.read_text()
        log.write_text(log.read_text().replace(f'"size":{size},', f'"size":{(commits.table / new).stat().st_size},'))
        names.append(new)
    return commits, names


def left(commits: Commits) -> pd.DataFrame:
    """What another reader finds."""
    found = QueryBuilder().register("t", DeltaTable(str(commits.table))).execute("SELECT * FROM t").read_all()
    frame: pd.DataFrame = pa.table(found).to_pandas()
    return frame.sort_values("event_timestamp", ignore_index=True)


def as_of(frame: pd.DataFrame, asked: pd.DataFrame) -> list[object]:
    """The last row of each entity row."""
    order = asked.assign(at=range(len(asked))).sort_values("event_timestamp")
    order["event_timestamp"] = order["event_timestamp"].astype("datetime64[us, UTC]")
    found = pd.merge_asof(order, frame[["driver_id", "trips", "event_timestamp"]], on="event_timestamp", by="driver_id")
    return [None if pd.isna(value) else int(value) for value in found.sort_values("at")["trips"]]


@pytest.mark.parametrize("stored", DELETED)
def test_deleted_rows_are_nowhere(world: World, stored: str) -> None:
    """By vectors in the log, in a file by its name, in a file by its whole path."""
    name = f"table_{stored}"
    commits, names = table(world, name)
    deleted = {names[i]: some for i, some in enumerate(DELETED[stored]) if some}
    view, whole = world.view(name), left(commits)
    few = world.asked(3)
    assert world.trips(name, few) == as_of(whole, few)
    commits.delete(deleted, stored, folder="ab" if stored == "u" else "")
    kept = left(commits)
    assert len(kept) == 3 * FILE - sum(map(len, DELETED[stored]))
    # looked up by the reader's filter, joined as they come; sorted
    for count in (3, 5000):
        asked = world.asked(count)
        assert world.trips(name, asked) == as_of(kept, asked), count
    world.view(f"{name}__known", tags={"larder.known_at": "true"})
    asked = world.asked(5000)
    assert world.trips(f"{name}__known", asked) == as_of(kept, asked)
    if stored == "u":
        # the history held in memory
        asked = world.asked(4 * len(kept))
        assert world.trips(name, asked) == as_of(kept, asked)
    # counted, without a column and with a filter
    for where, frame in (("", kept), (" WHERE driver_id < 7", kept[kept["driver_id"] < 7])):
        text = f"SELECT count(*) AS driver_id, TIMESTAMP '2030-01-01' AS event_timestamp FROM {name}_source{where}"
        got = world.features.get_historical_features(text, [f"{name}:trips"]).to_df()
        assert got["driver_id"].tolist() == [len(frame)]
    # and of the first of them, whatever a limit leaves out
    text = f"SELECT trips AS driver_id, event_timestamp FROM {name}_source LIMIT 2500"
    found = world.features.get_historical_features(text, [f"{name}:trips"]).to_df()["driver_id"]
    assert (len(found), set(found) - set(kept["trips"])) == (2500, set())

    pull = {
        "config": world.features.config,
        "data_source": view.batch_source,
        "join_key_columns": ["driver_id"],
        "feature_name_columns": ["trips"],
        "timestamp_field": "event_timestamp",
        "created_timestamp_column": "created",
        "start_date": BEGIN.to_pydatetime(),
        "end_date": (BEGIN + pd.Timedelta(days=30)).to_pydatetime(),
    }
    everything = RemoteOfflineStore.pull_all_from_table_or_query(**pull).to_df()
    assert sorted(everything["trips"]) == sorted(kept["trips"])
    last = kept.drop_duplicates("driver_id", keep="last").sort_values("driver_id")
    newest = RemoteOfflineStore.pull_latest_from_table_or_query(**pull).to_df().sort_values("driver_id")
    assert newest["trips"].tolist() == last["trips"].tolist()
    world.features.materialize(BEGIN, BEGIN + pd.Timedelta(days=30), feature_views=[name])
    keys = [{"driver_id": driver} for driver in last["driver_id"]]
    served = world.features.get_online_features([f"{name}:trips"], keys).to_dict()
    assert served["trips"] == last["trips"].tolist()


def test_vectors_follow_each_other_and_go_into_a_checkpoint(world: World) -> None:
    commits, (first, second, _) = table(world, "changing")
    world.view("changing")
    asked = world.asked(1000)

    def check(count: int) -> None:
        kept = left(commits)
        assert len(kept) == 3 * FILE - count
        assert world.trips("changing", asked) == as_of(kept, asked)

    commits.delete({first: range(100), second: range(500)})
    check(600)
    commits.delete({first: range(4000)}, "i")
    check(4500)
    DeltaTable(str(commits.table)).create_checkpoint()
    for commit in commits.log[:-1]:
        commit.rename(commit.with_suffix(".aside"))
    check(4500)
    for aside in (commits.table / "_delta_log").glob("*.aside"):
        aside.rename(aside.with_suffix(".json"))
    # what a checkpoint says of a vector is removed by what a commit says of it
    commits.delete({second: {7}})
    check(4001)
    commits.commit({first: None})
    check(1)
    # files are written anew without their deleted rows
    DeltaTable(str(commits.table)).delete("driver_id = 1")
    asked["driver_id"] = 1
    assert world.trips("changing", asked) == [None] * len(asked)


def test_a_damaged_vector_is_an_error_with_its_name(world: World) -> None:
    commits, (first, *_) = table(world, "damaged")
    world.view("damaged")
    file = commits.delete({first: range(0, FILE, 2)})
    assert file is not None
    whole = file.read_bytes()
    for content, said in (
        (whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], "checksum"),
        (whole[:-1], "ends before byte"),
        (b"\2" + whole[1:], "version 2"),
        (b"", "empty"),
    ):
        file.write_bytes(content)
        world.fails("damaged", "damaged", file.name, said)
    file.unlink()
    world.fails("damaged", "damaged", file.name, "not there")
    file.write_bytes(whole)
    world.trips("damaged", world.asked(1))
    commits.delete({first: [FILE]})
    world.fails("damaged", first, f"beyond the file's {FILE}")
    commits.commit({first: {"storageType": "u", "pathOrInlineDv": "short", "sizeInBytes": 1, "cardinality": 1}})
    world.fails("damaged", "damaged", "short")
    outside = {"storageType": "p", "pathOrInlineDv": "file:///etc/passwd", "sizeInBytes": 1, "cardinality": 1}
    commits.commit({first: outside})
    world.fails("damaged", "outside of itself", "/etc/passwd")


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    """An S3 server with a bucket."""
    server = S3(tmp_path / "s3").start()
    server.client().create_dir("features")
    yield server
    server.stop()


def test_vectors_in_an_object_store(world: World, s3: S3, larder: StartLarder, tmp_path: Path) -> None:
    write_config(tmp_path / "repo", "deletions", Ports.free())
    server = larder(tmp_path / "repo", env={**s3.environment, "AWS_ENDPOINT_URL": s3.endpoint})
    there = World(server, store(tmp_path / "repo"))
    there.data.mkdir(exist_ok=True)
    for stored in DELETED:
        name = f"object_{stored}"
        commits, names = table(there, name)
        commits.uri = f"s3://features/{name}"
        commits.delete({names[i]: some for i, some in enumerate(DELETED[stored]) if some}, stored)
        fs.copy_files(str(commits.table), f"features/{name}", destination_filesystem=s3.client())
        there.view(name, path=commits.uri)
        commits.uri = ""
        gone = set().union(*(rows_of(commits, names[i], some) for i, some in enumerate(DELETED[stored])))
        kept = pd.concat([pq.read_table(commits.table / file).to_pandas() for file in names])
        kept = kept[~kept["trips"].isin(gone)].sort_values("event_timestamp")
        for count in (3, 5000):
            asked = there.asked(count)
            assert there.trips(name, asked) == as_of(kept, asked)


def rows_of(commits: Commits, file: str, places: set[int]) -> set[int]:
    """What tells the rows at these places of a file from all others."""
    trips = pq.read_table(commits.table / file)["trips"].to_numpy()
    return {int(trips[place]) for place in places}

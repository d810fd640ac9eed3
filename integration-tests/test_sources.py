"""Batch sources of every kind: object stores, hive partitions, Delta tables, files that changed or are damaged."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.data_format import DeltaFormat
from feast.data_source import PushMode
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.types import Float64, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env.between import Between
from larder_env.repo import store, write_config
from larder_env.s3 import REGION, S3, SECRET
from larder_env.server import HOST, Larder, Ports

BEGIN = pd.Timestamp("2024-01-01", tz="UTC")
BUCKET = "features"
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
TRIPS = [Field(name="trips", dtype=Int64)]
KINDS = ["file.parquet", "directory", "slash/", "glob/*/part-?.parquet"]


def rows(first: int, days: int = 3, drivers: Sequence[int] = (1, 2)) -> pd.DataFrame:
    """A row per driver and day; trips tell them all apart."""
    frame = pd.DataFrame(
        [
            {
                "driver_id": driver,
                "trips": first + 100 * driver + day,
                "event_timestamp": BEGIN + pd.Timedelta(days=day),
            }
            for driver in drivers
            for day in range(days)
        ]
    )
    return frame.assign(event_timestamp=frame.event_timestamp.astype("datetime64[us, UTC]"))


def table(frame: pd.DataFrame) -> pa.Table:
    """As Arrow, without pandas' metadata."""
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


@dataclass
class World:
    """A server, its client, and an S3 server that both may use."""

    s3: S3
    larder: Larder
    features: FeatureStore
    applied: int = field(default=0)

    @property
    def data(self) -> Path:
        """Where local sources are."""
        return self.larder.repo / "data"

    def view(
        self,
        path: str,
        *fields: Field,
        endpoint: str | None = None,
        delta: bool = False,
        pushed: bool = False,
        when: str = "event_timestamp",
        online: bool = False,
    ) -> str:
        """Apply a view over a source at a path; gives its name."""
        self.applied += 1
        name = f"view{self.applied}"
        file = FileSource(
            name=f"{name}_source",
            path=path,
            timestamp_field=when,
            s3_endpoint_override=endpoint,
            file_format=DeltaFormat() if delta else None,
        )
        source = PushSource(name=f"{name}_push", batch_source=file) if pushed else file
        schema = [Field(name="driver_id", dtype=Int64), *(fields or TRIPS)]
        view = FeatureView(name=name, entities=[DRIVER], ttl=timedelta(0), schema=schema, source=source, online=online)
        self.features.apply([DRIVER, *([file, source] if pushed else [source]), view])
        return name

    def read(self, view: str, *names: str, at: Sequence[int] = (0, 1, 2), drivers: Sequence[int] = (1, 2)) -> pa.Table:
        """Features at noon of some days, a row per driver and day in this order."""
        asked = pd.DataFrame(
            [
                {"driver_id": driver, "event_timestamp": BEGIN + pd.Timedelta(days=day, hours=12)}
                for driver in drivers
                for day in at
            ]
        )
        refs = [f"{view}:{name}" for name in names or ("trips",)]
        return self.features.get_historical_features(asked, refs).to_arrow()

    def trips(self, view: str, **more: Sequence[int]) -> list[object]:
        """The feature `trips` of these rows."""
        return list(self.read(view, **more)["trips"].to_pylist())

    def fails(self, view: str, *words: str) -> str:
        """Reading it is a clear error, not a 5xx, with these words and no credential."""
        with pytest.raises(Exception, match=r".") as raised:
            self.read(view)
        assert not isinstance(raised.value, fl.FlightInternalError), raised.value
        said = str(raised.value)
        for word in words:
            assert word in said, said
        assert SECRET not in said
        return said

    def put(self, key: str, frame: pd.DataFrame) -> None:
        """A Parquet object."""
        pq.write_table(table(frame), f"{BUCKET}/{key}", filesystem=self.s3.client())

    def get(self, key: str) -> pd.DataFrame:
        """The rows of an object, or of all below a prefix."""
        found: pd.DataFrame = pq.read_table(f"{BUCKET}/{key}", filesystem=self.s3.client()).to_pandas()
        return found


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server with a bucket, for the tests of this file."""
    server = S3(tmp_path_factory.mktemp("s3")).start()
    server.client().create_dir(BUCKET)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def world(s3: S3, module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A server that has the S3 server's address and credentials from its environment."""
    repo = tmp_path_factory.mktemp("sources") / "repo"
    write_config(repo, "sources", Ports.free())
    larder = module_larder(repo, env={**s3.environment, "AWS_ENDPOINT_URL": s3.endpoint})
    (repo / "data").mkdir(exist_ok=True)
    return World(s3, larder, store(repo))


# --- object stores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", [False, True], ids=["environment", "s3_endpoint_override"])
@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_read_as_file_directory_and_pattern(world: World, kind: str, override: bool) -> None:
    root = f"read-{override}"
    if kind.endswith(".parquet") and "*" not in kind:
        world.put(f"{root}/{kind}", rows(0))
    else:
        top = kind.split("/")[0]
        world.put(f"{root}/{top}/a/part-1.parquet", rows(0, drivers=[1]))
        world.put(f"{root}/{top}/b/part-2.parquet", rows(0, drivers=[2]))
    view = world.view(f"s3://{BUCKET}/{root}/{kind}", endpoint=world.s3.endpoint if override else None)
    assert world.trips(view) == [100, 101, 102, 200, 201, 202]


def test_an_object_replaced_between_queries_is_read_anew(world: World) -> None:
    world.put("again/file.parquet", rows(0))
    view = world.view(f"s3://{BUCKET}/again/file.parquet")
    assert world.trips(view, at=[0]) == [100, 200]
    world.put("again/file.parquet", rows(1000))
    assert world.trips(view, at=[0]) == [1100, 1200]


def test_a_large_object_is_read_in_ranges(world: World) -> None:
    days = 20_000
    frame = pd.DataFrame(
        {
            "driver_id": [1] * days,
            "trips": range(days),
            "noise": [f"{n * 7919 % 1_000_003:064d}" for n in range(days)],
            "event_timestamp": (BEGIN + pd.to_timedelta(range(days), unit="min")).astype("datetime64[us, UTC]"),
        }
    )
    client = world.s3.client()
    pq.write_table(table(frame), f"{BUCKET}/large.parquet", filesystem=client, row_group_size=1000)
    view = world.view(f"s3://{BUCKET}/large.parquet")
    asked = frame[["driver_id", "event_timestamp"]].iloc[[0, 9_999, 19_999]]
    got = world.features.get_historical_features(asked, [f"{view}:trips"]).to_df()
    assert got["trips"].tolist() == [0, 9_999, 19_999]


@pytest.mark.parametrize("kind", ["file.parquet", "directory", "slash/"])
def test_pushes_are_appended_to_objects(world: World, kind: str) -> None:
    key = f"pushed/{kind}"
    view = world.view(f"s3://{BUCKET}/{key}", pushed=True)
    batches = [rows(1000 * n, days=1) for n in range(6)]

    def push(batch: pd.DataFrame) -> None:
        store(world.larder.repo).push(f"{view}_push", batch, to=PushMode.OFFLINE)

    # There is nothing yet, and Feast's client asks a source for its columns before it writes: the first comes by HTTP.
    first = batches[0].assign(event_timestamp=batches[0].event_timestamp.dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    body = {"push_source_name": f"{view}_push", "df": first.to_dict("list"), "to": "offline"}
    assert world.larder.post("/push", body).status_code == 200
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(push, batches[1:]))
    want = sorted(trips for batch in batches for trips in batch["trips"])
    assert sorted(world.get(key.rstrip("/"))["trips"]) == want


def test_a_batch_is_written_to_objects_and_a_training_set_kept_there(world: World) -> None:
    world.put("written/first.parquet", rows(0, drivers=[3]))
    view = world.view(f"s3://{BUCKET}/written/", pushed=True)
    batch = table(rows(0))
    world.features.write_to_offline_store(view, batch.to_pandas())
    assert world.trips(view) == [100, 101, 102, 200, 201, 202]
    asked = rows(0)[["driver_id", "event_timestamp"]]
    job = world.features.get_historical_features(asked, [f"{view}:trips"])
    path = f"s3://{BUCKET}/kept/set.parquet"
    storage = SavedDatasetFileStorage(path=path)
    kept = FileSource(path=path, timestamp_field="event_timestamp")
    world.features.apply([kept])
    job.persist(storage)
    assert sorted(world.get("kept/set.parquet")["trips"]) == [100, 101, 102, 200, 201, 202]
    with pytest.raises(Exception, match="already exists"):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)


def test_logged_features_are_partitioned_in_a_store_and_read_from_there(world: World) -> None:
    """The folders that `partition_by` makes are a source's partitions again."""
    world.put("seen.parquet", rows(0))
    view = world.view(f"s3://{BUCKET}/seen.parquet")
    place = FileLoggingDestination(path=f"s3://{BUCKET}/logs", partition_by=["__log_date", "driver_id"])
    seen = world.features.get_feature_view(view)
    service = FeatureService(name="logged", features=[seen], logging_config=LoggingConfig(destination=place))
    world.features.apply([service])
    schema = FeatureServiceLoggingSource(service, "sources").get_schema(world.features.registry)
    logged = [
        {
            "driver_id": driver,
            f"{view}__trips": 1000 * turn + 100 * driver + day,
            "__log_timestamp": BEGIN + pd.Timedelta(days=day),
            "__log_date": (BEGIN + pd.Timedelta(days=day)).date(),
            "__request_id": f"request {driver}/{day}/{turn}",
        }
        for turn in range(2)
        for driver in (1, 2)
        for day in range(3)
    ]
    for turn in range(2):
        batch = pa.Table.from_pylist(logged[turn * 6 : turn * 6 + 6], schema=schema)
        world.features.write_logged_features(batch, service)
    found = world.s3.client().get_file_info(fs.FileSelector(f"{BUCKET}/logs", recursive=True))
    objects = [info.path for info in found if info.type == fs.FileType.File]
    folders = {path.removeprefix(f"{BUCKET}/logs/").rsplit("/", 1)[0] for path in objects}
    assert folders == {f"__log_date=2024-01-0{day}/driver_id={driver}" for day in (1, 2, 3) for driver in (1, 2)}
    assert len(objects) == 12, "each write made files of its own"
    again = world.view(f"s3://{BUCKET}/logs/", Field(name=f"{view}__trips", dtype=Int64), when="__log_timestamp")
    one = world.read(again, f"{view}__trips")
    assert {trips % 1000 for trips in one[f"{view}__trips"].to_pylist()} == {100, 101, 102, 200, 201, 202}
    every = world.features.get_historical_features(
        f'SELECT driver_id, __log_timestamp AS event_timestamp FROM "{again}_source"', [f"{view}:trips"]
    ).to_df()
    assert len(every) == len(logged)
    assert set(every["trips"]) == {100, 101, 102, 200, 201, 202}


def test_a_missing_object_or_bucket_is_named(world: World) -> None:
    world.fails(world.view(f"s3://{BUCKET}/no/such.parquet"), f"s3://{BUCKET}/no/such.parquet")
    world.fails(world.view(f"s3://{BUCKET}/nothing-here/"), f"s3://{BUCKET}/nothing-here/")
    world.fails(world.view("s3://no-such-bucket/x.parquet"), "s3://no-such-bucket/x.parquet")


def test_a_store_that_does_not_answer_is_named(world: World) -> None:
    dead = f"http://127.0.0.1:{Ports.free().online}"
    said = world.fails(world.view(f"s3://{BUCKET}/x.parquet", endpoint=dead), f"s3://{BUCKET}/x.parquet", "endpoint")
    assert SECRET not in said


def test_a_store_that_is_busy_for_a_moment_is_asked_again(world: World) -> None:
    world.put("busy.parquet", rows(0))
    refusals = iter([False, False])
    with Between(world.s3, lambda _method, _path: next(refusals, True)) as busy:
        view = world.view(f"s3://{BUCKET}/busy.parquet", endpoint=busy.endpoint)
        assert world.trips(view, at=[0]) == [100, 200]
        assert next(refusals, None) is None, "both were given"


def test_a_store_that_stays_busy_is_an_error_in_bounded_time(world: World) -> None:
    world.put("throttled.parquet", rows(0))
    with Between(world.s3, lambda _method, _path: False) as busy:
        view = world.view(f"s3://{BUCKET}/throttled.parquet", endpoint=busy.endpoint)
        began = time.monotonic()
        world.fails(view, f"s3://{BUCKET}/throttled.parquet", "try again")
        assert time.monotonic() - began < 60, "it is given up"
        assert 2 <= len(busy.asked) <= 20, busy.asked


@pytest.mark.parametrize("at", [1, 2], ids=["footer", "content"])
def test_an_object_replaced_while_it_is_read_is_read_anew_or_an_error(world: World, at: int) -> None:
    """Anew where nothing but its footer was asked for (the first GET), an error where its rows were (the second)."""
    path = f"moving{at}.parquet"
    world.put(path, rows(0))
    gets = 0
    replaced: list[int] = []

    def replace(method: str, _path: str) -> bool:
        nonlocal gets
        gets += method == "GET"
        if method == "GET" and gets == at:
            replaced.append(at)
            world.put(path, rows(5000, days=9, drivers=range(9)))
        return True

    with Between(world.s3, replace) as between:
        view = world.view(f"s3://{BUCKET}/{path}", endpoint=between.endpoint)
        if at == 2:
            world.fails(view, f"s3://{BUCKET}/{path}", "replaced", "ask again")
        assert world.trips(view, at=[0]) == [5100, 5200]
        assert replaced == [at]


def test_an_object_that_vanished_after_it_was_listed_is_an_error(world: World) -> None:
    for part in "ab":
        world.put(f"vanishing/{part}.parquet", rows(0))
    found = threading.Event()

    def vanish(method: str, path: str) -> bool:
        if method == "GET" and "b.parquet" in path and not found.is_set():
            found.set()
            world.s3.client().delete_file(f"{BUCKET}/vanishing/b.parquet")
        return True

    with Between(world.s3, vanish) as between:
        view = world.view(f"s3://{BUCKET}/vanishing/", endpoint=between.endpoint)
        world.fails(view, f"s3://{BUCKET}/vanishing/b.parquet", "not there")
        assert found.is_set()
        assert world.trips(view, at=[0]) == [100, 200]


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("kind", ["file.parquet", "directory"])
def test_two_servers_append_to_one_source(
    world: World, module_larder: StartLarder, tmp_path: Path, where: str, kind: str
) -> None:
    write_config(tmp_path / "repo", "sources", Ports.free())
    environment = {**world.s3.environment, "AWS_ENDPOINT_URL": world.s3.endpoint}
    other = World(
        world.s3, module_larder(tmp_path / "repo", env=environment), store(tmp_path / "repo"), applied=world.applied
    )
    local = tmp_path / kind
    if where == "s3":
        place = f"s3://{BUCKET}/two/{kind}"
        world.put("two/file.parquet" if kind == "file.parquet" else "two/directory/0.parquet", rows(0, days=1))
    else:
        place = str(local)
        if kind == "directory":
            local.mkdir()
        pq.write_table(table(rows(0, days=1)), local if kind == "file.parquet" else local / "0.parquet")
    with Between(world.s3, lambda _method, _path: True) as between, ThreadPoolExecutor(4) as pool:
        pushes = [(here, here.view(place, endpoint=between.endpoint, pushed=True)) for here in (world, other)]

        def push(number: int) -> None:
            here, view = pushes[number % 2]
            store(here.larder.repo).push(f"{view}_push", rows(1000 * number, days=1), to=PushMode.OFFLINE)

        list(pool.map(push, range(1, 13)))
    found = world.get(f"two/{kind}") if where == "s3" else pq.read_table(local).to_pandas()
    assert sorted(found["trips"]) == sorted(1000 * n + 100 * driver for n in range(13) for driver in (1, 2))
    world.applied = other.applied


@pytest.mark.parametrize("kind", ["file.parquet", "directory/"])
def test_objects_are_materialized(world: World, kind: str) -> None:
    key = f"materialized/{kind}"
    world.put(key if kind.endswith(".parquet") else f"{key}part.parquet", rows(0))
    view = world.view(f"s3://{BUCKET}/{key}", online=True)
    world.features.materialize(BEGIN, BEGIN + pd.Timedelta(days=1, hours=1), feature_views=[view])
    got = world.features.get_online_features([f"{view}:trips"], [{"driver_id": 1}, {"driver_id": 2}]).to_dict()
    assert got["trips"] == [101, 201]


def test_a_training_set_is_exported_to_a_store(world: World, larder_binary: Path) -> None:
    world.put("exported/trips.parquet", rows(0))
    view = world.view(f"s3://{BUCKET}/exported/trips.parquet")
    entities = world.data / "entities.parquet"
    pq.write_table(table(rows(0)[["driver_id", "event_timestamp"]]), entities)

    def export(out: str, *more: str) -> subprocess.CompletedProcess[str]:
        server = f"{HOST}:{world.larder.ports.offline}"
        words = ["--features", f"{view}:trips", "--entities", str(entities), "--server", server, "--out", out, *more]
        command = [str(larder_binary), "export", "-c", str(world.larder.repo), *words]
        environment = {**os.environ, **world.s3.environment, "AWS_ENDPOINT_URL": world.s3.endpoint}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    done = export(f"s3://{BUCKET}/exported/set.parquet")
    assert done.returncode == 0, done.stderr
    assert world.get("exported/set.parquet")["trips"].tolist() == rows(0)["trips"].tolist()
    again = export(f"s3://{BUCKET}/exported/set.parquet")
    assert (again.returncode, "already exists" in again.stderr) == (1, True), again
    assert export(f"s3://{BUCKET}/exported/set.parquet", "--overwrite").returncode == 0
    other = export("abfss://container/set.parquet")
    assert (other.returncode, "abfss" in other.stderr) == (1, True), other
    assert not Path("abfss:").exists(), "it is no directory"


def test_credentials_come_from_the_configuration_and_are_never_shown(
    s3: S3, larder: StartLarder, world: World, tmp_path: Path
) -> None:
    world.put("guarded.parquet", rows(0))
    for secret, allowed in ((SECRET, True), ("not-the-secret-at-all", False)):
        repo = tmp_path / str(allowed)
        write_config(repo, "guarded", Ports.free())
        with (repo / "larder.yaml").open("a") as config:
            config.write(
                "offline:\n  object_store:\n"
                f"    aws_access_key_id: {s3.environment['AWS_ACCESS_KEY_ID']}\n"
                f"    aws_secret_access_key: ${{GUARDED_SECRET}}\n    aws_region: {REGION}\n"
            )
        server = larder(repo, env={"GUARDED_SECRET": secret, "RUST_LOG": "debug"})
        (repo / "data").mkdir(exist_ok=True)
        here = World(s3, server, store(repo))
        view = here.view(f"s3://{BUCKET}/guarded.parquet", endpoint=s3.endpoint)
        if allowed:
            assert here.trips(view, at=[0]) == [100, 200]
        else:
            here.fails(view, f"s3://{BUCKET}/guarded.parquet", "credentials")
        assert secret not in server.log


# --- hive partitions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "s3"])
def test_folders_of_partitions_are_columns(world: World, where: str) -> None:
    whole = rows(0).assign(region=["north", "south"] * 3)
    fields = [*TRIPS, Field(name="year", dtype=Int64), Field(name="region", dtype=String)]
    for (day, region), part in whole.groupby([whole.event_timestamp.dt.day, "region"]):
        folder = f"hive/year={2020 + day}/region={region}"
        inside = part.drop(columns="region")
        if where == "s3":
            world.put(f"{folder}/part.parquet", inside)
        else:
            (world.data / folder).mkdir(parents=True)
            pq.write_table(table(inside), world.data / folder / "part.parquet")
    view = world.view(f"s3://{BUCKET}/hive" if where == "s3" else "data/hive", *fields)
    got = world.read(view, "trips", "year", "region").to_pandas()
    assert got["trips"].tolist() == whole["trips"].tolist()
    assert got["region"].tolist() == whole["region"].tolist()
    assert got["year"].tolist() == [2021, 2022, 2023] * 2


@pytest.mark.parametrize("spelt", ["%Y-%m-%d", "%Y-%m-%d %H%%3A%M%%3A%S"], ids=["day", "time"])
def test_keys_times_and_odd_names_may_be_in_the_path(world: World, spelt: str) -> None:
    """As Spark writes them: percent-encoded, null by Hive's name for it; the join key and the time are columns too."""
    whole = rows(0)
    regions = {"a/b c=d": "a%2Fb%20c%3Dd", "50%": "50%25", None: "__HIVE_DEFAULT_PARTITION__"}
    root = f"odd_{len(spelt)}"
    for at, encoded in enumerate(regions.values()):
        for driver in (1, 2):
            stamp = (BEGIN + pd.Timedelta(days=at)).strftime(spelt)
            folder = world.data / root / f"driver_id={driver}" / f"event_timestamp={stamp}" / f"region={encoded}"
            folder.mkdir(parents=True)
            part = whole[(whole.driver_id == driver) & (whole.event_timestamp == BEGIN + pd.Timedelta(days=at))]
            pq.write_table(table(part[["trips"]]), folder / "part.parquet")
    view = world.view(f"data/{root}", *TRIPS, Field(name="region", dtype=String))
    got = world.read(view, "trips", "region")
    assert got["trips"].to_pylist() == whole["trips"].tolist()
    assert got["region"].to_pylist() == list(regions) * 2


def damage(path: Path) -> None:
    """Garbage in the place of the data, under a footer that is as it was."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    end = len(content) - 8 - length
    content[4:end] = b"\xa5" * (end - 4)
    path.write_bytes(content)


def test_files_of_other_partitions_are_not_read(world: World) -> None:
    for year in (2023, 2024):
        folder = world.data / "pruned" / f"year={year}"
        folder.mkdir(parents=True)
        pq.write_table(table(rows(year)), folder / "part.parquet")
    damage(world.data / "pruned" / "year=2023" / "part.parquet")
    view = world.view("data/pruned", *TRIPS, Field(name="year", dtype=Int64))
    pq.write_table(table(rows(0)), world.data / "whole.parquet")
    whole = world.view("data/whole.parquet")
    sql = f"SELECT driver_id, event_timestamp FROM {view} WHERE year = 2024 ORDER BY driver_id, event_timestamp"
    got = world.features.get_historical_features(sql, [f"{whole}:trips"]).to_df()
    assert got["trips"].tolist() == rows(0)["trips"].tolist()
    world.fails(view, "year=2023/part.parquet", "damaged")


def test_files_with_and_without_partitions_are_refused(world: World) -> None:
    for folder in ("mixed/year=2023", "mixed"):
        (world.data / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows(0)), world.data / folder / "part.parquet")
    world.fails(world.view("data/mixed"), "mixed/year=2023/part.parquet", "mixed/part.parquet", "partition")


# --- Delta tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_delta_table_is_read_as_its_log_says(world: World, where: str) -> None:
    options = {"aws_endpoint": world.s3.endpoint, "aws_allow_http": "true", "aws_conditional_put": "etag"}
    options |= {name.lower(): value for name, value in world.s3.environment.items()}
    uri = f"s3://{BUCKET}/delta" if where == "s3" else str(world.data / "delta")
    access = options if where == "s3" else None
    write_deltalake(uri, table(rows(0)), storage_options=access)
    view = world.view(f"s3://{BUCKET}/delta" if where == "s3" else "data/delta", delta=True)
    assert world.trips(view, drivers=[1, 2, 3]) == [100, 101, 102, 200, 201, 202, None, None, None]
    write_deltalake(uri, table(rows(0, drivers=[3])), mode="append", storage_options=access)
    assert world.trips(view, drivers=[3]) == [300, 301, 302]
    write_deltalake(uri, table(rows(1000)), mode="overwrite", storage_options=access)
    assert world.trips(view, drivers=[1, 2, 3]) == [1100, 1101, 1102, 1200, 1201, 1202, None, None, None]
    DeltaTable(uri, storage_options=access).delete("driver_id = 2")
    assert world.trips(view) == [1100, 1101, 1102, None, None, None]
    DeltaTable(uri, storage_options=access).create_checkpoint()
    assert world.trips(view) == [1100, 1101, 1102, None, None, None]
    write_deltalake(uri, table(rows(2000, drivers=[2])), mode="append", storage_options=access)
    assert world.trips(view) == [1100, 1101, 1102, 2200, 2201, 2202]
    if where == "local":
        # what is before the checkpoint is not needed
        for commit in (world.data / "delta" / "_delta_log").glob("0000000000000000000[0-2].json"):
            commit.unlink()
        assert world.trips(view) == [1100, 1101, 1102, 2200, 2201, 2202]


def test_a_partitioned_delta_table_with_a_column_that_came_later(world: World) -> None:
    uri = str(world.data / "delta_parts")
    whole = rows(0).assign(region=["north", "a/b c", None] * 2)
    write_deltalake(uri, table(whole), partition_by=["region"])
    later = rows(0, drivers=[3]).assign(region="north", rate=[0.5, 1.5, 2.5])
    write_deltalake(uri, table(later), mode="append", schema_mode="merge")
    fields = [*TRIPS, Field(name="region", dtype=String), Field(name="rate", dtype=Float64)]
    view = world.view("data/delta_parts", *fields, delta=True)
    for _ in range(2):
        got = world.read(view, "trips", "region", "rate", drivers=[1, 2, 3]).to_pylist()
        assert [row["trips"] for row in got] == [100, 101, 102, 200, 201, 202, 300, 301, 302]
        assert [row["region"] for row in got] == ["north", "a/b c", None] * 2 + ["north"] * 3
        assert [row["rate"] for row in got] == [None] * 6 + [0.5, 1.5, 2.5]
        DeltaTable(uri).create_checkpoint()


def test_a_delta_table_may_have_its_times_as_spark_writes_them(world: World) -> None:
    """INT96, of which the log says `timestamp` like of any other."""
    uri = world.data / "delta_int96"
    whole = rows(0).assign(seen=rows(0)["event_timestamp"])
    write_deltalake(str(uri), table(whole))
    (file,) = uri.glob("*.parquet")
    pq.write_table(pq.read_table(file), file, use_deprecated_int96_timestamps=True)
    view = world.view("data/delta_int96", *TRIPS, Field(name="seen", dtype=UnixTimestamp), delta=True, online=True)
    got = world.read(view, "trips", "seen")
    assert got["trips"].to_pylist() == whole["trips"].tolist()
    assert got["seen"].to_pylist() == whole["seen"].tolist()
    world.features.materialize(BEGIN, BEGIN + pd.Timedelta(days=1, hours=1), feature_views=[view])
    served = world.features.get_online_features([f"{view}:trips"], [{"driver_id": 1}, {"driver_id": 2}]).to_dict()
    assert served["trips"] == [101, 201]


def test_a_delta_checkpoint_may_be_in_parts(world: World) -> None:
    uri = world.data / "delta_multipart"
    for driver in (1, 2):
        write_deltalake(str(uri), table(rows(0, drivers=[driver])), mode="append")
    DeltaTable(str(uri)).create_checkpoint()
    log = uri / "_delta_log"
    (checkpoint,) = log.glob("*.checkpoint.parquet")
    whole = pq.read_table(checkpoint)
    version = checkpoint.name.split(".")[0]
    for part, slice_ in enumerate((whole.slice(0, 1), whole.slice(1)), start=1):
        pq.write_table(slice_, log / f"{version}.checkpoint.{part:010}.0000000002.parquet")
    for needless in (checkpoint, *log.glob("*.json")):
        needless.unlink()
    view = world.view("data/delta_multipart", delta=True)
    assert world.trips(view) == [100, 101, 102, 200, 201, 202]
    (log / f"{version}.checkpoint.0000000002.0000000002.parquet").unlink()
    world.fails(view, "delta_multipart", "no whole checkpoint")


def test_what_is_no_delta_table_or_needs_more_is_refused(world: World) -> None:
    (world.data / "no_delta").mkdir()
    pq.write_table(table(rows(0)), world.data / "no_delta" / "part.parquet")
    world.fails(world.view("data/no_delta", delta=True), "no_delta", "_delta_log")
    uri = str(world.data / "delta_hole")
    for first in (0, 1000, 2000):
        write_deltalake(uri, table(rows(first)), mode="append")
    (Path(uri) / "_delta_log" / f"{1:020}.json").unlink()
    world.fails(world.view("data/delta_hole", delta=True), "delta_hole", "commit 1")
    uri = str(world.data / "delta_gone")
    write_deltalake(uri, table(rows(0)))
    next(Path(uri).glob("*.parquet")).unlink()
    world.fails(world.view("data/delta_gone", delta=True), "delta_gone", "vacuumed")
    mapped = str(world.data / "delta_mapped")
    write_deltalake(mapped, table(rows(0)))
    log = Path(mapped) / "_delta_log" / f"{0:020}.json"
    text = log.read_text()
    assert '"configuration":{}' in text
    log.write_text(text.replace('"configuration":{}', '"configuration":{"delta.columnMapping.mode":"name"}'))
    world.fails(world.view("data/delta_mapped", delta=True), "delta_mapped", "column mapping")


def test_rows_are_not_pushed_into_a_delta_table(world: World) -> None:
    write_deltalake(str(world.data / "delta_pushed"), table(rows(0)))
    view = world.view("data/delta_pushed", delta=True, pushed=True)
    with pytest.raises(Exception, match="Delta table"):
        world.features.write_to_offline_store(view, rows(1000))


# --- columns that nobody wrote down --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["directory", "pattern", "partitions", "delta", "object", "objects", "delta objects"])
def test_a_view_without_a_schema_has_that_of_any_source(world: World, kind: str) -> None:
    """`apply` asks for the columns, and validates the source, whatever it is."""
    whole = rows(0).assign(rate=0.5, region=["north", "south"] * 3)
    name = f"inferred_{kind.replace(' ', '_')}"
    options = {"aws_endpoint": world.s3.endpoint, "aws_allow_http": "true", "aws_conditional_put": "etag"}
    options |= {key.lower(): value for key, value in world.s3.environment.items()}
    path = f"s3://{BUCKET}/{name}" if "object" in kind else f"data/{name}"
    if "delta" in kind:
        uri, access = (path, options) if "object" in kind else (str(world.data / name), None)
        write_deltalake(uri, table(whole), partition_by=["region"], storage_options=access)
    elif "object" in kind:
        world.put(f"{name}/part.parquet", whole)
        path += "/part.parquet" if kind == "object" else "/"
    else:
        for region, part in whole.groupby("region"):
            folder = world.data / name / (f"region={region}" if kind == "partitions" else str(region))
            folder.mkdir(parents=True)
            inside = part.drop(columns="region") if kind == "partitions" else part
            pq.write_table(table(inside), folder / "part.parquet")
        path += "/*/part.parquet" if kind == "pattern" else ""
    source = FileSource(
        name=f"{name}_source",
        path=path,
        timestamp_field="event_timestamp",
        s3_endpoint_override=world.s3.endpoint if "object" in kind else None,
        file_format=DeltaFormat() if "delta" in kind else None,
    )
    world.features.apply([DRIVER, FeatureView(name=name, entities=[DRIVER], ttl=timedelta(0), source=source)])
    found = {field.name: str(field.dtype) for field in world.features.get_feature_view(name).features}
    assert found == {"trips": "Int64", "rate": "Float64", "region": "String"}
    got = world.read(name, "trips", "region")
    assert got["trips"].to_pylist() == whole["trips"].tolist()
    assert got["region"].to_pylist() == whole["region"].tolist()


# --- files that changed, and damaged ones -------------------------------------------------------------------------


def test_files_of_one_source_may_gain_columns_and_widen_types(world: World) -> None:
    folder = world.data / "evolved"
    folder.mkdir()
    old = table(rows(0, drivers=[1]))
    old = old.set_column(1, "trips", old["trips"].cast(pa.int32()))
    pq.write_table(old, folder / "a.parquet")
    new = table(rows(2**40, drivers=[2]).assign(rate=[0.5, 1.5, 2.5]))
    pq.write_table(new.select(["rate", "event_timestamp", "trips", "driver_id"]), folder / "b.parquet")
    view = world.view("data/evolved", *TRIPS, Field(name="rate", dtype=Float64))
    got = world.read(view, "trips", "rate")
    assert got["trips"].to_pylist() == [100, 101, 102, *(2**40 + 200 + n for n in range(3))]
    assert got["rate"].to_pylist() == [None, None, None, 0.5, 1.5, 2.5]
    pq.write_table(table(rows(0).assign(trips="many")), folder / "c.parquet")
    world.fails(view, "trips", "Int64 in", "b.parquet", "Utf8 in", "c.parquet")


def test_a_column_that_vanished_is_named(world: World) -> None:
    path = world.data / "narrowed.parquet"
    pq.write_table(table(rows(0)), path)
    view = world.view("data/narrowed.parquet")
    assert world.trips(view, at=[0]) == [100, 200]
    pq.write_table(table(rows(0).drop(columns="trips")), path)
    world.fails(view, "trips", f"{view}_source")
    path.unlink()
    world.fails(view, "narrowed.parquet", f"{view}_source")


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("what", ["footer", "content", "cut", "empty", "text"])
def test_a_damaged_file_is_named(world: World, where: str, what: str) -> None:
    folder = world.data / f"damaged_{where}_{what}"
    folder.mkdir()
    path = folder / "part.parquet"
    pq.write_table(table(rows(0)), path)
    whole = path.read_bytes()
    if what == "content":
        damage(path)
    else:
        footer = int.from_bytes(whole[-8:-4], "little")
        broken = {
            "footer": whole[: -8 - footer] + b"\xa5" * footer + whole[-8:],
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"driver_id,trips\n1,2\n",
        }
        path.write_bytes(broken[what])
    source = f"data/{folder.name}/part.parquet"
    if where == "s3":
        with world.s3.client().open_output_stream(f"{BUCKET}/{folder.name}.parquet") as out:
            out.write(path.read_bytes())
        source = f"s3://{BUCKET}/{folder.name}.parquet"
    world.fails(world.view(source), source.rsplit("/", 1)[1], "damaged")

"""A disk that fills: a clear error that asks to come back, nothing half-written, and what is there is still served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Int64, String

from conftest import StartLarder
from larder_env.disk import MB, SmallDisk
from larder_env.process import wait_until
from larder_env.repo import store, write_config
from larder_env.server import HOST, Larder, Ports
from online import metric, read_online
from rides import DRIVER, pushed_view

BASE = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SIZE = 96
"""The disk, MB."""
KEPT = 16 * MB
"""What the online store leaves free, so that sled never fails to write."""
HISTORY = 150_000


@dataclass
class World:
    """A server whose data directory is a small disk."""

    larder: Larder
    sdk: FeatureStore
    disk: SmallDisk

    def push(self, drivers: list[int], number: int, to: str = "online") -> requests.Response:
        """A kilobyte for each driver."""
        at = (BASE + timedelta(seconds=number)).isoformat()
        columns: dict[str, list[object]] = {"driver_id": list(drivers), "trips": [number] * len(drivers)}
        columns |= {"note": ["x" * 1000] * len(drivers), "event_timestamp": [at] * len(drivers)}
        columns["created"] = columns["event_timestamp"]
        return self.larder.post("/push", {"push_source_name": "stats_push", "df": columns, "to": to})

    def trips(self, view: str, drivers: list[int]) -> list[object]:
        """What is served."""
        cells = read_online(self.larder, view, ["trips"], "driver_id", drivers)
        return [cells[driver]["trips"].value for driver in drivers]

    def push_until_refused(self) -> int:
        """Push n to a hundred drivers n * 100 …, n counting up; gives the number that was refused."""
        for number in range(1, 2000):
            answer = self.push(hundred(number), number)
            if answer.status_code != 200:
                assert answer.status_code == 503, answer.text
                assert "disk" in answer.text
                return number
        raise AssertionError("the disk never filled")

    def materialize(self) -> requests.Response:
        """The last row of each key of the long history."""
        span = {"start_ts": BASE.isoformat(), "end_ts": (BASE + 2 * DAY).isoformat()}
        return self.larder.post("/materialize", {**span, "feature_views": ["history"]})

    def retrieve(self, rows: int) -> pa.Table:
        """A training set of so many rows of the history."""
        text = f"SELECT driver_id, event_timestamp FROM history_file LIMIT {rows}"
        return self.sdk.get_historical_features(text, ["history:trips"]).to_arrow()

    def serves(self) -> None:
        """What was there before is there, and the offline side answers."""
        assert self.larder.healthy()
        assert self.trips("stats", [1, 2]) == [-1, -1]
        text = "SELECT driver_id, event_timestamp FROM stats_file"
        found = self.sdk.get_historical_features(text, ["stats:trips"]).to_arrow()
        assert found["trips"].to_pylist() == [-1, -1]


def hundred(number: int) -> list[int]:
    """The drivers of a push."""
    return list(range(number * 100, number * 100 + 100))


@pytest.fixture
def world(request: pytest.FixtureRequest, larder: StartLarder, tmp_path: Path) -> Iterator[World]:
    """With a memory tier and a log that are much smaller than the data; the parameter is the offline memory, MB."""
    memory = getattr(request, "param", 200) * MB
    repo = tmp_path / "repo"
    write_config(repo, "full", Ports.free())
    online = {"type": "sled", "tier_bytes": 20_000, "cache_bytes": MB, "log_bytes": MB}
    config = {"project": "full", "online_store": online, "offline": {"memory_limit_bytes": memory}}
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    disk = SmallDisk(repo / "data", SIZE)
    server = larder(repo, args=["--services", "online,registry,offline"], prefix=disk.enter)
    rng = np.random.default_rng(1)
    times = np.datetime64(BASE.replace(tzinfo=None), "us") + rng.permutation(HISTORY) * 100_000
    frame = pd.DataFrame({"driver_id": rng.permutation(HISTORY), "trips": np.arange(HISTORY), "event_timestamp": times})
    frame["event_timestamp"] = frame["event_timestamp"].dt.tz_localize("UTC")
    frame["created"] = frame["event_timestamp"]
    frame.to_parquet(repo / "history.parquet", index=False)
    source = FileSource(
        name="history_file",
        path="history.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    fields = [Field(name="driver_id", dtype=Int64), Field(name="trips", dtype=Int64)]
    history = FeatureView(name="history", entities=[DRIVER], ttl=timedelta(0), source=source, schema=fields)
    stats = pushed_view("stats", [DRIVER], timedelta(0), {"trips": Int64, "note": String})
    sdk = store(repo)
    sdk.apply([DRIVER, stats, history])
    world = World(server, sdk, disk)
    assert world.push([1, 2], -1, "online_and_offline").status_code == 200
    yield world
    server.kill()
    disk.close()


def test_a_push_is_refused_what_was_acknowledged_is_served_and_room_is_all_it_takes(world: World) -> None:
    world.disk.fill(leaving=KEPT + 24 * MB)
    refused = world.push_until_refused()
    assert refused > 10
    for _ in range(3):
        assert world.push(hundred(refused), refused).status_code == 503

    def check() -> None:
        for number in range(1, refused):
            assert world.trips("stats", hundred(number)) == [number] * 100
        world.serves()

    # now the last byte is gone, which is somebody else's doing
    world.disk.fill()
    check()
    assert world.trips("stats", hundred(refused)) == [None] * 100
    assert world.push(hundred(refused), refused).status_code == 503
    # a job that cannot be written down is not accepted
    assert world.materialize().status_code == 503
    # and the registry is not changed
    with pytest.raises(Exception, match="disk"):
        world.sdk.apply([Entity(name="more", join_keys=["more"], value_type=DRIVER.value_type)])
    world.disk.empty()
    # without a restart; the first may still be told of the attempt before
    answers = [world.push(hundred(refused), refused).status_code for _ in range(3)]
    assert answers[1:] == [200, 200]
    check()
    world.larder.restart(signal.SIGKILL)
    check()
    assert world.trips("stats", hundred(refused)) == [refused] * 100


def is_whole(run: Path) -> bool:
    """Whether a run is written to its end; what is gone is not half there either."""
    with suppress(FileNotFoundError):
        return run.read_bytes().endswith(b"LARDRUN\x02")
    return True


@pytest.mark.parametrize("at_least", [0, 2 * MB], ids=["drained", "merged"])
def test_a_disk_that_fills_while_a_run_is_written_harms_nothing_that_is_there(world: World, at_least: int) -> None:
    """The server is stopped in the middle of a run (of what the log held, or of others), and finds no byte left."""
    runs = world.disk.path / "online" / "runs"

    def half() -> list[Path]:
        with suppress(FileNotFoundError):
            return [run for run in runs.iterdir() if run.stat().st_size >= at_least and not is_whole(run)]
        return []

    def is_caught() -> bool:
        if not half():
            return False
        world.larder.process.signal(signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{world.larder.pid}/stat").read_text().split()[2] == "T", "it to be stopped")
        if half():
            return True
        world.larder.process.signal(signal.SIGCONT)
        return False

    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(world.push_until_refused)
        wait_until(is_caught, "a run to be half written", 60, pause=0)
        world.disk.fill()
        os.kill(world.larder.pid, signal.SIGCONT)
        refused = pushing.result(60)

    def check() -> None:
        for number in range(1, refused):
            assert world.trips("stats", hundred(number)) == [number] * 100
        world.serves()

    check()
    wait_until(lambda: not half(), "what was half written to go")
    world.disk.empty()
    answers = [world.push(hundred(refused), refused).status_code for _ in range(3)]
    assert answers[1:] == [200, 200]
    check()
    world.larder.restart(signal.SIGKILL)
    check()
    assert world.trips("stats", hundred(refused)) == [refused] * 100


@pytest.mark.parametrize("world", [6], indirect=True)
def test_a_materialization_fails_and_is_done_when_there_is_room(world: World) -> None:
    world.disk.fill(leaving=KEPT + 6 * MB)
    failed = world.materialize()
    assert (failed.status_code, "disk" in failed.text) == (503, True)
    [job] = requests.get(f"{world.larder.online_url}/jobs", timeout=10).json()["jobs"]
    assert (job["status"], "disk" in job["error"]) == ("failed", True)
    world.serves()
    assert world.sdk.get_feature_view("history").materialization_intervals == []
    wait_until(lambda: world.disk.files("offline-spill/**/*") == [], "the spill files to go", 10)
    world.disk.empty()
    answers = [world.materialize().status_code for _ in range(2)]
    assert answers[1] == 200
    history = pd.read_parquet(world.larder.repo / "history.parquet").sample(500, random_state=1)
    assert world.trips("history", history["driver_id"].tolist()) == history["trips"].tolist()


@pytest.mark.parametrize("world", [10], indirect=True)
def test_what_spills_fails_and_leaves_no_file(world: World) -> None:
    world.disk.fill(leaving=2 * MB)
    with pytest.raises(Exception, match="disk that queries spill to is full"):
        world.retrieve(HISTORY)
    wait_until(lambda: world.disk.files("offline-spill/**/*") == [], "the spill files to go", 10)
    world.serves()
    world.disk.empty()
    assert world.retrieve(1000)["trips"].null_count == 0
    wait_until(lambda: world.disk.files("offline-spill/**/*") == [], "the spill files to go", 10)


@pytest.mark.parametrize("world", [3], indirect=True)
def test_an_entity_frame_that_has_no_room_fails_and_is_joined_when_there_is_room(world: World) -> None:
    world.disk.fill(leaving=MB)
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"driver_id": rng.permutation(HISTORY), "event_timestamp": [BASE + DAY] * HISTORY})
    with pytest.raises(Exception, match="disk that queries spill to is full"):
        world.sdk.get_historical_features(frame, ["history:trips"]).to_arrow()
    world.serves()
    world.disk.empty()
    free = world.disk.free()
    joined = world.sdk.get_historical_features(frame, ["history:trips"]).to_df()
    history = pd.read_parquet(world.larder.repo / "history.parquet")[["driver_id", "trips"]]
    want = frame.merge(history, on="driver_id", how="left")
    assert joined["driver_id"].tolist() == want["driver_id"].tolist(), "in the frame's order"
    assert joined["trips"].tolist() == want["trips"].tolist()
    assert sum(metric(world.larder, "larder_offline_frames_spilled_total")) >= 1
    assert sum(metric(world.larder, "larder_offline_parts_joined_total")) > 2
    wait_until(lambda: world.disk.free() >= free, "the room to be given back", 10)


def begin_to_spill(world: World) -> tuple[fl.FlightClient, fl.FlightStreamWriter, fl.FlightStreamReader]:
    """Ask for what is sorted with 6 MB of memory until that spills; it goes on for as long as these are held."""
    # What came later than its created time does not count: in that order the history is sorted.
    text = "SELECT driver_id, event_timestamp FROM history_file"
    command: dict[str, object] = {"api": "get_historical_features", "project": "full", "entity_df_sql": text}
    command |= {"filter_by_created_timestamp": True}
    command |= {"feature_view_names": ["history"], "feature_refs": ["history:trips"], "name_aliases": [None]}
    client = fl.FlightClient(f"grpc+tcp://{HOST}:{world.larder.ports.offline}")
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(json.dumps(command).encode()))
    nothing = pa.table({"key": ["none"]})
    writer.begin(nothing.schema)
    writer.write_table(nothing)
    writer.done_writing()
    wait_until(lambda: world.disk.files("offline-spill/**/*"), "the sort to spill", 10, pause=0.001)
    return client, writer, reader


@pytest.mark.parametrize("world", [6], indirect=True)
def test_a_client_that_hangs_up_in_mid_join_stops_it_and_leaves_no_file(world: World) -> None:
    def count(name: str, **labels: str) -> float:
        return sum(metric(world.larder, f"larder_offline_{name}_total", **labels))

    client, _writer, reader = begin_to_spill(world)
    reader.cancel()
    client.close()
    wait_until(lambda: count("requests", outcome="cancelled") == 1, "the call to end", 10)
    wait_until(lambda: world.disk.files("offline-spill/**/*") == [], "the spill files to go", 10)
    assert count("sorts", view="history") == 1
    assert count("rows_joined", view="history") == 0, "the join was not done to its end"
    assert world.retrieve(1000)["trips"].null_count == 0
    assert count("sorts", view="history") == 1, "what fits is not sorted"


@pytest.mark.parametrize("world", [6], indirect=True)
def test_what_a_killed_server_had_spilled_goes_with_the_next_start(world: World) -> None:
    client, _writer, _reader = begin_to_spill(world)
    world.larder.kill()
    client.close()
    assert world.disk.files("offline-spill/**/*") != []
    world.larder.start()
    assert world.disk.files("offline-spill/**/*") == []
    world.serves()


def test_an_export_that_has_no_room_says_so_and_leaves_no_file(world: World) -> None:
    """On the command line; what is there already stays."""
    out = world.larder.repo / "data" / "set.parquet"

    def export(rows: int) -> subprocess.CompletedProcess[str]:
        text = f"SELECT driver_id, event_timestamp FROM history_file LIMIT {rows}"
        words = ["--features", "history:trips", "--entities", text, "--out", str(out), "--overwrite"]
        words += ["-c", str(world.larder.repo), "--server", f"{HOST}:{world.larder.ports.offline}"]
        command = [*world.disk.enter, str(world.larder.binary), "export", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    for there in ([], ["set.parquet"]):
        world.disk.fill(leaving=MB // 2)
        failed = export(HISTORY)
        assert (failed.returncode, "No space left" in failed.stderr) == (1, True), failed
        assert world.disk.files("set*") + world.disk.files(".*") == there
        world.serves()
        world.disk.empty()
        assert export(50).returncode == 0
    assert pq.read_metadata(world.disk.path / "set.parquet").num_rows == 50


def test_what_is_kept_is_whole_or_not_there(world: World) -> None:
    file = world.larder.repo / "data" / "kept.parquet"
    storage = SavedDatasetFileStorage(path=str(file))
    name = storage.to_data_source().name
    world.sdk.apply([FileSource(name=name, path=str(file), timestamp_field="event_timestamp")])
    texts = [f"SELECT driver_id, event_timestamp FROM history_file LIMIT {rows}" for rows in (50, HISTORY)]
    small, big = (world.sdk.get_historical_features(text, ["history:trips"]) for text in texts)
    for there in ([], ["kept.parquet"]):
        world.disk.fill(leaving=MB // 2)
        with pytest.raises(Exception, match="No space left"):
            big.persist(storage, allow_overwrite=True)
        assert world.disk.files("kept*") + world.disk.files(".*") == there
        world.serves()
        world.disk.empty()
        small.persist(storage, allow_overwrite=True)
    assert pq.read_metadata(world.disk.path / "kept.parquet").num_rows == 50


def test_rows_are_appended_whole_or_not_at_all(world: World) -> None:
    """By `offline_write_batch` and by a push, whose source is on the disk too."""
    file = world.larder.repo / "data" / "log.parquet"
    source = FileSource(name="log_file", path=str(file), timestamp_field="event_timestamp")
    fields = [Field(name="driver_id", dtype=Int64), Field(name="note", dtype=String)]
    push = PushSource(name="log_push", batch_source=source)
    log = FeatureView(name="log", entities=[DRIVER], ttl=timedelta(0), source=push, schema=fields)
    world.sdk.apply([push, log])
    rng = np.random.default_rng(1)

    def rows(count: int) -> pd.DataFrame:
        notes = [rng.bytes(500).hex() for _ in range(count)]
        return pd.DataFrame({"driver_id": range(count), "note": notes, "event_timestamp": [BASE] * count})

    pq.write_table(pa.Table.from_pandas(rows(3), preserve_index=False), world.disk.path / "log.parquet")
    world.disk.fill(leaving=MB // 2)
    with pytest.raises(Exception, match="No space left"):
        world.sdk.write_to_offline_store("log", rows(4000))
    columns = {name: column.tolist() for name, column in rows(4000).items()}
    columns["event_timestamp"] = [BASE.isoformat()] * 4000
    refused = world.larder.post("/push", {"push_source_name": "log_push", "df": columns, "to": "offline"})
    assert (refused.status_code, "No space left" in refused.text) == (503, True)
    assert world.disk.files("log*") + world.disk.files(".*") == ["log.parquet"]
    assert pq.read_metadata(world.disk.path / "log.parquet").num_rows == 3
    world.serves()
    world.disk.empty()
    world.sdk.write_to_offline_store("log", rows(4000))
    assert pq.read_metadata(world.disk.path / "log.parquet").num_rows == 4003


def test_an_upload_that_has_no_room_is_refused_and_leaves_no_file(world: World) -> None:
    world.disk.fill(leaving=MB // 2)
    client = fl.FlightClient(f"grpc+tcp://{HOST}:{world.larder.ports.offline}")
    command: dict[str, object] = {"api": "get_historical_features", "command_id": "one", "project": "full"}
    command |= {"feature_view_names": ["history"], "feature_refs": ["history:trips"], "name_aliases": [None]}
    noise = np.random.default_rng(1).bytes(MB)
    frame = pa.table({"driver_id": [1], "event_timestamp": pa.array([BASE], pa.timestamp("us", "UTC")), "x": [noise]})
    with pytest.raises(fl.FlightError, match="No space left"):  # noqa: PT012 - any of the calls may hear of it
        writer, _ = client.do_put(fl.FlightDescriptor.for_command(json.dumps(command).encode()), frame.schema)
        writer.write_table(frame)
        writer.close()
    assert world.disk.files("flight-uploads/**/*") == []
    world.serves()

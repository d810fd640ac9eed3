"""Long offline work and online requests, side by side: a read is answered while half a million rows are under way."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.flight as fl
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.types import Int64
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env.repo import store, write_config
from larder_env.server import HOST, Larder, Ports
from online import read_online

DAY = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 500_000
DRIVERS = 1000


@dataclass
class World:
    """A server, and a view whose history is long."""

    larder: Larder
    sdk: FeatureStore
    pushed: Iterator[int] = field(default_factory=itertools.count)

    def reads(self, until: Callable[[], bool]) -> int:
        """Reads and pushes, one after the other, until; how many pairs were answered."""
        answered = 0
        while not until():
            count = next(self.pushed)
            row = {"driver_id": [7], "trips": [count], "ts": [(DAY + timedelta(days=100, seconds=count)).isoformat()]}
            pushed = self.larder.post("/push", {"push_source_name": "long_push", "df": row, "to": "online"})
            assert pushed.status_code == 200, pushed.text
            assert read_online(self.larder, "long", ["trips"], "driver_id", [7])[7]["trips"].value == count
            answered += 1
        return answered


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """With its rows in random order."""
    repo = tmp_path_factory.mktemp("threads")
    write_config(repo, "threads", Ports.free())
    rng = np.random.default_rng(1)
    times = np.datetime64(DAY.replace(tzinfo=None), "us") + rng.integers(0, 86_400_000_000, ROWS)
    frame = pd.DataFrame({"driver_id": rng.integers(0, DRIVERS, ROWS), "trips": np.arange(ROWS), "ts": times})
    frame["ts"] = frame["ts"].dt.tz_localize("UTC")
    frame.to_parquet(repo / "long.parquet", index=False)
    larder = module_larder(repo, args=["--services", "online,registry,offline"])
    sdk = store(repo)
    source = FileSource(name="long_file", path="long.parquet", timestamp_field="ts")
    push = PushSource(name="long_push", batch_source=source)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    fields = [Field(name="driver_id", dtype=Int64), Field(name="trips", dtype=Int64)]
    sdk.apply([driver, push, FeatureView(name="long", entities=[driver], ttl=timedelta(0), source=push, schema=fields)])
    return World(larder, sdk)


def export(world: World) -> int:
    """A training set with an entity row for each row of history; the rows that came."""
    text = "SELECT driver_id, ts AS event_timestamp FROM long_file"
    rows = world.sdk.get_historical_features(text, ["long:trips"]).to_arrow().num_rows
    assert isinstance(rows, int)
    return rows


def pull_latest(world: World) -> int:
    """The last row of each key, over Flight."""
    client = fl.FlightClient(f"grpc+tcp://{HOST}:{world.larder.ports.offline}")
    command: dict[str, object] = {
        "api": "pull_latest_from_table_or_query",
        "data_source_name": "long_file",
        "project": "threads",
    }
    command |= {"join_key_columns": ["driver_id"], "feature_name_columns": ["trips"], "timestamp_field": "ts"}
    span = {"start_date": DAY.isoformat(), "end_date": (DAY + timedelta(days=1)).isoformat()}
    ticket = fl.Ticket(json.dumps(command | span | {"created_timestamp_column": None}).encode())
    rows = client.do_get(ticket).read_all().num_rows
    assert isinstance(rows, int)
    return rows


def materialize(world: World) -> int:
    """The last row of each key, online; as many as there are drivers."""
    world.sdk.materialize(DAY, DAY + timedelta(days=1), feature_views=["long"])
    return DRIVERS


@pytest.mark.parametrize(("work", "rows"), [(export, ROWS), (pull_latest, DRIVERS), (materialize, DRIVERS)])
def test_reads_and_pushes_are_answered_while_it_runs(world: World, work: Callable[[World], int], rows: int) -> None:
    done: list[int | BaseException] = []

    def run() -> None:
        try:
            done.append(work(world))
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    answered = world.reads(lambda: bool(done))
    thread.join()
    assert done == [rows]
    assert answered > 5


def nices(pid: int) -> Iterator[tuple[str, int]]:
    """Name and nice value of each thread of a process (`man 5 proc_pid_stat`)."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, fields = task.joinpath("stat").read_text().split("(", 1)[1].rsplit(")", 1)
        yield name, int(fields.split()[16])


def test_threads_of_long_work_give_way_and_no_others_do(world: World) -> None:
    """Those that export, and those of the store that write and merge runs, which no request waits for."""
    assert export(world) == ROWS
    for work in ("larder-offline", "online-drain"):
        mine = {nice for name, nice in nices(world.larder.pid) if name.startswith(work)}
        assert len(mine) == 1, work
        assert min(mine) > own(), work
    long = ("larder-offline", "online-drain", "online-merge")
    assert {nice for name, nice in nices(world.larder.pid) if not name.startswith(long)} == {own()}


def own() -> int:
    """Nice value of this process, which the server inherits."""
    return int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[16])

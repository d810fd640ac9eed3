"""`offline.memory_limit_bytes` holds, and resident memory shows it: frame, history and result are larger."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
import yaml
from feast import Field
from feast.types import Int64, String

from conftest import StartLarder
from drivers import DRIVER, Drivers, view_of
from larder_env.disk import MB
from larder_env.repo import store, write_config
from larder_env.server import HOST, Ports
from online import metric

PROJECT = "memory"
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
LIMIT = 32 * MB
BESIDE = 192 * MB
"""What a process takes beside what is counted, whatever the limit and the frame: the code that runs, messages and row
groups on their way, the allocator's own. (Measured in a debug build: 150 to 170 MB.)
"""
KEYS = 10_000
HISTORY = 200_000
ASKED = 600_000
WIDE = 300
"""Letters of a text that no other row has."""


def texts(numbers: np.ndarray) -> pa.Array:
    """Of numbers."""
    return pa.array([f"{number:0{WIDE}d}" for number in numbers.tolist()])


def times(seconds: np.ndarray) -> pa.Array:
    """Seconds behind the beginning."""
    micros = int(BEGIN.timestamp() * 1_000_000) + seconds * 1_000_000
    return pa.array(micros, pa.int64()).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))


def history() -> pa.Table:
    """For each key a row every so many seconds, in the order of time."""
    numbers = np.arange(HISTORY)
    seconds = numbers // KEYS * 1000 + numbers % 1000
    columns = {"driver_id": numbers % KEYS, "number": numbers, "text": texts(numbers)}
    return pa.table({**columns, "event_timestamp": times(seconds)})


class World(Drivers):
    """A server with little memory."""

    def memory(self, which: str) -> int:
        """Of the server, bytes: `VmRSS` now, `VmHWM` at most."""
        status = Path(f"/proc/{self.larder.pid}/status").read_text()
        found = re.search(rf"^{which}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found, status
        return int(found.group(1)) * 1024

    @contextmanager
    def bounded(self, moved: int) -> Iterator[None]:
        """What is done meanwhile takes no more than the limit and a little, of so many bytes that are moved."""
        assert moved > 3 * (LIMIT + BESIDE) // 2, moved
        before = self.memory("VmRSS")
        Path(f"/proc/{self.larder.pid}/clear_refs").write_text("5")  # the peak is that from now on
        yield
        grown = self.memory("VmHWM") - before
        assert grown < LIMIT + BESIDE, f"{grown / MB:.0f} MB for {moved / MB:.0f}"


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Applied."""
    repo = tmp_path_factory.mktemp("memory")
    write_config(repo, PROJECT, Ports.free())
    config = {"project": PROJECT, "offline": {"memory_limit_bytes": LIMIT}}
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    pq.write_table(history(), repo / "long.parquet", row_group_size=10_000)
    view = view_of("long", [Field(name="number", dtype=Int64), Field(name="text", dtype=String)])
    larder = module_larder(repo, args=["--services", "online,registry,offline"])
    world = World(larder, store(repo))
    world.sdk.apply([DRIVER, view])
    return world


def test_a_training_set_larger_than_memory(world: World) -> None:
    rng = np.random.default_rng(1)
    command = {
        "api": "get_historical_features",
        "project": PROJECT,
        "feature_view_names": ["long"],
        "feature_refs": ["long:number", "long:text"],
        "full_feature_names": False,
        "name_aliases": [None],
    }
    size = 20_000
    keys = rng.integers(0, KEYS, ASKED)
    seconds = rng.integers(0, HISTORY // KEYS * 1000, ASKED)
    client = fl.FlightClient(f"grpc+tcp://{HOST}:{world.larder.ports.offline}")
    at = 0
    spilled = sum(metric(world.larder, "larder_offline_frames_spilled_total"))
    with world.bounded(moved=ASKED * (2 * WIDE + 40)):
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(json.dumps(command).encode()))
        for begin in range(0, ASKED, size):
            some = slice(begin, begin + size)
            stamps = times(seconds[some])
            columns = {"driver_id": keys[some], "event_timestamp": stamps, "own": texts(np.arange(begin, begin + size))}
            table = pa.table(columns)
            if begin == 0:
                writer.begin(table.schema)
            writer.write_table(table)
        writer.done_writing()
        for chunk in reader:
            got = chunk.data
            some = slice(at, at + got.num_rows)
            # the latest row of the key is of this turn or of the one before, or there is none
            turn = (seconds[some] - keys[some] % 1000) // 1000
            number = np.where(turn < 0, -1, turn * KEYS + keys[some])
            assert (got["number"].fill_null(-1).to_numpy(zero_copy_only=False) == number).all()
            assert (got["driver_id"].to_numpy() == keys[some]).all()
            assert got["own"][0].as_py() == f"{at:0{WIDE}d}"
            at += got.num_rows
    assert at == ASKED
    assert sum(metric(world.larder, "larder_offline_frames_spilled_total")) > spilled
    client.close()

"""The workers behind training sets: a slow start is waited for, and nothing starts that nobody asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from feast import FeatureStore, FeatureView

from conftest import StartLarder
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports
from on_demand_views import objects

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
SLOW = 9
"""Seconds that an interpreter takes before it does anything: several deadlines of a call."""


@dataclass
class World:
    """A repo that is applied on a server whose interpreter is slow and leaves a line behind whenever it is started."""

    binary: Path
    larder: Larder
    sdk: FeatureStore

    @property
    def started(self) -> int:
        """How often the interpreter was started."""
        starts = self.larder.repo / "starts"
        return len(starts.read_text().splitlines()) if starts.exists() else 0

    def export(self, features: str) -> subprocess.CompletedProcess[str]:
        """`larder export` in a process of its own, for which the server must let go of the registry."""
        if self.larder.process.running:
            self.larder.stop()
        (self.larder.repo / "starts").unlink(missing_ok=True)
        asked().to_parquet(self.larder.repo / "asked.parquet", index=False)
        words = ["--features", features, "--entities", self.larder.repo / "asked.parquet", "--overwrite"]
        words += ["--out", self.larder.repo / "out.parquet"]
        command = [str(self.binary), "export", "-c", str(self.larder.repo), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def asked() -> pd.DataFrame:
    """Two entity rows with the request data."""
    return pd.DataFrame(
        {"driver_id": [1, 2], "event_timestamp": [BEGIN + timedelta(days=1)] * 2, "val": [5, 6], "factor": [1.0] * 2}
    )


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, larder_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One worker, whose calls may take three seconds."""
    repo = tmp_path_factory.mktemp("workers")
    write_config(repo, "workers", Ports.free())
    interpreter = repo / "slow-python"
    # It sleeps so that its start outlasts the deadline of a call on any machine.
    interpreter.write_text(f'#!/bin/sh\necho started >> {repo}/starts\nsleep {SLOW}\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    with (repo / "larder.yaml").open("a") as config:
        config.write(f"transformations: {{python: {interpreter}, workers: 1, deadline_ms: 3000}}\n")
    for view in [o for o in objects() if isinstance(o, FeatureView)]:
        columns: dict[str, object] = {"driver_id": [1, 2], "event_timestamp": [BEGIN] * 2, "trips": [10, 20]}
        columns |= {"conv_rate": [0.5, 0.25], "rating": ["good", "bad"], "seats": [4, 5], "badge": [None, None]}
        columns |= {"since": [BEGIN] * 2, "tags": [["x"], ["y"]]}
        pd.DataFrame(columns).to_parquet(repo / f"{view.name}.parquet", index=False)
    larder = module_larder(repo)
    sdk = store(repo)
    sdk.apply([*objects()])
    return World(larder_binary, larder, sdk)


def test_a_training_set_waits_for_the_first_start(world: World) -> None:
    world.larder.restart()
    got = world.sdk.get_historical_features(asked(), ["sums:trips_plus"]).to_df()
    assert list(got["trips_plus"]) == [15, 26]


def test_an_export_starts_workers_only_for_python(world: World) -> None:
    done = world.export("stats:trips")
    assert (done.returncode, world.started) == (0, 0), done.stderr
    done = world.export("stats:trips,sums:trips_plus")
    assert (done.returncode, world.started) == (0, 1), done.stderr
    out = pd.read_parquet(world.larder.repo / "out.parquet")
    assert list(out["trips_plus"]) == [15, 26]


def test_an_interpreter_that_does_not_start_is_told(world: World) -> None:
    interpreter = world.larder.repo / "slow-python"
    whole = interpreter.read_text()
    interpreter.write_text("#!/bin/sh\necho no python here >&2\nexit 3\n")
    done = world.export("stats:trips,sums:trips_plus")
    interpreter.write_text(whole)
    assert done.returncode == 1
    assert "no python here" in done.stderr
    assert "slow-python" in done.stderr

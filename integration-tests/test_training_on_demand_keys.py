"""On-demand features in dataset jobs, and of sources that are joined by other keys than their own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureService, FeatureStore, FeatureView, Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64

from conftest import StartLarder
from larder_env.repo import store, write_config
from larder_env.server import HOST, Larder, Ports
from on_demand_views import objects, wait_for_workers
from test_dataset_jobs import ended, submit
from test_registry import rpc

PROJECT = "keys"
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class World:
    """A server with workers, over a file of three drivers."""

    binary: Path
    larder: Larder
    sdk: FeatureStore

    def export(self, frame: pd.DataFrame, *words: str) -> pd.DataFrame:
        """`larder export` by the running server."""
        entities, out = self.larder.repo / "in.parquet", self.larder.repo / "out.parquet"
        frame.to_parquet(entities, index=False)
        command = [str(self.binary), "export", "-c", str(self.larder.repo), "--out", str(out), "--overwrite"]
        command += ["--server", f"{HOST}:{self.larder.ports.offline}", "--entities", str(entities), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return pd.read_parquet(out)


def of_ends(stats: FeatureView) -> list[Any]:
    """One function of the drivers at one end, one of those at the other, and a service with an alias for another."""

    @on_demand_feature_view(
        sources=[stats.with_join_key_map({"driver_id": "origin_id"}).projection],
        schema=[Field(name="at_origin", dtype=Int64)],
        mode="python",
    )
    def origin(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"at_origin": [None if t is None else t + 1 for t in inputs["trips"]]}

    @on_demand_feature_view(
        sources=[stats.with_join_key_map({"driver_id": "destination_id"}).projection],
        schema=[Field(name="at_destination", dtype=Int64)],
        mode="python",
    )
    def destination(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"at_destination": [None if t is None else t + 2 for t in inputs["trips"]]}

    own = stats[["trips"]].with_name("own").with_join_key_map({"driver_id": "who"})
    return [origin, destination, FeatureService(name="ends", features=[origin, destination, own])]


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, larder_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Drivers 1 to 3 have made 10, 20 and 30 trips."""
    repo = tmp_path_factory.mktemp("keys")
    write_config(repo, PROJECT, Ports.free())
    with (repo / "larder.yaml").open("a") as config:
        config.write(f"transformations: {{python: {sys.executable}, workers: 1, deadline_ms: 20000}}\n")
    columns: dict[str, object] = {"driver_id": [1, 2, 3], "event_timestamp": [BEGIN] * 3, "trips": [10, 20, 30]}
    columns |= {"conv_rate": [0.5] * 3, "rating": ["good"] * 3, "seats": [4] * 3, "since": [BEGIN] * 3}
    pd.DataFrame(columns | {"tags": [["x"]] * 3}).to_parquet(repo / "stats.parquet", index=False)
    larder = module_larder(repo)
    sdk = store(repo)
    sdk.apply(objects())
    sdk.apply(of_ends(sdk.get_feature_view("stats")))
    wait_for_workers(larder, 1)
    return World(larder_binary, larder, sdk)


def test_sources_are_joined_by_the_keys_that_they_are_mapped_to(world: World) -> None:
    frame = pd.DataFrame(
        {
            "origin_id": [1, 2, 3, 9],
            "destination_id": [3, 2, 9, 1],
            "who": [2, 2, 1, 3],
            "event_timestamp": [BEGIN + timedelta(hours=1)] * 4,
        }
    )
    got = world.export(frame, "--service", "ends")
    assert got["at_origin"].fillna(0).tolist() == [11, 21, 31, 0]
    assert got["at_destination"].fillna(0).tolist() == [32, 22, 0, 12]
    assert got["trips"].tolist() == [20, 20, 10, 30]
    assert list(got.columns) == [*frame.columns, "trips", "at_origin", "at_destination"]


def test_a_dataset_job_computes_too(world: World) -> None:
    kept = world.larder.repo / "kept.parquet"
    calls = rpc(world.larder.ports)
    job = submit(
        calls,
        project=PROJECT,
        name="kept",
        features=["sums:trips_plus", "stats:trips", "data_only:doubled"],
        entity_source_type="inline",
        entity_keys=["driver_id"],
        entity_values="1,3,9",
        extra_columns="val=5\nfactor=0.5",
        end_date="2026-03-01T12:00:00Z",
        storage_type="file",
        storage_path=str(kept),
    )
    status = ended(calls, job)
    assert (status.status, status.error) == ("completed", "")
    got = pd.read_parquet(kept)
    assert got["trips_plus"].fillna(0).tolist() == [15, 35, 0]
    assert got["doubled"].tolist() == [10, 10, 10]
    assert got["trips"].fillna(0).tolist() == [10, 30, 0]
    assert not [name for name in got.columns if name.startswith("__larder")]
    back = world.sdk.get_saved_dataset("kept").to_df()
    assert back["trips_plus"].fillna(0).tolist() == [15, 35, 0]


def test_a_job_without_the_request_data_says_what_is_missing(world: World) -> None:
    calls = rpc(world.larder.ports)
    job = submit(
        calls,
        project=PROJECT,
        name="lacking",
        features=["data_only:doubled", "stats:trips"],
        entity_source_type="inline",
        entity_keys=["driver_id"],
        entity_values="1",
        end_date="2026-03-01T12:00:00Z",
        storage_type="file",
        storage_path=str(world.larder.repo / "lacking.parquet"),
    )
    status = ended(calls, job)
    assert status.status == "failed"
    assert "not found in the entity dataframe, but required by feature view data_only" in status.error
    assert not (world.larder.repo / "lacking.parquet").exists()

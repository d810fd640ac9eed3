"""Deleting a view or a project deletes its online rows: in the background, over a crash, and nobody else's."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from feast import FeatureView
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from feast.types import Int64

from conftest import StartLarder
from faces import Http, Row
from larder_env.process import wait_until
from larder_env.server import HOST, Larder
from rides import DAY, DRIVER, PROJECT, Rides, badge, pushed_view, stats
from stores import settings_of

AT = datetime.now(UTC) - timedelta(hours=1)
MANY = 20_000


def pending(larder: Larder) -> int:
    """How many tables are still to be cleared."""
    found = re.search(r"^larder_online_clears_pending (\S+)$", larder.metrics(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def cleared(larder: Larder) -> int:
    """How many rows were removed since the server started."""
    found = re.search(r"^larder_online_cleared_rows_total (\S+)$", larder.metrics(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def heavy() -> FeatureView:
    """A view to be filled and deleted."""
    return pushed_view("heavy", [DRIVER], timedelta(0), {"n": Int64})


def fill(http: Http, rows: int = MANY) -> None:
    """Rows of `heavy`."""
    made: list[Row] = [{"driver_id": n, "n": n, "event_timestamp": AT, "created": AT} for n in range(rows)]
    for first in range(0, rows, 5000):
        http.push("heavy_push", made[first : first + 5000])


def statuses(http: Http, ids: list[int]) -> set[str]:
    """Of `heavy`."""
    return set(http.read(["heavy:n"], {"driver_id": ids}).statuses("n"))


def delete(larder: Larder, view: str, project: str = PROJECT) -> None:
    """One explicit delete."""
    stub = RegistryServerStub(grpc.insecure_channel(f"{HOST}:{larder.ports.registry}"))
    stub.DeleteFeatureView(pb.DeleteFeatureViewRequest(name=view, project=project))


@pytest.fixture(params=["sled", "sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Stores whose tables are cleared in ways of their own."""
    with settings_of(request.param, tmp_path / "redis") as found:
        yield found


def test_a_deleted_view_s_rows_are_gone_and_no_others(tmp_path: Path, larder: StartLarder, settings: str) -> None:
    rides = Rides.start(tmp_path / "repo", larder, settings)
    http = Http(rides.larder)
    http.push("driver_stats_push", [stats(7, 1, AT)])
    http.push("driver_forever_push", [badge(7, 2, AT)])
    delete(rides.larder, "driver_stats")
    wait_until(lambda: cleared(rides.larder) == 1 and pending(rides.larder) == 0, "the row to be removed")
    rides.store.apply([pushed_view("driver_stats", [DRIVER], DAY, {"trips": Int64})])
    assert http.read(["driver_stats:trips"], {"driver_id": [7]}).statuses("trips") == ["NOT_FOUND"]
    assert http.read(["driver_forever:trips"], {"driver_id": [7]}).values("trips") == [2]


@pytest.mark.parametrize("again_at_once", [True, False])
def test_kill_9_right_after_the_delete(tmp_path: Path, larder: StartLarder, settings: str, again_at_once: bool) -> None:
    rides = Rides.start(tmp_path / "repo", larder, settings)
    http = Http(rides.larder)
    rides.store.apply([heavy()])
    fill(http)
    sample = [0, 1, MANY // 2, MANY - 1]
    assert statuses(http, sample) == {"PRESENT"}
    delete(rides.larder, "heavy")
    rides.larder.restart(signal.SIGKILL)
    if not again_at_once:
        wait_until(lambda: pending(rides.larder) == 0, "the rows to be removed")
    # waits until they are: the rows of the new view must not be taken with them
    rides.store.apply([heavy()])
    assert pending(rides.larder) == 0
    assert statuses(http, list(range(0, MANY, 7))) == {"NOT_FOUND"}
    fill(http, 10)
    rides.larder.restart(signal.SIGKILL)
    assert statuses(http, list(range(10))) == {"PRESENT"}
    assert cleared(rides.larder) == 0


def test_a_deleted_project_s_rows_are_gone(tmp_path: Path, larder: StartLarder, settings: str) -> None:
    rides = Rides.start(tmp_path / "repo", larder, settings)
    http = Http(rides.larder)
    http.push("driver_stats_push", [stats(n, n, AT) for n in range(50)])
    http.push("driver_forever_push", [badge(n, n, AT) for n in range(50)])
    stub = RegistryServerStub(grpc.insecure_channel(f"{HOST}:{rides.larder.ports.registry}"))
    stub.DeleteProject(pb.DeleteProjectRequest(name=PROJECT))
    wait_until(lambda: cleared(rides.larder) == 100 and pending(rides.larder) == 0, "the rows to be removed")
    assert not stub.ListProjects(pb.ListProjectsRequest()).projects


def test_a_registry_file_that_vanishes_deletes_nothing(tmp_path: Path, larder: StartLarder) -> None:
    file = tmp_path / "registry.db"
    settings = f"registry: {{type: file, path: {file}, cache_ttl_seconds: 1}}\n"
    rides = Rides.start(tmp_path / "repo", larder, settings)
    http = Http(rides.larder)
    http.push("driver_forever_push", [badge(7, 2, AT)])
    away = file.rename(tmp_path / "away.db")

    def status() -> int:
        body = {"features": ["driver_forever:trips"], "entities": {"driver_id": [7]}}
        return rides.larder.post("/get-online-features", body).status_code

    wait_until(lambda: status() == 404, "the server to see that the file is gone")
    away.rename(file)
    wait_until(lambda: status() == 200, "the server to see that the file is back")
    assert http.read(["driver_forever:trips"], {"driver_id": [7]}).values("trips") == [2]
    assert cleared(rides.larder) == 0


def test_a_delete_through_a_registry_file_clears_too(tmp_path: Path, larder: StartLarder) -> None:
    file = tmp_path / "registry.db"
    rides = Rides.start(tmp_path / "repo", larder, f"registry: {{type: file, path: {file}}}\n")
    http = Http(rides.larder)
    http.push("driver_forever_push", [badge(7, 2, AT)])
    delete(rides.larder, "driver_forever")
    wait_until(lambda: cleared(rides.larder) == 1 and pending(rides.larder) == 0, "the row to be removed")

"""When a view may be read, beside Feast's own server: while a materialization writes, and after it was disabled."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pandas as pd
import pytest
import requests
from feast import FeatureStore
from feast.errors import FeastError
from feast.feature_view import FeatureViewState

import rides
from conftest import StartLarder
from faces import RefusedError, frame, now
from feast_server import FeastServer
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.server import Ports
from rides import DAY, Rides, fresh, stats
from test_stores import ask, column, local_repo, push

AT = now().replace(microsecond=0) - timedelta(hours=1)


def test_reads_do_not_wait_for_a_materialization(tmp_path: Path, larder: StartLarder) -> None:
    """Number 5 of "Better than Feast": another process writes into the SQLite file.

    A transaction locks it from the moment that its pages are written. Feast's readers wait for it, and give up.
    """
    feasts, ours = (local_repo(tmp_path / name, {"type": "sqlite"}) for name in ("feast", "larder"))
    row = {"driver_id": 7, "trips": 3, "conv_rate": 0.5, "rating": "x", "event_timestamp": AT, "created": AT}
    feasts.store().push("driver_push", pd.DataFrame([row]))
    feast, server = FeastServer(feasts.path).start(), larder(ours.path, ports=Ports.free())
    push(server, 7, AT, trips=3, conv_rate=0.5, rating="x")
    asked: tuple[list[str], dict[str, list[object]]] = (["driver_stats:trips"], {"driver_id": [7]})
    for url in (feast.url, server.online_url):
        assert column(ask(url, *asked), "trips") == [3]

    for repo, url in ((feasts, feast.url), (ours, server.online_url)):
        with closing(sqlite3.connect(repo.path / "data" / "online.db")) as materializer:
            materializer.execute("BEGIN EXCLUSIVE")
            materializer.execute("UPDATE drivers_driver_stats SET value = NULL")
            body: Any = {"features": asked[0], "entities": asked[1]}
            read = requests.post(f"{url}/get-online-features", json=body, timeout=60)
            materializer.rollback()
        if repo is feasts:
            assert (read.status_code, "database is locked" in read.text) == (500, True), read.text
        else:
            assert column(read.json(), "trips") == [3]
    feast.stop()


@dataclass
class Beside:
    """Feast's server and ours with the same objects, and one driver whose row both have."""

    feast: FeastServer
    larder: Rides
    driver: int

    def __post_init__(self) -> None:
        assert self.push(1) == [200, 200]

    @property
    def repos(self) -> list[FeatureStore]:
        """The SDK on each, to change the registries with."""
        return [self.feast.store, store(self.larder.path)]

    def post(self, path: str, body: object) -> list[requests.Response]:
        """The same call: Feast's response, ours."""
        return [self.feast.post(path, body), self.larder.larder.post(path, body)]

    def push(self, trips: int) -> list[int]:
        """Push the driver's newest row; the status codes."""
        rows = frame([stats(self.driver, trips, AT + timedelta(seconds=trips))])
        body = {"push_source_name": "driver_stats_push", "df": rows, "to": "online"}
        return [response.status_code for response in self.post("/push", body)]

    def feasts(self, features: Sequence[str]) -> requests.Response:
        """A read from Feast's server."""
        body = {"features": list(features), "entities": {"driver_id": [self.driver]}}
        return self.feast.post("/get-online-features", body)


@pytest.fixture
def beside(tmp_path: Path, larder: StartLarder) -> Iterator[Beside]:
    """Both servers."""
    feast = FeastServer(tmp_path / "feast", rides.PROJECT).start(rides.objects())
    yield Beside(feast, Rides.start(tmp_path / "larder", larder), fresh())
    feast.stop()


FACES = ["http", "grpc", "sdk"]


def test_a_disabled_view(beside: Beside) -> None:
    """It is not served, on any face, alone or in a service; ours says so with a 4xx.

    Both take writes of it, and refuse to materialize it.
    """
    asked = {"driver_id": [beside.driver]}
    for repo in beside.repos:
        repo.disable_feature_view("driver_stats")
    assert beside.push(2) == [200, 200]
    wait_until(lambda: beside.feasts(["driver_stats:trips"]).status_code == 500, "Feast's server to know")
    words = json.loads(beside.feasts(["driver_stats:trips"]).text)
    for face in map(beside.larder.face, FACES):
        for wanted in (["driver_stats:trips"], ["driver_forever:trips", "driver_stats:rating"], "two_views"):
            with pytest.raises(RefusedError) as refused:
                face.read(wanted, asked)
            assert refused.value.message == words
            assert refused.value.code in (409, grpc.StatusCode.FAILED_PRECONDITION, FeastError)
        assert face.read(["driver_forever:trips"], asked).statuses("trips") == ["NOT_FOUND"]
    week = {"start_ts": (AT - 7 * DAY).isoformat(), "end_ts": now().isoformat(), "feature_views": ["driver_stats"]}
    feasts, ours = beside.post("/materialize", week)
    assert (feasts.status_code, ours.status_code) == (500, 422)
    for response in (feasts, ours):
        assert "FeatureView driver_stats is disabled" in response.text

    store(beside.larder.path).enable_feature_view("driver_stats")
    for face in map(beside.larder.face, FACES):
        assert face.read(["driver_stats:trips"], asked).values("trips") == [2]


@pytest.mark.parametrize("state", [FeatureViewState.GENERATED, FeatureViewState.MATERIALIZING])
def test_reads_do_not_depend_on_a_materialization(beside: Beside, state: FeatureViewState) -> None:
    """Number 5 again: Feast refuses to serve pushed rows of a view that was never materialized, or is being."""
    for repo in beside.repos:
        for step in FeatureViewState:
            if FeatureViewState.STATE_UNSPECIFIED < step <= state:
                repo.set_feature_view_state("driver_stats", step)
    wait_until(lambda: beside.feasts(["driver_stats:trips"]).status_code == 500, "Feast's server to know")
    assert f"is in state '{state.name}' and cannot serve features" in beside.feasts(["driver_stats:trips"]).text
    for face in map(beside.larder.face, FACES):
        assert face.read(["driver_stats:trips"], {"driver_id": [beside.driver]}).values("trips") == [1]

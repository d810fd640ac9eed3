"""A push to the batch source: offline alone, or online and offline, whatever face it comes through."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import pytest

from conftest import StartLarder
from faces import Face, now
from online import micros
from rides import Rides, fresh, stats

MINUTE = timedelta(minutes=1)
AT = now().replace(microsecond=123_456) - timedelta(hours=1)


@pytest.fixture(scope="module")
def served(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """The rides on a server that all tests of this file share."""
    return Rides.start(tmp_path_factory.mktemp("rides") / "repo", module_larder)


@pytest.mark.parametrize(("to", "online"), [("offline", False), ("online_and_offline", True)])
def test_a_push_may_go_to_the_batch_source(served: Rides, face: Face, to: str, online: bool) -> None:
    one, two = fresh(), fresh()
    face.push("driver_stats_push", [stats(one, 10, AT), stats(two, 20, AT + MINUTE, rating=None)], to=to)
    table = pd.read_parquet(served.path / "data" / "driver_stats.parquet")
    rows = table[table.driver_id.isin([one, two])].sort_values("driver_id")
    assert rows.trips.tolist() == [10, 20]
    assert rows.rating.tolist() == ["good", None]
    assert [micros(at) for at in rows.event_timestamp] == [micros(AT), micros(AT + MINUTE)]
    assert [micros(at) for at in rows.created] == [micros(AT), micros(AT + MINUTE)]
    assert "first" in set(table.rating), "what was there before is still there"
    status = "PRESENT" if online else "NOT_FOUND"
    assert face.read(["driver_stats:trips"], {"driver_id": [one, two]}).statuses("trips") == [status] * 2

"""Materialization of sources that are damaged, vanish, change, or hold rows that are nobody's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from feast import FeatureView, Field
from feast.types import FeastType, Float64, Int64

from conftest import StartLarder
from drivers import DRIVER, Drivers, view_of
from larder_env.process import wait_until
from larder_env.repo import store
from online import metric, read_online

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
END = BEGIN + timedelta(days=1)
MANY = 100_000


class World(Drivers):
    """A server on which each test has views of its own."""

    def view(self, name: str, dtype: FeastType = Int64) -> FeatureView:
        """A view on a file of its own."""
        return view_of(name, [Field(name="driver_id", dtype=Int64), Field(name="value", dtype=dtype)], timestamp="ts")

    def post(self, view: str, background: bool = False) -> requests.Response:
        """Materialize a view."""
        body = {"start_ts": BEGIN.isoformat(), "end_ts": END.isoformat(), "feature_views": [view]}
        return self.larder.post(f"/materialize?async={'true' if background else 'false'}", body)

    def job(self, view: str) -> dict[str, object]:
        """The view's latest job."""
        jobs = requests.get(f"{self.larder.online_url}/jobs", timeout=10).json()["jobs"]
        found = next(job for job in jobs if job["feature_view"] == view)
        assert isinstance(found, dict)
        return found

    def begin(self, view: str) -> None:
        """Materialize many rows in the background, until some of them are there."""
        assert self.post(view, background=True).status_code == 202
        wait_until(lambda: self.job(view)["rows"] != 0, "the first batch", 60, pause=0.002)
        assert self.job(view)["status"] == "running"

    def ended(self, view: str) -> dict[str, object]:
        """The view's job at its end."""
        wait_until(lambda: self.job(view)["status"] != "running", "the job's end", 60)
        return self.job(view)

    def values(self, view: str, drivers: list[int]) -> list[object]:
        """What is served."""
        cells = read_online(self.larder, view, ["value"], "driver_id", drivers)
        return [cells[driver]["value"].value for driver in drivers]

    def intervals(self, view: str) -> int:
        """How many materialization intervals are recorded."""
        return len(store(self.larder.repo).get_feature_view(view).materialization_intervals)


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One server for the file; every test has a view of its own."""
    repo = tmp_path_factory.mktemp("sources")
    return World.start(module_larder, repo, "sources", "--services", "online,registry,offline")


def many(world: World, view: str) -> None:
    """A row for each driver, whose value is its number; applied."""
    times = np.datetime64(BEGIN.replace(tzinfo=None), "us") + np.arange(MANY)
    frame = pd.DataFrame({"driver_id": np.arange(MANY), "value": np.arange(MANY), "ts": times})
    frame["ts"] = frame["ts"].dt.tz_localize("UTC")
    frame.to_parquet(world.path(view), index=False, row_group_size=20_000)
    world.sdk.apply([DRIVER, world.view(view)])


def damage(path: Path, group: int, column: int) -> None:
    """Overwrite a column of a row group."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    whole = path.read_bytes()
    size = chunk.total_compressed_size
    path.write_bytes(whole[:at] + b"\xff" * size + whole[at + size :])


@pytest.mark.parametrize(("column", "rows"), [(0, False), (1, True)], ids=["keys", "values"])
def test_a_corrupt_row_group_fails_the_job_and_is_named(world: World, column: int, rows: bool) -> None:
    view = f"hurt_{column}"
    many(world, view)
    whole = world.path(view).read_bytes()
    damage(world.path(view), 3, column)
    answered = world.post(view)
    assert answered.status_code == 422, answered.text
    job = world.job(view)
    assert job["status"] == "failed"
    assert f"{view}_file" in str(job["error"])
    assert str(job["error"]).count(f"{view}.parquet") == 1
    # nobody is told that it is all there; where the keys could be read, what came before the damage is right
    assert world.intervals(view) == 0
    assert (job["rows"] != 0) == rows
    assert world.values(view, [7, 90_000]) == [7 if rows else None, None]
    world.path(view).write_bytes(whole)
    assert world.post(view).status_code == 200
    assert world.values(view, [7, 90_000]) == [7, 90_000]
    assert world.intervals(view) == 1


@pytest.mark.parametrize("how", [Path.unlink, lambda path: path.write_bytes(b"other")], ids=["removed", "replaced"])
def test_a_source_that_goes_while_it_is_read_is_read_to_its_end(world: World, how: Callable[[Path], object]) -> None:
    view = "leaving" if how is Path.unlink else "replaced"
    many(world, view)
    world.begin(view)
    path = world.path(view)
    if how is not Path.unlink:
        path.rename(path.with_suffix(".old"))
    how(path)
    assert world.ended(view)["rows"] == MANY
    assert world.job(view)["status"] == "done"
    assert world.values(view, [0, MANY // 2, MANY - 1]) == [0, MANY // 2, MANY - 1]
    # and the next time it is the caller's to mend
    assert world.post(view).status_code == 422
    assert view in str(world.job(view)["error"])
    path.unlink(missing_ok=True)


def test_rows_without_key_or_time_are_left_out_and_counted(world: World) -> None:
    table = pa.table(
        {
            "driver_id": pa.array([1, None, 2, 2, 3, None], pa.int64()),
            "value": pa.array([10, 11, 20, 21, 30, 12], pa.int64()),
            "ts": pa.array([BEGIN, BEGIN, BEGIN, None, None, None], pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, world.path("nobodys"))
    world.sdk.apply([DRIVER, world.view("nobodys")])
    assert world.post("nobodys").status_code == 200
    job = world.job("nobodys")
    assert (job["status"], job["rows"], job["skipped"]) == ("done", 2, 4)
    assert world.values("nobodys", [1, 2, 3]) == [10, 20, None]
    assert metric(world.larder, "larder_offline_rows_skipped_total", view="nobodys") == [4]
    assert 'view="nobodys" rows=2 applied=2 skipped=4' in world.larder.log


def test_a_view_that_is_deleted_meanwhile_gets_no_more_rows(world: World) -> None:
    many(world, "deleted")
    world.begin("deleted")
    world.sdk.delete_feature_view("deleted")
    job = world.ended("deleted")
    assert (job["status"], "deleted does not exist" in str(job["error"])) == ("failed", True)
    # the same name again is another view, and no row of the deleted one is in it
    world.sdk.apply([DRIVER, world.view("deleted")])
    assert world.values("deleted", [0, 1, MANY - 1]) == [None] * 3


def test_a_view_that_is_changed_meanwhile_gets_no_rows_of_the_old_one(world: World) -> None:
    many(world, "changed")
    world.begin("changed")
    world.sdk.apply([world.view("changed", Float64)])
    job = world.ended("changed")
    assert (job["status"], "was changed while" in str(job["error"])) == ("failed", True)
    assert world.intervals("changed") == 0
    assert world.post("changed").status_code == 200
    assert world.values("changed", [5, MANY - 1]) == [5.0, float(MANY - 1)]


def test_what_does_not_matter_to_its_rows_may_change_meanwhile(world: World) -> None:
    many(world, "described")
    world.begin("described")
    view = world.view("described")
    view.description, view.tags, view.ttl = "more words", {"team": "one"}, timedelta(days=10_000)
    world.sdk.apply([view])
    assert world.ended("described")["status"] == "done"
    assert world.intervals("described") == 1


def test_of_many_who_ask_at_once_one_is_served_and_the_others_are_told(world: World) -> None:
    many(world, "wanted")
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(world.post("wanted").status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(200) >= 1
    assert set(codes) == {200, 409}
    assert world.values("wanted", [0, MANY - 1]) == [0, MANY - 1]

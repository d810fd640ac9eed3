"""/materialize through the SDK: the latest row per key of a batch source goes online, last write wins, crash or not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, KafkaSource, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env.process import wait_until
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports
from online import micros, read_online

HOUR = timedelta(hours=1)
NEWEST = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
HOURS = 24
DRIVERS = list(range(1, 31))
MANY = 60_000
# so many that a debug build is at work for tens of seconds: a test can do something meanwhile
ENDLESS = 600_000
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)


def hourly() -> pd.DataFrame:
    """A row per driver and hour, the last hour being NEWEST; `trips` says driver and hour. Driver 1 has gaps.

    Every third hour is corrected: the same time, created later, 100000 more.
    """
    rows: list[dict[str, object]] = []
    for hour in range(HOURS):
        at = NEWEST - (HOURS - 1 - hour) * HOUR
        for driver in DRIVERS[: 1 if hour == 0 else None]:
            if driver == 1 and hour > 5:
                continue
            trips = driver * 1000 + hour
            row = {"driver_id": driver, "trips": trips, "rating": None if driver == 2 else trips / 10, "ts": at}
            if hour % 3 == 0:
                rows.append({**row, "trips": trips + 100_000, "created": at + 2 * HOUR})
            rows.append({**row, "created": at + HOUR})
    frame = pd.DataFrame(rows).sample(frac=1, random_state=1)
    return frame.astype({"ts": "datetime64[us, UTC]", "created": "datetime64[us, UTC]"})


def latest(start: datetime, end: datetime) -> dict[int, tuple[int, datetime]]:
    """By driver: trips and time of the row with the greatest (ts, created) in [start, end)."""
    rows = hourly()
    inside = rows[(rows["ts"] >= start) & (rows["ts"] < end)].sort_values(["ts", "created"])
    last = inside.drop_duplicates("driver_id", keep="last")
    return {int(row.driver_id): (int(row.trips), row.ts.to_pydatetime()) for row in last.itertuples()}


def big(count: int) -> pd.DataFrame:
    """Two rows for each of `count` drivers: `value` of the newer one is the driver's number."""
    drivers = np.arange(count)
    older = pd.DataFrame({"driver_id": drivers, "value": drivers - 1, "ts": NEWEST - 2 * HOUR})
    newer = pd.DataFrame({"driver_id": drivers, "value": drivers, "ts": NEWEST - HOUR})
    return pd.concat([newer, older]).astype({"ts": "datetime64[us, UTC]"})


def view(name: str, table: str = "hourly") -> list[object]:
    """A view on the hourly file under a name of its own, with a push source."""
    batch = FileSource(
        name=f"{name}_file", path=f"data/{table}.parquet", timestamp_field="ts", created_timestamp_column="created"
    )
    push = PushSource(name=f"{name}_push", batch_source=batch)
    fields = [
        Field(name="driver_id", dtype=Int64),
        Field(name="trips", dtype=Int64),
        Field(name="rating", dtype=Float64),
    ]
    return [push, FeatureView(name=name, entities=[DRIVER], ttl=timedelta(0), source=push, schema=fields)]


def big_view(name: str, table: str = "big") -> FeatureView:
    """A view on the big file, or on another like it."""
    return FeatureView(
        name=name,
        entities=[DRIVER],
        ttl=timedelta(0),
        source=FileSource(name=f"{name}_file", path=f"data/{table}.parquet", timestamp_field="ts"),
        schema=[Field(name="driver_id", dtype=Int64), Field(name="value", dtype=Int64)],
    )


def windowed_view() -> StreamFeatureView:
    """A windowed view: computed from its stream, so nothing is materialized unless it is named."""
    return StreamFeatureView(
        name="windowed",
        entities=[DRIVER],
        ttl=timedelta(0),
        mode="python",
        timestamp_field="ts",
        source=KafkaSource(
            name="trips_stream",
            kafka_bootstrap_servers="127.0.0.1:1",
            topic="trips",
            timestamp_field="ts",
            message_format=JsonFormat(schema_json="driver_id bigint, trips bigint, ts timestamp"),
            batch_source=FileSource(name="windowed_file", path="data/hourly.parquet", timestamp_field="ts"),
        ),
        aggregations=[Aggregation(column="trips", function="count", time_window=HOUR, name="n_1h")],
        schema=[Field(name="driver_id", dtype=Int64), Field(name="n_1h", dtype=Int64)],
    )


@dataclass
class World:
    """A server and the SDK's store that points at it."""

    larder: Larder
    features: FeatureStore

    def trips(self, view: str, drivers: Sequence[int] = tuple(DRIVERS)) -> dict[int, tuple[int, datetime]]:
        """What is served, in the form of `latest`; unknown drivers are left out."""
        cells = read_online(self.larder, view, ["trips"], "driver_id", drivers)
        found = {}
        for driver in drivers:
            cell = cells[driver]["trips"]
            assert cell.status in {"PRESENT", "NOT_FOUND"}
            if cell.status == "PRESENT":
                assert isinstance(cell.value, int)
                assert cell.event_ts is not None
                found[driver] = (cell.value, datetime.fromtimestamp(cell.event_ts / 1e6, UTC))
        return found

    def intervals(self, view: str) -> list[tuple[datetime, datetime]]:
        """The materialization intervals in the registry."""
        fresh = store(self.larder.repo)
        return list(fresh.get_feature_view(view).materialization_intervals)


def make_repo(directory: Path) -> Path:
    """A configured repo with the hourly and the big file."""
    write_config(directory, "materialized", Ports.free())
    (directory / "data").mkdir()
    hourly().to_parquet(directory / "data" / "hourly.parquet", index=False)
    big(MANY).to_parquet(directory / "data" / "big.parquet", index=False)
    return directory


SERVICES = ["--services", "online,registry,offline"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder) -> World:
    """One server for the file; every test applies views of its own."""
    repo = make_repo(tmp_path_factory.mktemp("materialize") / "repo")
    return World(module_larder(repo, args=SERVICES), store(repo))


# --- rows ---------------------------------------------------------------------------------------------------------


def test_the_latest_row_of_each_key_in_the_half_open_interval(world: World) -> None:
    world.features.apply([DRIVER, *view("interval")])  # type: ignore[list-item]
    start, end = NEWEST - 10 * HOUR, NEWEST - 5 * HOUR
    world.features.materialize(start, end, feature_views=["interval"])
    wanted = latest(start, end)
    assert world.trips("interval") == wanted
    assert wanted[3][1] == end - HOUR
    # driver 1 has nothing in there; and a value that is null is there, and null
    assert 1 not in wanted
    cells = read_online(world.larder, "interval", ["trips", "rating"], "driver_id", [2, 3])
    assert (cells[2]["rating"].status, cells[2]["trips"].status) == ("NULL_VALUE", "PRESENT")
    assert cells[3]["rating"].event_ts == micros(end - HOUR)
    served = world.features.get_online_features(["interval:trips"], [{"driver_id": 3}, {"driver_id": 1}]).to_dict()
    assert served["trips"] == [wanted[3][0], None]


def test_the_first_instant_is_in_the_last_is_not_and_corrections_win(world: World) -> None:
    world.features.apply([DRIVER, *view("edges")])  # type: ignore[list-item]
    at = NEWEST - 2 * HOUR
    assert (HOURS - 1 - 2) % 3 == 0
    world.features.materialize(at, at + timedelta(microseconds=1), feature_views=["edges"])
    wanted = latest(at, at + timedelta(microseconds=1))
    assert {ts for _, ts in wanted.values()} == {at}
    assert all(trips > 100_000 for trips, _ in wanted.values())
    assert world.trips("edges") == wanted


def test_an_older_interval_afterwards_changes_only_who_was_not_there(world: World) -> None:
    world.features.apply([DRIVER, *view("backwards")])  # type: ignore[list-item]
    world.features.materialize(NEWEST - 3 * HOUR, NEWEST + HOUR, feature_views=["backwards"])
    newer = latest(NEWEST - 3 * HOUR, NEWEST + HOUR)
    assert 1 not in newer
    world.features.materialize(NEWEST - HOURS * HOUR, NEWEST - 3 * HOUR, feature_views=["backwards"])
    older = latest(NEWEST - HOURS * HOUR, NEWEST - 3 * HOUR)
    assert world.trips("backwards") == {**newer, 1: older[1]}


def test_a_newer_pushed_row_is_not_overwritten_and_an_older_one_is(world: World) -> None:
    world.features.apply([DRIVER, *view("pushed")])  # type: ignore[list-item]
    rows = pd.DataFrame(
        {
            "driver_id": [3, 4],
            "trips": [-3, -4],
            "rating": [0.0, 0.0],
            "ts": [NEWEST + timedelta(minutes=1), NEWEST - 20 * HOUR],
            "created": [NEWEST, NEWEST],
        }
    )
    world.features.push("pushed_push", rows)
    assert world.trips("pushed", [3, 4]) == {
        3: (-3, NEWEST + timedelta(minutes=1)),
        4: (-4, NEWEST - 20 * HOUR),
    }
    world.features.materialize(NEWEST - HOURS * HOUR, NEWEST + HOUR, feature_views=["pushed"])
    wanted = latest(NEWEST - HOURS * HOUR, NEWEST + HOUR)
    assert world.trips("pushed") == {**wanted, 3: (-3, NEWEST + timedelta(minutes=1))}


# --- intervals, incremental ---------------------------------------------------------------------------------------


def test_adjoining_and_overlapping_intervals_are_one_in_the_registry(world: World) -> None:
    world.features.apply([DRIVER, *view("coalesced")])  # type: ignore[list-item]
    times = [NEWEST - hours * HOUR for hours in (20, 16, 12, 9, 3, 1)]
    a, b, c, d, e, f = times
    for start, end in [(a, b), (b, c), (a + HOUR, b), (e, f)]:
        world.features.materialize(start, end, feature_views=["coalesced"])
    assert world.intervals("coalesced") == [(a, c), (e, f)]
    world.features.materialize(d - 4 * HOUR, e + HOUR, feature_views=["coalesced"])
    assert world.intervals("coalesced") == [(a, f)]
    for _ in range(3):
        world.features.materialize(e, f, feature_views=["coalesced"])
    assert world.intervals("coalesced") == [(a, f)]
    # the same objects applied again do not make it forget
    world.features.apply([DRIVER, *view("coalesced")])  # type: ignore[list-item]
    assert world.intervals("coalesced") == [(a, f)]


def test_incremental_goes_on_where_the_last_one_ended(world: World) -> None:
    world.features.apply([DRIVER, *view("incremental")])  # type: ignore[list-item]
    start, middle, end = NEWEST - 20 * HOUR, NEWEST - 10 * HOUR, NEWEST + HOUR
    world.features.materialize(start, middle, feature_views=["incremental"])
    world.features.materialize_incremental(end, feature_views=["incremental"])
    assert world.intervals("incremental") == [(start, end)]
    assert world.trips("incremental") == latest(start, end)
    # once more to the same end: nothing to do, and no error
    world.features.materialize_incremental(end, feature_views=["incremental"])
    assert world.intervals("incremental") == [(start, end)]


def test_the_first_incremental_goes_back_by_the_ttl(world: World) -> None:
    push, limited = view("with_ttl")
    assert isinstance(limited, FeatureView)
    limited.ttl = timedelta(hours=6)
    world.features.apply([DRIVER, push, limited])  # type: ignore[list-item]
    world.features.materialize_incremental(NEWEST + HOUR, feature_views=["with_ttl"])
    [(start, end)] = world.intervals("with_ttl")
    assert abs(start - (datetime.now(UTC) - 6 * HOUR)) < timedelta(minutes=1)
    assert end == NEWEST + HOUR
    assert world.trips("with_ttl") == latest(start, end)


# --- which views --------------------------------------------------------------------------------------------------


def test_all_views_leave_out_the_windowed_ones_without_error(tmp_path: Path, larder: StartLarder) -> None:
    repo = make_repo(tmp_path / "repo")
    world = World(larder(repo, args=SERVICES), store(repo))
    world.features.apply([DRIVER, *view("one"), *view("two"), windowed_view()])  # type: ignore[list-item]
    start, end = NEWEST - 4 * HOUR, NEWEST + HOUR
    world.features.materialize(start, end)
    assert world.trips("one") == world.trips("two") == latest(start, end)
    world.features.materialize_incremental(end + HOUR)
    assert world.intervals("one") == world.intervals("two") == [(start, end + HOUR)]
    # named, its windows are built anew (test_backfill.py), from all events that they span
    with pytest.raises(RuntimeError, match=r"\(422\).*windowed: its widest window reaches back to"):
        world.features.materialize(end - HOUR / 2, end, feature_views=["windowed"])


def test_an_unknown_view_is_feasts_exception_and_nothing_is_materialized(world: World) -> None:
    world.features.apply([DRIVER, *view("known")])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match=r"\(404\).*FeatureViewNotFoundException.*nosuch does not exist"):
        world.features.materialize(NEWEST - HOUR, NEWEST, feature_views=["known", "nosuch"])
    assert world.trips("known") == {}
    assert world.intervals("known") == []


# --- bad requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("yesterday", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00Z", ""),
        ("2024-13-01T00:00:00Z", "2024-12-01T00:00:00Z"),
        ("2024-01-02T00:00:00Z", "2024-01-01T00:00:00Z"),
        (None, "2024-01-01T00:00:00Z"),
        (17, "2024-01-01T00:00:00Z"),
    ],
)
def test_bad_times_are_the_callers_error(world: World, start: object, end: object) -> None:
    world.features.apply([DRIVER, *view("badtimes")])  # type: ignore[list-item]
    body = {"start_ts": start, "end_ts": end, "feature_views": ["badtimes"]}
    answered = world.larder.post("/materialize", body)
    assert 400 <= answered.status_code < 500, answered.text
    assert answered.text
    answered = world.larder.post("/materialize-incremental", {"end_ts": start, "feature_views": ["badtimes"]})
    assert 400 <= answered.status_code < 500 or start == "2024-01-02T00:00:00Z", answered.text


def test_a_source_that_vanished_is_the_callers_error_and_nothing_is_recorded(world: World) -> None:
    (world.larder.repo / "data" / "gone.parquet").write_bytes(
        (world.larder.repo / "data" / "hourly.parquet").read_bytes()
    )
    world.features.apply([DRIVER, *view("gone", "gone")])  # type: ignore[list-item]
    (world.larder.repo / "data" / "gone.parquet").unlink()
    with pytest.raises(RuntimeError, match=r"\(4\d\d\).*gone"):
        world.features.materialize(NEWEST - HOUR, NEWEST, feature_views=["gone"])
    assert world.intervals("gone") == []


# --- in the background, and while it runs -------------------------------------------------------------------------


def test_in_the_background_it_is_202_then_409_and_reads_and_writes_go_on(world: World) -> None:
    world.features.apply([DRIVER, big_view("background"), *view("meanwhile")])  # type: ignore[list-item]
    start, end = NEWEST - 5 * HOUR, NEWEST
    body = {"start_ts": start.isoformat(), "end_ts": end.isoformat(), "feature_views": ["background"]}
    accepted = world.larder.post("/materialize?async=true", body)
    answer = accepted.json()
    [running] = jobs_of(world, "background")
    assert answer.pop("id") == running["id"]
    assert (accepted.status_code, answer) == (202, {"status": "accepted", "feature_views": ["background"]})
    refused = world.larder.post("/materialize?async=true", body)
    assert refused.status_code == 409
    assert refused.json()["feature_views"] == ["background"]
    with pytest.raises(RuntimeError, match=r"conflict \(409\).*background"):
        world.features.materialize(start, end, feature_views=["background"], run_async=True)
    # another view is not held up, nor are reads and pushes
    world.features.materialize(NEWEST - HOUR, NEWEST + HOUR, feature_views=["meanwhile"])
    assert world.trips("meanwhile") == latest(NEWEST - HOUR, NEWEST + HOUR)
    wait_until(lambda: world.intervals("background") == [(start, end)], "the background materialization", 60)
    ends = [0, 1, MANY // 2, MANY - 1]
    cells = read_online(world.larder, "background", ["value"], "driver_id", [*ends, MANY])
    assert [cells[driver]["value"].value for driver in ends] == ends
    assert cells[MANY]["value"].status == "NOT_FOUND"
    # and it can be asked for again
    assert world.larder.post("/materialize?async=true", body).status_code == 202
    wait_until(lambda: world.larder.post("/materialize", body).status_code == 200, "the second one to end", 60)


def jobs_of(world: World, view: str) -> list[dict[str, object]]:
    """What `GET /jobs` says of one view, the newest first."""
    answered = requests.get(f"{world.larder.online_url}/jobs", timeout=10)
    assert answered.status_code == 200, answered.text
    return [job for job in answered.json()["jobs"] if job["feature_view"] == view]


def test_jobs_say_how_far_each_view_is_and_why_one_failed(world: World) -> None:
    gone = world.larder.repo / "data" / "away.parquet"
    gone.write_bytes((world.larder.repo / "data" / "hourly.parquet").read_bytes())
    world.features.apply([DRIVER, big_view("counted"), *view("beside"), *view("away", "away")])  # type: ignore[list-item]
    gone.unlink()
    start, end = NEWEST - 5 * HOUR, NEWEST
    body = {"start_ts": start.isoformat(), "end_ts": end.isoformat(), "feature_views": ["counted", "beside"]}
    assert world.larder.post("/materialize?async=true", body).status_code == 202
    # two views of one job run at the same time: the small one ends while the big one is on its way
    wait_until(lambda: [job["status"] for job in jobs_of(world, "beside")] == ["done"], "the small view", 60)
    wait_until(lambda: [job["status"] for job in jobs_of(world, "counted")] != ["running"], "the big view", 60)
    [counted] = jobs_of(world, "counted")
    assert (counted["status"], counted["rows"], counted["applied"], counted["error"]) == ("done", MANY, MANY, None)
    assert (counted["start_ts"], counted["end_ts"]) == tuple(t.isoformat().replace("+00:00", "Z") for t in (start, end))
    assert str(counted["began"]) < str(counted["ended"])
    [beside] = jobs_of(world, "beside")
    assert beside["rows"] == len(latest(start, end))
    # the older half of the rows, afterwards: none is newer than what is there
    older = {"start_ts": start.isoformat(), "end_ts": (end - HOUR).isoformat(), "feature_views": ["counted"]}
    assert world.larder.post("/materialize", older).status_code == 200
    assert [job["applied"] for job in jobs_of(world, "counted")] == [0, MANY]
    assert world.larder.post("/materialize", {**body, "feature_views": ["away"]}).status_code == 422
    [failed] = jobs_of(world, "away")
    assert (failed["status"], failed["rows"]) == ("failed", 0)
    assert "away_file" in str(failed["error"])


def test_reads_during_a_materialization_are_answered_and_never_go_back(world: World) -> None:
    world.features.apply([DRIVER, big_view("busy")])
    errors: list[BaseException] = []

    def materialize() -> None:
        try:
            store(world.larder.repo).materialize(NEWEST - 5 * HOUR, NEWEST, feature_views=["busy"])
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            errors.append(error)

    drivers = list(range(0, MANY, MANY // 50))
    seen: set[int] = set()
    reads = 0
    worker = threading.Thread(target=materialize)
    worker.start()
    while worker.is_alive():
        cells = read_online(world.larder, "busy", ["value"], "driver_id", drivers)
        now = {driver for driver in drivers if cells[driver]["value"].status == "PRESENT"}
        assert now >= seen
        assert all(cells[driver]["value"].value == driver for driver in now)
        seen, reads = now, reads + 1
    worker.join()
    assert errors == []
    assert reads > 3
    cells = read_online(world.larder, "busy", ["value"], "driver_id", drivers)
    assert [cells[driver]["value"].value for driver in drivers] == drivers


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_crash_or_a_stop_interrupts_goes_on_by_itself(
    tmp_path: Path, larder: StartLarder, how: signal.Signals
) -> None:
    repo = make_repo(tmp_path / "repo")
    world = World(larder(repo, args=SERVICES), store(repo))
    world.features.apply([DRIVER, big_view("interrupted"), *view("before"), *view("behind")])  # type: ignore[list-item]
    start, end = NEWEST - 5 * HOUR, NEWEST
    body: dict[str, object] = {"start_ts": start.isoformat(), "end_ts": end.isoformat()}
    assert world.larder.post("/materialize", {**body, "feature_views": ["before"]}).status_code == 200
    before = jobs_of(world, "before")
    drivers = list(range(0, MANY, MANY // 200))

    def written() -> int:
        cells = read_online(world.larder, "interrupted", ["value"], "driver_id", drivers)
        return sum(cells[driver]["value"].status == "PRESENT" for driver in drivers)

    accepted = world.larder.post("/materialize?async=true", {**body, "feature_views": ["interrupted", "behind"]})
    assert accepted.status_code == 202
    wait_until(lambda: written() > 0, "the first batches", 60, pause=0.005)
    [running] = jobs_of(world, "interrupted")
    assert running["status"] == "running"
    world.larder.restart(how)
    # nobody asks again, and who does is told that it is being done
    wait_until(lambda: world.intervals("interrupted") == [(start, end)], "the job to be done", 60)
    wait_until(lambda: jobs_of(world, "interrupted")[0]["status"] == "done", "the job to have ended", 60)
    [done] = jobs_of(world, "interrupted")
    assert (done["id"], done["status"], done["rows"], done["error"]) == (accepted.json()["id"], "done", MANY, None)
    assert world.intervals("behind") == [(start, end)]
    assert world.trips("behind") == latest(start, end)
    for part in np.array_split(np.arange(MANY), 12):
        keys = [int(driver) for driver in part]
        cells = read_online(world.larder, "interrupted", ["value"], "driver_id", keys)
        assert [cells[driver]["value"].value for driver in keys] == keys
    # what had ended is still told, and is not done again
    assert jobs_of(world, "before") == before
    assert world.larder.log.count('view="before" rows=') == 1
    # and once all is done a restart begins nothing
    world.larder.restart()
    assert jobs_of(world, "interrupted") == [done]


def delete_job(world: World, job: object) -> requests.Response:
    """DELETE /jobs/{id}, as it is answered."""
    return requests.delete(f"{world.larder.online_url}/jobs/{job}", timeout=60)


def test_a_job_can_be_cancelled_and_what_it_wrote_stays(world: World) -> None:
    big(ENDLESS).to_parquet(world.larder.repo / "data" / "endless.parquet", index=False)
    endless = ["unwanted", "unwanted_too"]
    world.features.apply([DRIVER, *(big_view(name, "endless") for name in endless), *view("unbegun")])  # type: ignore[list-item]
    start, end = NEWEST - 5 * HOUR, NEWEST
    names = [*endless, "unbegun"]
    body: dict[str, object] = {"start_ts": start.isoformat(), "end_ts": end.isoformat(), "feature_views": names}
    accepted = world.larder.post("/materialize?async=true", body)
    assert [jobs_of(world, "unbegun")[0][part] for part in ("status", "began")] == ["waiting", None]
    wait_until(lambda: any(jobs_of(world, name)[0]["rows"] for name in endless), "the first batch", 60, pause=0.005)
    cancelled = delete_job(world, accepted.json()["id"])
    assert cancelled.status_code == 200, cancelled.text
    by_view = {job["feature_view"]: job for job in cancelled.json()["jobs"]}
    assert {view: job["status"] for view, job in by_view.items()} == dict.fromkeys(names, "cancelled")
    assert all(job["ended"] for job in by_view.values())
    assert 0 < sum(by_view[name]["rows"] for name in endless) < 2 * ENDLESS
    assert [world.intervals(name) for name in names] == [[], [], []]
    assert world.trips("unbegun") == {}
    # the views are free again: an interval without rows
    again = {**body, "end_ts": (NEWEST - 4 * HOUR).isoformat(), "feature_views": ["unwanted"]}
    assert world.larder.post("/materialize", again).status_code == 200
    assert [job["status"] for job in jobs_of(world, "unwanted")] == ["done", "cancelled"]
    too_late = delete_job(world, accepted.json()["id"])
    assert (too_late.status_code, "has ended" in too_late.text) == (409, True)
    unknown = delete_job(world, "nosuch")
    assert (unknown.status_code, "nosuch" in unknown.text) == (404, True)


def test_who_waits_for_a_job_that_is_cancelled_is_told(world: World) -> None:
    world.features.apply([DRIVER, big_view("awaited")])
    body = {"start_ts": (NEWEST - 5 * HOUR).isoformat(), "end_ts": NEWEST.isoformat(), "feature_views": ["awaited"]}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(world.larder.post, "/materialize", body)
        wait_until(lambda: jobs_of(world, "awaited") != [], "the job", 60, pause=0.005)
        assert delete_job(world, jobs_of(world, "awaited")[0]["id"]).status_code == 200
        answered = waiting.result(60)
    assert (answered.status_code, "was cancelled" in answered.text) == (409, True)


def test_a_view_without_entities(world: World) -> None:
    news = pd.DataFrame({"headline": ["old", "new"], "ts": [NEWEST - 2 * HOUR, NEWEST - HOUR]})
    news.astype({"ts": "datetime64[us, UTC]"}).to_parquet(world.larder.repo / "data" / "news.parquet", index=False)
    source = FileSource(name="news_file", path="data/news.parquet", timestamp_field="ts")
    world.features.apply(
        [FeatureView(name="news", entities=[], source=source, schema=[Field(name="headline", dtype=String)])]
    )
    world.features.materialize(NEWEST - 5 * HOUR, NEWEST, feature_views=["news"])
    world.features.apply([DRIVER, *view("beside")])  # type: ignore[list-item]
    world.features.materialize(NEWEST - 5 * HOUR, NEWEST, feature_views=["beside"])
    served = world.features.get_online_features(["news:headline", "beside:trips"], [{"driver_id": 3}]).to_dict()
    assert served["headline"] == ["new"]

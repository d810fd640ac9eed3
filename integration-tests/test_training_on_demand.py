"""On-demand features in training sets: what Feast's own offline store makes of the same files, and what it cannot."""

from __future__ import annotations

import math
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.errors import RequestDataNotFoundInEntityDfException
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import OnDemandFeatureView, on_demand_feature_view
from feast.types import Int64

from conftest import StartLarder
from larder_env.repo import store, write_config, write_feast
from larder_env.server import HOST, Larder, Ports
from on_demand_views import HARMFUL, objects, wait_for_workers
from online import metric

PROJECT = "training"
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOURS = 48


@dataclass
class World:
    """Larder through the SDK, and Feast's own offline store in this process, over equal files."""

    binary: Path
    larder: Larder
    remote: FeatureStore
    local: FeatureStore

    def ours(self, features: list[str] | str, frame: pd.DataFrame, full: bool = False) -> pd.DataFrame:
        """What Larder says."""
        return training_set(self.remote, features, frame, full)

    def agree(self, features: list[str] | str, frame: pd.DataFrame, full: bool = False) -> pd.DataFrame:
        """What both say of the computed features and all else, which must be the same."""
        ours, theirs = (training_set(each, features, frame, full) for each in (self.remote, self.local))
        assert set(ours.columns) == set(theirs.columns)
        # Feast's own store gives the rows in an order of its own
        theirs = theirs.set_index("row").loc[ours["row"]].reset_index()
        for name in ours.columns:
            assert [plain(v) for v in ours[name]] == [plain(v) for v in theirs[name]], name
        return ours


def training_set(each: FeatureStore, features: list[str] | str, frame: pd.DataFrame, full: bool) -> pd.DataFrame:
    asked = each.get_feature_service(features) if isinstance(features, str) else features
    return each.get_historical_features(frame.copy(), asked, full_feature_names=full).to_df()


def plain(value: object) -> object:
    """A value in a form that both stores give: no NaN, times in UTC."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 9)
    return pd.Timestamp(value).tz_convert("UTC") if isinstance(value, datetime) else value


def history(view: str) -> pd.DataFrame:
    """One row per driver and hour. Driver 3 is nowhere."""
    rows: list[dict[str, object]] = []
    for hour in range(HOURS):
        at = BEGIN + timedelta(hours=hour)
        for driver in (1, 2):
            number = hour * 10 + driver
            row: dict[str, object] = {"driver_id": driver, "event_timestamp": at, "trips": number}
            if view == "stats":
                row |= {"conv_rate": number / 8, "rating": "good" if hour % 2 else "bad", "seats": driver + 3}
                row |= {"since": at - timedelta(days=driver), "tags": [f"t{hour}", "x"]}
            else:
                row |= {"trips": number + 5, "badge": str(uuid.UUID(int=number))}
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.astype({"seats": "int32"}) if view == "stats" else frame


def chained() -> list[Any]:
    """A view of views that are computed themselves."""
    made = {o.name: o for o in objects() if isinstance(o, (FeatureView, OnDemandFeatureView))}

    @on_demand_feature_view(
        sources=[made["sums"].projection, made["data_only"].projection],
        schema=[Field(name="twice_over", dtype=Int64)],
        mode="python",
    )
    def chain(inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(inputs["trips_plus"], inputs["doubled"], strict=True)
        return {"twice_over": [None if a is None else a * 1000 + b for a, b in pairs]}

    return [chain]


def entity_rows(drivers: Sequence[int] = (1, 2), number: int = 40) -> pd.DataFrame:
    """Rows within the time of the history, with the request data, and a number that tells them apart."""
    rows = [
        {
            "driver_id": drivers[i % len(drivers)],
            "event_timestamp": BEGIN + timedelta(minutes=61 * i + 7),
            "val": i * 3 % 17,
            "factor": i / 4,
            "row": i,
        }
        for i in range(number)
    ]
    return pd.DataFrame(rows).sample(frac=1.0, random_state=3, ignore_index=True)


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, larder_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Both stores, applied, over equal files."""
    path = tmp_path_factory.mktemp("training")
    write_config(path / "repo", PROJECT, Ports.free())
    with (path / "repo" / "larder.yaml").open("a") as config:
        config.write(f"transformations: {{python: {sys.executable}, workers: 2, deadline_ms: 20000}}\n")
    write_feast(path / "feast", PROJECT)
    for repo in (path / "repo", path / "feast"):
        for view in ("stats", "more"):
            history(view).to_parquet(repo / f"{view}.parquet", index=False)
    larder = module_larder(path / "repo")
    stores = store(path / "repo"), store(path / "feast")
    for each in stores:
        each.apply([*objects(), *chained()])
    wait_for_workers(larder, 2)
    return World(larder_binary, larder, *stores)


PANDAS = ["sums:conv_plus", "sums:trips_plus"]


@pytest.mark.parametrize("full", [False, True])
def test_pandas_functions_say_what_feasts_store_says(world: World, full: bool) -> None:
    got = world.agree([*PANDAS, "data_only:doubled", "stats:rating"], entity_rows(), full)
    prefix = "sums__" if full else ""
    known = got.set_index("row")
    # row 4: driver 1 at minute 251, so hour 4
    assert known.loc[4, f"{prefix}trips_plus"] == 41 + 12
    assert known.loc[4, f"{prefix}conv_plus"] == 41 / 8 * 1.0 + 4


@pytest.mark.parametrize("full", [False, True])
def test_python_functions_get_whole_columns(world: World, full: bool) -> None:
    asked = entity_rows()
    features = [f"listed:{f}" for f in ("py_trips", "py_label", "py_tags", "py_since", "py_good")]
    got = world.ours(features, asked, full)
    assert list(got["row"]) == list(asked["row"])
    for _, row in got.iterrows():
        hour = (61 * row["row"] + 7) // 60
        name = {f: f"listed__{f}" if full else f for f in ("py_trips", "py_label", "py_tags", "py_since", "py_good")}
        assert row[name["py_trips"]] == hour * 10 + row["driver_id"] + row["val"]
        assert row[name["py_label"]] == ("good!" if hour % 2 else "bad!")
        assert list(row[name["py_tags"]]) == [f"T{hour}", "X"]
        assert row[name["py_since"]] == BEGIN + timedelta(hours=hour) - timedelta(days=row["driver_id"])
        assert row[name["py_good"]] == bool(hour % 2)


def test_a_singleton_runs_for_every_row(world: World) -> None:
    got = world.ours(["single:one_trips", "single:one_list"], entity_rows(number=9))
    for _, row in got.iterrows():
        trips = (61 * row["row"] + 7) // 60 * 10 + row["driver_id"]
        assert row["one_trips"] == trips * 2 + row["val"]
        assert list(row["one_list"]) == [row["driver_id"] + 3.0, 0.5]


def test_a_substrait_plan_runs_in_process(world: World) -> None:
    before = sum(metric(world.larder, "larder_transformations_total", runner="substrait", outcome="ok"))
    got = world.ours(["planned:s_sum", "planned:s_trips", "planned:s_known"], entity_rows())
    trips = (61 * got["row"] + 7) // 60 * 10 + got["driver_id"]
    assert list(got["s_sum"]) == list(trips / 8 + got["val"])
    assert list(got["s_trips"]) == list(trips.where(trips <= got["val"], trips * got["val"]))
    assert got["s_known"].all()
    assert sum(metric(world.larder, "larder_transformations_total", runner="substrait", outcome="ok")) > before


def test_a_view_that_is_written_online_is_computed_here(world: World) -> None:
    got = world.ours(["stored:stored_sum"], entity_rows().drop(columns=["val", "factor"]))
    trips = (61 * got["row"] + 7) // 60 * 10 + got["driver_id"]
    assert list(got["stored_sum"]) == list(trips + trips / 8)


def test_two_sources_with_one_feature_name_are_told_apart(world: World) -> None:
    got = world.ours(["twice:both"], entity_rows(), full=True)
    trips = (61 * got["row"] + 7) // 60 * 10 + got["driver_id"]
    assert list(got["twice__both"]) == list(trips * 1000 + trips + 5)


def test_a_function_of_what_functions_gave(world: World) -> None:
    frame = entity_rows()
    out = export(world, frame, "--features", "chain:twice_over")
    trips = (61 * out["row"] + 7) // 60 * 10 + out["driver_id"]
    assert list(out["twice_over"]) == list((trips + out["val"]) * 1000 + out["val"] * 2)
    assert list(out.columns) == [*frame.columns, "twice_over"], "what nobody asked for is not shown"


def test_a_service_with_aliases(world: World) -> None:
    got = world.ours("mixed", entity_rows(), full=True)
    assert list(got["asked_for__doubled"]) == list(got["val"] * 2)
    trips = (61 * got["row"] + 7) // 60 * 10 + got["driver_id"]
    assert list(got["sums__trips_plus"]) == list(trips + got["val"])
    out = export(world, entity_rows(), "--service", "mixed", "--full-feature-names")
    assert list(out.columns)[-3:] == ["stats__rating", "sums__trips_plus", "asked_for__doubled"]
    assert list(out["asked_for__doubled"]) == list(got["asked_for__doubled"])


def test_rows_without_a_source_row_are_given_as_nulls(world: World) -> None:
    frame = entity_rows(drivers=(1, 3))
    got = world.ours(["listed:py_trips", "sums:trips_plus"], frame)
    assert list(got["row"]) == list(frame["row"])
    assert got.loc[got["driver_id"] == 3, ["py_trips", "trips_plus"]].isna().all(axis=None)
    assert got.loc[got["driver_id"] == 1, ["py_trips", "trips_plus"]].notna().all(axis=None)


def test_an_empty_frame_keeps_the_columns(world: World) -> None:
    got = world.ours(PANDAS, entity_rows().head(0))
    assert len(got) == 0
    assert {"conv_plus", "trips_plus"} <= set(got.columns)


def test_many_batches_keep_their_order(world: World) -> None:
    frame = entity_rows(number=20_000)
    frame["event_timestamp"] = BEGIN + timedelta(hours=HOURS - 1)
    got = world.ours([*PANDAS, "planned:s_trips"], frame)
    assert list(got["row"]) == list(frame["row"])
    trips = (HOURS - 1) * 10 + frame["driver_id"]
    assert list(got["trips_plus"]) == list(trips + frame["val"])


def test_persist_and_the_command_line_compute_too(world: World) -> None:
    frame = entity_rows()
    job = world.remote.get_historical_features(frame, [*PANDAS, "data_only:doubled"])
    storage = SavedDatasetFileStorage(path="data/kept.parquet")
    target = storage.to_data_source()
    world.remote.apply([FileSource(name=target.name, path="data/kept.parquet", timestamp_field="event_timestamp")])
    job.persist(storage)
    kept = pd.read_parquet(world.larder.repo / "data" / "kept.parquet")
    wanted = world.ours([*PANDAS, "data_only:doubled"], frame)
    exported = export(world, frame, "--features", ",".join([*PANDAS, "data_only:doubled"]))
    for name in ("row", "conv_plus", "trips_plus", "doubled"):
        assert list(kept[name]) == list(wanted[name]) == list(exported[name])


def test_entity_rows_by_sql_bring_the_request_data(world: World) -> None:
    sql = """
        SELECT driver_id, event_timestamp, CAST(trips % 17 AS BIGINT) AS val, 1.5 AS factor, trips AS row
        FROM stats_file WHERE driver_id = 2 AND trips > 100 ORDER BY event_timestamp DESC
    """
    got = world.remote.get_historical_features(sql, ["listed:py_trips", "planned:s_sum", "stats:rating"]).to_df()
    trips = [hour * 10 + 2 for hour in range(HOURS - 1, 9, -1)]
    assert list(got["row"]) == trips
    assert list(got["py_trips"]) == [t + t % 17 for t in trips]
    assert list(got["s_sum"]) == [t / 8 + t % 17 for t in trips]
    with pytest.raises(Exception, match="Feature val not found in the entity dataframe"):
        world.remote.get_historical_features(sql.replace("AS val", "AS other"), ["listed:py_trips"]).to_df()


def test_a_span_of_time_has_computed_features_that_need_no_request_data(world: World) -> None:
    end = BEGIN + timedelta(hours=20, minutes=5)
    span: dict[str, Any] = {"start_date": BEGIN, "end_date": end}
    got = world.remote.get_historical_features(features=["stored:stored_sum", "stats:trips"], **span).to_df()
    found = dict(zip(got["driver_id"], zip(got["trips"], got["stored_sum"], strict=True), strict=True))
    assert found == {driver: (200 + driver, (200 + driver) * 1.125) for driver in (1, 2)}
    alone = world.remote.get_historical_features(features=["stored:stored_sum"], **span).to_df()
    assert sorted(alone["stored_sum"]) == sorted(got["stored_sum"])
    with pytest.raises(Exception, match=r"Feature \w+ not found in the entity dataframe"):
        world.remote.get_historical_features(features=["listed:py_trips"], **span).to_df()


def test_missing_request_data_is_feasts_error(world: World) -> None:
    with pytest.raises(RequestDataNotFoundInEntityDfException):
        world.ours(PANDAS, entity_rows().drop(columns=["val"]))
    # the SDK looks by itself; the server does, too
    done = run_export(world, entity_rows().drop(columns=["val"]), Path("nothing.parquet"), "--features", PANDAS[0])
    assert done.returncode == 1
    assert "Feature val not found in the entity dataframe, but required by feature view sums" in done.stderr


@pytest.mark.parametrize(("kind", "said"), [("raise", "ZeroDivisionError"), ("text", "'harm' is registered as INT64")])
def test_a_function_that_fails_is_the_callers_error(world: World, kind: str, said: str) -> None:
    frame = entity_rows(number=1).assign(val=HARMFUL[kind])
    with pytest.raises(Exception, match=said) as failed:
        world.ours(["danger:harm"], frame)
    assert "danger" in str(failed.value)
    # and the next one is answered
    assert list(world.ours(["data_only:doubled"], frame)["doubled"]) == [HARMFUL[kind] * 2]


def test_a_computed_feature_does_not_hide_a_column_of_the_frame(world: World) -> None:
    with pytest.raises(Exception, match="doubled has the name of a column of the entity dataframe"):
        world.ours(["data_only:doubled"], entity_rows().assign(doubled=1))


def run_export(world: World, frame: pd.DataFrame, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`larder export` for these rows by the running server."""
    entities = world.larder.repo / f"entities-{uuid.uuid4()}.parquet"
    frame.to_parquet(entities, index=False)
    command = [str(world.binary), "export", "-c", str(world.larder.repo), "--entities", str(entities)]
    command += ["--server", f"{HOST}:{world.larder.ports.offline}", "--out", str(world.larder.repo / out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def export(world: World, frame: pd.DataFrame, *words: str) -> pd.DataFrame:
    """What it wrote."""
    out = Path(f"set-{uuid.uuid4()}.parquet")
    done = run_export(world, frame, out, *words)
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(world.larder.repo / out)

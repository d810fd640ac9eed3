"""Entity rows that the caller does not send: by SQL and by a span of time; and what the SDK writes and infers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.errors import EntitySQLEmptyResults
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.remote import RemoteRetrievalJob
from feast.types import Int64, String

from conftest import StartLarder
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports

PROJECT = "entities"
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TTL = {"short": DAY, "long": 5 * DAY, "ever": timedelta(0)}
ROWS = {
    "short": [(1, 0), (1, 4), (2, 6), (3, 2)],
    "long": [(1, 1), (2, 3), (4, 5), (5, 0)],
    "ever": [(1, 0), (3, 0), (6, 6)],
}
"""Per view the driver and the day of each row."""


def value(view: str, driver: int, day: int) -> str:
    """What the row says."""
    return f"{view} of {driver} on {day}"


@dataclass
class World:
    """A server with three views of one key and different ttl."""

    larder: Larder
    sdk: FeatureStore

    @property
    def data(self) -> Path:
        """Where its files are."""
        return self.larder.repo / "data"


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Applied."""
    repo = tmp_path_factory.mktemp("entities") / "repo"
    write_config(repo, PROJECT, Ports.free())
    (repo / "data").mkdir()
    larder = module_larder(repo)
    sdk = store(repo)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    views: list[FeatureView] = []
    for name, rows in ROWS.items():
        frame = pd.DataFrame(rows, columns=["driver_id", "day"])
        frame[name] = [value(name, *row) for row in rows]
        frame["event_timestamp"] = [BEGIN + day * DAY for _, day in rows]
        frame.drop(columns="day").to_parquet(repo / "data" / f"{name}.parquet", index=False)
        source = FileSource(name=f"{name}_file", path=f"data/{name}.parquet", timestamp_field="event_timestamp")
        schema = [Field(name=name, dtype=String)]
        views.append(FeatureView(name=name, entities=[driver], ttl=TTL[name], source=source, schema=schema))
    logged = LoggingConfig(
        destination=FileLoggingDestination(path="data/logs", partition_by=["__log_date", "driver_id"])
    )
    service = FeatureService(name="logged", features=[views[0]], logging_config=logged)
    sdk.apply([driver, *views, service])
    return World(larder, sdk)


# --- a span of time ---


def wanted(views: list[str], start: int | None, end: int) -> dict[int, dict[str, str | None]]:
    """Every driver with a row between the days, ends included, with what is known of it at the last."""
    ttls = [TTL[view] for view in views]
    first = start if start is not None else end - max(ttls).days if max(ttls) else end - 30
    drivers = {driver for view in views for driver, day in ROWS[view] if first <= day <= end}
    found: dict[int, dict[str, str | None]] = defaultdict(dict)
    for driver in drivers:
        for view in views:
            oldest = end - TTL[view].days if TTL[view] else -1
            days = [day for who, day in ROWS[view] if who == driver and oldest <= day <= end]
            found[driver][view] = value(view, driver, max(days)) if days else None
    return found


@pytest.mark.parametrize("views", [["short"], ["long", "short"], ["short", "long", "ever"], ["ever"]])
@pytest.mark.parametrize(("start", "end"), [(0, 6), (2, 5), (None, 6), (None, 2), (6, 6)])
def test_a_span_of_time_stands_for_all_who_were_there(
    world: World, views: list[str], start: int | None, end: int
) -> None:
    first = None if start is None else BEGIN + start * DAY
    features = [f"{view}:{view}" for view in views]
    job = world.sdk.get_historical_features(features=features, start_date=first, end_date=BEGIN + end * DAY)
    got = job.to_df()
    assert set(got["event_timestamp"]) <= {pd.Timestamp(BEGIN + end * DAY)}
    rows = got.astype(object).where(got.notna(), None).set_index("driver_id")[views].to_dict("index")
    assert rows == wanted(views, start, end)


def test_a_span_in_which_nobody_was_there_is_empty(world: World) -> None:
    job = world.sdk.get_historical_features(
        features=["short:short"], start_date=BEGIN + 20 * DAY, end_date=BEGIN + 21 * DAY
    )
    got = job.to_df()
    assert (len(got), set(got.columns)) == (0, {"driver_id", "event_timestamp", "short"})


def test_a_time_that_is_none_is_refused(world: World) -> None:
    job = world.sdk.get_historical_features(features=["short:short"], start_date=BEGIN, end_date=BEGIN + DAY)
    assert isinstance(job, RemoteRetrievalJob)
    job.api_parameters["end_date"] = "tomorrow"
    with pytest.raises(Exception, match="tomorrow"):
        job.to_df()


# --- SQL ---


def test_entity_rows_by_sql_over_the_sources(world: World) -> None:
    sql = """
        WITH both AS (SELECT driver_id FROM short_file INTERSECT SELECT driver_id FROM long_file)
        SELECT b.driver_id, max(l.event_timestamp) AS event_timestamp, count(*) AS rows
        FROM both b JOIN long_file l USING (driver_id) GROUP BY b.driver_id ORDER BY b.driver_id DESC
    """
    got = world.sdk.get_historical_features(sql, ["short:short", "long:long"]).to_df()
    assert got[["driver_id", "rows"]].to_numpy().tolist() == [[2, 1], [1, 1]]
    assert got["long"].tolist() == [value("long", 2, 3), value("long", 1, 1)]
    assert got["short"].tolist() == [None, value("short", 1, 0)]


def test_sql_that_gives_nothing_or_cannot_run_is_refused(world: World) -> None:
    with pytest.raises(EntitySQLEmptyResults):
        world.sdk.get_historical_features("SELECT * FROM short_file WHERE driver_id > 99", ["short:short"]).to_df()
    for sql, said in (
        ("SELECT nothing FROM short_file", "nothing"),
        ("SELECT * FROM elsewhere", "elsewhere"),
        ("SELECT driver_id FROM short_file", "event_timestamp"),
        ("SELECT driver_id, 1/0 AS x, event_timestamp FROM short_file", "ivide by zero"),
        ("DELETE FROM short_file", "cannot be run"),
    ):
        with pytest.raises(Exception, match=said) as raised:
            world.sdk.get_historical_features(sql, ["short:short"]).to_df()
        assert "INTERNAL" not in str(raised.value), sql


# --- what the SDK writes and infers ---


def test_logged_features_are_partitioned_as_their_destination_says(world: World) -> None:
    """Feast's own store has `partition_by`, too: the folders are those that pyarrow makes and reads."""
    service = world.sdk.get_feature_service("logged")
    schema = FeatureServiceLoggingSource(service, PROJECT).get_schema(world.sdk.registry)
    rows = [
        {
            "driver_id": driver,
            "short__short": f"{driver}",
            "__log_timestamp": BEGIN,
            "__log_date": date(2026, 3, 1 + driver % 2),
            "__request_id": f"request {driver}/{turn}",
        }
        for driver in (1, 2, 3)
        for turn in range(2)
    ]
    logs = pa.Table.from_pylist(rows, schema=schema)
    for _ in range(2):
        world.sdk.write_logged_features(logs, service)
    files = list((world.data / "logs").rglob("*.parquet"))
    folders = {str(path.parent.relative_to(world.data / "logs")) for path in files}
    assert folders == {
        "__log_date=2026-03-02/driver_id=1",
        "__log_date=2026-03-01/driver_id=2",
        "__log_date=2026-03-02/driver_id=3",
    }
    kept = ds.dataset([str(file) for file in files], partitioning="hive").to_table().to_pandas()
    assert len(kept) == 2 * len(rows)
    assert set(kept["__request_id"]) == {str(row["__request_id"]) for row in rows}
    assert set(zip(kept["driver_id"].astype(int), kept["__log_date"].astype(str), strict=True)) == {
        (row["driver_id"], str(row["__log_date"])) for row in rows
    }


def test_a_view_without_a_schema_has_that_of_its_source(world: World) -> None:
    """`apply` asks the server for the columns of the source and validates it there."""
    frame = pd.DataFrame(
        {
            "driver_id": [1],
            "event_timestamp": [BEGIN],
            "whole": pd.array([1], "int64"),
            "small": pd.array([1], "int32"),
            "real": [0.5],
            "word": ["x"],
            "yes": [True],
            "raw": [b"x"],
            "at": [BEGIN],
            "many": [[1, 2]],
            "words": [["x"]],
        }
    )
    frame.to_parquet(world.data / "inferred.parquet", index=False)
    source = FileSource(name="inferred_file", path="data/inferred.parquet", timestamp_field="event_timestamp")
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    world.sdk.apply([driver, FeatureView(name="inferred", entities=[driver], source=source, ttl=timedelta(0))])
    found = {field.name: str(field.dtype) for field in world.sdk.get_feature_view("inferred").features}
    assert found == {
        "whole": "Int64",
        "small": "Int32",
        "real": "Float64",
        "word": "String",
        "yes": "Bool",
        "raw": "Bytes",
        "at": "UnixTimestamp",
        "many": "Array(Int64)",
        "words": "Array(String)",
    }
    asked = pd.DataFrame({"driver_id": [1], "event_timestamp": [BEGIN + DAY]})
    got = world.sdk.get_historical_features(asked, [f"inferred:{name}" for name in found]).to_df()
    assert got["word"].tolist() == ["x"]


def test_a_batch_of_the_sdk_is_coerced_or_refused_by_column(world: World) -> None:
    """`write_to_offline_store` sends a table of its own schema: other widths fit, other kinds are named."""
    written = FeatureView(
        name="written",
        entities=[Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)],
        ttl=timedelta(0),
        source=FileSource(name="written_file", path="data/written.parquet", timestamp_field="event_timestamp"),
        schema=[Field(name="number", dtype=Int64), Field(name="word", dtype=String)],
    )
    first = pd.DataFrame({"driver_id": [1], "event_timestamp": [BEGIN], "number": [1], "word": ["a"]})
    first.to_parquet(world.data / "written.parquet", index=False)
    world.sdk.apply([written])
    more = first.assign(driver_id=[2], number=pd.array([2], "int64"), word=[None])
    world.sdk.write_to_offline_store("written", more, reorder_columns=True)
    asked = pd.DataFrame({"driver_id": [1, 2], "event_timestamp": [BEGIN + DAY] * 2})
    got = world.sdk.get_historical_features(asked, ["written:number", "written:word"]).to_df()
    assert (got["number"].tolist(), got["word"].tolist()) == ([1, 2], ["a", None])
    size = (world.data / "written.parquet").stat().st_size
    for wrong, column in (({"number": ["many"]}, "number"), ({"word": [1.5]}, "word")):
        with pytest.raises(Exception, match=column):
            world.sdk.write_to_offline_store("written", first.assign(**wrong), reorder_columns=True)
    with pytest.raises(Exception, match="number"):
        world.sdk.write_to_offline_store("written", first.drop(columns="number"), reorder_columns=False)
    assert (world.data / "written.parquet").stat().st_size == size, "refused whole"

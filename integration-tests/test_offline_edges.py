"""The edges of training sets: times and keys as anybody may write them, tables without rows, the ends of time.

Whatever is asked here is asked by `do_exchange` and by `do_put`, `get_flight_info` and `do_get`, which say the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.remote import RemoteOfflineStore, _call_exchange, build_arrow_flight_client
from feast.types import Int64, String

from conftest import StartLarder
from drivers import DRIVER, Drivers
from larder_env.server import HOST
from online import read_online

PROJECT = "edges"
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
DAYS = 10
TTL = 2 * DAY
US = pa.timestamp("us", "UTC")
DRIVERS = (1, 2, 3)
NAME = Entity(name="name", join_keys=["name"], value_type=ValueType.STRING)


class World(Drivers):
    """A server on which each test has views of its own."""

    def view(
        self, name: str, table: pa.Table, *fields: Field, entity: Entity | None = DRIVER, int96: bool = False
    ) -> str:
        """A view over a table that is written in small row groups; applied, and without a ttl, too."""
        pq.write_table(table, self.path(name), row_group_size=7, use_deprecated_int96_timestamps=int96)
        source = FileSource(
            name=f"{name}_file",
            path=f"{name}.parquet",
            timestamp_field="event_timestamp",
            created_timestamp_column="created" if "created" in table.column_names else "",
        )
        entities = [entity] if entity else []
        schema = list(fields or [Field(name="value", dtype=Int64)])
        ttls = {name: TTL, f"{name}_ever": timedelta(0)}
        views = [FeatureView(name=n, entities=entities, ttl=t, source=source, schema=schema) for n, t in ttls.items()]
        self.sdk.apply([*entities, *views])
        return name

    def flight(self) -> fl.FlightClient:
        """A client as the SDK makes it."""
        return build_arrow_flight_client("http", HOST, self.larder.ports.offline, self.sdk.config.auth_config)

    def exchange(self, command: dict[str, object], table: pa.Table) -> pa.Table:
        """A read as the SDK makes it."""
        parameters = {name: value for name, value in command.items() if name != "api"}
        return _call_exchange(str(command["api"]), parameters, self.flight(), None, table)

    def put_and_get(self, command: dict[str, object], table: pa.Table) -> pa.Table:
        """A read as clients before 0.66 make it."""
        client = self.flight()
        descriptor = fl.FlightDescriptor.for_command(json.dumps({"command_id": str(uuid.uuid4()), **command}))
        writer, _ = client.do_put(descriptor, table.schema)
        writer.write_table(table)
        writer.close()
        return client.do_get(client.get_flight_info(descriptor).endpoints[0].ticket).read_all()

    def join(self, view: str, table: pa.Table, feature: str = "value") -> pa.Table:
        """The training set of one view, by both flows, which say the same."""
        command = historical(view, feature)
        got = self.exchange(command, table)
        assert self.put_and_get(command, table).equals(got)
        for name in table.column_names:
            assert got.schema.field(name).equals(table.schema.field(name)), "as it was sent"
            assert got[name].to_pylist() == table[name].to_pylist()
        return got


def historical(view: str, feature: str = "value") -> dict[str, object]:
    """The command for one feature."""
    return {
        "api": "get_historical_features",
        "feature_view_names": [view],
        "feature_refs": [f"{view}:{feature}"],
        "project": PROJECT,
        "full_feature_names": False,
        "name_aliases": [None],
    }


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One server for the file."""
    repo = tmp_path_factory.mktemp("edges")
    return World.start(module_larder, repo, PROJECT, "--services", "online,registry,offline")


# --- how times are written -------------------------------------------------------------------------------------------


def at(day: float) -> datetime:
    """Midnight of a day, or later."""
    return BEGIN + day * DAY


def days(encoded: Callable[[list[datetime]], pa.Array]) -> pa.Table:
    """A row per driver and day in no order, each even day corrected: the same time, created a day later, 1000 more."""
    rows = [(driver, day, 0) for driver in DRIVERS for day in range(DAYS)]
    rows += [(driver, day, 1) for driver in DRIVERS for day in range(0, DAYS, 2)]
    rows = [rows[at] for at in np.random.default_rng(1).permutation(len(rows))]
    return pa.table(
        {
            "driver_id": [driver for driver, _, _ in rows],
            "value": [driver * 100 + day + 1000 * later for driver, day, later in rows],
            "event_timestamp": encoded([at(day) for _, day, _ in rows]),
            "created": encoded([at(day + later) for _, day, later in rows]),
        }
    )


def wanted(driver: int, time: datetime) -> int | None:
    """What is known of a driver then."""
    day = min((time - BEGIN) // DAY, DAYS - 1)
    if driver not in DRIVERS or day < 0 or time - at(day) > TTL:
        return None
    return driver * 100 + day + (1000 if day % 2 == 0 else 0)


def naive(times: list[datetime]) -> list[datetime]:
    """Without the zone."""
    return [time.replace(tzinfo=None) for time in times]


ENCODED: dict[str, Callable[[list[datetime]], pa.Array]] = {
    "seconds": lambda times: pa.array(times, pa.timestamp("s", "UTC")),
    "naive seconds": lambda times: pa.array(naive(times), pa.timestamp("s")),
    "millis": lambda times: pa.array(times, pa.timestamp("ms", "Asia/Tokyo")),
    "naive micros": lambda times: pa.array(naive(times), pa.timestamp("us")),
    "micros": lambda times: pa.array(times, pa.timestamp("us", "America/New_York")),
    "naive nanos": lambda times: pa.array(naive(times), pa.timestamp("ns")),
    "nanos": lambda times: pa.array(times, pa.timestamp("ns", "UTC")),
    "dates": lambda times: pa.array([time.date() for time in times], pa.date32()),
    "dates in millis": lambda times: pa.array([time.date() for time in times], pa.date64()),
    "dictionary": lambda times: pa.array(times, US).dictionary_encode(),
}
MOMENTS = [-0.5, 0, 0.5, 1, 4.999, 5, 9, 10.5, 11, 11.001, 40]


@pytest.mark.parametrize("encoding", [*(e for e in ENCODED if e != "dictionary"), "int96", "naive int96"])
def test_a_source_may_write_its_times_in_any_way(world: World, encoding: str) -> None:
    """INT96 is how Spark and Impala write times; their statistics are of no use to anybody."""
    encoded = ENCODED.get(encoding) or ENCODED["naive nanos" if "naive" in encoding else "nanos"]
    view = world.view(f"of_{encoding.replace(' ', '_')}", days(encoded), int96="int96" in encoding)
    asked = [(driver, at(moment)) for driver in (*DRIVERS, 4) for moment in MOMENTS]
    asked += [(driver, at(day) - timedelta(microseconds=1)) for driver in DRIVERS for day in range(DAYS + 4)]
    table = pa.table({"driver_id": [d for d, _ in asked], "event_timestamp": pa.array([t for _, t in asked], US)})
    got = world.join(view, table)
    assert got["value"].to_pylist() == [wanted(*row) for row in asked]
    # one row is looked up in another way than many
    assert world.join(view, table.slice(3, 1))["value"].to_pylist() == [wanted(*asked[3])]
    world.sdk.materialize(at(2), at(6), feature_views=[f"{view}_ever"])
    cells = read_online(world.larder, f"{view}_ever", ["value"], "driver_id", list(DRIVERS))
    assert [cells[driver]["value"].value for driver in DRIVERS] == [wanted(driver, at(5)) for driver in DRIVERS]
    span = {"start_date": at(3).isoformat(), "end_date": at(4).isoformat(), "created_timestamp_column": "created"}
    pull: dict[str, object] = {
        "api": "pull_all_from_table_or_query",
        "data_source_name": f"{view}_file",
        "join_key_columns": ["driver_id"],
    }
    pull |= {"feature_name_columns": ["value"], "timestamp_field": "event_timestamp", **span}
    pulled = sorted(world.exchange(pull, pa.table({"key": ["x"]}))["value"].to_pylist())
    assert pulled == sorted(driver * 100 + value for driver in DRIVERS for value in (3, 4, 1004))


@pytest.mark.parametrize("encoding", [*ENCODED, "text", "text with a zone"])
def test_an_entity_frame_may_write_its_times_in_any_way(world: World, encoding: str) -> None:
    """Text is what `pandas.read_csv` makes of times."""
    if not world.path("plain").exists():
        world.view("plain", days(ENCODED["micros"]))
    asked = [(driver, at(day)) for driver in (*DRIVERS, 4) for day in (-1, 0, 3, 9, 11, 12)]
    times = [time for _, time in asked]
    zone = pd.Timestamp.now("Asia/Kolkata").tz
    encoded = {
        **ENCODED,
        "text": lambda times: pa.array([str(time.replace(tzinfo=None)) for time in times]),
        "text with a zone": lambda times: pa.array([time.astimezone(zone).isoformat() for time in times]),
    }[encoding](times)
    got = world.join("plain", pa.table({"driver_id": [d for d, _ in asked], "event_timestamp": encoded}))
    assert got["value"].to_pylist() == [wanted(*row) for row in asked]


def test_text_that_is_no_time_is_named(world: World) -> None:
    world.view("texts", days(ENCODED["micros"]))
    with pytest.raises(Exception, match=r"column 'event_timestamp'.*yesterday"):
        world.exchange(historical("texts"), pa.table({"driver_id": [1], "event_timestamp": ["yesterday"]}))


def test_times_at_the_ends_of_what_can_be_said(world: World) -> None:
    """The first and the last µs of 64 bits, on both sides; the ttl reaches beyond the first."""
    first, last = -(2**63), 2**63 - 1
    zero = int(BEGIN.timestamp()) * 1_000_000
    moments = [first, first + 1, -1, 0, zero, last - 1, last]
    stamps = pa.array(moments, pa.int64()).cast(pa.timestamp("us")).cast(US)
    table = pa.table({"driver_id": [1] * len(moments), "value": range(len(moments)), "event_timestamp": stamps})
    view = world.view("ends", table)
    asked = table.select(["driver_id", "event_timestamp"])
    got = world.exchange(historical(view), asked)
    assert got["value"].to_pylist() == list(range(len(moments)))
    one = world.exchange(historical(view), asked.slice(0, 1))
    assert one["value"].to_pylist() == [0]
    nulls = pa.table({"driver_id": [1, 1], "event_timestamp": pa.array([None, BEGIN], US)})
    assert world.exchange(historical(view), nulls)["value"].to_pylist() == [None, 4], (
        "a row without a time finds nothing"
    )


# --- how files are written -------------------------------------------------------------------------------------------

WRITTEN: dict[str, dict[str, Any]] = {
    **{codec: {"compression": codec} for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd")},
    "pages with an index": {"write_page_index": True, "data_page_size": 64, "write_batch_size": 4},
    "pages of version 2": {"data_page_version": "2.0", "use_dictionary": False},
    "deltas": {"use_dictionary": False, "column_encoding": {"value": "DELTA_BINARY_PACKED"}},
    "split bytes": {"use_dictionary": False, "column_encoding": {"value": "BYTE_STREAM_SPLIT"}},
    "no statistics": {"write_statistics": False},
    "no schema of Arrow's": {"store_schema": False},
    "version 1": {"version": "1.0"},
    "one row group": {"row_group_size": 1000},
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_parquet_file_may_be_written_in_any_way(world: World, how: str) -> None:
    view = world.view(f"written_{'_'.join(how.replace(chr(39), '').split())}", days(ENCODED["micros"]))
    pq.write_table(days(ENCODED["micros"]), world.path(view), **({"row_group_size": 7} | WRITTEN[how]))
    asked = [(driver, at(day)) for driver in (*DRIVERS, 4) for day in (-1, 0, 3, 9, 11, 12)]
    table = pa.table({"driver_id": [d for d, _ in asked], "event_timestamp": pa.array([t for _, t in asked], US)})
    for begin, length in ((0, len(asked)), (2, 1)):
        got = world.join(view, table.slice(begin, length))
        assert got["value"].to_pylist() == [wanted(*row) for row in asked[begin : begin + length]]


def test_columns_may_have_any_names(world: World) -> None:
    """Among them words of SQL, and names that the join may want for itself."""
    names = ["a.b", "select", 'x"y', "Größe", "k0", "t", "c", "v0", "a", "row", "l", "UPPER", "upper", " "]
    keys = pa.array([1, 2, 2, 3])
    times = pa.array([at(0), at(0), at(1), at(0)], US)
    columns = {name: pa.array([row * 100 + number for row in range(4)]) for number, name in enumerate(names)}
    pq.write_table(pa.table({"Driver ID": keys, "Event Time": times, **columns}), world.larder.repo / "odd.parquet")
    source = FileSource(name="odd-file", path="odd.parquet", timestamp_field="Event Time")
    driver = Entity(name="odd driver", join_keys=["Driver ID"], value_type=ValueType.INT64)
    fields = [Field(name=name, dtype=Int64) for name in names]
    world.sdk.apply(
        [driver, FeatureView(name="odd", entities=[driver], ttl=timedelta(0), source=source, schema=fields)]
    )
    found = [1, 2, 3]
    for asked in (
        pd.DataFrame({"Driver ID": found, "event_timestamp": [at(1)] * 3}),
        'SELECT DISTINCT "Driver ID", TIMESTAMP \'2026-03-02T00:00:00Z\' AS event_timestamp FROM "odd-file" ORDER BY 1',
    ):
        got = world.sdk.get_historical_features(asked, [f"odd:{name}" for name in names]).to_df()
        assert got["Driver ID"].tolist() == found
        for number, name in enumerate(names):
            assert got[name].tolist() == [row * 100 + number for row in (0, 2, 3)], name
    world.sdk.materialize(at(-1), at(2), feature_views=["odd"])
    cells = read_online(world.larder, "odd", names, "Driver ID", found)
    assert [cells[2][name].value for name in names] == [200 + number for number in range(len(names))]


def test_a_folder_that_says_what_its_file_says_too(world: World) -> None:
    """As pyarrow: the path counts."""
    for year in (2025, 2026):
        folder = world.larder.repo / "doubled" / f"year={year}"
        folder.mkdir(parents=True)
        rows = pa.table(
            {"driver_id": [year], "year": [year], "value": [year], "event_timestamp": pa.array([at(0)], US)}
        )
        pq.write_table(rows, folder / "part.parquet")
    source = FileSource(name="doubled_file", path="doubled", timestamp_field="event_timestamp")
    fields = [Field(name="value", dtype=Int64), Field(name="year", dtype=Int64)]
    world.sdk.apply([DRIVER, FeatureView(name="doubled", entities=[DRIVER], ttl=TTL, source=source, schema=fields)])
    table = pa.table({"driver_id": [2025, 2026], "event_timestamp": pa.array([at(1)] * 2, US)})
    assert world.join("doubled", table)["value"].to_pylist() == [2025, 2026]
    assert world.join("doubled", table, "year")["year"].to_pylist() == [2025, 2026]


# --- how keys are written --------------------------------------------------------------------------------------------

TEXTS: dict[str, Callable[[list[str | None]], pa.Array]] = {
    "string": lambda names: pa.array(names, pa.string()),
    "large_string": lambda names: pa.array(names, pa.large_string()),
    "string_view": lambda names: pa.array(names, pa.string_view()),
    "dictionary": lambda names: pa.array(names).dictionary_encode(),
    "large_dictionary": lambda names: pa.array(names, pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("written", TEXTS)
def test_keys_of_text_may_be_written_in_any_way(world: World, written: str) -> None:
    names: list[str | None] = ["ann", "bob", "Zürich ✈", "", None]
    times = pa.array([BEGIN] * len(names), US)
    view = world.view(
        f"by_{written}",
        pa.table({"name": TEXTS[written](names), "value": range(len(names)), "event_timestamp": times}),
        entity=NAME,
    )
    asked: list[str | None] = ["bob", None, "", "eve", "Zürich ✈", "ann"]
    for sent in TEXTS.values():
        got = world.join(view, pa.table({"name": sent(asked), "event_timestamp": pa.array([at(1)] * len(asked), US)}))
        assert got["value"].to_pylist() == [1, None, 3, None, 2, 0]


def test_batches_may_have_dictionaries_of_their_own(world: World) -> None:
    """What pandas' categories become when frames are put together; the second dictionary replaces the first."""
    names = ["ann", "bob", "eve"]
    table = pa.table({"name": names, "value": [0, 1, 2], "event_timestamp": pa.array([BEGIN] * 3, US)})
    view = world.view("by_category", table, entity=NAME)
    chunks = [["ann", "bob"], ["eve", "ann", "bob"], ["bob"]]
    chunked = pa.chunked_array([pa.array(chunk).dictionary_encode() for chunk in chunks])
    count = sum(map(len, chunks))
    frame = pa.table({"name": chunked, "word": chunked, "event_timestamp": pa.array([at(1)] * count, US)})
    got = world.join(view, frame)
    assert got["value"].to_pylist() == [names.index(name) for chunk in chunks for name in chunk]


# --- tables without rows, or columns ---------------------------------------------------------------------------------


def test_a_frame_without_batches_gives_the_columns(world: World) -> None:
    """Not even an empty batch is sent."""
    view = world.view("unasked", days(ENCODED["micros"]))
    schema = pa.schema([("driver_id", pa.int64()), ("event_timestamp", US)])
    got = world.join(view, pa.Table.from_batches([], schema))
    assert (got.num_rows, got.schema.names) == (0, [*schema.names, "value"])
    assert got.schema.field("value").type == pa.int64()


@pytest.mark.parametrize("typed", [True, False])
def test_a_source_without_rows_gives_nulls(world: World, typed: bool) -> None:
    """As pandas writes an empty frame: columns that never had a value may have no type."""
    types = (pa.int64(), pa.int64(), US) if typed else (pa.int64(), pa.null(), US)
    names = ("driver_id", "value", "event_timestamp")
    empty = pa.table({name: pa.array([], type_) for name, type_ in zip(names, types, strict=True)})
    view = world.view(f"empty_{typed}", empty)
    asked = pa.table({"driver_id": [1, 2], "event_timestamp": pa.array([at(1)] * 2, US)})
    got = world.join(view, asked)
    assert (got["value"].to_pylist(), got.schema.field("value").type) == ([None, None], pa.int64())
    world.sdk.materialize(at(-1), at(1), feature_views=[view])
    cells = read_online(world.larder, view, ["value"], "driver_id", [1])
    assert cells[1]["value"].status == "NOT_FOUND"
    span = {"start_date": at(-1).isoformat(), "end_date": at(1).isoformat()}
    got = world.exchange({**historical(view), **span}, pa.table({"key": ["x"]}))
    assert (got.num_rows, set(got.column_names)) == (0, {"driver_id", "event_timestamp", "value"})


def test_a_frame_of_times_alone(world: World) -> None:
    """All that a view without entities needs."""
    news = pa.table({"headline": ["old", "new"], "event_timestamp": pa.array([at(0), at(1)], US)})
    view = world.view("headlines", news, Field(name="headline", dtype=String), entity=None)
    frame = pa.table({"event_timestamp": pa.array([at(1), at(-1), at(0.5), at(1)], US)})
    assert world.join(view, frame, "headline")["headline"].to_pylist() == ["new", None, "old", "new"]


# --- every reading API, both flows -----------------------------------------------------------------------------------


def reads(world: World, view: str) -> dict[str, dict[str, object]]:
    """A command for each, none of which needs rows of the client's."""
    span: dict[str, object] = {"start_date": at(2).isoformat(), "end_date": at(4).isoformat()}
    source = world.sdk.get_data_source(f"{view}_file")
    pull: dict[str, object] = {"data_source_name": source.name, "join_key_columns": ["driver_id"]}
    pull |= {"feature_name_columns": ["value"], "timestamp_field": "event_timestamp"}
    pull |= {"created_timestamp_column": "created", **span}
    sql = f"SELECT DISTINCT driver_id, event_timestamp FROM {source.name} ORDER BY 1, 2 LIMIT 7"
    columns = "get_table_column_names_and_types_from_data_source"
    return {
        "sql": {**historical(view), "entity_df_sql": sql},
        "span": {**historical(view), **span},
        "latest": {"api": "pull_latest_from_table_or_query", **pull},
        "all": {"api": "pull_all_from_table_or_query", **pull},
        "columns": {"api": columns, "data_source_proto": str(source)},
    }


def test_every_reading_api_says_the_same_by_both_flows(world: World) -> None:
    view = world.view("both_flows", days(ENCODED["micros"]))
    rows = {}
    for name, command in reads(world, view).items():
        nothing = pa.table({"key": ["m", "o", "c", "k"]})
        rows[name] = world.exchange(command, nothing)
        assert world.put_and_get(command, nothing).equals(rows[name]), name
    assert {name: table.num_rows for name, table in rows.items()} == {
        "sql": 7,
        "span": len(DRIVERS),
        "latest": len(DRIVERS),
        "all": 5 * len(DRIVERS),
        "columns": 4,
    }


@pytest.mark.parametrize("name", ["sql", "span"])
def test_what_needs_no_rows_of_the_client_s_is_persisted_too(world: World, name: str) -> None:
    view = world.view(f"kept_{name}", days(ENCODED["micros"]))
    storage = SavedDatasetFileStorage(path=f"set_of_{name}.parquet")
    target = storage.to_data_source()
    world.sdk.apply([FileSource(name=target.name, path=storage.file_options.uri, timestamp_field="event_timestamp")])
    command = reads(world, view)[name]
    read = world.exchange(command, pa.table({"key": ["x"]}))
    span = {"start_date": at(2), "end_date": at(4)}
    asked: dict[str, Any] = {"entity_df": command["entity_df_sql"]} if name == "sql" else span
    job = world.sdk.get_historical_features(features=[f"{view}:value"], **asked)
    job.persist(storage)
    kept = pq.read_table(world.larder.repo / storage.file_options.uri)
    assert kept.to_pylist() == read.to_pylist()
    assert kept.num_rows > 0


@pytest.mark.parametrize("api", ["latest", "all"])
def test_pulled_rows_are_not_written_over_their_source(world: World, api: str) -> None:
    """Feast's client says where they come from by the name under which it would say where they go (0.67)."""
    view = world.view(f"pulled_{api}", days(ENCODED["micros"]))
    before = world.path(view).read_bytes()
    pulls = {"latest": RemoteOfflineStore.pull_latest_from_table_or_query}
    pulls |= {"all": RemoteOfflineStore.pull_all_from_table_or_query}
    job = pulls[api](
        config=world.sdk.config,
        data_source=world.sdk.get_data_source(f"{view}_file"),
        join_key_columns=["driver_id"],
        feature_name_columns=["value"],
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
        start_date=at(2),
        end_date=at(4),
    )
    assert len(job.to_df()) > 0
    with pytest.raises(Exception, match=f"{view}_file.*the source that they are pulled from"):
        job.persist(SavedDatasetFileStorage(path="elsewhere.parquet"), allow_overwrite=True)
    assert world.path(view).read_bytes() == before

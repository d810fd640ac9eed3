"""Point-in-time training sets over Arrow Flight, through the SDK and the older flow, against naive oracles."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    KafkaSource,
    PushSource,
    StreamFeatureView,
)
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.data_source import DataSource, PushMode
from feast.errors import (
    EntityTimestampInferenceException,
    FeastEntityDFMissingColumnsError,
    FeatureViewNotFoundException,
)
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.infra.offline_stores.remote import RemoteOfflineStore, _call_exchange, build_arrow_flight_client
from feast.types import Array, Bool, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env.repo import store, write_config
from larder_env.server import HOST, Larder, Ports
from online import micros
from windows_oracle import DAY, HOUR, MINUTE, SECOND, Event, Window, answer

BEGIN = pd.Timestamp("2024-03-01", tz="UTC")
DAYS = 10
DRIVERS = [1001, 1002, 1003, 1004, 1005]
FEATURES = ["trips", "rate", "level", "name", "active"]
WINDOWS = [
    Window("n_10m", "count", "", 10 * MINUTE),
    Window("n_amount_3h", "count", "amount", 3 * HOUR),
    Window("sum_10m", "sum", "amount", 10 * MINUTE),
    Window("mean_3h", "mean", "amount", 3 * HOUR),
    Window("min_3h", "min", "quantity", 3 * HOUR),
    Window("max_10m", "max", "quantity", 10 * MINUTE),
]


# --- the data -----------------------------------------------------------------------------------------------------


def utc_us(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Time columns as Parquet writers have them: UTC, µs."""
    return frame.assign(**{name: frame[name].astype("datetime64[us, UTC]") for name in columns})


def driver_rows() -> pd.DataFrame:
    """Irregular rows in no order, with nulls, with corrections: same driver and time, created later."""
    rng = random.Random(5)
    rows: list[dict[str, object]] = []
    for number in range(400):
        at = BEGIN + pd.Timedelta(seconds=rng.randrange(DAYS * 24 * 360) * 10)
        driver = rng.choice(DRIVERS[:4])
        if number % 8 == 7:
            at, driver = pd.Timestamp(rows[-1]["event_timestamp"]), int(str(rows[-1]["driver_id"]))
        rows.append(
            {
                "driver_id": driver,
                "trips": None if rng.random() < 0.1 else number,
                "rate": None if rng.random() < 0.1 else rng.random(),
                "level": rng.randrange(5),
                "name": None if rng.random() < 0.1 else f"name-{number}",
                "active": rng.random() < 0.5,
                "seen": at.floor("s"),
                "tags": [f"tag-{number}", "x"],
                "event_timestamp": at,
                "created": at + pd.Timedelta(seconds=rng.randrange(7200)),
            }
        )
    frame = pd.DataFrame(rows).astype({"trips": "Int64", "level": "int32"})
    return utc_us(frame, "seen", "event_timestamp", "created")


def daily(key: str, values: Sequence[object], feature: str) -> pd.DataFrame:
    """A row per value and day at noon; the feature is a text that says whose and when."""
    rows = [
        {
            key: value,
            feature: f"{value} on day {day}",
            "event_timestamp": BEGIN + pd.Timedelta(days=day, hours=12),
        }
        for day in range(DAYS)
        for value in values
    ]
    return utc_us(pd.DataFrame(rows), "event_timestamp")


def activity_rows() -> pd.DataFrame:
    """Events of three cards during one day, in no order, with nulls and equal times."""
    rng = random.Random(9)
    rows: list[dict[str, object]] = []
    for number in range(500):
        ts = BEGIN + pd.Timedelta(microseconds=rng.randrange(DAY))
        if number % 10 == 9:
            ts = pd.Timestamp(rows[-1]["ts"])
        rows.append(
            {
                "card_id": f"card-{rng.randrange(3)}",
                "amount": None if rng.random() < 0.15 else rng.uniform(-10, 1e6),
                "quantity": None if rng.random() < 0.15 else rng.randrange(100),
                "ts": ts,
            }
        )
    return utc_us(pd.DataFrame(rows).astype({"quantity": "Int64"}), "ts")


def write_data(data: Path) -> None:
    """All files: single files, and one source that is a folder of them."""
    data.mkdir()
    driver_rows().to_parquet(data / "drivers.parquet", index=False)
    profiles = daily("customer_id", ["ann", "bob"], "profile")
    (data / "profiles").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(len(profiles)), 3)):
        profiles.iloc[rows].to_parquet(data / "profiles" / f"part-{part}.parquet", index=False)
    daily("city_id", ["ams", "ber", "cph"], "weather").to_parquet(data / "cities.parquet", index=False)
    daily("ignored", ["all"], "headline").drop(columns="ignored").to_parquet(data / "news.parquet", index=False)
    daily("region_id", [1, 2, 70000], "region").to_parquet(data / "regions.parquet", index=False)
    daily("drv", DRIVERS, "v").rename(columns={"event_timestamp": "t"}).to_parquet(
        data / "renamed.parquet", index=False
    )
    activity_rows().to_parquet(data / "activity.parquet", index=False)
    for name in ("pushed", "written", "vanishing"):
        daily("driver_id", [1001], "note").to_parquet(data / f"{name}.parquet", index=False)


def file_source(
    name: str,
    path: str = "",
    timestamp: str = "event_timestamp",
    created: str = "",
    renamed: dict[str, str] | None = None,
) -> FileSource:
    """A FileSource on data/<name>.parquet unless a path is given."""
    return FileSource(
        name=f"{name}_file",
        path=f"data/{path or name + '.parquet'}",
        timestamp_field=timestamp,
        created_timestamp_column=created,
        field_mapping=renamed,
    )


def objects() -> list[object]:
    """All that is applied."""
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    city = Entity(name="city", join_keys=["city_id"], value_type=ValueType.STRING)
    region = Entity(name="region", join_keys=["region_id"], value_type=ValueType.INT32)
    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)

    def view(
        name: str, entity: Entity | None, source: FileSource | PushSource, *fields: Field, ttl: int = 0
    ) -> FeatureView:
        keys = [Field(name=entity.join_key, dtype=KEY_TYPES[entity.name])] if entity else []
        return FeatureView(
            name=name,
            entities=[entity] if entity else [],
            ttl=timedelta(hours=ttl),
            source=source,
            schema=[*keys, *fields],
        )

    stats = [
        Field(name="trips", dtype=Int64),
        Field(name="rate", dtype=Float64),
        Field(name="level", dtype=Int32),
        Field(name="name", dtype=String),
        Field(name="active", dtype=Bool),
        Field(name="seen", dtype=UnixTimestamp),
        Field(name="tags", dtype=Array(String)),
    ]
    day = view("driver_day", driver, file_source("driver_day", "drivers.parquet", created="created"), *stats, ttl=24)
    ever = view("driver_ever", driver, file_source("driver_ever", "drivers.parquet", created="created"), *stats)
    profile = view(
        "customer_profile", customer, file_source("profiles", "profiles"), Field(name="profile", dtype=String)
    )
    weather = view("city_weather", city, file_source("cities"), Field(name="weather", dtype=String), ttl=48)
    push = PushSource(name="note_push", batch_source=file_source("pushed"))
    activity = StreamFeatureView(
        name="card_activity",
        entities=[card],
        ttl=timedelta(minutes=1),
        mode="python",
        timestamp_field="ts",
        source=KafkaSource(
            name="card_stream",
            kafka_bootstrap_servers="127.0.0.1:1",
            topic="cards",
            timestamp_field="ts",
            message_format=JsonFormat(schema_json="card_id string, amount double, quantity bigint, ts timestamp"),
            batch_source=file_source("activity", timestamp="ts"),
        ),
        aggregations=[
            Aggregation(
                column=window.column,
                function=window.function,
                time_window=timedelta(microseconds=window.width),
                name=window.feature,
            )
            for window in WINDOWS
        ],
        schema=[
            Field(name="card_id", dtype=String),
            *(
                Field(
                    name=window.feature,
                    dtype=Float64 if window.column == "amount" and window.function != "count" else Int64,
                )
                for window in WINDOWS
            ),
        ],
    )
    note = Field(name="note", dtype=String)
    return [
        *(driver, customer, city, region, card, push, day, ever, profile, weather, activity),
        view("news", None, file_source("news"), Field(name="headline", dtype=String)),
        view("regions", region, file_source("regions"), Field(name="region", dtype=String)),
        view(
            "renamed",
            driver,
            file_source("renamed", timestamp="t", renamed={"v": "speed", "drv": "driver_id"}),
            Field(name="speed", dtype=String),
        ),
        view("pushed", driver, push, note),
        view("written", driver, file_source("written"), note),
        view("vanishing", driver, file_source("vanishing"), note),
        file_source("unused", "drivers.parquet"),
        FeatureService(
            name="drivers_and_customers",
            features=[day[["rate", "trips"]], profile],
            logging_config=LoggingConfig(destination=FileLoggingDestination(path="data/logs")),
        ),
        FeatureService(
            name="two_cities",
            features=[
                weather.with_name("origin").with_join_key_map({"city_id": "origin_id"}),
                weather.with_name("destination").with_join_key_map({"city_id": "destination_id"}),
            ],
        ),
    ]


KEY_TYPES = {"driver": Int64, "customer": String, "city": String, "region": Int32, "card": String}


# --- the world ----------------------------------------------------------------------------------------------------


@dataclass
class World:
    """A server and the SDK's store that points at it."""

    larder: Larder
    features: FeatureStore

    def exchange(self, command: dict[str, object], table: pa.Table) -> pa.Table:
        """A read as the SDK makes it, with a command of the test's own."""
        parameters = {name: value for name, value in command.items() if name != "api"}
        client = build_arrow_flight_client("http", HOST, self.larder.ports.offline, self.features.config.auth_config)
        return _call_exchange(str(command["api"]), parameters, client, None, table)

    def put_and_get(self, command: dict[str, object], table: pa.Table, between: Callable[[], object]) -> pa.Table:
        """A read as clients before 0.66 make it; `between` runs between the calls."""
        address = f"grpc+tcp://{HOST}:{self.larder.ports.offline}"
        descriptor = fl.FlightDescriptor.for_command(json.dumps({"command_id": str(uuid.uuid4()), **command}))
        writer, _ = fl.FlightClient(address).do_put(descriptor, table.schema)
        writer.write_table(table)
        writer.close()
        between()
        ticket = fl.FlightClient(address).get_flight_info(descriptor).endpoints[0].ticket
        between()
        return fl.FlightClient(address).do_get(ticket).read_all()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder) -> World:
    """One server for the file, without consumers, and everything applied."""
    repo = tmp_path_factory.mktemp("offline") / "repo"
    write_config(repo, "history", Ports.free())
    write_data(repo / "data")
    larder = module_larder(repo, args=["--services", "online,registry,offline"])
    features = store(repo)
    features.apply(objects())  # type: ignore[arg-type]
    return World(larder, features)


def historical(refs: Sequence[str], views: Sequence[str], **more: object) -> dict[str, object]:
    """The command of get_historical_features."""
    return {
        "api": "get_historical_features",
        "feature_view_names": list(views),
        "feature_refs": list(refs),
        "project": "history",
        "full_feature_names": False,
        "name_aliases": [None] * len(views),
        **more,
    }


# --- the oracle ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What the oracle has to know of a view: its rows, its key columns there and in the entity frame, its ttl."""

    rows: pd.DataFrame
    features: list[str]
    keys: dict[str, str] = field(default_factory=lambda: {"driver_id": "driver_id"})
    ttl: timedelta = timedelta(0)
    rename: Callable[[str], str] = str


def plain(values: pd.Series) -> list[object]:
    """Python values: None for any null, µs for a time, a list for an array."""

    def one(value: object) -> object:
        if isinstance(value, np.ndarray | list):
            return list(value)
        if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
            return None
        if isinstance(value, datetime | np.datetime64):
            return micros(value)
        return value.item() if isinstance(value, np.generic) else value

    return [one(value) for value in values]


def point_in_time(asked: pd.DataFrame, time: str, views: Sequence[View]) -> dict[str, list[object]]:
    """For each entity row and view: the greatest (time, created) with t - ttl <= time <= t; else nulls."""
    out: dict[str, list[object]] = {view.rename(name): [] for view in views for name in view.features}
    times = plain(asked[time])
    for view in views:
        columns = {name: plain(view.rows[name]) for name in view.rows.columns}
        created = columns.get("created", columns["event_timestamp"])
        of_row = list(zip(*(columns[key] for key in view.keys), strict=True)) or [()] * len(view.rows)
        of_asked = list(zip(*(plain(asked[key]) for key in view.keys.values()), strict=True)) or [()] * len(asked)
        for key, t in zip(of_asked, times, strict=True):
            best: tuple[tuple[object, object], int] | None = None
            for row, ts in enumerate(columns["event_timestamp"]):
                if key != of_row[row]:
                    continue
                assert isinstance(ts, int)
                assert isinstance(t, int)
                fresh = not view.ttl or ts >= t - view.ttl // timedelta(microseconds=1)
                if ts <= t and fresh and (best is None or (ts, created[row]) >= best[0]):
                    best = (ts, created[row]), row
            for name in view.features:
                out[view.rename(name)].append(None if best is None else columns[name][best[1]])
    return out


def check(got: pd.DataFrame, asked: pd.DataFrame, views: Sequence[View], time: str = "event_timestamp") -> None:
    """The frame as it was, row by row, and behind it exactly what the oracle says."""
    wanted = point_in_time(asked, time, views)
    assert list(got.columns) == [*asked.columns, *wanted]
    for name in asked.columns:
        assert plain(got[name]) == plain(asked[name]), name
    for name, values in wanted.items():
        assert plain(got[name]) == values, name


def ask(world: World, asked: pd.DataFrame, features: list[str] | FeatureService, full: bool = False) -> pd.DataFrame:
    """get_historical_features of the SDK."""
    return world.features.get_historical_features(asked, features, full_feature_names=full).to_df()


def random_frame(count: int, seed: int = 1) -> pd.DataFrame:
    """Entity rows in no order, with duplicates, a driver without data, a label."""
    rng = random.Random(seed)
    times = [BEGIN + pd.Timedelta(seconds=rng.randrange(-86400, (DAYS + 3) * 86400)) for _ in range(count)]
    frame = pd.DataFrame(
        {
            "driver_id": [rng.choice(DRIVERS) for _ in range(count)],
            "label": [rng.random() for _ in range(count)],
            "event_timestamp": times,
        }
    )
    return pd.concat([frame, frame.iloc[: count // 4]], ignore_index=True)


DAY_VIEW = View(driver_rows(), FEATURES, ttl=timedelta(days=1))
EVER_VIEW = View(driver_rows(), FEATURES)
PROFILES = View(daily("customer_id", ["ann", "bob"], "profile"), ["profile"], {"customer_id": "customer_id"})


def refs(view: str, names: Sequence[str] = tuple(FEATURES)) -> list[str]:
    """view:feature for each."""
    return [f"{view}:{name}" for name in names]


# --- point in time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "view"), [("driver_day", DAY_VIEW), ("driver_ever", EVER_VIEW)], ids=["ttl", "no_ttl"]
)
def test_every_row_gets_the_latest_values_not_later_than_itself(world: World, name: str, view: View) -> None:
    asked = random_frame(80)
    check(ask(world, asked, refs(name)), asked, [view])


def test_the_edges_of_time_the_ttl_and_the_created_ties(world: World) -> None:
    rows = driver_rows()
    corrected = rows[rows.duplicated(["driver_id", "event_timestamp"], keep=False)]
    assert len(corrected) > 40
    us = pd.Timedelta(microseconds=1)
    times = pd.concat(
        [corrected["event_timestamp"] + d for d in (-us, 0 * us, us, pd.Timedelta(days=1), pd.Timedelta(days=1) + us)]
    )
    asked = pd.DataFrame({"driver_id": list(corrected["driver_id"]) * 5, "event_timestamp": list(times)})
    check(
        ask(world, asked, refs("driver_day", ["trips", "name"])),
        asked,
        [View(rows, ["trips", "name"], ttl=DAY_VIEW.ttl)],
    )


def test_several_views_full_names_and_duplicates(world: World) -> None:
    asked = random_frame(40, seed=2).assign(
        customer_id=lambda frame: ["ann", "bob", "eve", None, "ann"] * (len(frame) // 5)
    )
    names = [*refs("driver_day"), "customer_profile:profile", *refs("driver_ever")]
    views = [
        View(DAY_VIEW.rows, FEATURES, ttl=DAY_VIEW.ttl, rename=lambda name: f"driver_day__{name}"),
        View(PROFILES.rows, ["profile"], PROFILES.keys, rename=lambda name: f"customer_profile__{name}"),
        View(EVER_VIEW.rows, FEATURES, rename=lambda name: f"driver_ever__{name}"),
    ]
    check(ask(world, asked, names, full=True), asked, views)


def test_a_feature_service(world: World) -> None:
    asked = random_frame(40, seed=3).assign(customer_id="bob")
    service = world.features.get_feature_service("drivers_and_customers")
    got = ask(world, asked, service)
    check(got, asked, [View(DAY_VIEW.rows, list(got.columns[-3:-1]), ttl=DAY_VIEW.ttl), PROFILES])
    assert sorted(got.columns[-3:-1]) == ["rate", "trips"]


def test_one_view_twice_under_aliases_with_other_join_keys(world: World) -> None:
    rows = daily("city_id", ["ams", "ber", "cph"], "weather")
    asked = pd.DataFrame(
        {
            "origin_id": ["ams", "ber", "ams", "nowhere"],
            "destination_id": ["ber", "ber", "cph", "ams"],
            "event_timestamp": [BEGIN + pd.Timedelta(days=d) for d in (1, 2, 20, 4)],
        }
    )
    got = ask(world, asked, world.features.get_feature_service("two_cities"), full=True)
    ttl = timedelta(hours=48)
    views = [
        View(rows, ["weather"], {"city_id": "origin_id"}, ttl, lambda name: f"origin__{name}"),
        View(rows, ["weather"], {"city_id": "destination_id"}, ttl, lambda name: f"destination__{name}"),
    ]
    check(got, asked, views)


def test_a_view_without_entities_and_one_with_renamed_columns(world: World) -> None:
    asked = random_frame(20, seed=4)
    news = daily("ignored", ["all"], "headline")
    renamed = daily("driver_id", DRIVERS, "speed")
    got = ask(world, asked, ["news:headline", "renamed:speed"])
    check(got, asked, [View(news, ["headline"], {}), View(renamed, ["speed"])])


def test_all_types_come_as_they_are_registered(world: World) -> None:
    asked = random_frame(30, seed=5)
    names = [*FEATURES, "seen", "tags"]
    job = world.features.get_historical_features(asked, refs("driver_ever", names))
    check(job.to_df(), asked, [View(EVER_VIEW.rows, names)])
    schema = job.to_arrow().schema
    types = {name: str(schema.field(name).type) for name in names}
    assert {name: types[name] for name in ("trips", "rate", "level", "name", "active")} == {
        "trips": "int64",
        "rate": "double",
        "level": "int32",
        "name": "string",
        "active": "bool",
    }
    assert types["seen"].startswith("timestamp[")
    assert types["tags"].startswith("list<")


# --- the entity frame ---------------------------------------------------------------------------------------------


def test_null_keys_find_nothing_and_keep_their_row(world: World) -> None:
    asked = random_frame(12, seed=6)
    asked["driver_id"] = asked["driver_id"].astype("Int64")
    asked.loc[[0, 5, 14], "driver_id"] = pd.NA
    got = ask(world, asked, refs("driver_ever"))
    check(got, asked, [EVER_VIEW])
    assert got.loc[[0, 5, 14], FEATURES].isna().all(axis=None)


@pytest.mark.parametrize("kind", ["naive", "New_York", "UTC in ns"])
def test_times_of_any_kind_are_the_same_instants(world: World, kind: str) -> None:
    asked = random_frame(20, seed=7)
    stamps = asked["event_timestamp"]
    types = {
        "naive": pa.array(stamps.dt.tz_localize(None).astype("datetime64[us]")),
        "New_York": pa.array(stamps.dt.tz_convert("America/New_York").astype("datetime64[us, America/New_York]")),
        "UTC in ns": pa.array(stamps.astype("datetime64[ns, UTC]")),
    }
    table = pa.Table.from_pandas(asked.drop(columns="event_timestamp")).append_column("event_timestamp", types[kind])
    result = world.exchange(historical(refs("driver_ever"), ["driver_ever"]), table)
    assert result.schema.field("event_timestamp").type == table.schema.field("event_timestamp").type
    check(result.to_pandas(), asked, [EVER_VIEW])


def test_naive_times_of_the_sdk_are_utc(world: World) -> None:
    asked = random_frame(10, seed=8)
    asked["event_timestamp"] = asked["event_timestamp"].dt.tz_localize(None)
    check(ask(world, asked, refs("driver_ever")), asked, [EVER_VIEW])


def test_the_only_time_column_is_the_event_time_whatever_its_name(world: World) -> None:
    asked = random_frame(10, seed=9).rename(columns={"event_timestamp": "asked_at"})
    check(ask(world, asked, refs("driver_ever")), asked, [EVER_VIEW], time="asked_at")


@pytest.mark.parametrize("width", ["int16", "uint16", "int32", "uint64", "float64", "Int64"])
def test_integer_keys_of_another_width_find_their_rows(world: World, width: str) -> None:
    asked = random_frame(15, seed=10)
    asked["driver_id"] = asked["driver_id"].astype(width)
    got = ask(world, asked, refs("driver_ever"))
    assert got["driver_id"].dtype == width if width != "Int64" else True
    check(got, asked, [EVER_VIEW])


def test_keys_beyond_the_registered_width_find_their_rows_or_nothing(world: World) -> None:
    asked = pd.DataFrame({"region_id": [1, 2, 70000, 2**40], "event_timestamp": [BEGIN + pd.Timedelta(days=3)] * 4})
    regions = daily("region_id", [1, 2, 70000], "region")
    check(ask(world, asked, ["regions:region"]), asked, [View(regions, ["region"], {"region_id": "region_id"})])


def test_an_empty_frame_gives_an_empty_frame_with_all_columns(world: World) -> None:
    asked = random_frame(4).iloc[:0]
    table = world.exchange(historical(refs("driver_day"), ["driver_day"]), pa.Table.from_pandas(asked))
    assert table.num_rows == 0
    assert [name for name in table.column_names if not name.startswith("__index")] == [*asked.columns, *FEATURES]


@pytest.mark.parametrize("index", ["named", "unnamed", "shuffled"])
def test_an_index_changes_nothing(world: World, index: str) -> None:
    asked = random_frame(12, seed=11)
    asked.index = pd.Index(range(100, 100 + len(asked)), name="row_id" if index == "named" else None)
    if index == "shuffled":
        asked = asked.sample(frac=1, random_state=1)
    got = ask(world, asked, refs("driver_ever"))
    got = got.drop(columns=["row_id"], errors="ignore")
    check(got.reset_index(drop=True), asked.reset_index(drop=True), [EVER_VIEW])


def test_columns_that_are_nothing_of_ours_come_back_untouched(world: World) -> None:
    asked = random_frame(8, seed=12)
    asked["weights"] = [[1.0, float(number)] for number in range(len(asked))]
    asked["rated_at"] = asked["event_timestamp"] + pd.Timedelta(hours=3)
    asked["customer_id"] = "ann"
    asked["word"] = pd.Categorical(["a", "b"] * (len(asked) // 2))
    check(ask(world, asked, refs("driver_ever")), asked, [EVER_VIEW])


def test_a_range_of_time_without_entity_rows_gives_every_entity(world: World) -> None:
    end = (BEGIN + pd.Timedelta(days=5)).to_pydatetime()
    job = world.features.get_historical_features(
        features=["customer_profile:profile"], start_date=end - timedelta(days=2), end_date=end
    )
    got = job.to_df()
    assert {"customer_id", "profile", "event_timestamp"} <= set(got.columns)
    assert set(got["customer_id"]) == {"ann", "bob"}
    assert {"ann on day 4", "bob on day 4"} <= set(got["profile"])


def test_a_large_frame_streams_fine(world: World) -> None:
    rng = np.random.default_rng(3)
    count = 100_000
    seconds = rng.integers(0, DAYS * 86400, count)
    asked = pd.DataFrame(
        {
            "driver_id": rng.choice(DRIVERS, count),
            "label": rng.random(count),
            "event_timestamp": (BEGIN + pd.to_timedelta(seconds, unit="s")).astype("datetime64[us, UTC]"),
        }
    )
    got = ask(world, asked, refs("driver_ever"))
    assert len(got) == count
    pd.testing.assert_frame_equal(got[["driver_id", "label"]], asked[["driver_id", "label"]])
    source = (
        driver_rows()
        .sort_values(["event_timestamp", "created"])
        .drop_duplicates(["driver_id", "event_timestamp"], keep="last")
    )
    merged = pd.merge_asof(
        asked.reset_index().sort_values("event_timestamp", kind="stable"),
        source[["driver_id", "event_timestamp", *FEATURES]],
        on="event_timestamp",
        by="driver_id",
    )
    wanted = merged.sort_values("index")
    for name in FEATURES:
        assert plain(got[name]) == plain(wanted[name]), name


# --- windows ------------------------------------------------------------------------------------------------------


def events_of_cards() -> dict[str, list[Event]]:
    """The events of each card, in the order of the file."""
    rows = activity_rows()
    events: dict[str, list[Event]] = {}
    stamps = [micros(ts) for ts in rows["ts"]]
    for card, ts, amount, quantity in zip(
        rows["card_id"], stamps, plain(rows["amount"]), plain(rows["quantity"]), strict=True
    ):
        assert ts is not None
        events.setdefault(card, []).append(Event(ts, {"amount": amount, "quantity": quantity}))  # type: ignore[dict-item]
    return events


def test_windows_over_the_batch_source_equal_the_definition(world: World) -> None:
    events = events_of_cards()
    rng = random.Random(4)
    start = micros(BEGIN) or 0
    times = [start + rng.randrange(-HOUR, DAY + 5 * HOUR) for _ in range(120)]
    times += [
        event.ts + delta
        for event in events["card-1"][:20]
        for delta in (-1, 0, 1, 10 * MINUTE, 10 * MINUTE + 2 * SECOND)
    ]
    cards = [rng.choice(["card-0", "card-1", "card-2", "unknown", None]) for _ in range(120)] + ["card-1"] * 100
    asked = pd.DataFrame({"card_id": cards, "event_timestamp": pd.to_datetime(times, unit="us", utc=True)})
    asked = asked.sample(frac=1, random_state=2, ignore_index=True)
    names = [window.feature for window in WINDOWS]
    got = ask(world, asked, refs("card_activity", names))
    assert list(got.columns) == ["card_id", "event_timestamp", *names]
    assert plain(got["card_id"]) == plain(asked["card_id"])
    seen = set()
    for number, (card, stamp) in enumerate(zip(asked["card_id"], asked["event_timestamp"], strict=True)):
        found = answer(WINDOWS, events.get(str(card), []), micros(stamp) or 0)
        for name in names:
            wanted = found.values[name] if found else None
            seen.add((name, found is None, wanted is None, wanted == 0))
            value = plain(got[name])[number]
            assert value == (pytest.approx(wanted, rel=1e-12, abs=1e-12) if isinstance(wanted, float) else wanted), (
                number,
                name,
            )
    # unknown; known, but nothing in this window
    assert {("n_10m", True, True, False), ("n_10m", False, False, True), ("sum_10m", False, True, False)} <= seen


def test_windows_and_rows_in_one_request(world: World) -> None:
    asked = pd.DataFrame(
        {"card_id": ["card-0"], "driver_id": [1001], "event_timestamp": [BEGIN + pd.Timedelta(hours=20)]}
    )
    got = ask(world, asked, ["card_activity:n_amount_3h", "driver_ever:trips"])
    assert list(got.columns) == [*asked.columns, "n_amount_3h", "trips"]
    assert plain(got["n_amount_3h"])[0]


@pytest.mark.parametrize("how", ["SQL", "span"])
def test_windows_without_an_entity_frame_equal_the_definition(world: World, how: str) -> None:
    """A SELECT over the events themselves, or every card with an event in a span of time, at its end."""
    events, names = events_of_cards(), [window.feature for window in WINDOWS]
    end = BEGIN + pd.Timedelta(hours=15, minutes=10)
    text = f"SELECT card_id, ts AS event_timestamp FROM activity_file WHERE ts <= TIMESTAMP '{end}' ORDER BY ts"
    span = {"start_date": (end - pd.Timedelta(hours=2)).to_pydatetime(), "end_date": end.to_pydatetime()}
    asked: dict[str, object] = {"entity_df": text} if how == "SQL" else span
    got = world.features.get_historical_features(features=refs("card_activity", names), **asked).to_df()  # type: ignore[arg-type]
    stamps = [micros(stamp) or 0 for stamp in got["event_timestamp"]]
    if how == "SQL":
        assert stamps == sorted(e.ts for own in events.values() for e in own if e.ts <= (micros(end) or 0))
    else:
        assert (sorted(got["card_id"]), set(stamps)) == (["card-0", "card-1", "card-2"], {micros(end)})
    values = {name: plain(got[name]) for name in names}
    for number, (card, stamp) in enumerate(zip(got["card_id"], stamps, strict=True)):
        found = answer(WINDOWS, events[card], stamp)
        assert found is not None
        for name in names:
            wanted = found.values[name]
            near = pytest.approx(wanted, rel=1e-12, abs=1e-12) if isinstance(wanted, float) else wanted
            assert values[name][number] == near, (number, name)


# --- the older flow -----------------------------------------------------------------------------------------------


def test_put_then_get_gives_the_same_as_the_exchange(world: World) -> None:
    asked = random_frame(30, seed=13)
    table = pa.Table.from_pandas(asked)
    command = historical(refs("driver_day"), ["driver_day"])
    old = world.put_and_get(command, table, lambda: None)
    assert old.equals(world.exchange(command, table))
    check(old.to_pandas(), asked, [DAY_VIEW])


def test_put_then_get_survives_a_restart_between_the_calls(world: World) -> None:
    asked = random_frame(30, seed=14)
    command = historical(refs("driver_day"), ["driver_day"])
    old = world.put_and_get(command, pa.Table.from_pandas(asked), world.larder.restart)
    check(old.to_pandas(), asked, [DAY_VIEW])


def test_what_was_put_is_listed_and_the_actions_are_feasts(world: World) -> None:
    client = fl.FlightClient(f"grpc+tcp://{HOST}:{world.larder.ports.offline}")
    marker = str(uuid.uuid4())
    listed: list[bytes] = []
    command = historical(refs("driver_day"), ["driver_day"], marker=marker)
    table = pa.Table.from_pandas(random_frame(3))
    world.put_and_get(command, table, lambda: listed.extend(info.descriptor.command for info in client.list_flights()))
    assert any(marker.encode() in descriptor for descriptor in listed)
    actions = {action.type for action in client.list_actions()}
    assert {"offline_write_batch", "write_logged_features", "persist"} <= actions


# --- errors -------------------------------------------------------------------------------------------------------


def test_an_unknown_view_is_feasts_exception(world: World) -> None:
    table = pa.Table.from_pandas(random_frame(3))
    with pytest.raises(FeatureViewNotFoundException, match="Feature view nosuch does not exist in project history"):
        world.exchange(historical(["nosuch:x"], ["nosuch"]), table)
    with pytest.raises(FeatureViewNotFoundException):
        ask(world, random_frame(3), ["nosuch:x"])


def test_an_unknown_feature_is_named(world: World) -> None:
    table = pa.Table.from_pandas(random_frame(3))
    with pytest.raises(Exception, match="nofeature") as raised:
        world.exchange(historical(["driver_day:nofeature"], ["driver_day"]), table)
    assert not isinstance(raised.value, fl.FlightInternalError)


def test_a_missing_key_column_is_feasts_exception(world: World) -> None:
    asked = random_frame(3).drop(columns="driver_id")
    with pytest.raises(FeastEntityDFMissingColumnsError, match="driver_id"):
        ask(world, asked, refs("driver_day"))


def test_a_frame_without_a_time_is_feasts_exception(world: World) -> None:
    table = pa.Table.from_pandas(random_frame(3).drop(columns="event_timestamp"))
    with pytest.raises(EntityTimestampInferenceException, match="event_timestamp"):
        world.exchange(historical(refs("driver_day"), ["driver_day"]), table)


def test_a_key_of_another_kind_is_the_callers_error(world: World) -> None:
    asked = random_frame(3)
    asked["driver_id"] = "x" + asked["driver_id"].astype(str)
    with pytest.raises(Exception, match="driver_id") as raised:
        ask(world, asked, refs("driver_day"))
    assert not isinstance(raised.value, fl.FlightInternalError)


def test_a_source_that_vanished_is_named_and_comes_back(world: World) -> None:
    path = world.larder.repo / "data" / "vanishing.parquet"
    asked = pd.DataFrame({"driver_id": [1001], "event_timestamp": [BEGIN + pd.Timedelta(days=2)]})
    assert ask(world, asked, ["vanishing:note"])["note"].tolist() == ["1001 on day 1"]
    kept = path.rename(path.with_suffix(".away"))
    with pytest.raises(Exception, match=r"vanishing") as raised:
        ask(world, asked, ["vanishing:note"])
    assert not isinstance(raised.value, fl.FlightInternalError)
    check(ask(world, asked, refs("driver_day")), asked, [DAY_VIEW])
    kept.rename(path)
    assert ask(world, asked, ["vanishing:note"])["note"].tolist() == ["1001 on day 1"]


@pytest.mark.parametrize(
    "command",
    [b"", b"no json", b"[]", b"{}", b'{"api": "drop_everything"}', b'{"api": "get_historical_features"}', b"\xff\xfe"],
)
def test_a_malformed_command_is_refused_and_harms_nothing(world: World, command: bytes) -> None:
    client = fl.FlightClient(f"grpc+tcp://{HOST}:{world.larder.ports.offline}")
    table = pa.table({"key": ["x"]})

    def exchange() -> None:
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(command))
        with writer:
            writer.begin(table.schema)
            writer.write_table(table)
            writer.done_writing()
            reader.read_all()

    with pytest.raises((pa.ArrowException, fl.FlightError)) as raised:
        exchange()
    assert not isinstance(raised.value, fl.FlightInternalError)
    with pytest.raises((pa.ArrowException, fl.FlightError)):
        client.do_get(fl.Ticket(command)).read_all()
    with pytest.raises((pa.ArrowException, fl.FlightError)):
        client.get_flight_info(fl.FlightDescriptor.for_command(command))
    asked = random_frame(3)
    check(ask(world, asked, refs("driver_day")), asked, [DAY_VIEW])


# --- pulls and writes ---------------------------------------------------------------------------------------------


def batch_source(world: World, view: str) -> DataSource:
    """The registered batch source of a view."""
    source = world.features.get_feature_view(view).batch_source
    assert source is not None
    return source


@pytest.mark.parametrize("created", [True, False])
def test_pull_latest_gives_the_last_row_of_each_key_in_the_range(world: World, created: bool) -> None:
    source = batch_source(world, "driver_ever")
    start, end = BEGIN + pd.Timedelta(days=2), BEGIN + pd.Timedelta(days=5, seconds=1)
    rows = driver_rows()
    if not created:
        rows = rows.drop_duplicates(["driver_id", "event_timestamp"], keep=False)
        rows.to_parquet(world.larder.repo / "data" / "no_ties.parquet", index=False)
        source = file_source("no_ties")
        world.features.apply([source])
    got = RemoteOfflineStore.pull_latest_from_table_or_query(
        config=world.features.config,
        data_source=source,
        join_key_columns=["driver_id"],
        feature_name_columns=["trips", "name"],
        timestamp_field="event_timestamp",
        created_timestamp_column="created" if created else None,
        start_date=start.to_pydatetime(),
        end_date=end.to_pydatetime(),
    ).to_df()
    inside = rows[(rows["event_timestamp"] >= start) & (rows["event_timestamp"] <= end)]
    order = ["event_timestamp", "created"] if created else ["event_timestamp"]
    wanted = inside.sort_values(order).drop_duplicates("driver_id", keep="last").sort_values("driver_id")
    columns = ["driver_id", "trips", "name", *order]
    assert set(got.columns) == set(columns)
    got = got.sort_values("driver_id")
    for name in columns:
        assert plain(got[name]) == plain(wanted[name]), name


def test_pull_all_gives_every_row_in_the_range(world: World) -> None:
    source = batch_source(world, "driver_ever")
    rows = driver_rows()
    start, end = rows["event_timestamp"].iloc[3], BEGIN + pd.Timedelta(days=9, seconds=1)

    def pull(start: pd.Timestamp | None, end: pd.Timestamp | None) -> pd.DataFrame:
        return RemoteOfflineStore.pull_all_from_table_or_query(
            config=world.features.config,
            data_source=source,
            join_key_columns=["driver_id"],
            feature_name_columns=["rate"],
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
            start_date=start and start.to_pydatetime(),
            end_date=end and end.to_pydatetime(),
        ).to_df()

    for got, wanted in [
        (pull(start, end), rows[(rows["event_timestamp"] >= start) & (rows["event_timestamp"] <= end)]),
        (pull(None, None), rows),
    ]:
        columns = ["driver_id", "rate", "event_timestamp", "created"]
        assert set(got.columns) == set(columns)
        as_rows = [
            sorted(zip(*(map(str, plain(frame[name])) for name in columns), strict=True)) for frame in (got, wanted)
        ]
        assert as_rows[0] == as_rows[1]


def note(day: int, text: str) -> pd.DataFrame:
    """One row for the sources of notes."""
    frame = pd.DataFrame({"driver_id": [1001], "note": [text], "event_timestamp": [BEGIN + pd.Timedelta(days=day)]})
    return utc_us(frame, "event_timestamp")


def test_what_is_written_offline_is_in_the_next_training_set(world: World) -> None:
    asked = pd.DataFrame({"driver_id": [1001], "event_timestamp": [BEGIN + pd.Timedelta(days=50)]})

    def notes(view: str) -> list[object]:
        return plain(ask(world, asked, [f"{view}:note"])["note"])

    world.features.write_to_offline_store("written", note(20, "by the SDK"))
    assert notes("written") == ["by the SDK"]
    world.features.push("note_push", note(20, "pushed by the SDK"), to=PushMode.OFFLINE)
    assert notes("pushed") == ["pushed by the SDK"]
    # an older row is kept, and changes nothing for this time
    world.features.push("note_push", note(15, "older"), to=PushMode.OFFLINE)
    assert notes("pushed") == ["pushed by the SDK"]
    body = {
        "push_source_name": "note_push",
        "df": {"driver_id": [1001], "note": ["by HTTP"], "event_timestamp": ["2024-04-01T00:00:00Z"]},
    }
    answered = world.larder.post("/push", {**body, "to": "offline"})
    assert answered.status_code == 200, answered.text
    assert notes("pushed") == ["by HTTP"]
    world.larder.restart()
    assert notes("pushed") == ["by HTTP"]
    with pytest.raises(ValueError, match="note"):
        world.features.write_to_offline_store("written", note(21, "x").rename(columns={"note": "other"}))


def test_a_write_that_does_not_fit_the_source_is_refused_whole(world: World) -> None:
    view = world.features.get_feature_view("written")
    before = pq.read_table(world.larder.repo / "data" / "written.parquet")
    wrong = pa.table({"driver_id": ["not a number"], "note": ["x"], "event_timestamp": [datetime.now(UTC)]})
    with pytest.raises(Exception, match="driver_id"):
        RemoteOfflineStore.offline_write_batch(world.features.config, view, wrong, None)
    assert pq.read_table(world.larder.repo / "data" / "written.parquet").equals(before)


def test_the_columns_of_a_source_and_its_validation(world: World) -> None:
    source = world.features.get_data_source("unused_file")
    remote = RemoteOfflineStore()
    columns = dict(remote.get_table_column_names_and_types_from_data_source(world.features.config, source))
    assert list(columns) == list(driver_rows().columns)
    remote.validate_data_source(world.features.config, source)
    # Feast takes a source whose file is still to come; the server's log says that it is not there
    remote.validate_data_source(world.features.config, file_source("absent"))
    assert "absent.parquet" in world.larder.log


def test_persist_writes_the_training_set_on_the_server(world: World) -> None:
    storage = SavedDatasetFileStorage(path="data/saved.parquet")
    target = storage.to_data_source()
    assert isinstance(target, FileSource)
    world.features.apply([FileSource(name=target.name, path="data/saved.parquet", timestamp_field="event_timestamp")])
    asked = random_frame(20, seed=15)
    job = world.features.get_historical_features(asked, refs("driver_day"))
    job.persist(storage)
    check(pd.read_parquet(world.larder.repo / "data" / "saved.parquet"), asked, [DAY_VIEW])
    with pytest.raises(Exception, match=r"saved"):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)


def test_logged_features_are_kept_at_their_destination(world: World) -> None:
    service = world.features.get_feature_service("drivers_and_customers")
    schema = FeatureServiceLoggingSource(service, "history").get_schema(world.features.registry)
    rows = [
        {
            "driver_id": driver,
            "customer_id": "ann",
            "driver_day__rate": driver / 2,
            "__log_timestamp": BEGIN.to_pydatetime(),
            "__log_date": BEGIN.date(),
            "__request_id": f"request-{driver}",
        }
        for driver in DRIVERS
    ]
    logs = pa.Table.from_pylist(rows, schema=schema)
    for _ in range(2):
        world.features.write_logged_features(logs, service)
    kept = pq.read_table(world.larder.repo / "data" / "logs")
    assert set(kept.column_names) == set(schema.names)
    kept = kept.select(schema.names).cast(schema)
    assert sorted(kept["__request_id"].to_pylist()) == sorted(logs["__request_id"].to_pylist() * 2)
    assert kept.slice(0, len(logs)).sort_by("driver_id").equals(logs)
    unlogged = world.features.get_feature_service("two_cities")
    unlogged.logging_config = service.logging_config
    with pytest.raises(Exception, match="logging_config"):
        world.features.write_logged_features(logs, unlogged)

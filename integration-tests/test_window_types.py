"""Windows over narrow numbers, times, bytes, UUIDs and decimals: online and in a training set, from a real broker."""

from __future__ import annotations

import base64
import time
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal as Digits
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, Field, FileSource, KafkaSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import (
    Array,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
    Uuid,
)
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store, write_config
from larder_env.server import Ports
from larder_env.topics import Topic
from online import read_online

CARD = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
SCHEMA = (
    "card_id string, small int, ratio float, seen timestamp, raw binary, who string, price decimal(10,2), ts timestamp"
)
SEEN = [datetime(2026, 1, day, tzinfo=UTC) for day in [3, 1, 2]]
WHO = [str(uuid.UUID(int=number)) for number in [1, 2, 1]]


class Made(NamedTuple):
    """A feature: of a function over a column, of a type, with a value."""

    column: str
    function: str
    dtype: FeastType
    value: object

    @property
    def name(self) -> str:
        """A name that says it."""
        return f"{self.column}_{self.function.partition('(')[0]}"


FEATURES = [
    Made("small", "sum", Int32, 6),
    Made("small", "max", Int32, 3),
    Made("small", "mean", Float32, 2.0),
    Made("small", "top_k(2)", Array(Int32), [3, 2]),
    Made("small", "count_distinct", Int32, 3),
    Made("ratio", "sum", Float32, 3.0),
    Made("ratio", "stddev", Float64, 0.5),
    Made("ratio", "bottom_k(2)", Array(Float32), [0.5, 1.0]),
    Made("seen", "min", UnixTimestamp, SEEN[1]),
    Made("seen", "last", UnixTimestamp, SEEN[2]),
    Made("seen", "count_distinct", Int64, 3),
    Made("raw", "first", Bytes, b"\x00\xff"),
    Made("raw", "max", Bytes, b"b"),
    Made("raw", "approx_count_distinct", Int64, 3),
    Made("who", "last", Uuid, uuid.UUID(WHO[2])),
    Made("who", "count_distinct", Int64, 2),
    Made("price", "sum", Float64, 15.6),
    Made("price", "max", Float64, 12.5),
    Made("price", "mean_last_k(2)", Float64, 1.55),
    Made("price", "median", Float64, pytest.approx(3.0, rel=0.01)),
    Made("price", "count", Int64, 3),
]


def plain(value: object) -> object:
    """A value as it is compared: of a training set, or of JSON."""
    return value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, uuid.UUID) else value


def test_every_type_has_its_functions(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    now = time.time_ns() // 1_000_000_000
    times = [datetime.fromtimestamp(now - 60 + number, UTC) for number in range(3)]
    raw, price = [b"\x00\xff", b"a", b"b"], [Digits("12.50"), Digits("0.10"), Digits("3.00")]
    columns = {
        "card_id": pa.array(["a"] * 3),
        "small": pa.array([3, 1, 2], pa.int32()),
        "ratio": pa.array([0.5, 1.5, 1.0], pa.float32()),
        "seen": pa.array(SEEN, pa.timestamp("us", "UTC")),
        "raw": pa.array(raw, pa.binary()),
        "who": pa.array(WHO),
        "price": pa.array(price, pa.decimal128(10, 2)),
        "ts": pa.array(times, pa.timestamp("us", "UTC")),
    }
    table, repo = pa.table(columns), tmp_path / "repo"
    write_config(repo, "types", Ports.free())
    (repo / "data").mkdir()
    pq.write_table(table, repo / "data" / "cards.parquet")
    topic, server, features = Topic(kafka), larder(repo), store(repo)
    source = KafkaSource(
        name="types_stream",
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        topic=topic.name,
        timestamp_field="ts",
        message_format=JsonFormat(schema_json=SCHEMA),
        batch_source=FileSource(name="types_file", path="data/cards.parquet", timestamp_field="ts"),
    )
    day = timedelta(days=1)
    view = StreamFeatureView(
        name="types",
        entities=[CARD],
        ttl=timedelta(days=30),
        mode="python",
        timestamp_field="ts",
        source=source,
        aggregations=[
            Aggregation(column=made.column, function=made.function, time_window=day, name=made.name)
            for made in FEATURES
        ],
        schema=[Field(name="card_id", dtype=String), *(Field(name=made.name, dtype=made.dtype) for made in FEATURES)],
    )
    features.apply([CARD, view])
    for row in table.to_pylist():
        row |= {"raw": base64.b64encode(row["raw"]).decode(), "ts": row["ts"].isoformat()}
        # as text or as a number: a decimal keeps its digits either way
        row |= {
            "seen": row["seen"].isoformat(),
            "price": str(row["price"]) if row["small"] == 1 else float(row["price"]),
        }
        topic.send([row])
    names = [made.name for made in FEATURES]

    def served() -> dict[str, object]:
        return {name: cell.value for name, cell in read_online(server, "types", names, "card_id", ["a"])["a"].items()}

    wait_until(lambda: served()["price_count"] == 3, "three events", 60)
    frame = pd.DataFrame({"card_id": ["a"], "event_timestamp": pd.to_datetime([now], unit="s", utc=True).as_unit("us")})
    found = features.get_historical_features(frame, [f"types:{name}" for name in names]).to_arrow().to_pylist()[0]
    online = served()
    for made in FEATURES:
        assert plain(found[made.name]) == plain(made.value), made
        got = online[made.name]
        if isinstance(made.value, datetime):
            assert got == made.value.timestamp(), made
        elif isinstance(made.value, bytes):
            assert base64.b64decode(str(got)) == made.value, made
        else:
            assert got == plain(made.value), made

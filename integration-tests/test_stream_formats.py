"""Avro (plain, and with a schema registry) and Protobuf from a real Kafka, written by other libraries than ours."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pandas as pd
import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, KafkaSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import AvroFormat, JsonFormat, ProtoFormat, StreamFormat
from feast.types import Array, FeastType, Float64, Int64, String
from feast.types import Decimal as DecimalType
from feast.value_type import ValueType
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.message import Message

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store, write_config
from larder_env.schemas import PASSWORD, USER, SchemaRegistry
from larder_env.server import Larder, Ports
from larder_env.topics import Topic
from online import Cell, metric, read_online

CARD = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
TX: dict[str, Any] = {
    "type": "record",
    "name": "Tx",
    "fields": [
        {
            "name": "card",
            "type": {
                "type": "record",
                "name": "Card",
                "fields": [
                    {"name": "id", "type": "string"},
                    {"name": "limit", "type": ["null", "long"], "default": None},
                ],
            },
        },
        {"name": "quantity", "type": "long", "default": 7},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
MEASURED: dict[str, Any] = {
    "type": "record",
    "name": "Measured",
    "fields": [
        {"name": "card_id", "type": ["null", "string"]},
        {"name": "amount", "type": "double"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
YEAR_3000 = 32_503_680_000_000
FEATURES: dict[str, FeastType] = {"quantity": Int64, "limit": Int64, "price": DecimalType, "tags": Array(String)}


@dataclass
class World:
    """A server that knows a schema registry and a descriptor set, its repo, and the broker."""

    larder: Larder
    features: FeatureStore
    kafka: broker.Kafka
    registry: SchemaRegistry
    messages: type[Message]

    def view(
        self,
        name: str,
        topic: Topic,
        message_format: StreamFormat,
        features: dict[str, FeastType],
        mapping: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        timestamp: str = "ts",
    ) -> None:
        """Apply a view without windows on the topic."""
        source = KafkaSource(
            name=f"{name}_stream",
            kafka_bootstrap_servers=topic.kafka.bootstrap_servers,
            topic=topic.name,
            timestamp_field=timestamp,
            message_format=message_format,
            batch_source=FileSource(name=f"{name}_file", path="data/cards.parquet", timestamp_field="ts"),
            field_mapping={"card.id": "card_id", "card.limit": "limit", **(mapping or {})},
            tags=tags or {},
        )
        schema = [Field(name="card_id", dtype=String), *(Field(name=n, dtype=t) for n, t in features.items())]
        self.features.apply(
            [CARD, FeatureView(name=name, entities=[CARD], source=source, schema=schema, ttl=timedelta(0))]
        )

    def until(
        self, view: str, features: Sequence[str], wanted: dict[str, list[object]]
    ) -> dict[object, dict[str, Cell]]:
        """Wait until these cards have these values; gives the cells."""

        def there() -> bool:
            found = read_online(self.larder, view, features, "card_id", list(wanted))
            return {card: [cell.value for cell in row.values()] for card, row in found.items()} == wanted

        def shown() -> dict[object, dict[str, Cell]]:
            return read_online(self.larder, view, features, "card_id", list(wanted))

        try:
            wait_until(there, f"{wanted} in {view}", 30)
        except TimeoutError:
            raise AssertionError(f"{view} has {shown()}, not {wanted}") from None
        return shown()


def proto_file() -> descriptor_pb2.FileDescriptorProto:
    """shop.proto, made by hand: no protoc is needed."""
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    kinds = descriptor_pb2.FieldDescriptorProto
    card = file.message_type.add(name="Card")
    card.field.add(name="id", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    tx = file.message_type.add(name="Tx")
    tx.field.add(name="card", number=1, type=kinds.TYPE_MESSAGE, type_name=".shop.Card", label=kinds.LABEL_OPTIONAL)
    tx.field.add(name="quantity", number=2, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    tx.field.add(name="amount", number=3, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    tx.field.add(name="tags", number=4, type=kinds.TYPE_STRING, label=kinds.LABEL_REPEATED)
    tx.field.add(
        name="ts",
        number=5,
        type=kinds.TYPE_MESSAGE,
        type_name=".google.protobuf.Timestamp",
        label=kinds.LABEL_OPTIONAL,
    )
    return file


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka) -> Iterator[World]:
    """One server for the file."""
    repo = tmp_path_factory.mktemp("formats") / "repo"
    write_config(repo, "formats", Ports.free())
    (repo / "data").mkdir()
    row = {"card_id": "old", "ts": pd.Timestamp("2020-01-01", tz="UTC").as_unit("us")}
    pd.DataFrame([row]).to_parquet(repo / "data" / "cards.parquet", index=False)
    file = proto_file()
    timestamp = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(timestamp)
    (repo / "shop.pb").write_bytes(descriptor_pb2.FileDescriptorSet(file=[timestamp, file]).SerializeToString())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(timestamp)
    pool.Add(file)
    messages = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Tx"))
    registry = SchemaRegistry()
    config = yaml.safe_load((repo / "larder.yaml").read_text())
    config["ingest"] = {
        "protobuf_descriptor_sets": ["shop.pb"],
        "schema_registry": {"url": registry.url, "username": USER, "password": PASSWORD},
    }
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    yield World(module_larder(repo), store(repo), kafka, registry, messages)
    registry.stop()


def now() -> datetime:
    """The wall clock in whole milliseconds."""
    return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)


def avro(schema: dict[str, Any], record: dict[str, object], number: int | None = None) -> bytes:
    """One record, behind the schema's id where there is one."""
    out = io.BytesIO()
    if number is not None:
        out.write(struct.pack(">bI", 0, number))
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def tx(card: str, at: datetime, **fields: object) -> dict[str, object]:
    """A record of TX."""
    card_fields = {"id": card, "limit": fields.pop("limit", None)}
    return {"card": card_fields, "quantity": 1, "price": Decimal("1.25"), "tags": ["a"], "ts": at, **fields}


def reasons(topic: Topic, count: int) -> list[str]:
    """Why the dead letters of a topic are there."""
    return [record.headers["larder-reason"] for record in topic.dead_letters.read(count)]


def test_plain_avro_is_served_as_it_was_written(world: World) -> None:
    topic, at = Topic(world.kafka), now()
    plain = {"larder.wire_format": "plain"}
    world.view("plain_avro", topic, AvroFormat(schema_json=schema_text(TX)), FEATURES, tags=plain)
    whole = avro(TX, tx("a", at, quantity=-5, price=Decimal("-1234.56"), tags=["x", "y"], limit=9))
    topic.send([b"", whole[:-3], whole + b"\0", whole, avro(TX, tx("b", at))])
    served = world.until(
        "plain_avro", list(FEATURES), {"a": [-5, 9, "-1234.56", ["x", "y"]], "b": [1, None, "1.25", ["a"]]}
    )
    assert served["a"]["quantity"].event_ts == round(at.timestamp() * 1000) * 1000
    assert all(reason.startswith("undecodable: ") for reason in reasons(topic, 3))


def test_confluents_avro_is_resolved_and_waits_for_its_registry(world: World) -> None:
    topic, at = Topic(world.kafka), now()
    older: dict[str, Any] = {
        "type": "record",
        "name": "Tx",
        "fields": [
            {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "gone", "type": "string"},
            {"name": "card", "type": "Card"},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        ],
    }
    card = {"type": "record", "name": "Card", "fields": [{"name": "id", "type": "string"}]}
    world.registry.add(11, TX)
    world.registry.add(12, older, references=[("Card", "card value", 3)])
    world.registry.add_subject("card%20value", 3, card)
    world.registry.away = True
    world.view("confluent_avro", topic, AvroFormat(schema_json=schema_text(TX)), FEATURES)
    inline = {
        **older,
        "fields": [f if f["name"] != "card" else {"name": "card", "type": card} for f in older["fields"]],
    }
    topic.send(
        [
            avro(TX, tx("a", at, limit=3), 11),
            avro(inline, {"ts": at, "gone": "x", "card": {"id": "b"}, "price": Decimal("0.05")}, 12),
            avro(TX, tx("never", at), 404),
            avro(TX, tx("never", at)),
            avro(TX, tx("c", at, quantity=2), 11),
        ]
    )
    # nothing is lost and nothing is a dead letter while the registry is away
    wait_until(lambda: len(world.registry.asked) > 2, "the registry to be asked again")
    nothing = read_online(world.larder, "confluent_avro", ["quantity"], "card_id", ["a", "b", "c"])
    assert {cell.status for row in nothing.values() for cell in row.values()} == {"NOT_FOUND"}
    world.registry.away = False
    world.until(
        "confluent_avro",
        list(FEATURES),
        {"a": [1, 3, "1.25", ["a"]], "b": [7, None, "0.05", []], "c": [2, None, "1.25", ["a"]]},
    )
    unknown, unframed = reasons(topic, 2)
    assert "no schema 404" in unknown
    assert "a zero and a schema's id" in unframed
    # what was told once is not asked for again
    before = len(world.registry.asked)
    topic.send([avro(TX, tx("d", at), 11)])
    world.until("confluent_avro", ["quantity"], {"d": [1]})
    assert len(world.registry.asked) == before


def test_protobuf_messages_plain_and_framed(world: World) -> None:
    at = now()
    features: dict[str, FeastType] = {"quantity": Int64, "amount": Float64, "tags": Array(String)}

    def message(card: str, quantity: int) -> bytes:
        made = world.messages(card={"id": card}, quantity=quantity, amount=0.5, tags=["t"])
        made.ts.FromDatetime(at)
        return made.SerializeToString()

    plain, framed = Topic(world.kafka), Topic(world.kafka)
    world.view("plain_proto", plain, ProtoFormat("shop.Tx"), features, tags={"larder.wire_format": "plain"})
    world.view("framed_proto", framed, ProtoFormat("com.shop.Shop$Tx"), features)
    plain.send([b"\xff\xff", message("a", 3)])
    framed.send([message("never", 1), struct.pack(">bI", 0, 5) + b"\x02\x02" + message("a", 4)])
    world.until("plain_proto", list(features), {"a": [3, 0.5, ["t"]]})
    served = world.until("framed_proto", list(features), {"a": [4, 0.5, ["t"]]})
    assert served["a"]["amount"].event_ts == round(at.timestamp() * 1000) * 1000
    assert reasons(plain, 1)[0].startswith("undecodable: ")
    assert "a zero and a schema's id" in reasons(framed, 1)[0]


def test_windows_over_avro(world: World) -> None:
    topic, at = Topic(world.kafka), now()
    source = KafkaSource(
        name="avro_windows_stream",
        kafka_bootstrap_servers=topic.kafka.bootstrap_servers,
        topic=topic.name,
        timestamp_field="ts",
        message_format=AvroFormat(schema_json=schema_text(TX)),
        batch_source=FileSource(name="avro_windows_file", path="data/cards.parquet", timestamp_field="ts"),
        field_mapping={"card.id": "card_id"},
        tags={"larder.wire_format": "plain"},
    )
    day = timedelta(days=1)
    world.features.apply(
        [
            CARD,
            StreamFeatureView(
                name="avro_windows",
                entities=[CARD],
                ttl=timedelta(days=30),
                mode="python",
                timestamp_field="ts",
                source=source,
                aggregations=[
                    Aggregation(column="quantity", function="sum", time_window=day, name="total"),
                    Aggregation(column="", function="count", time_window=day, name="events"),
                ],
                schema=[
                    Field(name="card_id", dtype=String),
                    Field(name="total", dtype=Int64),
                    Field(name="events", dtype=Int64),
                ],
            ),
        ]
    )
    topic.send([avro(TX, tx("a", at - timedelta(minutes=n), quantity=n)) for n in range(1, 11)])
    world.until("avro_windows", ["total", "events"], {"a": [55, 10]})


@pytest.mark.parametrize("kind", ["avro", "protobuf"])
def test_poison_in_windows_over_avro_and_protobuf(world: World, kind: str) -> None:
    topic, at = Topic(world.kafka), round(now().timestamp() * 1000)

    def made(card: str | None, ms: int, amount: float) -> bytes:
        if kind == "avro":
            return avro(MEASURED, {"card_id": card, "amount": amount, "ts": ms})
        message = world.messages(amount=amount, **({"card": {"id": card}} if card else {}))
        message.ts.FromMilliseconds(ms)
        return message.SerializeToString()

    is_avro = kind == "avro"
    source = KafkaSource(
        name=f"poison_{kind}_stream",
        kafka_bootstrap_servers=topic.kafka.bootstrap_servers,
        topic=topic.name,
        timestamp_field="ts",
        message_format=AvroFormat(schema_json=schema_text(MEASURED)) if is_avro else ProtoFormat("shop.Tx"),
        batch_source=FileSource(name=f"poison_{kind}_file", path="data/cards.parquet", timestamp_field="ts"),
        field_mapping={} if is_avro else {"card.id": "card_id"},
        tags={"larder.wire_format": "plain"},
    )
    day = timedelta(days=1)
    windows = [("", "count", "events", Int64), ("amount", "sum", "total", Float64), ("amount", "min", "least", Float64)]
    view = StreamFeatureView(
        name=f"poison_{kind}",
        entities=[CARD],
        ttl=timedelta(days=30),
        mode="python",
        timestamp_field="ts",
        source=source,
        aggregations=[Aggregation(column=c, function=f, time_window=day, name=name) for c, f, name, _ in windows],
        schema=[Field(name="card_id", dtype=String), *(Field(name=name, dtype=t) for *_, name, t in windows)],
    )
    world.features.apply([CARD, view])
    whole = made("a", at, 1.5)
    poison: list[tuple[bytes | None, str]] = [
        (b"", "undecodable" if is_avro else "missing_key"),
        (whole[:-3], "undecodable"),
        (b"\xff" * 16, "undecodable"),
        (json.dumps({"card_id": "a", "ts": at}).encode(), "undecodable"),
        (made(None, at, 1.0), "missing_key"),
        (made("a", YEAR_3000, 1.0), "future"),
        (None, "tombstone"),
    ]
    topic.send([whole, *(value for value, _ in poison), made("a", 0, 1.0), made("b", at, float("nan"))])
    topic.send([made("b", at, 2.5), made("b", at, float("inf")), made("end", at, 1.0)])
    # the epoch is before the window; NaN is a value, which sums keep and the least is not
    assert world.until(view.name, ["events", "total", "least"], {"a": [1, 1.5, 1.5], "end": [1, 1.0, 1.0]})
    cells = read_online(world.larder, view.name, ["events", "total", "least"], "card_id", ["b"])["b"]
    assert [str(cell.value) for cell in cells.values()] == ["3", "NaN", "2.5"]
    assert [reason.split(":")[0] for reason in reasons(topic, len(poison))] == [reason for _, reason in poison]
    assert metric(world.larder, "larder_ingest_late_dropped_total", view=view.name) == [1]


def test_what_stands_beside_the_value(world: World) -> None:
    topic = Topic(world.kafka)
    features: dict[str, FeastType] = {"quantity": Int64, "part": Int64, "place": Int64}
    mapping = {"__key": "card_id", "__timestamp": "at", "__partition": "part", "__offset": "place"}
    world.view(
        "beside",
        topic,
        JsonFormat(schema_json="quantity bigint"),
        features,
        mapping=mapping,
        timestamp="at",
    )
    topic.send([{"quantity": 5}], key="a")
    world.until("beside", list(features), {"a": [5, 0, 0]})
    # a tombstone is an event: what the entity had is null
    topic.send([None], key="a")
    world.until("beside", list(features), {"a": [None, 0, 1]})
    topic.send([None])
    assert reasons(topic, 1)[0].startswith("missing_key: ")


def test_what_cannot_be_read_is_said(world: World) -> None:
    topic = Topic(world.kafka)
    world.view("no_type", topic, ProtoFormat("shop.Nothing"), {"quantity": Int64})
    wait_until(lambda: "there is no Protobuf message type" in world.larder.log, "the reason in the log")
    assert metric(world.larder, "larder_ingest_view_state", view="no_type", state="running") in ([], [0.0])


def schema_text(schema: object) -> str:
    """A schema as users register it."""
    return json.dumps(schema)


@pytest.mark.parametrize(
    ("ingest", "says"),
    [
        ({"protobuf_descriptor_sets": ["missing.pb"]}, "missing.pb"),
        ({"protobuf_descriptor_sets": ["larder.yaml"]}, "no descriptor set"),
        ({"schema_registry": {"url": "registry:8081"}}, "no http(s) address"),
        ({"schema_registry": {"url": "http://127.0.0.1:1", "password": "x"}}, "no username"),
        ({"schema_registry": {}}, "url"),
        ({"kafka": {"security.protokol": "SSL"}}, "the property security.protokol"),
        ({"kafka": {"session.timeout.ms": "soon"}}, "the property session.timeout.ms"),
    ],
)
def test_a_configuration_that_cannot_be_ends_the_start(
    tmp_path: Path, larder_binary: Path, ingest: dict[str, object], says: str
) -> None:
    (tmp_path / "larder.yaml").write_text(yaml.safe_dump({"project": "p", "ingest": ingest}))
    done = subprocess.run(
        [larder_binary, "serve", "-c", tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert says in done.stderr + done.stdout

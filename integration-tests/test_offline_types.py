"""Every value type through a training set, `persist` and back, and columns of every encoding that writers use."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as Exact
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.remote import _call_exchange, _call_put, build_arrow_flight_client
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    FeastType,
    Float32,
    Float64,
    Int64,
    Map,
    String,
    UnixTimestamp,
    Uuid,
)

from conftest import StartLarder
from larder_env.repo import store, write_config
from larder_env.server import HOST, Larder, Ports
from test_materialize_types import AT, CASES, NOON, NULL, PRESENT, PROJECT, UUID, UUID2, objects, write_files

LATER = AT + timedelta(hours=1)
ABSENT = 3
US = pa.timestamp("us", "UTC")
AS_REGISTERED = {
    "string_large": pa.string(),
    "json": pa.large_string(),
    "json_list": pa.list_(pa.large_string()),
    "zoned_text": US,
}
"""The Arrow types that are the registered type's, where the file has another."""


@dataclass(frozen=True)
class Encoded:
    """A registered type, a column of a file, and what a training set has of it."""

    dtype: FeastType
    column: pa.Array
    wanted: list[object]


ENCODED = {
    "dictionary": Encoded(String, pa.array(["x", None]).dictionary_encode(), ["x", None]),
    "dictionary_of_numbers": Encoded(Int64, pa.array([7, None]).dictionary_encode(), [7, None]),
    "string_view": Encoded(String, pa.array(["x", None], pa.string_view()), ["x", None]),
    "fixed_bytes": Encoded(Bytes, pa.array([b"ab", None], pa.binary(2)), [b"ab", None]),
    "large_bytes": Encoded(Bytes, pa.array([b"ab", None], pa.large_binary()), [b"ab", None]),
    "int8": Encoded(Int64, pa.array([-8, None], pa.int8()), [-8, None]),
    "uint32": Encoded(Int64, pa.array([2**32 - 1, None], pa.uint32()), [2**32 - 1, None]),
    "uint64": Encoded(Int64, pa.array([2**63 - 1, None], pa.uint64()), [2**63 - 1, None]),
    "whole_floats": Encoded(Int64, pa.array([3.0, float("nan")], pa.float64()), [3, None]),
    "float16": Encoded(Float32, pa.array([0.5, None], pa.float16()), [0.5, None]),
    "float_for_double": Encoded(Float64, pa.array([0.5, None], pa.float32()), [0.5, None]),
    "decimal": Encoded(Decimal, pa.array([Exact("1.50"), None], pa.decimal128(9, 2)), ["1.50", None]),
    "decimal_wide": Encoded(Decimal, pa.array([Exact("-2"), None], pa.decimal256(50, 0)), ["-2", None]),
    "seconds": Encoded(UnixTimestamp, pa.array([NOON, None], pa.timestamp("s", "UTC")), [NOON, None]),
    "millis": Encoded(UnixTimestamp, pa.array([NOON, None], pa.timestamp("ms")), [NOON, None]),
    "nanos": Encoded(UnixTimestamp, pa.array([NOON, None], pa.timestamp("ns", "America/New_York")), [NOON, None]),
    "days": Encoded(UnixTimestamp, pa.array([date(2026, 1, 2), None]), [datetime(2026, 1, 2, tzinfo=UTC), None]),
    "uuids": Encoded(Uuid, pa.array([uuid.UUID(UUID), None]), [UUID, None]),
    "uuid_lists": Encoded(
        Array(Uuid),
        pa.array([[uuid.UUID(UUID).bytes, uuid.UUID(UUID2).bytes], None], pa.list_(pa.binary(16))),
        [[UUID, UUID2], None],
    ),
    "large_list": Encoded(Array(Int64), pa.array([[1, 2], None], pa.large_list(pa.int64())), [[1, 2], None]),
    "fixed_list": Encoded(Array(Float32), pa.array([[1, 2], None], pa.list_(pa.float32(), 2)), [[1, 2], None]),
    "list_of_small": Encoded(Array(Int64), pa.array([[1], None], pa.list_(pa.int16())), [[1], None]),
    "struct_for_map": Encoded(Map, pa.array([{"a": "x"}, None], pa.struct([("a", pa.string())])), [{"a": "x"}, None]),
}
NOTHING: dict[str, FeastType] = {
    "int": Int64,
    "text": String,
    "list": Array(Int64),
    "bool": Bool,
    "time": UnixTimestamp,
}
ENCODED |= {f"nothing_of_{name}": Encoded(dtype, pa.nulls(2), [None, None]) for name, dtype in NOTHING.items()}


@dataclass
class World:
    """A server with a view per type and one per encoding."""

    larder: Larder
    sdk: FeatureStore

    def ask(self, view: str) -> pa.Table:
        """The training set of a driver with the value, one with a null, and one that is not there."""
        frame = pd.DataFrame({"driver_id": [PRESENT, NULL, ABSENT], "event_timestamp": [LATER] * 3})
        return self.sdk.get_historical_features(frame, [f"{view}:value"]).to_arrow()


def encoded_views(repo: Path) -> list[object]:
    """A file and a view for each encoding, and a view whose keys are UUIDs of 16 bytes."""
    made: list[object] = []
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    holder = Entity(name="holder", join_keys=["holder_id"], value_type=ValueType.UUID)

    def view(name: str, entity: Entity, dtype: FeastType, table: dict[str, Any]) -> FeatureView:
        times = {"event_timestamp": pa.array([AT] * 2, US), "created": pa.array([AT] * 2, US)}
        pq.write_table(pa.table(table | times), repo / "data" / f"{name}.parquet")
        source = FileSource(name=f"{name}_file", path=f"data/{name}.parquet", timestamp_field="event_timestamp")
        schema = [Field(name="value", dtype=dtype)]
        return FeatureView(name=name, entities=[entity], ttl=timedelta(0), source=source, schema=schema)

    for name, case in ENCODED.items():
        keys = pa.array([PRESENT, NULL], pa.int64())
        made.append(view(f"as_{name}", driver, case.dtype, {"driver_id": keys, "value": case.column}))
    holders = pa.array([uuid.UUID(UUID), uuid.UUID(UUID2)])
    made.append(view("by_uuid", holder, Int64, {"holder_id": holders, "value": pa.array([1, 2])}))
    return [holder, *made]


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Applied."""
    repo = tmp_path_factory.mktemp("types") / "repo"
    write_config(repo, PROJECT, Ports.free())
    write_files(repo)
    larder = module_larder(repo)
    sdk = store(repo)
    sdk.apply([*objects(repo), *encoded_views(repo)])  # type: ignore[list-item]
    return World(larder, sdk)


@pytest.mark.parametrize("name", CASES)
def test_every_type_goes_through_a_training_set_and_a_saved_dataset(world: World, name: str) -> None:
    case = CASES[name]
    got = world.ask(f"of_{name}")
    assert got.schema.field("value").type == AS_REGISTERED.get(name, case.arrow)
    cell = datetime.fromisoformat(case.cell) if name == "zoned_text" else case.cell  # type: ignore[arg-type]
    assert got["value"].to_pylist() == [cell, None, None]
    frame = pd.DataFrame({"driver_id": [PRESENT, NULL, ABSENT], "event_timestamp": [LATER] * 3})
    job = world.sdk.get_historical_features(frame, [f"of_{name}:value"])
    storage = SavedDatasetFileStorage(path=f"data/kept_{name}.parquet")
    kept = FileSource(
        name=storage.to_data_source().name, path=storage.file_options.uri, timestamp_field="event_timestamp"
    )
    world.sdk.apply([kept])
    world.sdk.create_saved_dataset(job, name=f"kept_{name}", storage=storage, allow_overwrite=True)
    back = world.sdk.get_saved_dataset(f"kept_{name}").to_arrow()
    assert back["value"].to_pylist() == got["value"].to_pylist()
    assert back.schema.field("value").type == got.schema.field("value").type
    assert back["driver_id"].to_pylist() == [PRESENT, NULL, ABSENT], "order is kept"
    assert len(world.sdk.get_saved_dataset(f"kept_{name}").to_df()) == 3


@pytest.mark.parametrize("name", ENCODED)
def test_a_column_may_be_encoded_in_any_way(world: World, name: str) -> None:
    got = world.ask(f"as_{name}")["value"].to_pylist()
    assert got == [*ENCODED[name].wanted, None]


def test_uuids_of_16_bytes_are_keys(world: World) -> None:
    """UUID objects of pandas become Arrow's uuid type, on both sides; text finds the same rows."""
    for make in (uuid.UUID, str):
        frame = pd.DataFrame({"holder_id": [make(UUID2), make(UUID), None], "event_timestamp": [LATER] * 3})
        got = world.sdk.get_historical_features(frame, ["by_uuid:value"]).to_arrow()
        assert got["value"].to_pylist() == [2, 1, None]
        assert [v and str(v) for v in got["holder_id"].to_pylist()] == [UUID2, UUID, None]


KEYS = {
    "dictionary": lambda: pa.array([1, 2, 1, None]).dictionary_encode(),
    "int8": lambda: pa.array([1, 2, 1, None], pa.int8()),
    "uint64": lambda: pa.array([1, 2, 1, None], pa.uint64()),
    "floats": lambda: pa.array([1.0, 2.0, 1.0, float("nan")]),
    "nulls": lambda: pa.nulls(4),
}


@pytest.mark.parametrize("encoding", KEYS)
def test_an_entity_frame_may_be_encoded_in_any_way(world: World, encoding: str) -> None:
    """Keys, columns of the caller's own, and pandas' metadata come back as they were sent, in their order."""
    table = pa.table(
        {
            "word": pa.array(["b", "a", "b", None]).dictionary_encode(),
            "driver_id": KEYS[encoding](),
            "big": pa.array(["x", "y", "z", None], pa.large_string()),
            "event_timestamp": pa.array([LATER] * 4, pa.timestamp("ns", "Asia/Tokyo")),
            "own": pa.array([[{"a": 1}], [], None, [{"a": None}]]),
        }
    ).replace_schema_metadata({"pandas": "{}", "mine": "kept"})
    got = exchanged(world, "get_historical_features", table)
    assert got["value"].to_pylist() == ([None] * 4 if encoding == "nulls" else [-8, None, -8, None])
    for name in table.column_names:
        assert got.schema.field(name).type == table.schema.field(name).type
        assert str(got[name].to_pylist()) == str(table[name].to_pylist())
    assert got.schema.metadata == table.schema.metadata


SHORT = pa.int32()
OWN = {
    "run_end": lambda: pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], SHORT), pa.array(["a", None])),
    "sparse_union": lambda: pa.UnionArray.from_sparse(
        pa.array([0, 1, 0], pa.int8()), [pa.array([1, 2, 3]), pa.array(["a", "b", "c"])]
    ),
    "dense_union": lambda: pa.UnionArray.from_dense(
        pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], SHORT), [pa.array([1, 3]), pa.array(["b"])]
    ),
    "duration": lambda: pa.array([timedelta(1)] * 3),
    "time": lambda: pa.array([1, 2, None], pa.time32("s")),
    "interval": lambda: pa.array([pa.MonthDayNano([1, 2, 3])] * 3),
    "list_view": lambda: pa.array([[1], [2, 3], None], pa.list_view(pa.int64())),
    "decimal32": lambda: pa.array([1, 2, 3], pa.decimal32(9, 2)),
    "binary_view": lambda: pa.array([b"x", None, b""], pa.binary_view()),
    "map": lambda: pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "nulls_in_lists": lambda: pa.array([[None, None]] * 3, pa.list_(pa.null(), 2)),
    "empty_struct": lambda: pa.array([{}] * 3, pa.struct([])),
    "words_in_lists": lambda: pa.array([["a", "b"], ["a"], []], pa.list_(pa.dictionary(SHORT, pa.string()))),
}
"""Columns of Arrow types that are no feature's."""


def exchanged(world: World, api: str, table: pa.Table, **more: object) -> pa.Table:
    """What the SDK would send for this table."""
    parameters = {
        "feature_view_names": ["as_int8"],
        "name_aliases": [None],
        "feature_refs": ["as_int8:value"],
        "project": PROJECT,
        "full_feature_names": False,
        **more,
    }
    client = build_arrow_flight_client("http", HOST, world.larder.ports.offline, world.sdk.config.auth_config)
    if api == "persist":
        return _call_put(api, parameters, client, None, table)
    return _call_exchange(api, parameters, client, None, table)


@pytest.mark.parametrize("kind", OWN)
def test_columns_of_any_arrow_type_come_back_and_are_no_keys(world: World, kind: str) -> None:
    column = OWN[kind]()
    times = pa.array([LATER] * 3, US)
    sent = pa.table({"driver_id": [1, 2, 1], "event_timestamp": times, "own": column})
    got = exchanged(world, "get_historical_features", sent)
    assert got["value"].to_pylist() == [-8, None, -8]
    assert got["own"].combine_chunks().equals(pa.chunked_array([column]).combine_chunks())
    with pytest.raises(Exception, match=r"join key 'driver_id' is of type .* cast the column"):
        exchanged(world, "get_historical_features", pa.table({"driver_id": column, "event_timestamp": times}))


UNKEPT = {"sparse_union", "dense_union", "interval", "empty_struct"}
"""Columns that Parquet has no form for."""


@pytest.mark.parametrize("kind", OWN)
def test_what_parquet_cannot_hold_is_not_persisted_by_halves(world: World, kind: str) -> None:
    """What can be kept is kept; of the rest the column is named, and no file is there."""
    file = world.larder.repo / "data" / f"own_{kind}.parquet"
    target = FileSource(name=f"own_{kind}", path=f"data/{file.name}", timestamp_field="event_timestamp")
    world.sdk.apply([target])
    sent = pa.table({"driver_id": [1, 2], "event_timestamp": pa.array([LATER] * 2, US), "own": OWN[kind]().slice(0, 2)})
    more = {"data_source_name": target.name, "retrieve_func": "get_historical_features", "allow_overwrite": False}
    if kind in UNKEPT:
        with pytest.raises(Exception, match=r"column 'own' of type .* cannot be kept in a Parquet file"):
            exchanged(world, "persist", sent, **more)
        assert not file.exists()
    else:
        exchanged(world, "persist", sent, **more)
        assert pq.read_table(file)["value"].to_pylist() == [-8, None]
    assert [path.name for path in file.parent.iterdir() if file.stem in path.name] == [file.name] * (kind not in UNKEPT)

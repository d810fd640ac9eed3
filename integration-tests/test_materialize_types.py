"""Every value type out of a Parquet file: Larder's `/materialize` beside what Feast's own makes of the same file.

Feast's is `FeatureStore.materialize` of the package, from its file offline store into its SQLite store. Where it
fails or changes a value, the test says so beside the value that is right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.protos.feast.serving.ServingService_pb2 import FeatureList, FieldStatus, GetOnlineFeaturesRequest
from feast.protos.feast.types import Value_pb2 as v
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    ScalarMap,
    Set,
    String,
    Struct,
    TimeUuid,
    UnixTimestamp,
    Uuid,
    ZonedTimestamp,
)

from conftest import StartLarder
from faces import Grpc, Http
from larder_env.repo import store, write_config, write_feast
from larder_env.server import Larder, Ports
from rides import DRIVER

PROJECT = "parquet"
AT = datetime(2026, 1, 5, 6, 7, 8, tzinfo=UTC)
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
NOON_S = int(NOON.timestamp())
UUID, UUID2 = "2f9a1c6e-3a5b-4d7e-8f90-123456789abc", "00000000-0000-1000-8000-000000000000"
US = pa.timestamp("us", "UTC")
A_STRUCT = Struct({"a": Int64, "b": String})
A_MAP = v.Map(val={"a": Value(string_val="x"), "b": Value(string_val="y")})
A_STRUCT_STORED = v.Map(val={"a": Value(int64_val=1), "b": Value(string_val="x")})


@dataclass(frozen=True)
class Case:
    """A registered type, a column of the file with one value, and what must be stored."""

    dtype: FeastType
    arrow: pa.DataType
    cell: object
    stored: Value
    feast: str | Value = ""
    """What Feast makes of it where that is not `stored`: the value, or a word of the error."""


def nested(*lists: list[int]) -> RepeatedValue:
    """A list of lists of INT64."""
    return RepeatedValue(val=[Value(int64_list_val=v.Int64List(val=items)) for items in lists])


CASES = {
    "bytes": Case(Bytes, pa.binary(), b"\x00\xff", Value(bytes_val=b"\x00\xff")),
    "bytes_list": Case(
        Array(Bytes), pa.list_(pa.binary()), [b"\x00", b""], Value(bytes_list_val=v.BytesList(val=[b"\x00", b""]))
    ),
    "string": Case(String, pa.string(), "Zürich ✈", Value(string_val="Zürich ✈")),
    "string_large": Case(String, pa.large_string(), "x" * 100_000, Value(string_val="x" * 100_000)),
    "string_list": Case(
        Array(String), pa.list_(pa.string()), ["a", ""], Value(string_list_val=v.StringList(val=["a", ""]))
    ),
    "string_set": Case(Set(String), pa.list_(pa.string()), ["a"], Value(string_set_val=v.StringSet(val=["a"]))),
    "int32": Case(Int32, pa.int32(), -(2**31), Value(int32_val=-(2**31))),
    "int32_list": Case(Array(Int32), pa.list_(pa.int32()), [1, -1], Value(int32_list_val=v.Int32List(val=[1, -1]))),
    "int32_set": Case(Set(Int32), pa.list_(pa.int32()), [7], Value(int32_set_val=v.Int32Set(val=[7]))),
    "int64": Case(Int64, pa.int64(), 2**63 - 1, Value(int64_val=2**63 - 1), "Value out of range"),
    "int64_list": Case(
        Array(Int64), pa.list_(pa.int64()), [2**62, 0], Value(int64_list_val=v.Int64List(val=[2**62, 0]))
    ),
    "int64_set": Case(Set(Int64), pa.list_(pa.int64()), [2**40], Value(int64_set_val=v.Int64Set(val=[2**40]))),
    "float64": Case(Float64, pa.float64(), 0.1, Value(double_val=0.1)),
    "float64_list": Case(
        Array(Float64), pa.list_(pa.float64()), [0.1, -0.0], Value(double_list_val=v.DoubleList(val=[0.1, -0.0]))
    ),
    "float64_set": Case(Set(Float64), pa.list_(pa.float64()), [0.5], Value(double_set_val=v.DoubleSet(val=[0.5]))),
    "float32": Case(Float32, pa.float32(), 0.5, Value(float_val=0.5)),
    "float32_list": Case(Array(Float32), pa.list_(pa.float32()), [0.5], Value(float_list_val=v.FloatList(val=[0.5]))),
    "float32_set": Case(Set(Float32), pa.list_(pa.float32()), [0.5], Value(float_set_val=v.FloatSet(val=[0.5]))),
    "bool": Case(Bool, pa.bool_(), True, Value(bool_val=True)),
    "bool_list": Case(
        Array(Bool), pa.list_(pa.bool_()), [True, False], Value(bool_list_val=v.BoolList(val=[True, False]))
    ),
    "bool_set": Case(Set(Bool), pa.list_(pa.bool_()), [True], Value(bool_set_val=v.BoolSet(val=[True]))),
    "timestamp": Case(UnixTimestamp, US, NOON, Value(unix_timestamp_val=NOON_S)),
    "timestamp_fraction": Case(
        UnixTimestamp, US, NOON + timedelta(microseconds=999_999), Value(unix_timestamp_val=NOON_S)
    ),
    "timestamp_list": Case(
        Array(UnixTimestamp), pa.list_(US), [NOON], Value(unix_timestamp_list_val=v.Int64List(val=[NOON_S]))
    ),
    "timestamp_set": Case(
        Set(UnixTimestamp), pa.list_(US), [NOON], Value(unix_timestamp_set_val=v.Int64Set(val=[NOON_S]))
    ),
    "zoned": Case(
        ZonedTimestamp,
        US,
        NOON,
        Value(zoned_timestamp_val=v.ZonedTimestamp(unix_timestamp=NOON_S, zone="UTC")),
        "expects datetime values",
    ),
    "zoned_offset": Case(
        ZonedTimestamp,
        pa.timestamp("us", "+02:00"),
        NOON,
        Value(zoned_timestamp_val=v.ZonedTimestamp(unix_timestamp=NOON_S, zone="+02:00")),
        "expects datetime values",
    ),
    "zoned_text": Case(
        ZonedTimestamp,
        pa.string(),
        "2026-01-02T14:00:00+02:00",
        Value(zoned_timestamp_val=v.ZonedTimestamp(unix_timestamp=NOON_S, zone="+02:00")),
        "expects datetime values",
    ),
    "map": Case(
        Map, pa.map_(pa.string(), pa.string()), [("a", "x"), ("b", "y")], Value(map_val=A_MAP), "Expected dict"
    ),
    "map_list": Case(
        Array(Map),
        pa.list_(pa.map_(pa.string(), pa.string())),
        [[("a", "x"), ("b", "y")]],
        Value(map_list_val=v.MapList(val=[A_MAP])),
        "Expected list",
    ),
    "scalar_map": Case(
        ScalarMap,
        pa.map_(pa.int64(), pa.string()),
        [(7, "seven")],
        Value(
            scalar_map_val=v.ScalarMap(
                val=[v.ScalarMapEntry(key=v.MapKey(int64_key=7), value=Value(string_val="seven"))]
            )
        ),
        "tried to convert to int64",
    ),
    "struct": Case(
        A_STRUCT,
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        {"a": 1, "b": "x"},
        Value(struct_val=A_STRUCT_STORED),
        Value(struct_val=v.Map(val={"a": Value(double_val=1), "b": Value(string_val="x")})),
    ),
    "struct_list": Case(
        Array(A_STRUCT),
        pa.list_(pa.struct([("a", pa.int64()), ("b", pa.string())])),
        [{"a": 1, "b": "x"}],
        Value(struct_list_val=v.MapList(val=[A_STRUCT_STORED])),
    ),
    "json": Case(Json, pa.string(), '{"a": [1, null]}', Value(json_val='{"a": [1, null]}')),
    "json_list": Case(
        Array(Json), pa.list_(pa.string()), ['{"a": 1}', "2"], Value(json_list_val=v.StringList(val=['{"a": 1}', "2"]))
    ),
    "uuid": Case(Uuid, pa.string(), UUID, Value(uuid_val=UUID)),
    "uuid_list": Case(
        Array(Uuid), pa.list_(pa.string()), [UUID, UUID2], Value(uuid_list_val=v.StringList(val=[UUID, UUID2]))
    ),
    "uuid_set": Case(Set(Uuid), pa.list_(pa.string()), [UUID], Value(uuid_set_val=v.StringSet(val=[UUID]))),
    "time_uuid": Case(TimeUuid, pa.string(), UUID2, Value(time_uuid_val=UUID2)),
    "time_uuid_list": Case(
        Array(TimeUuid), pa.list_(pa.string()), [UUID2], Value(time_uuid_list_val=v.StringList(val=[UUID2]))
    ),
    "time_uuid_set": Case(
        Set(TimeUuid), pa.list_(pa.string()), [UUID2], Value(time_uuid_set_val=v.StringSet(val=[UUID2]))
    ),
    "decimal": Case(Decimal, pa.string(), "1.50", Value(decimal_val="1.50")),
    "decimal_list": Case(
        Array(Decimal), pa.list_(pa.string()), ["1.50", "-2"], Value(decimal_list_val=v.StringList(val=["1.50", "-2"]))
    ),
    "decimal_set": Case(
        Set(Decimal), pa.list_(pa.string()), ["1.50"], Value(decimal_set_val=v.StringSet(val=["1.50"]))
    ),
    "list_of_lists": Case(
        Array(Array(Int64)), pa.list_(pa.list_(pa.int64())), [[1, 2], [3]], Value(list_val=nested([1, 2], [3]))
    ),
    "set_of_lists": Case(
        Set(Array(Int64)), pa.list_(pa.list_(pa.int64())), [[1, 2], [3]], Value(set_val=nested([1, 2], [3]))
    ),
}
PRESENT, NULL, ABSENT = 1, 2, 3


def write_files(repo: Path) -> None:
    """One file per case: driver 1 has the value, driver 2 a null."""
    (repo / "data").mkdir(exist_ok=True)
    for name, case in CASES.items():
        table = pa.table(
            {
                "driver_id": pa.array([PRESENT, NULL], pa.int64()),
                "value": pa.array([case.cell, None], case.arrow),
                "event_timestamp": pa.array([AT, AT], US),
                "created": pa.array([AT, AT], US),
            }
        )
        pq.write_table(table, repo / "data" / f"{name}.parquet")


def objects(repo: Path) -> list[object]:
    """The views, fresh."""
    return [
        DRIVER,
        *(
            FeatureView(
                name=f"of_{name}",
                entities=[DRIVER],
                ttl=timedelta(0),
                source=FileSource(
                    name=f"{name}_file",
                    path=str(repo / "data" / f"{name}.parquet"),
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created",
                ),
                schema=[Field(name="value", dtype=case.dtype)],
            )
            for name, case in CASES.items()
        ),
    ]


@pytest.fixture(scope="module")
def served(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Larder:
    """A server with all views, none of them materialized."""
    repo = tmp_path_factory.mktemp("parquet") / "repo"
    write_config(repo, PROJECT, Ports.free())
    write_files(repo)
    larder = module_larder(repo)
    store(repo).apply(objects(repo))  # type: ignore[arg-type]
    return larder


@pytest.fixture(scope="module")
def feast_itself(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Feast 0.67 on its own stores, with the same views and files."""
    repo = tmp_path_factory.mktemp("feast")
    write_feast(repo, PROJECT)
    write_files(repo)
    local = store(repo)
    local.apply(objects(repo))  # type: ignore[arg-type]
    return local


def same(ours: Value, wanted: Value) -> bool:
    """Equal byte by byte, maps in a fixed order."""
    return ours.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", CASES)
def test_every_type_is_materialized_as_itself(served: Larder, name: str) -> None:
    body = {"start_ts": "2026-01-01T00:00:00Z", "end_ts": "2026-02-01T00:00:00Z", "feature_views": [f"of_{name}"]}
    answered = served.post("/materialize", body)
    assert answered.status_code == 200, answered.text
    request = GetOnlineFeaturesRequest(
        features=FeatureList(val=[f"of_{name}:value"]),
        entities={"driver_id": RepeatedValue(val=[Value(int64_val=n) for n in (PRESENT, NULL, ABSENT)])},
    )
    values = Grpc(served).serving.GetOnlineFeatures(request).results[1]
    assert [FieldStatus.Name(status) for status in values.statuses] == ["PRESENT", "NULL_VALUE", "NOT_FOUND"]
    assert same(values.values[0], CASES[name].stored), values.values[0]
    assert values.values[1].WhichOneof("val") is None
    assert [time.seconds for time in values.event_timestamps] == [int(AT.timestamp())] * 2 + [0]


@pytest.mark.parametrize("name", CASES)
def test_feasts_own_materialize_makes_the_same_of_it(feast_itself: FeatureStore, name: str) -> None:
    case = CASES[name]
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)

    def run() -> None:
        feast_itself.materialize(start, end, feature_views=[f"of_{name}"])

    if isinstance(case.feast, str) and case.feast:
        with pytest.raises(Exception, match=case.feast):
            run()
        return
    run()
    read = feast_itself.get_online_features([f"of_{name}:value"], [{"driver_id": PRESENT}]).proto
    wanted = case.feast if isinstance(case.feast, Value) else case.stored
    assert same(read.results[1].values[0], wanted), read.results[1].values[0]


def test_a_push_and_a_materialization_cut_the_same_fraction_off(served: Larder) -> None:
    """Feast's timestamps are whole seconds: however one is sent, the second in which it lies is stored."""
    http = Http(served)
    late = NOON + timedelta(microseconds=999_999)
    for driver, sent in ((11, late.isoformat()), (12, NOON.isoformat()), (13, "1969-12-31T23:59:59.5Z")):
        http.write("of_timestamp", [{"driver_id": driver, "value": sent, "event_timestamp": AT, "created": AT}])
    body = {"features": ["of_timestamp:value"], "entities": {"driver_id": [11, 12, 13]}}
    values = served.post("/get-online-features", body).json()["results"][1]["values"]
    assert [json.dumps(value) for value in values[:2]] == [json.dumps(values[1])] * 2
    request = GetOnlineFeaturesRequest(
        features=FeatureList(val=["of_timestamp:value"]),
        entities={"driver_id": RepeatedValue(val=[Value(int64_val=n) for n in (11, 12, 13)])},
    )
    stored = Grpc(served).serving.GetOnlineFeatures(request).results[1].values
    assert [value.unix_timestamp_val for value in stored] == [NOON_S, NOON_S, -1]

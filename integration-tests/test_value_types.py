"""Every value type of `feast.types.Value`, through every face, beside what Feast's own SQLite store makes of it.

Written as JSON (push and write), as protobuf (push and write) and by the SDK; read as protobuf, as JSON and by the SDK.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from feast import FeatureStore
from feast.feature_server_utils import convert_response_to_dict
from feast.protos.feast.serving.ServingService_pb2 import FeatureList, FieldStatus, GetOnlineFeaturesRequest
from feast.protos.feast.types import Value_pb2 as v
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.type_map import feast_value_type_to_python_type
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

import rides
from conftest import StartLarder
from faces import Grpc, Http, Row, json_cell, now
from larder_env.repo import store, write_feast
from rides import DRIVER, Rides, fresh, pushed_view

AT = now().replace(microsecond=0) - timedelta(hours=1)
UUID, UUID2 = "2f9a1c6e-3a5b-4d7e-8f90-123456789abc", "00000000-0000-1000-8000-000000000000"
NOON_S = int(datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC).timestamp())
NOON = "2026-01-02T12:00:00Z"
INTS32, INTS64 = [-(2**31), 0, 2**31 - 1], [-(2**63), 0, 2**63 - 1]
DOUBLES = [0.1, -0.0, 1.5e300, -2.5]
HUGE = "Zürich ✈ " * 20_000


@dataclass(frozen=True)
class Case:
    """A type, a value of it as JSON, and as the protobuf that must be stored and read."""

    dtype: FeastType
    sent: object
    stored: Value


def a_map(**entries: Value) -> v.Map:
    """A protobuf Map."""
    return v.Map(val=entries)


def nested(*lists: list[int]) -> RepeatedValue:
    """A list of lists of INT64."""
    return RepeatedValue(val=[Value(int64_list_val=v.Int64List(val=items)) for items in lists])


A_MAP = {"a": 1, "b": {"c": ["x"]}, "d": 0.5, "é": True}
A_MAP_STORED = a_map(
    a=Value(int64_val=1),
    b=Value(map_val=a_map(c=Value(string_list_val=v.StringList(val=["x"])))),
    d=Value(double_val=0.5),
    **{"é": Value(bool_val=True)},
)
A_STRUCT = Struct({"a": Int64, "b": String})
A_STRUCT_STORED = a_map(a=Value(int64_val=1), b=Value(string_val="x"))

CASES = {
    "bytes": Case(Bytes, "AP8=", Value(bytes_val=b"\x00\xff")),
    "bytes_empty": Case(Bytes, "", Value(bytes_val=b"")),
    "bytes_list": Case(Array(Bytes), ["AP8=", ""], Value(bytes_list_val=v.BytesList(val=[b"\x00\xff", b""]))),
    "bytes_set": Case(Set(Bytes), ["AP8="], Value(bytes_set_val=v.BytesSet(val=[b"\x00\xff"]))),
    "string": Case(String, 'Zürich "✈"\n\x00', Value(string_val='Zürich "✈"\n\x00')),
    "string_empty": Case(String, "", Value(string_val="")),
    "string_huge": Case(String, HUGE, Value(string_val=HUGE)),
    "string_list": Case(Array(String), ["a", ""], Value(string_list_val=v.StringList(val=["a", ""]))),
    "string_set": Case(Set(String), ["a"], Value(string_set_val=v.StringSet(val=["a"]))),
    "int32_min": Case(Int32, INTS32[0], Value(int32_val=INTS32[0])),
    "int32_max": Case(Int32, INTS32[2], Value(int32_val=INTS32[2])),
    "int32_zero": Case(Int32, 0, Value(int32_val=0)),
    "int32_list": Case(Array(Int32), INTS32, Value(int32_list_val=v.Int32List(val=INTS32))),
    "int32_set": Case(Set(Int32), [7], Value(int32_set_val=v.Int32Set(val=[7]))),
    "int64_min": Case(Int64, INTS64[0], Value(int64_val=INTS64[0])),
    "int64_max": Case(Int64, INTS64[2], Value(int64_val=INTS64[2])),
    "int64_zero": Case(Int64, 0, Value(int64_val=0)),
    "int64_list": Case(Array(Int64), INTS64, Value(int64_list_val=v.Int64List(val=INTS64))),
    "int64_set": Case(Set(Int64), [2**40], Value(int64_set_val=v.Int64Set(val=[2**40]))),
    "float64": Case(Float64, 0.1, Value(double_val=0.1)),
    "float64_whole": Case(Float64, 3, Value(double_val=3.0)),
    "float64_minus_zero": Case(Float64, -0.0, Value(double_val=-0.0)),
    "float64_nan": Case(Float64, "NaN", Value(double_val=math.nan)),
    "float64_inf": Case(Float64, "Infinity", Value(double_val=math.inf)),
    "float64_minus_inf": Case(Float64, "-Infinity", Value(double_val=-math.inf)),
    "float64_list": Case(Array(Float64), DOUBLES, Value(double_list_val=v.DoubleList(val=DOUBLES))),
    "float64_list_nan": Case(
        Array(Float64), ["NaN", 1.0, "-Infinity"], Value(double_list_val=v.DoubleList(val=[math.nan, 1.0, -math.inf]))
    ),
    "float64_set": Case(Set(Float64), [0.5], Value(double_set_val=v.DoubleSet(val=[0.5]))),
    "float32": Case(Float32, 0.1, Value(float_val=0.1)),
    "float32_nan": Case(Float32, "NaN", Value(float_val=math.nan)),
    "float32_list": Case(Array(Float32), [0.5, 1, -0.0], Value(float_list_val=v.FloatList(val=[0.5, 1, -0.0]))),
    "float32_set": Case(Set(Float32), [0.5], Value(float_set_val=v.FloatSet(val=[0.5]))),
    "bool_true": Case(Bool, True, Value(bool_val=True)),
    "bool_false": Case(Bool, False, Value(bool_val=False)),
    "bool_list": Case(Array(Bool), [True, False], Value(bool_list_val=v.BoolList(val=[True, False]))),
    "bool_set": Case(Set(Bool), [True], Value(bool_set_val=v.BoolSet(val=[True]))),
    "timestamp": Case(UnixTimestamp, NOON, Value(unix_timestamp_val=NOON_S)),
    "timestamp_epoch": Case(UnixTimestamp, NOON_S, Value(unix_timestamp_val=NOON_S)),
    "timestamp_list": Case(Array(UnixTimestamp), [NOON], Value(unix_timestamp_list_val=v.Int64List(val=[NOON_S]))),
    "timestamp_set": Case(Set(UnixTimestamp), [NOON], Value(unix_timestamp_set_val=v.Int64Set(val=[NOON_S]))),
    "zoned_offset": Case(
        ZonedTimestamp,
        "2026-01-02T14:00:00+02:00",
        Value(zoned_timestamp_val=v.ZonedTimestamp(unix_timestamp=NOON_S, zone="+02:00")),
    ),
    "zoned_utc": Case(
        ZonedTimestamp, NOON, Value(zoned_timestamp_val=v.ZonedTimestamp(unix_timestamp=NOON_S, zone="UTC"))
    ),
    "map": Case(Map, A_MAP, Value(map_val=A_MAP_STORED)),
    "map_empty": Case(Map, {}, Value(map_val=v.Map())),
    "map_list": Case(Array(Map), [A_MAP, {}], Value(map_list_val=v.MapList(val=[A_MAP_STORED, v.Map()]))),
    "struct": Case(A_STRUCT, {"a": 1, "b": "x"}, Value(struct_val=A_STRUCT_STORED)),
    "struct_list": Case(Array(A_STRUCT), [{"a": 1, "b": "x"}], Value(struct_list_val=v.MapList(val=[A_STRUCT_STORED]))),
    "json": Case(Json, '{"a": [1, null]}', Value(json_val='{"a": [1, null]}')),
    "json_list": Case(Array(Json), ['{"a": 1}', "2"], Value(json_list_val=v.StringList(val=['{"a": 1}', "2"]))),
    "uuid": Case(Uuid, UUID, Value(uuid_val=UUID)),
    "uuid_list": Case(Array(Uuid), [UUID, UUID2], Value(uuid_list_val=v.StringList(val=[UUID, UUID2]))),
    "uuid_set": Case(Set(Uuid), [UUID], Value(uuid_set_val=v.StringSet(val=[UUID]))),
    "time_uuid": Case(TimeUuid, UUID2, Value(time_uuid_val=UUID2)),
    "time_uuid_list": Case(Array(TimeUuid), [UUID2], Value(time_uuid_list_val=v.StringList(val=[UUID2]))),
    "time_uuid_set": Case(Set(TimeUuid), [UUID2], Value(time_uuid_set_val=v.StringSet(val=[UUID2]))),
    "decimal": Case(Decimal, "1.50", Value(decimal_val="1.50")),
    "decimal_list": Case(Array(Decimal), ["1.50", "-2"], Value(decimal_list_val=v.StringList(val=["1.50", "-2"]))),
    "decimal_set": Case(Set(Decimal), ["1.50"], Value(decimal_set_val=v.StringSet(val=["1.50"]))),
    "list_of_lists": Case(Array(Array(Int64)), [[1, 2], [3]], Value(list_val=nested([1, 2], [3]))),
    "set_of_lists": Case(Set(Array(Int64)), [[1, 2], [3]], Value(set_val=nested([1, 2], [3]))),
}

TYPED_ONLY = {
    "scalar_map": Case(
        ScalarMap,
        None,
        Value(
            scalar_map_val=v.ScalarMap(
                val=[v.ScalarMapEntry(key=v.MapKey(int64_key=7), value=Value(string_val="seven"))]
            )
        ),
    ),
}
"""A scalar map has no JSON: neither here nor in Feast, whose JSON answer is null."""
ALL = CASES | TYPED_ONLY
COLLECTIONS = {name: case for name, case in CASES.items() if name.endswith(("_list", "_set")) and "json" not in name}


@pytest.fixture(scope="module")
def served(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """One view per case, each with a push source of its own."""
    served = Rides.start(tmp_path_factory.mktemp("types") / "repo", module_larder)
    served.store.apply(objects())  # type: ignore[arg-type]
    return served


def objects() -> list[object]:
    """The views, fresh."""
    return [DRIVER, *(pushed_view(f"typed_{n}", [DRIVER], timedelta(0), {"value": c.dtype}) for n, c in ALL.items())]


@pytest.fixture(scope="module")
def feast_itself(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Feast 0.67 on its own local SQLite store, with the same views."""
    path = tmp_path_factory.mktemp("feast")
    write_feast(path, rides.PROJECT)
    local = store(path)
    local.apply(objects())  # type: ignore[arg-type]
    return local


def same(ours: Value, wanted: Value) -> bool:
    """Equal byte by byte, maps in a fixed order."""
    return ours.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


def row(driver: int, value: object) -> Row:
    """One row of a view."""
    return {"driver_id": driver, "value": value, "event_timestamp": AT, "created": AT}


def read(served: Rides, rpc: Grpc, name: str, driver: int) -> tuple[Value, str]:
    """The value over gRPC, with its status; over HTTP it must be what Feast makes of that very message."""
    request = GetOnlineFeaturesRequest(
        features=FeatureList(val=[f"typed_{name}:value"]),
        entities={"driver_id": RepeatedValue(val=[Value(int64_val=driver)])},
    )
    response = rpc.serving.GetOnlineFeatures(request)
    body = {"features": [f"typed_{name}:value"], "entities": {"driver_id": [driver]}}
    answer = served.larder.post("/get-online-features", body)
    feasts = json.loads(json.dumps(convert_response_to_dict(response)))
    assert json.dumps(answer.json(), sort_keys=True) == json.dumps(feasts, sort_keys=True)
    return response.results[1].values[0], FieldStatus.Name(response.results[1].statuses[0])


SENDERS: dict[str, Callable[[Rides, str, int, Case], None]] = {
    "json_push": lambda s, name, d, case: Http(s.larder).push(f"typed_{name}_push", [row(d, case.sent)]),
    "json_write": lambda s, name, d, case: Http(s.larder).write(f"typed_{name}", [row(d, case.sent)]),
    "grpc_push": lambda s, name, d, case: Grpc(s.larder).push(f"typed_{name}_push", [row(d, case.stored)]),
    "grpc_write": lambda s, name, d, case: Grpc(s.larder).write(f"typed_{name}", [row(d, case.stored)]),
}
SENT = [(how, name) for how in SENDERS for name in (ALL if how.startswith("grpc") else CASES)]


@pytest.mark.parametrize(("how", "name"), SENT, ids=["-".join(each) for each in SENT])
def test_every_type_is_stored_and_read_as_itself(served: Rides, rpc: Grpc, how: str, name: str) -> None:
    driver, case = fresh(), ALL[name]
    SENDERS[how](served, name, driver, case)
    value, status = read(served, rpc, name, driver)
    assert same(value, case.stored), value
    assert status == "PRESENT"


@pytest.mark.parametrize("how", ["json_push", "grpc_write"])
@pytest.mark.parametrize("name", ALL)
def test_every_type_may_be_null(served: Rides, rpc: Grpc, how: str, name: str) -> None:
    driver, case = fresh(), ALL[name]
    SENDERS[how](served, name, driver, Case(case.dtype, None, Value()))
    value, status = read(served, rpc, name, driver)
    assert (value.WhichOneof("val"), status) == (None, "NULL_VALUE")


@pytest.mark.parametrize("how", ["json_push", "grpc_write"])
@pytest.mark.parametrize("name", COLLECTIONS)
def test_an_empty_collection_is_not_null(served: Rides, rpc: Grpc, how: str, name: str) -> None:
    driver, case = fresh(), ALL[name]
    empty, field = Value(), case.stored.WhichOneof("val")
    assert field is not None
    getattr(empty, field).SetInParent()
    SENDERS[how](served, name, driver, Case(case.dtype, [], empty))
    value, status = read(served, rpc, name, driver)
    assert (value.WhichOneof("val"), status) == (field, "PRESENT")
    assert same(value, empty)


# --- beside Feast's own store ------------------------------------------------------------------------------------

FEAST_REFUSES = {
    **dict.fromkeys(["bytes", "bytes_empty"], "Type `<class 'str'>` not in {<class 'bytes'>}"),
    **dict.fromkeys(["bytes_list", "bytes_set"], "Value \"AP8=\" is of type <class 'str'>"),
    **dict.fromkeys(["float64_nan", "float64_inf", "float64_minus_inf"], "Type `<class 'str'>` not in"),
    "float64_list_nan": "Expected bytes, got a 'float' object",
    "timestamp": "invalid literal for int",
    **dict.fromkeys(["timestamp_list", "timestamp_set"], "Value \"2026-01-02T12:00:00Z\" is of type <class 'str'>"),
    **dict.fromkeys(["zoned_offset", "zoned_utc"], "ZONED_TIMESTAMP expects datetime values"),
    "map_list": "Expected list for MAP_LIST type, got ndarray",
}
"""What Feast's own server code cannot take from JSON at all: an error (500 there) where we store the value."""


@pytest.mark.parametrize("name", CASES)
def test_feasts_own_store_makes_the_same_of_it(feast_itself: FeatureStore, name: str) -> None:
    """The frame of the JSON, as its server makes it, through its own code into its own SQLite."""
    driver, case = fresh(), CASES[name]
    frame = pd.DataFrame({column: [json_cell(value)] for column, value in row(driver, case.sent).items()})
    if name in FEAST_REFUSES:
        with pytest.raises(Exception, match=FEAST_REFUSES[name]):
            feast_itself.write_to_online_store(f"typed_{name}", df=frame)
        return
    feast_itself.write_to_online_store(f"typed_{name}", df=frame)
    response = feast_itself.get_online_features([f"typed_{name}:value"], [{"driver_id": driver}]).proto
    assert same(response.results[1].values[0], case.stored), response.results[1].values[0]


# --- the SDK -----------------------------------------------------------------------------------------------------

CLIENT_CANNOT_READ = {
    "map_empty": "Couldn't infer value type",
    "float64_list_nan": "is inconsistent",
    **dict.fromkeys(["list_of_lists", "set_of_lists"], "recursion is not allowed"),
}
"""Correct answers that Feast's client cannot make a Value of: it guesses each type from the JSON."""


@pytest.mark.parametrize("name", ALL)
def test_the_sdk_reads_every_type(served: Rides, name: str) -> None:
    """As it stands in the JSON: the client's remote store drops the registered type (a set is a list to it)."""
    driver = fresh()
    Grpc(served.larder).write(f"typed_{name}", [row(driver, ALL[name].stored)])
    body = {"features": [f"typed_{name}:value"], "entities": {"driver_id": [driver]}}
    wanted = served.larder.post("/get-online-features", body).json()["results"][1]["values"]
    if name in CLIENT_CANNOT_READ:
        with pytest.raises((TypeError, ValueError), match=CLIENT_CANNOT_READ[name]):
            served.store.get_online_features([f"typed_{name}:value"], [{"driver_id": driver}])
        return
    got = served.store.get_online_features([f"typed_{name}:value"], [{"driver_id": driver}]).to_dict()
    assert json.dumps(got["value"], sort_keys=True) == json.dumps(wanted, sort_keys=True)


CLIENT_CANNOT_SEND = {
    *(name for name in CASES if name.endswith("_set")),
    *("bytes", "bytes_empty", "bytes_list", "decimal", "decimal_list"),
    *("float64_nan", "float32_nan", "float64_inf", "float64_minus_inf", "float64_list_nan"),
    *("zoned_offset", "zoned_utc", "map_list", "scalar_map"),
}
"""Types of which Feast's client makes no JSON, or a null (its remote store knows neither bytes nor sets)."""
SDK_SENDS = [name for name in ALL if name not in CLIENT_CANNOT_SEND]


@pytest.mark.parametrize("name", SDK_SENDS)
def test_the_sdk_writes_every_type_that_it_can_send(served: Rides, rpc: Grpc, name: str) -> None:
    driver, case = fresh(), ALL[name]
    as_text = name.startswith(("json", "uuid", "time_uuid"))
    value = case.sent if as_text else feast_value_type_to_python_type(case.stored)
    served.store.write_to_online_store(f"typed_{name}", pd.DataFrame([row(driver, value)]))
    stored, status = read(served, rpc, name, driver)
    assert (same(stored, case.stored), status) == (True, "PRESENT"), stored

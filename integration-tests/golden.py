"""What Feast's own code writes, as golden files for the Rust tests: `python golden.py` writes them."""

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi.responses import JSONResponse
from feast.feature_server_utils import convert_response_to_dict
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Map, MapList, RepeatedValue, Value
from google.protobuf.timestamp_pb2 import Timestamp

SRC = Path(__file__).parent.parent / "src"
ENTITY_KEYS = SRC / "model/tests/golden/entity_keys.json"
JSON_VALUES = SRC / "server/tests/golden/json_values.json"
JSON_RESPONSES = SRC / "server/tests/golden/json_responses.json"

CASES: list[list[tuple[str, str, Any]]] = [
    [("driver_id", "int64_val", 1001)],
    [("driver_id", "int64_val", -1)],
    [("driver_id", "int64_val", 2**63 - 1)],
    [("driver_id", "int32_val", 1001)],
    [("driver_id", "int32_val", -(2**31))],
    [("origin", "string_val", "JFK")],
    [("origin", "string_val", "")],
    [("origin", "string_val", "Zürich ✈")],
    [("blob", "bytes_val", "00ff10")],
    [("at", "unix_timestamp_val", 1_700_000_000)],
    [("b", "string_val", "x"), ("a", "int64_val", 7)],
    [("a", "int64_val", 7), ("b", "string_val", "x")],
    [("customer", "string_val", "c1"), ("driver", "int32_val", 5), ("Area", "string_val", "north")],
]


def entity_keys() -> str:
    """The golden file's text: every case with the bytes that Feast gives it."""
    lines = []
    for case in CASES:
        values = [Value(**{kind: bytes.fromhex(v) if kind == "bytes_val" else v}) for _, kind, v in case]  # type: ignore[arg-type]
        key = EntityKey(join_keys=[name for name, _, _ in case], entity_values=values)
        encoded = serialize_entity_key(key, entity_key_serialization_version=3)
        parts = [{"name": name, "kind": kind, "value": value} for name, kind, value in case]
        lines.append(json.dumps({"parts": parts, "hex": encoded.hex()}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


INTS = [0, 1, -1, 127, 128, 300, 2**31 - 1, -(2**31)]
LONGS = [*INTS, 2**53 + 1, 2**63 - 1, -(2**63)]
TEXTS = [
    "",
    "a",
    'quote " slash / back \\',
    "".join(map(chr, range(0x21))),
    "\x7f\x80\u2028\u2029",
    "Zürich ✈ 😀",
    "x" * 300,
]
UUID = "5c0f0d2e-5d1c-4b8b-9d3a-0d6a1b1c2d3e"
ZONES = [
    *("", "UTC", "GMT", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Etc/GMT+5"),
    *("+05:30", "-0700", "UTC-07:00", "GMT+01:00", "+00:00", " +02:00 ", "UTC+25", "No/Where", "1", "+5:30"),
]
INSTANTS = [0, 1, -1, 1_700_000_000, 1_720_000_000, -2_840_140_800, 7_258_118_400, 5_700_000_000, -(2**63)]


def _doubles() -> Iterator[float]:
    yield from (0.0, -0.0, 1.0, -1.5, 0.1, 1 / 3, 100.0, 1e15, 1e16, 9007199254740993.0, 123456789012345680.0, 1.5e300)
    yield from (1e-4, 1e-5, 0.00012345, 0.000099999, -1.25e-7, 5e-324, 1.7976931348623157e308, 2.2250738585072014e-308)
    yield from (
        -1003.99468994140625,
        1.07379913330078125,
        9999999999999998.0,
        1e22,
        1e23,
        float("nan"),
        float("inf"),
        float("-inf"),
    )
    dice = random.Random(7)
    yield from (struct.unpack("<d", dice.randbytes(8))[0] for _ in range(100))
    yield from (dice.uniform(-1, 1) * 10 ** dice.randrange(-8, 20) for _ in range(100))
    yield from (round(dice.uniform(-1000, 1000), 2) for _ in range(20))


def _floats() -> Iterator[float]:
    dice = random.Random(8)
    yield from (0.1, -0.1, 1.0, 3.4028234663852886e38, 1e-45, 16777216.0, float("nan"), float("inf"), float("-inf"))
    yield from (struct.unpack("<f", dice.randbytes(4))[0] for _ in range(50))


def _each() -> Iterator[tuple[str, Any]]:
    """Values of every variant of feast.types.Value but those of values in values."""
    bytes_ = [b"", b"a", b"ab", b"abc", bytes(range(256))]
    scalars: dict[str, list[Any]] = {
        "bytes_val": bytes_,
        "string_val": TEXTS,
        "int32_val": INTS,
        "int64_val": LONGS,
        "double_val": list(_doubles()),
        "float_val": list(_floats()),
        "bool_val": [False, True],
        "unix_timestamp_val": LONGS,
        "json_val": ['{"a": [1, null]}', "", "not json"],
        "uuid_val": [UUID],
        "time_uuid_val": [UUID],
        "decimal_val": ["1.10", "-0", "1E+400"],
    }
    for variant, values in scalars.items():
        yield from ((variant, value) for value in values)
        base = variant.removesuffix("_val")
        for many in ("list", "set"):
            if f"{base}_{many}_val" in Value.DESCRIPTOR.fields_by_name:
                for some in (values, values[:1], []):
                    yield f"{base}_{many}_val", {"val": some}
    yield "null_val", 0
    for zone in ZONES:
        for instant in INSTANTS:
            yield "zoned_timestamp_val", {"unix_timestamp": instant, "zone": zone}


def _nested() -> Iterator[Value]:
    """Values in values; a map has one key, for Feast writes more in no certain order."""
    yield Value(scalar_map_val={"val": [{"key": {"int64_key": 1}, "value": {"string_val": "x"}}]})  # type: ignore[arg-type]
    leaves = [Value(**{variant: value}) for variant, value in _each()]
    some = [Value(), *random.Random(9).sample(leaves, 40)]
    yield Value(list_val=RepeatedValue(val=some))
    yield Value(set_val=RepeatedValue(val=some[:3]))
    yield Value(list_val=RepeatedValue())
    for map_ in (Map(), *(Map(val={key: leaf}) for key, leaf in zip(TEXTS, some, strict=False))):
        yield Value(map_val=map_)
        yield Value(struct_val=map_)
        yield Value(map_list_val=MapList(val=[map_, Map(), map_]))
        yield Value(struct_list_val=MapList(val=[map_]))
    yield Value(map_list_val=MapList())
    deep = Value(int64_val=7)
    for level in range(14):
        deep = Value(list_val=RepeatedValue(val=[deep])) if level % 2 else Value(map_val=Map(val={"k": deep}))
        yield deep


def _values() -> list[Value]:
    return [Value(), *(Value(**{variant: value}) for variant, value in _each()), *_nested()]


def _body(response: GetOnlineFeaturesResponse) -> str:
    """The body that Feast's feature server sends for a response."""
    return bytes(JSONResponse(content=convert_response_to_dict(response)).body).decode()


def json_values() -> str:
    """Every value with the JSON that Feast gives it."""
    lines = []
    for value in _values():
        vector = GetOnlineFeaturesResponse.FeatureVector(values=[value])
        body = _body(GetOnlineFeaturesResponse(results=[vector]))
        text = body.removeprefix('{"results":[{"values":[').removesuffix('],"statuses":[]}]}')
        lines.append(json.dumps({"hex": value.SerializeToString().hex(), "json": text}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def json_responses() -> str:
    """Whole responses, with the body that Feast gives them."""
    seconds = [0, 1, 951_782_400, 1_700_000_000, 4_102_444_799, 253_402_300_799, -1, -30_610_224_000, 68_169_600]
    micros = [0, 1, 1000, 123_000, 123_456, 999_999, 100_000]
    times = [Timestamp(seconds=s, nanos=u * 1000) for s in seconds for u in micros]
    dice, values, lines = random.Random(10), _values(), []
    for case in range(24):
        rows = [0, 1, 2, 70][case % 4]
        response = GetOnlineFeaturesResponse(status=True)
        for feature in range(case % 5):
            vector = response.results.add()
            vector.values.extend(dice.choice(values) for _ in range(rows))
            vector.statuses.extend(dice.choice(FieldStatus.values()) for _ in range(rows))
            vector.event_timestamps.extend(dice.choice(times) for _ in range(rows))
            response.metadata.feature_names.val.append(f"view__feature_{feature}{TEXTS[case % 6]}")
        response.metadata.feature_names.SetInParent()
        for version in range(case % 3):
            response.metadata.feature_view_metadata.add(name="view" * version, version=version)
        lines.append(json.dumps({"hex": response.SerializeToString().hex(), "json": _body(response)}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    ENTITY_KEYS.write_text(entity_keys())
    JSON_VALUES.write_text(json_values())
    JSON_RESPONSES.write_text(json_responses())

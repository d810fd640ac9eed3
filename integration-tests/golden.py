"""What Feast's own code writes, as golden files for the Rust tests: `python golden.py` writes them."""

import json
from pathlib import Path
from typing import Any

from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

ENTITY_KEYS = Path(__file__).parent.parent / "src/model/tests/golden/entity_keys.json"

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


if __name__ == "__main__":
    ENTITY_KEYS.write_text(entity_keys())

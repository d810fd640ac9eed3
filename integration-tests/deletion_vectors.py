"""Rows deleted from a Delta table by deletion vectors, as Spark does it: no client here writes them.

Source: "Deletion Vectors" in the Delta transaction log protocol, and the format specification of Roaring bitmaps.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from uuid import UUID, uuid4

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
MAGIC = 1681511377
FEATURES = {"minReaderVersion": 3, "minWriterVersion": 7}
FEATURES |= {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}  # type: ignore[dict-item]


def base85(data: bytes) -> str:
    """Z85, filled up to four bytes."""
    data += bytes(-len(data) % 4)
    words = struct.unpack(f">{len(data) // 4}I", data)
    return "".join(DIGITS[word // 85**power % 85] for word in words for power in (4, 3, 2, 1, 0))


def container(lows: list[int]) -> tuple[bool, bytes]:
    """The sorted lower halves of some rows, and whether they are runs."""
    runs: list[list[int]] = []
    for low in lows:
        if runs and runs[-1][1] == low - 1:
            runs[-1][1] = low
        else:
            runs.append([low, low])
    if 2 + 4 * len(runs) < min(2 * len(lows), 8192):
        flat = [half for first, last in runs for half in (first, last - first)]
        return True, struct.pack(f"<H{len(flat)}H", len(runs), *flat)
    if len(lows) <= 4096:
        return False, struct.pack(f"<{len(lows)}H", *lows)
    bits = bytearray(8192)
    for low in lows:
        bits[low // 8] |= 1 << low % 8
    return False, bytes(bits)


def bitmap(rows: list[int]) -> bytes:
    """Sorted rows below 2^32 as a Roaring bitmap."""
    found = [(high, [row & 0xFFFF for row in some]) for high, some in groupby(rows, lambda row: row >> 16)]
    made = [container(lows) for _, lows in found]
    described = b"".join(struct.pack("<HH", high, len(lows) - 1) for high, lows in found)
    if any(is_run for is_run, _ in made):
        flags = sum(is_run << at for at, (is_run, _) in enumerate(made))
        head = struct.pack("<I", 12347 | (len(made) - 1) << 16) + flags.to_bytes((len(made) + 7) // 8, "little")
        has_offsets = len(made) >= 4
    else:
        head, has_offsets = struct.pack("<II", 12346, len(made)), True
    begin = len(head) + len(described) + 4 * len(made) * has_offsets
    ends = [begin + sum(len(data) for _, data in made[:at]) for at in range(len(made))]
    offsets = struct.pack(f"<{len(ends)}I", *ends) if has_offsets else b""
    return head + described + offsets + b"".join(data for _, data in made)


def encoded(rows: Iterable[int]) -> bytes:
    """A vector: bitmaps by the upper halves, behind the magic number."""
    halves = [(high, [row & 0xFFFFFFFF for row in some]) for high, some in groupby(sorted(rows), lambda row: row >> 32)]
    data = struct.pack("<IQ", MAGIC, len(halves))
    return data + b"".join(struct.pack("<I", high) + bitmap(lows) for high, lows in halves)


@dataclass
class Commits:
    """A Delta table's log on this machine; what is written goes behind."""

    table: Path
    uri: str = ""

    @property
    def log(self) -> list[Path]:
        """The commits."""
        return sorted((self.table / "_delta_log").glob("*.json"))

    def files(self) -> dict[str, dict[str, object]]:
        """What was last added, by its path."""
        files: dict[str, dict[str, object]] = {}
        for commit in self.log:
            actions = [json.loads(line) for line in commit.read_text().splitlines()]
            for action in actions:
                files.pop(action.get("remove", {}).get("path"), None)
            files |= {action["add"]["path"]: action["add"] for action in actions if "add" in action}
        return files

    def commit(self, vectors: Mapping[str, dict[str, object] | None]) -> None:
        """Give files other vectors, or none."""
        lines: list[dict[str, object]] = [{"protocol": FEATURES}]
        there = self.files()
        for path, vector in vectors.items():
            old = there[path]
            kept = {name: old[name] for name in ("path", "deletionVector") if old.get(name)}
            lines.append({"remove": kept | {"deletionTimestamp": 1, "dataChange": True}})
            lines.append({"add": {name: value for name, value in old.items() if name != "deletionVector"}})
            if vector is not None:
                lines[-1]["add"] |= {"deletionVector": vector}  # type: ignore[operator]
        file = self.table / "_delta_log" / f"{len(self.log):020}.json"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def delete(self, rows: Mapping[str, Iterable[int]], stored: str = "u", folder: str = "") -> Path | None:
        """Delete rows of files: by vectors in the log ("i"), or in one file by its name ("u") or whole path ("p")."""
        vectors = {path: (encoded(some), len(set(some))) for path, some in rows.items()}
        said = {path: {"sizeInBytes": len(data), "cardinality": count} for path, (data, count) in vectors.items()}
        if stored == "i":
            text = {path: base85(data) for path, (data, _) in vectors.items()}
            self.commit({p: {"storageType": "i", "pathOrInlineDv": text[p], **said[p]} for p in vectors})
            return None
        name: UUID = uuid4()
        file = self.table / folder / f"deletion_vector_{name}.bin"
        file.parent.mkdir(exist_ok=True)
        content, described = bytearray([1]), {}
        whole = f"{self.uri or self.table.as_uri()}/{file.relative_to(self.table)}"
        text_of = folder + base85(name.bytes) if stored == "u" else whole
        for path, (data, _) in vectors.items():
            at: dict[str, object] = {"storageType": stored, "pathOrInlineDv": text_of, "offset": len(content)}
            described[path] = at | said[path]
            content += struct.pack(">I", len(data)) + data + struct.pack(">I", zlib.crc32(data))
        file.write_bytes(content)
        self.commit(described)
        return file

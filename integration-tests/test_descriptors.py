"""Our .proto files against the descriptors compiled into the installed Feast, both ways.

The same messages, fields, enums and RPCs under the same names, numbers and types: nothing missing, nothing extra.
Ours come from the crate `proto` (`cargo run -p proto --example descriptors`), or from the file that
LARDER_DESCRIPTORS names.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import feast.protos.feast
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Line:
    """One thing that a schema says: `what` is its full name, `how` is what must be the same on both sides."""

    what: str
    how: str


def our_files() -> list[FileDescriptorProto]:
    """The files of proto/, as the build compiled them."""
    named = os.environ.get("LARDER_DESCRIPTORS")
    if named:
        data = Path(named).read_bytes()
    else:
        command = ["cargo", "run", "--quiet", "--locked", "-p", "proto", "--example", "descriptors"]
        data = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, timeout=900).stdout
    files = FileDescriptorSet.FromString(data).file
    return [f for f in files if not f.package.startswith("google.protobuf")]


def feast_files() -> list[FileDescriptorProto]:
    """The files that Feast's own modules were generated from."""
    found = []
    prefix = feast.protos.feast.__name__ + "."
    for module in pkgutil.walk_packages(feast.protos.feast.__path__, prefix):
        if module.name.endswith("_pb2"):
            proto = FileDescriptorProto()
            importlib.import_module(module.name).DESCRIPTOR.CopyToProto(proto)
            found.append(proto)
    return found


def lines(files: Iterable[FileDescriptorProto]) -> set[Line]:
    """All that these files say, in whatever file it stands."""
    said: set[Line] = set()
    for file in files:
        scope = f".{file.package}" if file.package else ""
        for message in file.message_type:
            said |= of_message(scope, message, file.syntax)
        for enum in file.enum_type:
            said |= of_enum(scope, enum)
        for service in file.service:
            said.add(Line(f"service {scope}.{service.name}", ""))
            for rpc in service.method:
                streams = f"{'stream ' * rpc.client_streaming}{rpc.input_type} -> "
                streams += f"{'stream ' * rpc.server_streaming}{rpc.output_type}"
                said.add(Line(f"rpc {scope}.{service.name}.{rpc.name}", streams))
    return said


def of_message(scope: str, message: DescriptorProto, syntax: str) -> set[Line]:
    """A message, its fields, and what is nested in it."""
    name = f"{scope}.{message.name}"
    reserved = sorted((r.start, r.end) for r in message.reserved_range)
    said = {Line(f"message {name}", f"{syntax} map={message.options.map_entry} reserved={reserved}")}
    for field in message.field:
        said.add(Line(f"field {name}.{field.name}", of_field(message, field)))
    for oneof in message.oneof_decl:
        said.add(Line(f"oneof {name}.{oneof.name}", ""))
    for nested in message.nested_type:
        said |= of_message(name, nested, syntax)
    for enum in message.enum_type:
        said |= of_enum(name, enum)
    return said


def of_field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Number, label, type, oneof, presence, packing, JSON name."""
    label = FieldDescriptorProto.Label.Name(field.label)
    kind = FieldDescriptorProto.Type.Name(field.type)
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "-"
    json_name = field.json_name or camel(field.name)
    packed = field.options.packed if field.options.HasField("packed") else "-"
    return (
        f"{field.number} {label} {kind} {field.type_name or '-'} oneof={oneof} optional={field.proto3_optional} "
        f"packed={packed} json={json_name} deprecated={field.options.deprecated}"
    )


def camel(name: str) -> str:
    """The JSON name that protobuf gives a field that names none."""
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def of_enum(scope: str, enum: EnumDescriptorProto) -> set[Line]:
    """An enum and its values."""
    name = f"{scope}.{enum.name}"
    said = {Line(f"enum {name}", f"alias={enum.options.allow_alias}")}
    return said | {Line(f"value {name}.{v.name}", str(v.number)) for v in enum.value}


def differences(ours: set[Line], theirs: set[Line]) -> list[str]:
    """What one side says and the other does not, in words."""
    a, b = ({line.what: line.how for line in side} for side in (ours, theirs))
    told = [f"missing: {what} ({b[what]})" for what in b.keys() - a.keys()]
    told += [f"extra: {what} ({a[what]})" for what in a.keys() - b.keys()]
    told += [
        f"differs: {what}: ours {a[what]}, Feast's {b[what]}" for what in a.keys() & b.keys() if a[what] != b[what]
    ]
    return sorted(told)


@pytest.fixture(scope="module")
def ours() -> list[FileDescriptorProto]:
    """The files of proto/."""
    return our_files()


def test_our_protos_are_feast_s(ours: list[FileDescriptorProto]) -> None:
    theirs = lines(feast_files())
    kinds = [line.what.split(" ")[0] for line in theirs]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    # so that an empty comparison cannot pass
    assert counts["message"] > 200, counts
    assert counts["rpc"] >= 55 + 2 + 3, counts
    assert counts["field"] > 800, counts
    assert differences(lines(ours), theirs) == []


CHANGES = {
    "a message is missing": (lambda f: f["feast.core"].message_type.pop(0), "missing: message"),
    "a field is missing": (lambda f: message(f, "EntitySpecV2").field.pop(0), "missing: field .feast.core.Entity"),
    "a field is extra": (
        lambda f: message(f, "Entity").field.add(name="x", number=9, type=9, label=1),
        "extra: field .feast.core.Entity.x",
    ),
    "another number": (lambda f: setattr(message(f, "Entity").field[0], "number", 7), "differs: field .feast.core."),
    "another type": (lambda f: setattr(message(f, "EntitySpecV2").field[0], "type", 12), "differs: field"),
    "repeated": (lambda f: setattr(message(f, "EntitySpecV2").field[0], "label", 3), "LABEL_REPEATED"),
    "another enum value": (
        lambda f: setattr(f["feast.core"].enum_type[0].value[1], "number", 77),
        "differs: value .feast.core.",
    ),
    "another answer": (
        lambda f: setattr(f["feast.registry"].service[0].method[0], "output_type", ".feast.core.Entity"),
        "differs: rpc .feast.registry.RegistryServer.",
    ),
    "an rpc is missing": (lambda f: f["feast.registry"].service[0].method.pop(0), "missing: rpc"),
}  # fmt: skip


def message(packages: dict[str, FileDescriptorProto], name: str) -> DescriptorProto:
    """A message of feast.core."""
    return next(m for m in packages["feast.core"].message_type if m.name == name)


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_sees(ours: list[FileDescriptorProto], change: str) -> None:
    """A schema with one change is not the same schema."""
    packages: dict[str, FileDescriptorProto] = {}
    for file in ours:
        packages.setdefault(file.package, FileDescriptorProto(package=file.package, syntax=file.syntax))
        merged = packages[file.package]
        merged.message_type.extend(file.message_type)
        merged.enum_type.extend(file.enum_type)
        merged.service.extend(file.service)
    assert differences(lines(packages.values()), lines(ours)) == []
    edit, expected = CHANGES[change]
    edit(packages)
    found = differences(lines(packages.values()), lines(ours))
    assert any(expected in line for line in found), found

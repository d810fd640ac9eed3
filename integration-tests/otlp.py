"""A collector of OpenTelemetry spans: the gRPC service of OTLP, with the few fields that the tests look at.

The field numbers are those of opentelemetry/proto/trace/v1/trace.proto and collector/trace/v1/trace_service.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from larder_env.server import HOST

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SCHEMA: dict[str, list[tuple[str, int, str]]] = {
    "Request": [("resource_spans", 1, "ResourceSpans")],
    "ResourceSpans": [("resource", 1, "Resource"), ("scope_spans", 2, "ScopeSpans")],
    "Resource": [("attributes", 1, "Attribute")],
    "ScopeSpans": [("spans", 2, "Span")],
    "Span": [
        ("trace_id", 1, "bytes"),
        ("span_id", 2, "bytes"),
        ("parent_span_id", 4, "bytes"),
        ("name", 5, "string"),
        ("attributes", 9, "Attribute"),
    ],
    "Attribute": [("key", 1, "string"), ("value", 2, "Value")],
    "Value": [("string_value", 1, "string")],
}


def _request_class() -> type[Message]:
    file = FileDescriptorProto(name="otlp.proto", package="otlp", syntax="proto3")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            nested = kind in SCHEMA
            message.field.add(
                name=field_name,
                number=number,
                type=FieldDescriptorProto.TYPE_MESSAGE
                if nested
                else FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}"),
                type_name=f".otlp.{kind}" if nested else None,
                label=FieldDescriptorProto.LABEL_REPEATED
                if nested and kind not in ("Resource", "Value")
                else FieldDescriptorProto.LABEL_OPTIONAL,
            )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("otlp.Request"))


@dataclass(frozen=True)
class Span:
    """One finished span; ids in hex."""

    service: str
    name: str
    trace: str
    parent: str
    attributes: dict[str, str]


@dataclass
class Collector:
    """Where to export to, and what has come."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)

    def export(self, request: Message, _context: grpc.ServicerContext) -> bytes:
        """Take a batch."""
        for resource in request.resource_spans:
            of = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            self.spans += [
                Span(
                    of.get("service.name", ""),
                    span.name,
                    span.trace_id.hex(),
                    span.parent_span_id.hex(),
                    {attribute.key: attribute.value.string_value for attribute in span.attributes},
                )
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        return b""


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    found = Collector()
    handler = grpc.unary_unary_rpc_method_handler(found.export, _request_class().FromString, bytes)
    server = grpc.server(ThreadPoolExecutor(2))
    service, method = EXPORT.strip("/").split("/")
    server.add_registered_method_handlers(service, {method: handler})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    found.endpoint = f"http://{HOST}:{server.add_insecure_port(f'{HOST}:0')}"
    server.start()
    try:
        yield found
    finally:
        server.stop(None)

"""Bad input from outside: every limit of the configuration refuses with its own name, and the server serves on.

Raw sockets where a client library is too well-behaved. Nothing here waits for longer than what it waits for takes.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
import requests
from feast.protos.feast.serving.GrpcServer_pb2 import PushRequest, WriteToOnlineStoreRequest
from feast.protos.feast.serving.GrpcServer_pb2_grpc import GrpcFeatureServerStub
from feast.protos.feast.serving.ServingService_pb2 import FeatureList, GetOnlineFeaturesRequest
from feast.protos.feast.serving.ServingService_pb2_grpc import ServingServiceStub
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

from conftest import StartLarder
from larder_env.server import HOST, Larder
from raw import PREFACE, SOON, connect, counted, drained, eventually, frame, headers, post_of, refusals, send_for_ever
from rides import Rides

LIMITS = {
    "max_body_bytes": 60_000,
    "max_buffered_bytes": 100_000,
    "max_json_depth": 10,
    "max_header_bytes": 10_000,
    "max_entities": 40,
    "max_features": 30,
    "max_values": 50,
    "max_value_bytes": 1000,
    "max_connections": 20,
    "max_concurrent_streams": 5,
    "header_timeout_seconds": 1,
    "body_timeout_seconds": 1,
    "idle_timeout_seconds": 3,
    "write_timeout_seconds": 2,
    "ping_interval_seconds": 1,
    "ping_timeout_seconds": 1,
}
READ = "/get-online-features"
TRIPS = ["driver_stats:trips"]


@pytest.fixture(scope="module")
def served(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """The rides on a server with small limits that all tests of this file share."""
    settings = "limits: {" + ", ".join(f"{name}: {value}" for name, value in LIMITS.items()) + "}\n"
    return Rides.start(tmp_path_factory.mktemp("limits") / "repo", module_larder, settings)


@pytest.fixture
def larder(served: Rides) -> Iterator[Larder]:
    """The server; after the test the same process serves, has counted no fault of its own and did not panic."""
    server = served.larder
    pid = server.pid
    yield server
    eventually(lambda: requests.get(f"{server.online_url}/health", timeout=SOON).status_code == 200)
    assert (server.process.running, server.pid) == (True, pid)
    assert not re.findall(
        r'^larder_request_errors_total{.*status="(50\d|UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS)".*$',
        server.metrics(),
        re.MULTILINE,
    )
    assert "panicked" not in server.log


def post(larder: Larder, body: object, **options: object) -> requests.Response:
    """A read over HTTP."""
    text = body if isinstance(body, bytes | str) else json.dumps(body)
    return requests.post(f"{larder.online_url}{READ}", data=text, timeout=SOON, **options)  # type: ignore[arg-type]


def message(text: str) -> str:
    """The message of an error body, which is JSON in JSON."""
    return str(json.loads(json.loads(text))["message"])


def columns(**entities: list[object]) -> dict[str, object]:
    return {"features": TRIPS, "entities": entities}


READS: dict[str, tuple[int, grpc.StatusCode, list[str], list[int | str]]] = {
    "max_entities": (413, grpc.StatusCode.RESOURCE_EXHAUSTED, TRIPS, list(range(41))),
    "max_features": (413, grpc.StatusCode.RESOURCE_EXHAUSTED, [f"driver_stats:f{i}" for i in range(31)], [1]),
    "max_values": (
        413,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ["driver_stats:trips", "driver_stats:rating"],
        list(range(30)),
    ),
    "max_value_bytes": (413, grpc.StatusCode.RESOURCE_EXHAUSTED, TRIPS, ["9" * 1001]),
}


@pytest.mark.parametrize("limit", READS)
def test_a_read_over_a_limit(larder: Larder, limit: str) -> None:
    """The same refusal on both faces, and what is just within the limit is answered."""
    status, code, features, entities = READS[limit]
    with counted(larder, limit):
        response = post(larder, {"features": features, "entities": {"driver_id": entities}})
    assert (response.status_code, f"(limits.{limit})" in message(response.text)) == (status, True), response.text
    values = [Value(string_val=e) if isinstance(e, str) else Value(int64_val=e) for e in entities]
    request = GetOnlineFeaturesRequest(
        features=FeatureList(val=features), entities={"driver_id": RepeatedValue(val=values)}
    )
    with counted(larder, limit), grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            ServingServiceStub(channel).GetOnlineFeatures(request, timeout=SOON)
        assert (refused.value.code(), f"(limits.{limit})" in refused.value.details()) == (code, True)


@pytest.mark.parametrize("verb", ["push", "write"])
@pytest.mark.parametrize("length", [1000, 1001])
def test_a_written_value_over_the_limit(larder: Larder, verb: str, length: int) -> None:
    """The same refusal on both faces and for both verbs; a value just within the limit is written."""
    name = "max_value_bytes"
    row = {"driver_id": 7, "trips": 1, "rating": "é" * (length // 2) + "x" * (length % 2)}
    frame = {column: [value] for column, value in row.items()} | {"event_timestamp": ["2026-01-01T00:00:00Z"]}
    path: str
    body: Any
    path, body = {
        "push": ("/push", {"push_source_name": "driver_stats_push", "df": frame, "to": "online"}),
        "write": ("/write-to-online-store", {"feature_view_name": "driver_stats", "df": frame}),
    }[verb]
    before = refusals(larder, name)
    response = requests.post(f"{larder.online_url}{path}", json=body, timeout=SOON)
    features = {column: Value(int64_val=value) for column, value in row.items() if isinstance(value, int)}
    features |= {
        "rating": Value(string_val=str(row["rating"])),
        "event_timestamp": Value(unix_timestamp_val=1767225600),
    }
    with grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel:
        stub = GrpcFeatureServerStub(channel)
        try:
            if verb == "push":
                request = PushRequest(stream_feature_view="driver_stats_push", typed_features=features, to="online")
                stub.Push(request, timeout=SOON)
            else:
                write = WriteToOnlineStoreRequest(feature_view_name="driver_stats", typed_features=features)
                stub.WriteToOnlineStore(write, timeout=SOON)
            code, details = grpc.StatusCode.OK, ""
        except grpc.RpcError as refused:
            code, details = refused.code(), refused.details()
    if length <= LIMITS[name]:
        assert (response.status_code, code) == (200, grpc.StatusCode.OK), (response.text, details)
        return
    assert (response.status_code, code) == (413, grpc.StatusCode.RESOURCE_EXHAUSTED), (response.text, details)
    for said in (message(response.text), details):
        assert all(part in said for part in (f"(limits.{name})", "'rating'", "1001 bytes")), said
    eventually(lambda: refusals(larder, name) >= before + 2)


def test_a_message_over_the_limit(larder: Larder) -> None:
    """gRPC: the limit is named, and the code says that it is one."""
    request = GetOnlineFeaturesRequest(features=FeatureList(val=["x" * LIMITS["max_body_bytes"]]))
    with (
        counted(larder, "max_body_bytes"),
        grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        ServingServiceStub(channel).GetOnlineFeatures(request, timeout=SOON)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "(limits.max_body_bytes)" in refused.value.details()


BODIES: dict[str, tuple[bytes, int, str]] = {
    "too large": (b'{"features": ["' + b"x" * LIMITS["max_body_bytes"] + b'"]}', 413, "(limits.max_body_bytes)"),
    "too deep": (b'{"entities": {"driver_id": [' + b"[" * 9, 422, "(limits.max_json_depth)"),
    "endless brackets": (b"[" * 50_000, 422, "(limits.max_json_depth)"),
    "NaN": (b'{"features": [], "entities": {"driver_id": [NaN]}}', 422, "JSON has no NaN"),
    "Infinity": (b'{"features": [], "entities": {"driver_id": [1, -Infinity]}}', 422, "JSON has no NaN"),
    "invalid UTF-8": (b'{"features": ["\xff"], "entities": {}}', 422, "unicode"),
    "a lone surrogate": (rb'{"features": ["\ud800"], "entities": {}}', 422, "line 1"),
    "an integer too wide": (json.dumps(columns(driver_id=[2**64])).encode(), 422, "driver_id"),
    "a column that is none": (b'{"features": [], "entities": {"driver_id": {"0": 1}}}', 422, "'driver_id'"),
    "an object for a list": (b'{"features": {}, "entities": {}}', 422, "sequence"),
    "text": (b"hello", 422, "line 1"),
    "nothing": (b"", 422, "EOF"),
    "null": (b"null", 422, "null"),
    "cut off": (b'{"features": ["driver_stats:tri', 422, "EOF"),
    "a list of the fields": (b' [{"driver_id": [1]}, null, ["driver_stats:trips"]]', 422, "a list, not an object"),
    "a number out of range": (b'{"features": [], "entities": {"driver_id": [1e400]}}', 422, "number out of range"),
    "a list of lists for a key": (json.dumps(columns(driver_id=[[1]])).encode(), 422, "driver_id"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_body(larder: Larder, case: str) -> None:
    body, status, wanted = BODIES[case]
    response = post(larder, body)
    assert (response.status_code, wanted in message(response.text)) == (status, True), response.text


def test_a_field_that_is_not_known_is_ignored(larder: Larder) -> None:
    """As pydantic does by default, and Feast's server with it."""
    response = post(larder, {**columns(driver_id=[1]), "nobody_knows": {"this": [None]}, "full_feature_names": "no"})
    assert response.status_code == 200
    assert response.json()["metadata"] == {"feature_names": ["driver_id", "trips"]}


def test_a_head_over_the_limit(larder: Larder) -> None:
    with counted(larder, "max_header_bytes"):
        response = post(larder, columns(driver_id=[1]), headers={"x-much": "x" * 10_000})
    assert (response.status_code, "(limits.max_header_bytes)" in message(response.text)) == (431, True)
    with counted(larder, "max_header_bytes"), grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel:
        request, head = GetOnlineFeaturesRequest(features=FeatureList(val=TRIPS)), [("x-much", "x" * 10_000)]
        with pytest.raises(grpc.RpcError) as refused:
            ServingServiceStub(channel).GetOnlineFeatures(request, timeout=SOON, metadata=head)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    # far over it, the protocol's own answer comes before there is a request
    assert post(larder, columns(driver_id=[1]), headers={"x-much": "x" * 600_000}).status_code == 431


# --- slow clients ------------------------------------------------------------------------------------------------


def http_message(answer: str) -> str:
    """The message in an HTTP/1 answer."""
    return message(answer.partition("\r\n\r\n")[2])


@pytest.mark.parametrize("port", ["online", "registry"])
@pytest.mark.parametrize("said", [b"", b"POST /get-online-fea", b"POST / HTTP/1.1\r\nhost: x\r\n", b"PRI * HTTP/2"])
def test_a_slow_head(larder: Larder, port: str, said: bytes) -> None:
    """Closed in time; whoever has begun an HTTP/1 request is told why."""
    with counted(larder, "header_timeout_seconds"), connect(getattr(larder.ports, port)) as connection:
        connection.sendall(said)
        answer = drained(connection)
    if said.startswith(b"POST"):
        assert answer.startswith("HTTP/1.1 408 ")
        assert "(limits.header_timeout_seconds)" in http_message(answer)
    else:
        assert answer == ""


def test_a_slow_body(larder: Larder) -> None:
    head = f"POST {READ} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n".encode()
    with counted(larder, "body_timeout_seconds"), connect(larder.ports.online) as connection:
        connection.sendall(head + b'{"features": [')
        answer = drained(connection)
    assert answer.startswith("HTTP/1.1 408 ")
    assert "(limits.body_timeout_seconds)" in http_message(answer)


def test_a_slow_message(larder: Larder) -> None:
    """gRPC: the client opens the stream and sends nothing."""
    released = threading.Event()

    def silent() -> Iterator[bytes]:
        released.wait(SOON)
        yield b""

    with counted(larder, "body_timeout_seconds"), grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel:
        call = channel.stream_unary("/feast.serving.ServingService/GetOnlineFeatures")
        with pytest.raises(grpc.RpcError) as refused:
            call(silent(), timeout=SOON)
        released.set()
    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "(limits.body_timeout_seconds)" in refused.value.details()


def test_bodies_that_are_too_much_together(larder: Larder) -> None:
    """Two slow bodies within the limit of one are over the limit of all."""
    size = LIMITS["max_body_bytes"] - 1000
    head = f"POST {READ} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode()
    with (
        counted(larder, "max_buffered_bytes"),
        connect(larder.ports.online) as one,
        connect(larder.ports.online) as two,
    ):
        for connection in (one, two):
            connection.sendall(head + b" " * (size - 1))
        answers = [drained(two), drained(one)]
    refused = [answer for answer in answers if answer.startswith("HTTP/1.1 429 ")]
    assert refused
    assert "(limits.max_buffered_bytes)" in http_message(refused[0])


def test_a_half_open_http2_connection(larder: Larder) -> None:
    """Whoever never answers a ping is gone: the connection is closed."""
    with counted(larder, "ping_timeout_seconds"), connect(larder.ports.online) as connection:
        connection.sendall(PREFACE)
        heard = b""
        while more := connection.recv(65_536):
            heard += more
    assert frame(6)[3:5] in heard, "it was asked"


def test_too_many_connections(larder: Larder) -> None:
    """Those over the limit are told so, and served again when others have left."""
    request = GetOnlineFeaturesRequest(features=FeatureList(val=TRIPS))
    asked = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with ExitStack() as held, counted(larder, "max_connections"):
        for _ in range(LIMITS["max_connections"]):
            connection = held.enter_context(connect(larder.ports.online))
            connection.sendall(asked)
            assert connection.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 429")
        with connect(larder.ports.online) as connection:
            connection.sendall(asked)
            answer = drained(connection)
        assert answer.startswith("HTTP/1.1 429 ")
        assert "retry-after: 1\r\n" in answer
        assert "(limits.max_connections)" in http_message(answer)
        with grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel, pytest.raises(grpc.RpcError) as refused:
            ServingServiceStub(channel).GetOnlineFeatures(request, timeout=SOON)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    eventually(lambda: requests.get(f"{larder.online_url}/health", timeout=SOON).status_code == 200)


def test_a_connection_that_asks_nothing_more(larder: Larder) -> None:
    """HTTP/1: the first request is answered, the second never comes."""
    with counted(larder, "idle_timeout_seconds"), connect(larder.ports.online) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert drained(connection).startswith("HTTP/1.1 200 ")


def test_too_many_streams(larder: Larder) -> None:
    """HTTP/2: the client is told how many, and what it opens beyond them is refused, as the protocol says."""
    most = LIMITS["max_concurrent_streams"]
    opened = b"".join(headers(2 * at + 1, post_of(READ), end=False) for at in range(most + 1))
    refused = frame(3, (7).to_bytes(4, "big"), stream=2 * most + 1)  # RST_STREAM with REFUSED_STREAM
    with connect(larder.ports.online) as connection:
        connection.sendall(PREFACE + opened)
        heard = b""
        while refused not in heard:
            more = connection.recv(65_536)
            assert more, heard
            heard += more
    assert (3).to_bytes(2, "big") + most.to_bytes(4, "big") in heard, "SETTINGS_MAX_CONCURRENT_STREAMS"


def test_a_length_over_the_limit_is_not_waited_for(larder: Larder) -> None:
    """Whoever says that a body is too large is told so before it sends a byte of it."""
    head = f"POST {READ} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {10**12}\r\n\r\n"
    with counted(larder, "max_body_bytes"), connect(larder.ports.online) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(65_536).decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "(limits.max_body_bytes)" in http_message(answer)


def test_a_client_that_takes_nothing(larder: Larder) -> None:
    """Pipelined requests whose answers nobody reads: the connection is closed, and its memory is free."""
    request = f"GET /{'x' * 8000} HTTP/1.1\r\nhost: x\r\n\r\n".encode() * 50
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SOON)
        connection.connect((HOST, larder.ports.online))
        with counted(larder, "write_timeout_seconds"), pytest.raises(ConnectionError):
            send_for_ever(connection, request)

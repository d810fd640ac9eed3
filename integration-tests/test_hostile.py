"""Hostile and broken clients from outside: floods, lies and nonsense, while others are answered as always.

The limits one by one are in test_limits.py.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import grpc
import pytest
import requests
from feast.protos.feast.serving.ServingService_pb2 import FeatureList, GetOnlineFeaturesRequest
from feast.protos.feast.serving.ServingService_pb2_grpc import ServingServiceStub
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

from conftest import StartLarder
from larder_env.server import HOST, Larder
from raw import PREFACE, SOON, connect, counted, drained, eventually, frame, headers, post_of, send_for_ever
from rides import Rides

READ = "/get-online-features"
BODY = json.dumps({"features": ["driver_stats:trips"], "entities": {"driver_id": [1]}}).encode()
MANY = 2000
SETTINGS = """
limits: {max_connections: 5000, write_timeout_seconds: 2}
"""


@pytest.fixture(scope="module")
def served(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """The rides on a server that all tests of this file share."""
    return Rides.start(tmp_path_factory.mktemp("hostile") / "repo", module_larder, SETTINGS)


@pytest.fixture
def larder(served: Rides) -> Iterator[Larder]:
    """The server; after the test the same process answers, has counted no fault of its own and did not panic."""
    server = served.larder
    pid = server.pid
    yield server
    answers(server)
    assert (server.process.running, server.pid) == (True, pid)
    assert "panicked" not in server.log
    assert "by our fault" not in server.log


def answers(larder: Larder) -> None:
    """Both faces answer new clients, now."""
    response = requests.post(f"{larder.online_url}{READ}", data=BODY, timeout=SOON)
    assert response.status_code == 200, response.text
    request = GetOnlineFeaturesRequest(
        features=FeatureList(val=["driver_stats:trips"]),
        entities={"driver_id": RepeatedValue(val=[Value(int64_val=1)])},
    )
    with grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel:
        assert len(ServingServiceStub(channel).GetOnlineFeatures(request, timeout=SOON).results) == 2


# --- floods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["online", "registry"])
def test_many_half_open_connections(larder: Larder, port: str) -> None:
    """Silent, half a head, half a body, HTTP/2 without a request: none of them keeps the others from an answer."""
    said = [
        b"",
        f"POST {READ} HTTP/1.1\r\nhost".encode(),
        f"POST {READ} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{{".encode(),
        PREFACE,
    ]
    with ExitStack() as held:
        for at in range(MANY):
            connection = held.enter_context(connect(getattr(larder.ports, port)))
            connection.sendall(said[at % len(said)])
        answers(larder)
    answers(larder)


def test_no_file_descriptor_is_left(larder: Larder) -> None:
    """EMFILE: who is connected is served on, nothing spins, and who waited is served when there are some again."""
    soft, hard = resource.prlimit(larder.pid, resource.RLIMIT_NOFILE)
    with requests.Session() as session, ExitStack() as held:
        url = f"{larder.online_url}{READ}"
        assert session.post(url, data=BODY, timeout=SOON).status_code == 200
        used = max(int(number) for number in os.listdir(f"/proc/{larder.pid}/fd"))
        resource.prlimit(larder.pid, resource.RLIMIT_NOFILE, (used + 8, hard))
        try:
            # more than there can be descriptors: those of the floods before may be closed only now
            waiting = [held.enter_context(connect(larder.ports.online)) for _ in range(used + 40)]
            refused, began = "a connection could not be accepted", time.monotonic()
            eventually(lambda: larder.log.count(refused) >= 5)
            assert session.post(url, data=BODY, timeout=SOON).status_code == 200
            # every tenth of a second at most, on a listener
            assert larder.log.count(refused) <= 12 * (time.monotonic() - began) + 2
        finally:
            resource.prlimit(larder.pid, resource.RLIMIT_NOFILE, (soft, hard))
        waiting[-1].sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert drained(waiting[-1]).startswith("HTTP/1.1 200 ")


def flood(port: int, begin: bytes, more: bytes) -> None:
    """Send the same again and again, and read nothing, until the server closes the connection."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SOON)
        connection.connect((HOST, port))
        connection.sendall(begin)
        with pytest.raises(ConnectionError):
            send_for_ever(connection, more)


@pytest.mark.parametrize("kind", ["ping", "settings"])
def test_a_flood_that_wants_answers(larder: Larder, kind: str) -> None:
    """PING and SETTINGS must be answered; whoever does not take the answers is gone."""
    of_kind = frame(6, bytes(8)) if kind == "ping" else frame(4, bytes([0, 3, 0, 0, 0, 9]))
    with counted(larder, "write_timeout_seconds"):
        flood(larder.ports.online, PREFACE, of_kind * 5000)


def test_a_head_without_end(larder: Larder) -> None:
    """CONTINUATION after CONTINUATION: the connection is closed before the head is in memory."""
    with connect(larder.ports.online) as connection:
        connection.sendall(PREFACE + frame(1, post_of(READ), stream=1))
        with pytest.raises(ConnectionError):
            send_for_ever(connection, frame(9, b"\x00\x01x\x01y" * 3000, stream=1))


def test_rapid_reset(larder: Larder) -> None:
    """Streams that are opened and reset at once (CVE-2023-44487): others are answered meanwhile."""
    block = post_of(READ)
    pairs = [headers(n, block, end=False) + frame(3, bytes([0, 0, 0, 8]), stream=n) for n in range(1, 20_001, 2)]
    with connect(larder.ports.online) as connection:
        with suppress(ConnectionError):  # closed for it: as good
            connection.sendall(PREFACE + b"".join(pairs))
        answers(larder)


# --- lies and nonsense ---------------------------------------------------------------------------------------------


def lines(*headers: str, body: bytes = b"", path: str = READ, version: str = "1.1", method: str = "POST") -> bytes:
    head = "".join(f"{header}\r\n" for header in (f"{method} {path} HTTP/{version}", "host: x", *headers))
    return (head + "connection: close\r\n\r\n").encode() + body


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


LENGTH, CHUNKED = f"content-length: {len(BODY)}", "transfer-encoding: chunked"
GRPC = "content-type: application/grpc"
METHOD = "/feast.serving.ServingService/GetOnlineFeatures"
SAID: dict[str, tuple[bytes, str, str]] = {
    "chunks": (lines(CHUNKED, body=chunk(BODY) + b"0\r\n\r\n"), "HTTP/1.1 200", "PRESENT"),
    "HTTP/1.0": (lines(LENGTH, body=BODY, version="1.0"), "HTTP/1.0 200", "PRESENT"),
    "the absolute form": (lines(LENGTH, body=BODY, path=f"http://x{READ}"), "HTTP/1.1 200", "PRESENT"),
    "a byte order mark": (
        lines(f"content-length: {len(BODY) + 3}", body=b"\xef\xbb\xbf" + BODY),
        "HTTP/1.1 200",
        "PRESENT",
    ),
    "Expect: 100-continue": (lines(LENGTH, "expect: 100-continue", body=BODY), "HTTP/1.1 100", "PRESENT"),
    "a chunk's size that is none": (lines(CHUNKED, body=b"zz\r\nabc"), "HTTP/1.1 422", "chunk size"),
    "a chunk's size beyond all": (lines(CHUNKED, body=b"f" * 20 + b"\r\nabc"), "HTTP/1.1 422", "chunk size"),
    "a chunk that is longer": (lines(CHUNKED, body=b"3\r\nabcdef\r\n"), "HTTP/1.1 422", "could not be read"),
    "a chunk's endless extension": (
        lines(CHUNKED, body=b"3;" + b"x" * 100_000 + b"\r\nabc"),
        "HTTP/1.1 422",
        "could not be read",
    ),
    "a length that is shorter": (lines("content-length: 10", body=BODY), "HTTP/1.1 422", "EOF"),
    "two lengths": (lines(LENGTH, "content-length: 3", body=BODY), "HTTP/1.1 400", ""),
    "a negative length": (lines("content-length: -3", body=BODY), "HTTP/1.1 400", ""),
    "a transfer encoding": (lines("transfer-encoding: gzip", body=BODY), "HTTP/1.1 400", ""),
    "a compressed body": (lines(LENGTH, "content-encoding: gzip", body=BODY), "HTTP/1.1 400", "compressed"),
    "a NUL in a header": (lines(LENGTH, "x: a\0b", body=BODY), "HTTP/1.1 400", ""),
    "too many headers": (lines(*(f"x{n}: y" for n in range(101))), "HTTP/1.1 431", ""),
    "no method of ours": (lines(method="BREW"), "HTTP/1.1 405", "another method"),
    "CONNECT": (lines(method="CONNECT", path="x:80"), "HTTP/1.1 404", "there is no"),
    "TLS where there is none": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "HTTP/1.1 400", ""),
    "gRPC: an unknown flag": (lines(GRPC, "content-length: 5", body=b"\7" + bytes(4), path=METHOD), "", "status: 3\r"),
    "gRPC: a flag alone": (lines(GRPC, "content-length: 5", body=b"\1" + bytes(4), path=METHOD), "", "status: 3\r"),
    "gRPC: cut off": (lines(GRPC, "content-length: 6", body=b"\0\0\0\0\x09x", path=METHOD), "", "status: 3\r"),
    "gRPC: no message": (lines(GRPC, "content-length: 0", path=METHOD), "", "status: 3\r"),
    "gRPC: 4 GiB": (
        lines(GRPC, "content-length: 5", body=b"\0" + b"\xff" * 4, path=METHOD),
        "",
        "limits.max_body_bytes",
    ),
    "gRPC: compressed": (
        lines(GRPC, "content-length: 6", "grpc-encoding: gzip", body=b"\1\0\0\0\1x", path=METHOD),
        "grpc-accept-encoding: identity",
        "status: 12\r",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_said_is_answered(larder: Larder, case: str) -> None:
    said, one, other = SAID[case]
    with connect(larder.ports.online) as connection:
        connection.sendall(said)
        answer = drained(connection)
    assert (one in answer, other in answer) == (True, True), answer


@pytest.mark.parametrize("letter", ["x", "é", "\0", '"', "\U0001f600"])
def test_a_very_long_name(larder: Larder, letter: str) -> None:
    """The error names it in part: a whole one would pass what gRPC's clients take in a header."""
    name = letter * 2_000_000
    response = requests.post(
        f"{larder.online_url}{READ}",
        json={"features": [f"driver_stats:{name}"], "entities": {"driver_id": [1]}},
        timeout=SOON,
    )
    assert (response.status_code, len(response.content) < 30_000) == (404, True)
    request = GetOnlineFeaturesRequest(features=FeatureList(val=[f"driver_stats:{name}"]))
    request.entities["driver_id"].val.add().int64_val = 1
    with grpc.insecure_channel(f"{HOST}:{larder.ports.online}") as channel, pytest.raises(grpc.RpcError) as refused:
        ServingServiceStub(channel).GetOnlineFeatures(request, timeout=SOON)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    told = json.loads(refused.value.details())
    assert told["class"] == "FeatureViewNotFoundException"
    assert told["message"].startswith(f"Feature {letter * 300}")
    assert told["message"].endswith("does not exist in feature view driver_stats of project rides")
    assert "bytes are left out" in told["message"]


@pytest.mark.parametrize("time", ["1e300", "-1e300", '"+12345-01-01T00:00:00Z"', "1e12"])
def test_a_time_outside_of_all_calendars(larder: Larder, time: str) -> None:
    """It would stand for ever as the newest: refused, and the row that was there is still to be replaced."""
    row = f'"driver_id": [1], "trips": [3], "event_timestamp": [{time}], "created": [0]'
    body = f'{{"push_source_name": "driver_stats_push", "df": {{{row}}}}}'
    response = requests.post(f"{larder.online_url}/push", data=body, timeout=SOON)
    assert (response.status_code, "is not a timestamp" in response.text) == (422, True), response.text

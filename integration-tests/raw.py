"""Raw sockets: what a broken or hostile client says, byte by byte, and how a refusal is counted."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from larder_env.process import wait_until
from larder_env.server import HOST, Larder

SOON = 20.0
"""Longer than any of the timeouts that the tests set, with room for a busy machine."""


def connect(port: int) -> socket.socket:
    """A connection to a port of the server."""
    return socket.create_connection((HOST, port), timeout=SOON)


def drained(connection: socket.socket) -> str:
    """What the server says until it closes the connection."""
    said = b""
    try:
        while more := connection.recv(65_536):
            said += more
    except ConnectionResetError:
        pass
    return said.decode()


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    wait_until(holds, "the condition", SOON)


def refusals(larder: Larder, limit: str) -> int:
    """How often a limit has refused."""
    found = re.search(rf'^larder_refusals_total{{limit="{limit}"}} (\d+)$', larder.metrics(), re.MULTILINE)
    return int(found.group(1)) if found else 0


@contextmanager
def counted(larder: Larder, limit: str) -> Iterator[None]:
    """What happens inside is counted under the limit's name."""
    before = refusals(larder, limit)
    yield
    eventually(lambda: refusals(larder, limit) > before)


# --- HTTP/2 --------------------------------------------------------------------------------------------------------


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """An HTTP/2 frame, of the connection itself unless a stream is named."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4)
"""How an HTTP/2 client begins: the magic, and empty SETTINGS."""


def field(name: str, value: str) -> bytes:
    """A header as HPACK's literal that enters no table."""
    return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def post_of(path: str) -> bytes:
    """The head of a POST, in HPACK."""
    head = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
    return b"".join(field(name, value) for name, value in head.items())


def headers(stream: int, block: bytes, *, end: bool) -> bytes:
    """A HEADERS frame with a whole head; `end`: there is no body."""
    return frame(1, block, flags=4 | end, stream=stream)


def send_for_ever(connection: socket.socket, said: bytes) -> None:
    """Say the same again and again, and read nothing, until the server closes the connection."""
    while True:
        connection.sendall(said)

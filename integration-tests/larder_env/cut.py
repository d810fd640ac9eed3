"""A proxy in front of a broker that can be cut for one client alone, told by the `client.id` of its requests."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

from larder_env.server import HOST

SIZE = struct.Struct(">i")
# Kafka's request header: API, its version, a number, and the length of the client's id behind them
HEADER = struct.Struct(">hhih")


class Cut:
    """Listens on a free port for a broker that is to come, and passes on what comes there."""

    def __init__(self) -> None:
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self._to = 0
        self._away: dict[str, bool] = {}
        self._open: dict[str, set[socket.socket]] = {}
        self._changed = threading.Condition()

    def start(self, to: int) -> None:
        """Pass on to this port from now on."""
        self._to = to
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, client: str, silent: bool) -> None:
        """Nothing of this client gets through: held back without a word, or its connections are closed one by one."""
        with self._changed:
            self._away[client] = silent
        if not silent:
            self._close(client)

    def heal(self, client: str) -> None:
        """It gets through again, with new connections."""
        with self._changed:
            del self._away[client]
            self._changed.notify_all()
        self._close(client)

    def stop(self) -> None:
        """Take no connection any more."""
        self._server.close()

    def _close(self, client: str) -> None:
        with self._changed:
            sockets = self._open.pop(client, set())
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            first = _exactly(client, SIZE.size)
            request = _exactly(client, SIZE.unpack(first)[0])
            *_, length = HEADER.unpack_from(request)
            name = request[HEADER.size : HEADER.size + max(length, 0)].decode()
            with self._changed:
                if self._away.get(name) is False:
                    return
            with socket.create_connection((HOST, self._to)) as broker:
                with self._changed:
                    self._open.setdefault(name, set()).update([client, broker])
                back = threading.Thread(target=self._pass, args=[name, broker, client], daemon=True)
                back.start()
                self._pass(name, client, broker, first + request)
                back.join()
                with self._changed:
                    self._open.get(name, set()).difference_update([client, broker])

    def _pass(self, name: str, source: socket.socket, to: socket.socket, data: bytes = b"") -> None:
        with suppress(OSError):
            while True:
                with self._changed:
                    if name in self._away:
                        # what was held back is lost with its connection
                        self._changed.wait_for(lambda: name not in self._away)
                        break
                if data:
                    to.sendall(data)
                data = source.recv(1 << 16)
                if not data:
                    break
        for each in [source, to]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data

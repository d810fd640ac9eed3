"""A real Redis on a free loopback port, from the `redis-server` that `scripts/setup.sh` installs."""

from __future__ import annotations

import shutil
from pathlib import Path

from redis import Redis as Client
from redis.exceptions import ConnectionError as NoConnection

from larder_env.paths import MissingError
from larder_env.process import Process, free_ports
from larder_env.server import HOST


class Redis:
    """`redis-server` with nothing on disk; it ends with its parent."""

    def __init__(self, directory: Path, password: str | None = None) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise MissingError("redis-server is not installed: run `make setup` (Debian package redis-server)")
        self.directory = directory
        self.port = free_ports(1)[0]
        self.password = password
        self._binary = binary
        self.process = Process("redis-server", directory / "redis.log")

    @property
    def connection_string(self) -> str:
        """As Feast has it."""
        return f"{HOST}:{self.port}" + (f",password={self.password}" if self.password else "")

    def client(self) -> Client:
        """A plain client."""
        return Client(host=HOST, port=self.port, password=self.password)

    def start(self) -> Redis:
        """Start it empty, and wait until it answers."""
        options = ["--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no"]
        options += ["--requirepass", self.password] if self.password else []
        self.process.spawn([self._binary, *options], cwd=self.directory)
        self.process.wait_ready(self.answers, 20)
        return self

    def answers(self) -> bool:
        """Whether it answers right now."""
        try:
            return bool(self.client().ping())
        except NoConnection:
            return False

    def stop(self) -> None:
        """End it; what it held is gone."""
        self.process.kill()

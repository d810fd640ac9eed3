"""Feast's own Python feature server (`feast serve`, SQLite, a local registry file) as a child process: the reference.

It listens on loopback, on a repo of its own that holds the same objects as Larder's. It must not know Larder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import requests
from feast import FeatureStore

from larder_env.process import Process, free_ports
from larder_env.repo import write_feast
from larder_env.server import HOST


class FeastServer:
    """`feast serve` over HTTP on a free port, in a new repo of a project, or in one that is there."""

    def __init__(self, repo: Path, project: str | None = None) -> None:
        self.repo = repo
        self.port = free_ports(1)[0]
        self.process = Process("feast serve", repo / "feast.log")
        if project is not None:
            write_feast(repo, project, registry={"path": "data/registry.db", "cache_ttl_seconds": 0})

    @property
    def store(self) -> FeatureStore:
        """The SDK on this repo's own stores, with a fresh registry."""
        return FeatureStore(repo_path=str(self.repo))

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"

    def start(self, objects: Sequence[object] = ()) -> FeastServer:
        """Apply the objects if there are any, start, and wait until /health answers 200."""
        if objects:
            self.store.apply(list(objects))  # type: ignore[arg-type]
        feast = Path(sys.executable).parent / "feast"
        words = ["-c", self.repo, "serve", "-h", HOST, "-p", self.port, "--no-access-log"]
        self.process.spawn([feast, *map(str, words)], self.repo, {"PYTHONWARNINGS": "ignore"})
        self.process.wait_ready(self._healthy, 120.0)
        return self

    def stop(self) -> None:
        """SIGTERM: gunicorn takes its worker with it."""
        self.process.stop()

    def post(self, path: str, body: object) -> requests.Response:
        """POST JSON; the response as it is, whatever its status."""
        return requests.post(f"{self.url}{path}", json=body, timeout=60)  # type: ignore[arg-type]

    def _healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

"""Feast's own Python feature server (`feast serve`, SQLite, a local registry file) as a child process: the reference.

It listens on loopback, on a repo of its own that holds the same objects as Larder's. It must not know Larder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import requests
import yaml
from feast import FeatureStore

from larder_env.process import Process, free_ports
from larder_env.server import HOST


class FeastServer:
    """`feast serve` over HTTP on a free port."""

    def __init__(self, repo: Path, project: str) -> None:
        self.repo = repo
        self.port = free_ports(1)[0]
        self.process = Process("feast serve", repo / "feast.log")
        (repo / "data").mkdir(parents=True)
        config = {
            "project": project,
            "provider": "local",
            "registry": {"path": "data/registry.db", "cache_ttl_seconds": 0},
            "online_store": {"type": "sqlite", "path": "data/online.db"},
            "offline_store": {"type": "file"},
            "entity_key_serialization_version": 3,
        }
        (repo / "feature_store.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    @property
    def store(self) -> FeatureStore:
        """The SDK on this repo's own stores, with a fresh registry."""
        return FeatureStore(repo_path=str(self.repo))

    def start(self, objects: Sequence[object]) -> FeastServer:
        """Apply the objects, start, and wait until /health answers 200."""
        self.store.apply(list(objects))  # type: ignore[arg-type]
        feast = Path(sys.executable).parent / "feast"
        words = ["-c", self.repo, "serve", "-h", HOST, "-p", self.port, "--no-access-log"]
        self.process.spawn([feast, *map(str, words)], self.repo, {"PYTHONWARNINGS": "ignore"})
        self.process.wait_ready(self._healthy, 60.0)
        return self

    def stop(self) -> None:
        """SIGTERM: gunicorn takes its worker with it."""
        self.process.stop()

    def post(self, path: str, body: object) -> requests.Response:
        """POST JSON; the response as it is, whatever its status."""
        return requests.post(f"http://{HOST}:{self.port}{path}", json=body, timeout=60)  # type: ignore[arg-type]

    def _healthy(self) -> bool:
        try:
            return requests.get(f"http://{HOST}:{self.port}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

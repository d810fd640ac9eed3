"""Feast's own Python servers (`feast serve`, `feast serve_registry`; SQLite, a local registry file): the reference.

They listen on loopback, on repos of their own that hold the same objects as Larder's. They must not know Larder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import requests
from feast import FeatureStore
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub

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


class FeastRegistry:
    """`feast serve_registry` over gRPC on a free port, over a local registry file and an offline store of files."""

    def __init__(self, repo: Path, project: str) -> None:
        self.repo = repo
        (self.port,) = free_ports(1)
        self.process = Process("feast serve_registry", repo / "feast.log")
        write_feast(repo, project, registry={"path": str(repo / "registry.db"), "cache_ttl_seconds": 0})

    @property
    def calls(self) -> RegistryServerStub:
        """The registry's calls."""
        return RegistryServerStub(grpc.insecure_channel(f"{HOST}:{self.port}"))

    def start(self) -> FeastRegistry:
        """Start, and wait until it answers."""
        words = ["--chdir", str(self.repo), "serve_registry", "--port", str(self.port)]
        self.process.spawn([Path(sys.executable).parent / "feast", *words], self.repo, {"PYTHONWARNINGS": "ignore"})
        self.process.wait_ready(self._answers, 60.0)
        return self

    def kill(self) -> None:
        """SIGKILL: it does not stop at SIGTERM while clients are connected."""
        self.process.kill()

    def _answers(self) -> bool:
        try:
            self.calls.ListProjects(pb.ListProjectsRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return True

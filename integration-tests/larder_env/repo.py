"""A directory that is both: the server's (larder.yaml) and a Feast repo whose client points at that server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
from feast import FeatureStore

from larder_env.process import ProcessError, free_ports
from larder_env.server import HOST, Ports


def write_config(repo: Path, project: str, ports: Ports) -> None:
    """Write larder.yaml for the server and feature_store.yaml for its clients."""
    write_client(repo, project, ports)
    (repo / "larder.yaml").write_text(yaml.safe_dump({"project": project}))


def write_client(repo: Path, project: str, ports: Ports) -> None:
    """Write a feature_store.yaml whose three stores are the server at these ports."""
    write_feast(
        repo,
        project,
        registry={"registry_type": "remote", "path": f"{HOST}:{ports.registry}"},
        online_store={"type": "remote", "path": f"http://{HOST}:{ports.online}"},
        offline_store={"type": "remote", "host": HOST, "port": ports.offline},
    )


def write_feast(repo: Path, project: str, **parts: object) -> None:
    """Write a feature_store.yaml of Feast's own local stores, but for the parts that are given."""
    repo.mkdir(parents=True, exist_ok=True)
    config = {
        "project": project,
        "provider": "local",
        "registry": "data/registry.db",
        "online_store": {"type": "sqlite", "path": "data/online_store.db"},
        "offline_store": {"type": "file"},
        "entity_key_serialization_version": 3,
        **parts,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def ports_in(repo: Path) -> Ports:
    """The ports that a repo's feature_store.yaml points at; the metrics port, which no client uses, is a free one."""
    client = yaml.safe_load((repo / "feature_store.yaml").read_text())
    return Ports(
        online=int(client["online_store"]["path"].rsplit(":", 1)[1]),
        registry=int(client["registry"]["path"].rsplit(":", 1)[1]),
        offline=int(client["offline_store"]["port"]),
        metrics=free_ports(1)[0],
    )


def copy_repo(source: Path, target: Path, ports: Ports, with_data: bool = True) -> Path:
    """A copy of a Feast repo, its definitions and prepared data, pointing at other ports."""
    target.mkdir(parents=True, exist_ok=True)
    for module in source.glob("*.py"):
        shutil.copy(module, target)
    if with_data:
        (target / "data").mkdir(exist_ok=True)
        for table in (source / "data").glob("*.parquet"):
            shutil.copy(table, target / "data")
    project = yaml.safe_load((source / "feature_store.yaml").read_text())["project"]
    write_config(target, project, ports)
    return target


def store(repo: Path) -> FeatureStore:
    """The SDK's FeatureStore for this repo, with a fresh registry cache."""
    return FeatureStore(repo_path=str(repo))


def feast(repo: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    """Run the SDK's command line in this repo; returns what it printed, raises if it failed."""
    done = subprocess.run(
        [Path(sys.executable).parent / "feast", *words],
        cwd=repo,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessError(f"`feast {' '.join(words)}` exited with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout

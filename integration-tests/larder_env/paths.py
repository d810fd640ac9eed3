"""Where things are: the checkout, the cache that `scripts/setup.sh` fills, the binary under test."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FEATURE_REPO = CHECKOUT / "feature_repo"
POMS = CHECKOUT / "integration-tests"
EXAMPLES = CHECKOUT / "examples"
ENGINES = ["spark", "flink"]


class MissingError(RuntimeError):
    """Something that the machine must have is not there; the message says how to get it."""


def cache() -> Path:
    """`LARDER_CACHE`, or ~/.cache/larder: the same rule as in scripts/setup.sh."""
    return Path(os.environ.get("LARDER_CACHE") or Path.home() / ".cache" / "larder")


def jars(name: str) -> Path:
    """The folder of the jars of `kafka`, `s3` or an example's engine, for the pinned pom.xml."""
    pom = (EXAMPLES if name in ENGINES else POMS) / name / "pom.xml"
    folder = cache() / f"{name}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if not (folder / ".complete").exists():
        raise MissingError(f"the jars of {name} are not in {folder}: run `make test` (needs Maven and Java 17)")
    return folder


def engine(name: str) -> Path:
    """The Python environment of an example's engine, `spark` or `flink`."""
    folder = EXAMPLES / name / ".venv"
    if not (folder / ".complete").exists():
        raise MissingError(f"the Python packages of {name} are not in {folder}: run `make test`")
    return folder


def larder_binary() -> Path:
    """The built binary: `LARDER_BIN`, which the Makefile sets."""
    named = os.environ.get("LARDER_BIN")
    if not named:
        raise MissingError("LARDER_BIN is not set: run `make test`, or point it at the built `larder` binary")
    binary = Path(named)
    if not os.access(binary, os.X_OK):
        raise MissingError(f"LARDER_BIN={binary} is not an executable file: run `make build`")
    return binary.resolve()

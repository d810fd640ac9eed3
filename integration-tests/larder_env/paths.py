"""Where things are: the checkout, the cache that `scripts/setup.sh` fills, the binary under test."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FEATURE_REPO = CHECKOUT / "feature_repo"
POMS = CHECKOUT / "integration-tests"


class MissingError(RuntimeError):
    """Something that the machine must have is not there; the message says how to get it."""


def cache() -> Path:
    """`LARDER_CACHE`, or ~/.cache/larder: the same rule as in scripts/setup.sh."""
    return Path(os.environ.get("LARDER_CACHE") or Path.home() / ".cache" / "larder")


def jars(server: str) -> Path:
    """The folder of the jars of `kafka` or `s3`, for the pinned pom.xml."""
    key = hashlib.sha256((POMS / server / "pom.xml").read_bytes()).hexdigest()[:12]
    folder = cache() / f"{server}-{key}"
    if not (folder / ".complete").exists():
        raise MissingError(f"the jars of {server} are not in {folder}: run `make setup` (needs Maven and Java 17)")
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

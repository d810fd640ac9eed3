"""`larder serve` as an operator sees it: starting, stopping, configuration, TLS, registry files, telemetry."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pandas as pd
import pytest
import requests
import yaml
from feast import FeatureStore
from feast.errors import FeatureViewNotFoundException
from feast.protos.feast.registry.RegistryServer_pb2 import GetFeatureViewRequest
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from feast.protos.feast.serving.GrpcServer_pb2 import PushRequest
from feast.protos.feast.serving.ServingService_pb2 import GetFeastServingInfoRequest
from feast.protos.feast.serving.ServingService_pb2_grpc import ServingServiceStub
from feast.types import Int64
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import rides
from conftest import StartLarder
from faces import Grpc, Http, RefusedError, now, typed
from larder_env.process import ProcessError, free_ports, wait_until
from larder_env.repo import store, write_client, write_feast
from larder_env.server import HOST, Larder, Ports
from online import metric
from otlp import collector
from rides import Rides, fresh, stats
from synthetic import SyntheticRepo

AT = now() - timedelta(hours=1)
SERVICES = ("online", "registry", "offline")


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as attempt:
        return attempt.connect_ex((HOST, port)) == 0


def run(binary: Path, *args: str | Path) -> tuple[int, str]:
    """Run the binary to its end: exit code and standard error."""
    done = subprocess.run([binary, *args], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


# --- starting and stopping ---------------------------------------------------------------------------------------


def test_one_log_line_per_listener(repo: SyntheticRepo, larder: StartLarder) -> None:
    began = time.monotonic()
    server = larder(repo.path)
    print(f"ready after {time.monotonic() - began:.3f} s (a debug build, a busy machine)")
    ports = server.ports
    wait_until(lambda: " ready " in server.log, "the line that says ready")
    lines = [line for line in server.log.splitlines() if " listening " in line]
    wanted = {"online": ports.online, "registry": ports.registry, "offline": ports.offline, "metrics": ports.metrics}
    assert len(lines) == len(wanted)
    for service, port in wanted.items():
        assert [line for line in lines if f'service="{service}"' in line and f"{HOST}:{port}" in line], lines


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(repo: SyntheticRepo, larder: StartLarder, how: signal.Signals) -> None:
    server = larder(repo.path)
    assert server.process.end(how, 20) == 0
    assert how.name in server.log
    assert server.log.splitlines()[-1].endswith("stopped")
    assert not any(listens(port) for port in vars(server.ports).values())


def test_a_request_in_flight_is_answered_before_it_stops(tmp_path: Path, larder: StartLarder) -> None:
    served = Rides.start(tmp_path / "repo", larder)
    driver, server = fresh(), served.larder
    body = json.dumps(
        {"push_source_name": "driver_stats_push", "df": {k: [v] for k, v in stats(driver, 1, AT).items()}},
        default=str,
    ).encode()
    head = f"POST /push HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n"
    with socket.create_connection((HOST, server.ports.online), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100"), "the server reads the body: the request is in flight"
        connection.sendall(body[:50])
        server.process.signal(signal.SIGTERM)
        wait_until(lambda: not listens(server.ports.online), "the listener to close")
        assert server.process.running, "it waits for the request in flight"
        connection.sendall(body[50:])
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert server.process.wait(20) == 0
    server.start()
    answered = Http(server).read(["driver_stats:trips"], {"driver_id": [driver]})
    assert answered.values("trips") == [1]


def test_data_survive_a_restart(tmp_path: Path, larder: StartLarder) -> None:
    served = Rides.start(tmp_path / "repo", larder)
    driver = fresh()
    served.store.push("driver_stats_push", pd.DataFrame([stats(driver, 42, AT)]))
    views = {view.name for view in served.store.list_feature_views()}
    served.larder.restart()
    again = store(served.path)
    assert {view.name for view in again.list_feature_views()} == views
    for face in (Http(served.larder), Grpc(served.larder)):
        cell = face.read(["driver_stats:trips"], {"driver_id": [driver]})["trips"][0]
        assert (cell.value, cell.status) == (42, "PRESENT")


def test_it_says_what_it_is(larder_binary: Path) -> None:
    done = subprocess.run([larder_binary, "--version"], capture_output=True, text=True, timeout=30, check=True)
    # the commit stands behind the version where it was built in a checkout (as `git describe` has it)
    assert re.fullmatch(r"larder \d+\.\d+\.\d+( \([^ ()]+\))?\n", done.stdout)


# --- parts of it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", [["online"], ["registry"], ["offline"], ["online", "registry"], ["ingest"]], ids=",".join
)
def test_only_the_services_asked_for_listen(repo: SyntheticRepo, larder: StartLarder, asked: list[str]) -> None:
    server = larder(repo.path, args=["--services", ",".join(asked)])
    ports = server.ports
    listening = {name for name in SERVICES if listens(getattr(ports, name))}
    assert listening == set(asked) - {"ingest"}
    assert "# TYPE" in server.metrics() or server.metrics() == ""
    assert server.stop() == 0


def test_a_registry_alone_takes_feast_apply(repo: SyntheticRepo, larder: StartLarder) -> None:
    larder(repo.path, args=["--services", "registry"])
    repo.apply()
    assert [view.name for view in store(repo.path).list_feature_views()] == ["driver_stats"]


def test_an_online_server_alone_serves_what_was_registered_before(tmp_path: Path, larder: StartLarder) -> None:
    served = Rides.start(tmp_path / "repo", larder)
    assert served.larder.stop() == 0
    alone = larder(served.path, args=["--services", "online"])
    http, driver = Http(alone), fresh()
    http.push("driver_stats_push", [stats(driver, 3, AT)])
    assert http.read(["driver_stats:trips"], {"driver_id": [driver]}).values("trips") == [3]
    with pytest.raises(RefusedError, match="no offline side") as refused:
        http.push("driver_stats_push", [stats(driver, 4, AT)], to="offline")
    assert refused.value.code == 400
    times = {"start_ts": "2026-01-01", "end_ts": "2026-01-02"}
    assert alone.post("/materialize", times).status_code == 400


# --- what cannot be started --------------------------------------------------------------------------------------

LOCAL = "project: p\nregistry: data/registry.db\nonline_store:\n  type: sqlite\n"
BAD: dict[str, tuple[str, str, int, str]] = {
    "unknown key": ("larder.yaml", "project: p\nonlin_port: 1\n", 2, "onlin_port"),
    "unknown inner key": ("larder.yaml", "project: p\nlimits:\n  max_body: 1\n", 3, "max_body"),
    "no number": ("larder.yaml", "project: p\nonline_port: many\n", 2, "online_port"),
    "no port": ("larder.yaml", "project: p\nonline_port: 70000\n", 2, "online_port"),
    "negative": ("larder.yaml", "project: p\nlimits:\n  max_entities: -1\n", 3, "limits.max_entities"),
    "unknown engine": ("larder.yaml", "project: p\nonline_store:\n  type: dynamodb\n", 3, "online_store"),
    "unknown durability": (
        "larder.yaml",
        "project: p\nonline_store:\n  type: sled\n  durability: maybe\n",
        4,
        "online_store.durability",
    ),
    "unknown format": ("larder.yaml", "project: p\ntelemetry:\n  log_format: xml\n", 3, "log_format"),
    "no project": ("larder.yaml", "host: 127.0.0.1\n", 1, "project"),
    "empty project": ("larder.yaml", "project: ''\n", 1, "project"),
    "no YAML": ("larder.yaml", "project: p\nhost: [\n", 2, "host"),
    "Feast without a project": ("feature_store.yaml", "provider: local\n", 1, "project"),
    "Feast on SQL": ("feature_store.yaml", "project: p\nregistry:\n  registry_type: sql\n  path: x\n", 3, "sql"),
    "Feast on DynamoDB": ("feature_store.yaml", "project: p\nonline_store: dynamodb\n", 2, "dynamodb"),
    "Feast on BigQuery": ("feature_store.yaml", LOCAL + "offline_store:\n  type: bigquery\n", 6, "bigquery"),
    "old entity keys": ("feature_store.yaml", LOCAL + "entity_key_serialization_version: 2\n", 5, "entity_key"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_names_key_file_and_line(tmp_path: Path, larder_binary: Path, case: str) -> None:
    name, text, line, key = BAD[case]
    (tmp_path / name).write_text(text)
    code, said = run(larder_binary, "serve", "-c", tmp_path)
    assert code == 2
    assert f"{tmp_path / name}:{line}: " in said
    assert key in said
    assert not (tmp_path / "data").exists(), "nothing is started on a doubtful configuration"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--services", "online,nope"], "[possible values: online, registry, offline, ingest]"),
        (["--online-port", "70000"], "--online-port"),
        (["--tls-cert", "a.pem"], "--tls-key"),
        (["--nope"], "--nope"),
    ],
)
def test_bad_flags(repo: SyntheticRepo, larder_binary: Path, args: Sequence[str], word: str) -> None:
    code, said = run(larder_binary, "serve", "-c", repo.path, *args)
    assert code == 2
    assert word in said


def test_a_directory_without_a_configuration(tmp_path: Path, larder_binary: Path) -> None:
    code, said = run(larder_binary, "serve", "-c", tmp_path)
    assert code == 2
    assert str(tmp_path) in said
    assert "neither larder.yaml nor feature_store.yaml" in said


@pytest.mark.parametrize("service", ["online", "registry", "offline", "metrics"])
def test_a_port_in_use_is_named(repo: SyntheticRepo, larder: StartLarder, service: str) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ProcessError, match="exited with 1 at once") as failed:
            larder(repo.path, ports=replace(Ports.free(), **{service: port}))
    assert f"cannot listen on {HOST}:{port} for the {service} service" in str(failed.value)
    assert "Address already in use" in str(failed.value)


def test_two_servers_on_the_same_data(repo: SyntheticRepo, larder: StartLarder) -> None:
    first = larder(repo.path)
    with pytest.raises(ProcessError, match="exited with 1 at once") as failed:
        larder(repo.path, ports=Ports.free(), log=repo.path / "second.log")
    assert str(repo.path / "data") in str(failed.value)
    assert first.healthy()


def test_a_host_that_is_none_of_ours(repo: SyntheticRepo, larder_binary: Path) -> None:
    any_port = [f"--{service}-port=0" for service in (*SERVICES, "metrics")]
    code, said = run(larder_binary, "serve", "-c", repo.path, "--host", "192.0.2.1", *any_port)
    assert code == 1
    assert "cannot listen on 192.0.2.1:0" in said


# --- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "server.pem", directory / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", f"subjectAltName=DNS:localhost,IP:{HOST}"),
            *("-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.mark.parametrize("by", ["flags", "larder.yaml"])
def test_tls_on_every_port_but_the_metrics(
    repo: SyntheticRepo, larder: StartLarder, certificate: tuple[Path, Path], by: str
) -> None:
    cert, key = certificate
    client = yaml.safe_load((repo.path / "feature_store.yaml").read_text())
    client["registry"]["cert"] = client["online_store"]["cert"] = client["offline_store"]["cert"] = str(cert)
    client["online_store"]["path"] = client["online_store"]["path"].replace("http:", "https:")
    client["offline_store"]["scheme"] = "https"
    (repo.path / "feature_store.yaml").write_text(yaml.safe_dump(client))
    args = ["--tls-cert", str(cert), "--tls-key", str(key)]
    if by == "larder.yaml":
        config = {"project": "drivers", "tls": {"cert": str(cert), "key": str(key)}}
        (repo.path / "larder.yaml").write_text(yaml.safe_dump(config))
        args = []
    server = larder(repo.path, args=args, cert=cert)

    sdk = repo.apply()
    sdk.push("driver_push", pd.DataFrame([repo.rows_at(47)[0] | {"trips": 7}]))
    got = sdk.get_online_features(["driver_stats:trips"], [{"driver_id": 1001}]).to_dict()
    assert got == {"driver_id": [1001], "trips": [7]}
    rows = pd.DataFrame({"driver_id": [1001], "event_timestamp": [repo.newest]})
    assert sdk.get_historical_features(rows, ["driver_stats:trips"]).to_df().trips.tolist() == [147]
    credentials = grpc.ssl_channel_credentials(cert.read_bytes())
    with grpc.secure_channel(f"{HOST}:{server.ports.online}", credentials) as channel:
        assert ServingServiceStub(channel).GetFeastServingInfo(GetFeastServingInfoRequest(), timeout=10).version

    assert "larder_requests_total" in server.metrics()
    for port in (server.ports.online, server.ports.registry, server.ports.offline):
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{HOST}:{port}/health", timeout=5)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{server.online_url}/health", timeout=5)
    assert server.healthy()


def test_tls_files_that_cannot_be_used(
    repo: SyntheticRepo, larder: StartLarder, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    missing = repo.path / "missing.pem"
    for tls_cert, tls_key, named in ((missing, key, missing), (cert, missing, missing), (cert, cert, cert)):
        with pytest.raises(ProcessError, match="exited with 1 at once") as failed:
            larder(repo.path, args=["--tls-cert", str(tls_cert), "--tls-key", str(tls_key)])
        assert f"TLS: {named}" in str(failed.value)


# --- a Feast repository as it is ---------------------------------------------------------------------------------


def feast_repo(path: Path, registry: object = "data/registry.db") -> Ports:
    """A local Feast repo as `feast init` makes it (no larder.yaml), with the synthetic drivers; the ports to use."""
    write_feast(path, "drivers", registry=registry)
    return Ports.free()


def test_a_feast_repo_is_served_as_it_is(tmp_path: Path, larder: StartLarder) -> None:
    """The registry that `feast apply` wrote locally is the truth, and the rows are those in its SQLite file."""
    path = tmp_path / "repo"
    ports = feast_repo(path)
    synthetic = SyntheticRepo.create(path)
    local = synthetic.apply()
    server = larder(path, ports=ports)
    assert "WARN" not in server.log, "nothing of the file is read otherwise than Feast does"
    times = {"start_ts": (synthetic.newest - timedelta(days=3)).isoformat(), "end_ts": now().isoformat()}
    assert server.post("/materialize", times).status_code == 200
    for driver in (1001, 1005, 4711):
        refs = ["driver_stats:trips", "driver_stats:rating"]
        theirs = local.get_online_features(refs, [{"driver_id": driver}]).to_dict()
        ours = Http(server).read(refs, {"driver_id": [driver]})
        assert {name: ours.values(name) for name in ours.names} == theirs


def test_a_registry_file_that_changes(tmp_path: Path, larder: StartLarder) -> None:
    """A request that allows no cache sees the change at once; others when somebody has."""
    path = tmp_path / "repo"
    ports = feast_repo(path, {"registry_type": "file", "path": "data/registry.db", "cache_ttl_seconds": 600})
    synthetic = SyntheticRepo.create(path)
    server = larder(path, ports=ports)
    with grpc.insecure_channel(f"{HOST}:{ports.registry}") as channel:
        registry = RegistryServerStub(channel)

        def knows(name: str, allow_cache: bool) -> bool:
            request = GetFeatureViewRequest(name=name, project="drivers", allow_cache=allow_cache)
            call = registry.GetFeatureView.future(request, timeout=10)
            assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
            return call.code() == grpc.StatusCode.OK and call.result().spec.name == name

        assert not knows("driver_stats", allow_cache=False), "there is no file yet"
        local = synthetic.apply()
        assert not knows("driver_stats", allow_cache=True), "the cache is good for ten minutes"
        assert knows("driver_stats", allow_cache=False)
        assert knows("driver_stats", allow_cache=True)

        driver = synthetic.objects()[0]
        local.apply([driver, rides.pushed_view("later", [driver], timedelta(0), {"height": Int64})])  # type: ignore[list-item]
        http, row = Http(server), {"driver_id": 1, "height": 3, "event_timestamp": AT, "created": AT}
        with pytest.raises(RefusedError, match="later_push"):
            http.push("later_push", [row])
        request = PushRequest(
            stream_feature_view="later_push",
            typed_features={name: typed(value) for name, value in row.items()},
            to="online",
            allow_registry_cache=False,
        )
        assert Grpc(server).feature_server.Push(request, timeout=10).status
        assert http.read(["later:height"], {"driver_id": [1]}).values("height") == [3]

        local.delete_feature_view("later")
        assert not knows("later", allow_cache=False)


def test_a_registry_file_is_read_again_after_its_time(tmp_path: Path, larder: StartLarder) -> None:
    path = tmp_path / "repo"
    ports = feast_repo(path, {"registry_type": "file", "path": "data/registry.db", "cache_ttl_seconds": 1})
    synthetic = SyntheticRepo.create(path)
    server = larder(path, ports=ports)
    synthetic.apply()
    body = {"features": ["driver_stats:trips"], "entities": {"driver_id": [1001]}}
    wait_until(
        lambda: server.post("/get-online-features", body).status_code == 200, "the registry to be read again", 15
    )


def test_what_is_applied_through_the_server_is_in_the_file(tmp_path: Path, larder: StartLarder) -> None:
    path, client = tmp_path / "repo", tmp_path / "client"
    ports = feast_repo(path)
    larder(path, ports=ports)
    synthetic = SyntheticRepo.create(client)
    write_client(client, "drivers", ports)
    synthetic.apply()
    local = FeatureStore(repo_path=str(path))
    assert [view.name for view in local.list_feature_views()] == ["driver_stats"]
    assert local.get_feature_view("driver_stats") == synthetic.store().get_feature_view("driver_stats")
    with pytest.raises(FeatureViewNotFoundException):
        local.get_feature_view("nope")


# --- telemetry ---------------------------------------------------------------------------------------------------

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(scope="module")
def served(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """The rides on a server that the tests of telemetry share."""
    return Rides.start(tmp_path_factory.mktemp("telemetry") / "repo", module_larder)


def total(server: Larder, name: str, **labels: str) -> float:
    """The sum of a metric's samples."""
    return sum(metric(server, name, **labels))


def test_metrics_count_what_was_done(served: Rides) -> None:
    server, http, rpc, driver = served.larder, Http(served.larder), Grpc(served.larder), fresh()

    def counts() -> dict[str, float]:
        read = {"service": "online", "endpoint": "/get-online-features"}
        push = {"service": "online", "endpoint": "/push"}
        stub = {"service": "online", "endpoint": "/feast.serving.ServingService/GetOnlineFeatures"}
        return {
            "reads": total(server, "larder_requests_total", **read, status="200"),
            "timed reads": total(server, "larder_request_seconds_count", **read),
            "failed reads": total(server, "larder_request_errors_total", **read, status="404"),
            "pushes": total(server, "larder_requests_total", **push, status="200"),
            "gRPC reads": total(server, "larder_requests_total", **stub, status="OK"),
            "timed gRPC reads": total(server, "larder_request_seconds_count", **stub),
            "failed gRPC reads": total(server, "larder_request_errors_total", **stub, status="NOT_FOUND"),
            "rows written": total(server, "larder_online_rows_written_total", result="applied"),
            "stale rows": total(server, "larder_online_rows_written_total", result="stale"),
            "rows found": total(server, "larder_online_rows_read_total", result="found"),
            "rows missing": total(server, "larder_online_rows_read_total", result="missing"),
        }

    before = counts()
    http.push("driver_stats_push", [stats(driver, 1, AT), stats(driver + 1, 1, AT), stats(driver + 2, 1, AT)])
    http.push("driver_stats_push", [stats(driver, 0, AT - timedelta(minutes=1))])
    http.read(["driver_stats:trips"], {"driver_id": [driver, driver + 1, driver, -7]})
    with pytest.raises(RefusedError):
        http.read(["nope:trips"], {"driver_id": [driver]})
    with pytest.raises(RefusedError):
        rpc.read(["nope:trips"], {"driver_id": [driver]})
    rpc.read(["driver_stats:trips"], {"driver_id": [driver]})  # asks both of gRPC's services
    grown = {name: value - before[name] for name, value in counts().items()}
    assert grown == {
        "reads": 1,
        "timed reads": 2,
        "failed reads": 1,
        "pushes": 2,
        "gRPC reads": 1,
        "timed gRPC reads": 2,
        "failed gRPC reads": 1,
        "rows written": 3,
        "stale rows": 1,
        "rows found": 2 + 2,
        "rows missing": 1,
    }


def test_a_client_cannot_make_up_labels(served: Rides) -> None:
    server = served.larder
    for path in ("/made-up-1", "/feast.serving.ServingService/MadeUp2", "/push/made-up-3", "/made.Up4/Call"):
        requests.post(f"{server.online_url}{path}", data=b"", timeout=10)
        with grpc.insecure_channel(f"{HOST}:{server.ports.registry}") as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(path, None, None)(b"", timeout=10)
    page = server.metrics()
    assert not re.search(r"made.?up", page, re.IGNORECASE)
    assert 'endpoint="unknown"' in page


def test_the_callers_trace_comes_back(served: Rides) -> None:
    server = served.larder
    response = requests.get(f"{server.online_url}/health", headers={"traceparent": TRACEPARENT}, timeout=10)
    assert re.fullmatch(rf"00-{TRACE}-(?!{PARENT})[0-9a-f]{{16}}-01", response.headers["traceparent"])
    for port, stub, request in (
        (server.ports.online, "/feast.serving.ServingService/GetFeastServingInfo", b""),
        (server.ports.registry, "/feast.registry.RegistryServer/Refresh", b""),
    ):
        with grpc.insecure_channel(f"{HOST}:{port}") as channel:
            call = channel.unary_unary(stub, None, None)
            _, done = call.with_call(request, metadata=[("traceparent", TRACEPARENT)], timeout=10)
            returned = dict(done.initial_metadata())["traceparent"]
            assert re.fullmatch(rf"00-{TRACE}-(?!{PARENT})[0-9a-f]{{16}}-01", returned)


@pytest.mark.parametrize("sent", ["nonsense", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_callers_trace_that_is_none_is_replaced(served: Rides, sent: str) -> None:
    response = requests.get(f"{served.larder.online_url}/health", headers={"traceparent": sent}, timeout=10)
    found = re.fullmatch(r"00-([0-9a-f]{32})-[0-9a-f]{16}-0[01]", response.headers["traceparent"])
    assert found
    assert set(found[1]) != {"0"}


def test_without_collector_and_caller_there_is_no_trace(served: Rides) -> None:
    assert "traceparent" not in requests.get(f"{served.larder.online_url}/health", timeout=10).headers


def test_spans_are_exported_to_a_collector(tmp_path: Path, larder: StartLarder) -> None:
    with collector() as found:
        served = Rides.start(tmp_path / "repo", larder, env={"OTEL_EXPORTER_OTLP_ENDPOINT": found.endpoint})
        headers = {"traceparent": TRACEPARENT}
        body = {"features": ["driver_stats:trips"], "entities": {"driver_id": [1]}}
        assert served.larder.post("/get-online-features", body, headers=headers).status_code == 200
        assert served.larder.stop() == 0, "what is not exported yet is exported at the end"
        ours = [span for span in found.spans if span.trace == TRACE]
        assert [(span.parent, span.service) for span in ours if span.parent == PARENT] == [(PARENT, "larder")]
        assert any(span.attributes.get("endpoint") == "/get-online-features" for span in ours)
        others = [span for span in found.spans if span.trace != TRACE]
        assert any("RegistryServer" in span.attributes.get("endpoint", "") for span in others)


def test_a_collector_that_is_not_there_harms_nobody(tmp_path: Path, larder: StartLarder) -> None:
    endpoint = f"http://{HOST}:{free_ports(1)[0]}"
    served = Rides.start(tmp_path / "repo", larder, env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    assert Http(served.larder).read(["driver_stats:trips"], {"driver_id": [1]}).statuses("trips") == ["NOT_FOUND"]
    assert served.larder.stop() == 0


def test_logs_as_json(repo: SyntheticRepo, larder: StartLarder) -> None:
    (repo.path / "larder.yaml").write_text("project: drivers\ntelemetry: {log_format: json, log: info}\n")
    server = larder(repo.path)
    repo.apply()
    server.stop()
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert {line["level"] for line in lines} == {"INFO"}
    listening = [line["fields"] for line in lines if line["fields"]["message"] == "listening"]
    assert {fields["service"] for fields in listening} == {"online", "registry", "offline", "metrics"}


# --- gRPC's own services -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "services"),
    [
        ("online", ["", "feast.serving.ServingService", "GrpcFeatureServer"]),
        ("registry", ["", "feast.registry.RegistryServer"]),
    ],
)
def test_grpc_health(served: Rides, port: str, services: list[str]) -> None:
    with grpc.insecure_channel(f"{HOST}:{getattr(served.larder.ports, port)}") as channel:
        for service in services:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=10)
            assert answer.status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            HealthStub(channel).Check(HealthCheckRequest(service="nope"), timeout=10)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("port", "services"),
    [
        ("online", {"feast.serving.ServingService", "GrpcFeatureServer", "grpc.health.v1.Health"}),
        ("registry", {"feast.registry.RegistryServer", "grpc.health.v1.Health"}),
    ],
)
def test_grpc_reflection(served: Rides, port: str, services: set[str]) -> None:
    """What a tool like grpcurl does: list the services, and learn a method's request from the server."""
    with grpc.insecure_channel(f"{HOST}:{getattr(served.larder.ports, port)}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        found = set(database.get_services())
        assert {name for name in found if not name.startswith("grpc.reflection.")} == services
        pool = DescriptorPool(database)
        for service in services - {"grpc.health.v1.Health"}:
            assert pool.FindServiceByName(service).methods[0].input_type.fields is not None

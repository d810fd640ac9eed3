"""Several projects on one server: the same names in each, and nothing of one is ever seen in another.

A request names its project in the header `feast-project` (gRPC: metadata) or, over HTTP, in the path, which an
unmodified SDK can do: `path: http://host:6566/projects/NAME`. Without a name it is for the server's own project.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pandas as pd
import pytest
import requests
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, KafkaSource, ValueType
from feast.data_format import JsonFormat
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from feast.types import Int64, String

import rides
from conftest import StartLarder
from faces import Face, Grpc, Http, RefusedError, Sdk
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store, write_feast
from larder_env.server import HOST, Ports
from larder_env.topics import Topic
from online import metric
from rides import DRIVER, Rides, badge, fresh, pushed_view, stats
from stores import STORES, settings_of

AT = (datetime.now(UTC) - timedelta(hours=1)).replace(microsecond=0)
OTHER = "other"


def store_of(repo: Path, project: str, ports: Ports) -> FeatureStore:
    """The SDK for a project of the server at these ports: all it needs is a feature_store.yaml."""
    write_feast(
        repo,
        project,
        registry={"registry_type": "remote", "path": f"{HOST}:{ports.registry}"},
        online_store={"type": "remote", "path": f"http://{HOST}:{ports.online}/projects/{project}"},
        offline_store={"type": "remote", "host": HOST, "port": ports.offline},
    )
    return store(repo)


@pytest.fixture(scope="module", params=STORES)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Every store in turn."""
    with settings_of(request.param, tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture(scope="module")
def served(settings: str, module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """A server with the rides in its own project, and in another one."""
    path = tmp_path_factory.mktemp("projects")
    served = Rides.start(path / "repo", module_larder, settings)
    other = store_of(path / "other", OTHER, served.larder.ports)
    other.apply(rides.objects())  # type: ignore[arg-type]
    return served


WAYS: dict[str, Callable[[Rides, str], Face]] = {
    "http header": lambda served, project: Http(served.larder, headers={"feast-project": project}),
    "http path": lambda served, project: Http(served.larder, prefix=f"/projects/{project}"),
    "both": lambda s, project: Http(s.larder, f"/projects/{project}", {"feast-project": project}),
    "grpc": lambda served, project: Grpc(served.larder, metadata=[("feast-project", project)]),
    "sdk": lambda s, project: Sdk(store_of(s.path / f"as_{project}", project, s.larder.ports)),
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_one_project_are_not_those_of_another(served: Rides, way: str) -> None:
    driver, ours, theirs = fresh(), WAYS[way](served, rides.PROJECT), WAYS[way](served, OTHER)
    both = {"driver_id": [driver]}
    theirs.push("driver_stats_push", [stats(driver, 7, AT)])
    for face in (ours, Http(served.larder), Grpc(served.larder)):
        assert face.read(["driver_stats:trips"], both).statuses("trips") == ["NOT_FOUND"]
    ours.write("driver_stats", [stats(driver, 1, AT - timedelta(minutes=1))])
    assert theirs.read(["driver_stats:trips"], both).values("trips") == [7], "an older row of another project"
    for face in (ours, Http(served.larder), Grpc(served.larder), Sdk(served.store)):
        assert face.read(["driver_stats:trips"], both).values("trips") == [1]
        assert face.read("two_views", both | {"rider_id": ["ann"]}).values("trips") == [1]
    assert theirs.read("two_views", both | {"rider_id": ["ann"]}).values("trips") == [7]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "sdk"])
def test_a_project_that_is_not_there(served: Rides, way: str) -> None:
    face = WAYS[way](served, "nowhere")
    calls: list[Callable[[], object]] = [
        lambda: face.read(["driver_stats:trips"], {"driver_id": [1]}),
        lambda: face.push("driver_stats_push", [stats(1, 1, AT)]),
        lambda: face.write("driver_stats", [stats(1, 1, AT)]),
    ]
    for call in calls:
        with pytest.raises(RefusedError) as refused:
            call()
        assert refused.value.error_class == "ProjectObjectNotFoundException"
        assert refused.value.message == "Project nowhere does not exist"
        assert refused.value.code == (grpc.StatusCode.NOT_FOUND if way == "grpc" else 404)
    assert not metric(served.larder, "larder_online_features_rows_total", project="nowhere"), "no series for it"


def test_a_path_and_a_header_that_disagree(served: Rides) -> None:
    with pytest.raises(RefusedError, match="name one") as refused:
        Http(served.larder, f"/projects/{OTHER}", {"feast-project": rides.PROJECT}).read(["v:f"], {"driver_id": [1]})
    assert refused.value.code == 422


@pytest.mark.parametrize("name", ["", "a%2Fb", "%00", "%F0%9F%9A%95", "x" * 2000])
def test_odd_names_are_just_not_there(served: Rides, name: str) -> None:
    body = {"features": ["v:f"], "entities": {"driver_id": [1]}}
    assert served.larder.post(f"/projects/{name}/get-online-features", body).status_code == 404


def test_every_project_has_its_own_registry_revision_and_features(served: Rides) -> None:
    """The same references, planned for each project by itself: they may even have other types."""
    driver = fresh()
    view = pushed_view(f"v{driver}", [DRIVER], timedelta(0), {"value": Int64})
    served.store.apply([view])
    other = store(served.path.parent / "other")
    other.apply([pushed_view(f"v{driver}", [DRIVER], timedelta(0), {"value": String, "more": Int64})])
    ours, theirs = Http(served.larder), Http(served.larder, prefix=f"/projects/{OTHER}")
    row = {"driver_id": driver, "event_timestamp": AT, "created": AT}
    ours.push(f"v{driver}_push", [row | {"value": 5}])
    theirs.push(f"v{driver}_push", [row | {"value": "five", "more": 6}])
    assert ours.read([f"v{driver}:value"], {"driver_id": [driver]}).values("value") == [5]
    assert theirs.read([f"v{driver}:value"], {"driver_id": [driver]}).values("value") == ["five"]
    with pytest.raises(RefusedError, match="more"):
        ours.read([f"v{driver}:more"], {"driver_id": [driver]})


def test_metrics_tell_projects_apart(served: Rides) -> None:
    driver, other = fresh(), Http(served.larder, prefix=f"/projects/{OTHER}")

    def counts(project: str) -> list[float]:
        of: tuple[tuple[str, dict[str, str]], ...] = (
            ("larder_online_features_rows_total", {}),
            ("larder_pushed_rows_total", {"verb": "push"}),
        )
        return [sum(metric(served.larder, name, project=project, **labels)) for name, labels in of]

    before = [counts(rides.PROJECT), counts(OTHER)]
    other.push("driver_stats_push", [stats(driver, n, AT) for n in range(3)])
    other.read(["driver_stats:trips"], {"driver_id": [driver, driver]})
    assert counts(rides.PROJECT) == before[0]
    assert counts(OTHER) == [before[1][0] + 2, before[1][1] + 3]


def test_health_is_the_same_under_a_path(served: Rides) -> None:
    assert requests.get(f"{served.larder.online_url}/projects/{OTHER}/health", timeout=5).status_code == 200


# --- materialization, deletes, streams: each on a server of its own ------------------------------------------------


def two(path: Path, larder: StartLarder, settings: str = "", **options: object) -> tuple[Rides, FeatureStore]:
    """A server with the rides in its own project, and in another one."""
    served = Rides.start(path / "repo", larder, settings, **options)
    other = store_of(path / "other", OTHER, served.larder.ports)
    other.apply(rides.objects())  # type: ignore[arg-type]
    return served, other


def test_a_materialization_is_of_one_project(tmp_path: Path, larder: StartLarder) -> None:
    served, other = two(tmp_path, larder)
    start, end = datetime(2019, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
    body = {"start_ts": start.isoformat(), "end_ts": end.isoformat(), "feature_views": ["driver_stats"]}
    answered = served.larder.post(f"/projects/{OTHER}/materialize", body)
    assert answered.status_code == 200, answered.text
    asked: tuple[list[str], dict[str, list[object]]] = (["driver_stats:trips"], {"driver_id": [1]})
    assert Http(served.larder).read(*asked).statuses("trips") == ["NOT_FOUND"]
    assert Http(served.larder, f"/projects/{OTHER}").read(*asked).statuses("trips") == ["OUTSIDE_MAX_AGE"]
    assert other.get_feature_view("driver_stats").materialization_intervals == [(start, end)]
    assert served.store.get_feature_view("driver_stats").materialization_intervals == []


@pytest.mark.parametrize("what", ["view", "project"])
def test_a_delete_is_of_one_project(tmp_path: Path, larder: StartLarder, what: str) -> None:
    served, _ = two(tmp_path, larder)
    ours, theirs = Http(served.larder), Http(served.larder, f"/projects/{OTHER}")
    for face, trips in ((ours, 1), (theirs, 2)):
        face.push("driver_stats_push", [stats(7, trips, AT)])
        face.push("driver_forever_push", [badge(7, trips, AT)])
    asked: tuple[list[str], dict[str, list[object]]] = (["driver_stats:trips"], {"driver_id": [7]})
    theirs.read(*asked)
    stub = RegistryServerStub(grpc.insecure_channel(f"{HOST}:{served.larder.ports.registry}"))
    if what == "view":
        stub.DeleteFeatureView(pb.DeleteFeatureViewRequest(name="driver_stats", project=OTHER))
    else:
        stub.DeleteProject(pb.DeleteProjectRequest(name=OTHER))
    gone = 1 if what == "view" else 2
    wait_until(lambda: sum(metric(served.larder, "larder_online_cleared_rows_total")) == gone, "the rows to be removed")
    with pytest.raises(RefusedError, match="does not exist") as refused:
        theirs.read(*asked)
    assert refused.value.code == 404
    assert ours.read(*asked).values("trips") == [1]
    assert ours.read(["driver_forever:trips"], {"driver_id": [7]}).values("trips") == [1]
    # and it may come back, without what it had
    store(tmp_path / "other").apply(rides.objects())  # type: ignore[arg-type]
    assert theirs.read(*asked).statuses("trips") == ["NOT_FOUND"]


def test_only_the_projects_that_are_named(tmp_path: Path, larder: StartLarder) -> None:
    served, _ = two(tmp_path, larder, "projects: [third]\n")
    asked: tuple[list[str], dict[str, list[object]]] = (["driver_stats:trips"], {"driver_id": [7]})
    assert Http(served.larder).read(*asked).statuses("trips") == ["NOT_FOUND"]
    assert WAYS["http path"](served, rides.PROJECT).read(*asked).statuses("trips") == ["NOT_FOUND"]
    for way in ("http header", "http path", "grpc"):
        with pytest.raises(RefusedError, match="Project other does not exist"):
            WAYS[way](served, OTHER).read(*asked)
    store_of(tmp_path / "third", "third", served.larder.ports).apply(rides.objects())  # type: ignore[arg-type]
    assert WAYS["grpc"](served, "third").read(*asked).statuses("trips") == ["NOT_FOUND"]


def test_pushes_and_reads_of_two_projects_at_once(tmp_path: Path, larder: StartLarder) -> None:
    """The same keys, written and read in both at the same time: every answer has its own project's sign."""
    served, _ = two(tmp_path, larder)
    faces = {1: Http(served.larder), -1: Http(served.larder, headers={"feast-project": OTHER})}
    errors: list[str] = []

    def drive(sign: int) -> None:
        for n in range(1, 60):
            rows = [stats(driver, sign * n, AT + timedelta(seconds=n)) for driver in range(20)]
            faces[sign].push("driver_stats_push", rows)
            found = faces[sign].read(["driver_stats:trips"], {"driver_id": list(range(20))}).values("trips")
            if found != [sign * n] * 20:
                errors.append(f"{sign}: {n}: {found}")

    threads = [threading.Thread(target=drive, args=(sign,)) for sign in faces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def streamed(topic: Topic) -> list[object]:
    """A view on a topic."""
    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
    source = KafkaSource(
        name="cards_stream",
        kafka_bootstrap_servers=topic.kafka.bootstrap_servers,
        topic=topic.name,
        timestamp_field="ts",
        watermark_delay_threshold=timedelta(minutes=5),
        message_format=JsonFormat(schema_json="card_id string, amount bigint, ts timestamp"),
        batch_source=FileSource(name="cards_file", path="data/cards.parquet", timestamp_field="ts"),
    )
    schema = [Field(name="card_id", dtype=String), Field(name="amount", dtype=Int64)]
    return [card, FeatureView(name="cards", entities=[card], ttl=timedelta(0), source=source, schema=schema)]


@pytest.mark.parametrize("only", [False, True])
def test_each_project_has_its_own_consumer(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka, only: bool
) -> None:
    """One view of the same name in each project, on another topic; `projects:` counts for consumers too."""
    settings = f"ingest: {{group_prefix: larder-{only}}}\n" + (f"projects: [{rides.PROJECT}]\n" if only else "")
    served, other = two(tmp_path, larder, settings)
    cards = {"card_id": ["c"], "amount": [1], "ts": pd.to_datetime([AT])}
    for path in (served.path, served.path.parent / "other"):
        (path / "data").mkdir(exist_ok=True)
        pd.DataFrame(cards).to_parquet(path / "data" / "cards.parquet", index=False)
    asked: tuple[list[str], dict[str, list[object]]] = (["cards:amount"], {"card_id": ["c1"]})
    mine, theirs = Topic(kafka), Topic(kafka)
    served.store.apply(streamed(mine))  # type: ignore[arg-type]
    other.apply(streamed(theirs))  # type: ignore[arg-type]
    for topic, amount in ((mine, 1), (theirs, 2)):
        topic.send([{"card_id": "c1", "amount": amount, "ts": AT.isoformat()}])
    ours = Http(served.larder)
    wait_until(lambda: ours.read(*asked).values("amount") == [1], "the message of the own project", 60)
    if only:
        assert not metric(served.larder, "larder_ingest_view_state", project=OTHER)
    else:
        there = Http(served.larder, prefix=f"/projects/{OTHER}")
        wait_until(lambda: there.read(*asked).values("amount") == [2], "the message of the other project", 60)
        assert ours.read(*asked).values("amount") == [1]

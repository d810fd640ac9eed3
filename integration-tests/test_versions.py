"""Versions of views: kept on apply, asked for as `view@v2:feature`, gone back to; beside Feast's own registry."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from feast import FeatureService, FeatureStore, FeatureView
from feast.errors import FeatureViewPinConflict
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as Proto
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from feast.repo_config import RegistryConfig, RepoConfig
from feast.types import Int64, String
from google.protobuf.empty_pb2 import Empty

from conftest import StartLarder
from faces import Face, Grpc, Http, RefusedError, Row
from larder_env.server import HOST, Larder
from rides import DRIVER, PROJECT, Rides, pushed_view

AT = datetime.now(UTC) - timedelta(hours=1)
ON = "registry: {type: sled, enable_online_feature_view_versioning: true}\n"


def view(*features: str, version: str = "latest", **tags: str) -> FeatureView:
    """A view of these int64 features (those in capitals are texts)."""
    made = pushed_view("v", [DRIVER], timedelta(0), {f: String if f.isupper() else Int64 for f in features})
    made.version, made.tags = version, tags
    return made


def row(driver: int, **features: object) -> Row:
    """A row to push."""
    return {"driver_id": driver, **features, "event_timestamp": AT, "created": AT}


def registry(larder: Larder) -> RegistryServerStub:
    """The registry's own calls."""
    return RegistryServerStub(grpc.insecure_channel(f"{HOST}:{larder.ports.registry}"))


def history(found: Registry) -> list[tuple[int, str, list[str]]]:
    """What is kept of `v`: number, type, features; every record with an id and a time of its own."""
    records = [r for r in found.feature_view_version_history.records if r.feature_view_name == "v"]
    assert len({r.version_id for r in records}) == len(records)
    assert all(r.created_timestamp.seconds for r in records)
    views = [Proto.FromString(r.feature_view_proto) for r in records]
    assert [v.meta.current_version_number for v in views] == [r.version_number for r in records]
    return sorted(
        (r.version_number, r.feature_view_type, sorted(f.name for f in v.spec.features if f.name != "driver_id"))
        for r, v in zip(records, views, strict=True)
    )


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder) -> Rides:
    """A server with versions online, where `v` has had three definitions and rows under each."""
    rides = Rides.start(tmp_path_factory.mktemp("versions") / "repo", module_larder, ON)
    http = Http(rides.larder)
    for features in ({"a": 1}, {"a": 2, "b": 20}, {"b": 30, "C": "three"}):
        rides.store.apply([view(*features)])
        http.push("v_push", [row(1, **features)])
    return rides


@pytest.fixture(params=["http", "grpc", "sdk"])
def asked(request: pytest.FixtureRequest, versioned: Rides) -> Face:
    """Every face in turn."""
    return versioned.face(request.param)


def test_every_version_is_read_from_its_own_table(asked: Face) -> None:
    answer = asked.read(["v@v0:a", "v@v1:a", "v@v1:b", "v@v2:b", "v:C"], {"driver_id": [1, 2]}, full_feature_names=True)
    assert answer.names == ["driver_id", "v@v0__a", "v@v1__a", "v@v1__b", "v@v2__b", "v__C"]
    found = {name: answer.values(name) for name in answer.names[1:]}
    assert found == {
        "v@v0__a": [1, None],
        "v@v1__a": [2, None],
        "v@v1__b": [20, None],
        "v@v2__b": [30, None],
        "v__C": ["three", None],
    }
    assert asked.read(["v@latest:b"], {"driver_id": [1]}).values("b") == [30]
    assert asked.read(["v@V1:b"], {"driver_id": [1]}).values("b") == [20]


def test_versions_collide_as_names_do(asked: Face) -> None:
    with pytest.raises(RefusedError) as refused:
        asked.read(["v@v0:a", "v@v1:a"], {"driver_id": [1]})
    assert refused.value.error_class == "FeatureNameCollisionError"


def test_a_version_that_is_not_kept_is_feasts_exception(versioned: Rides) -> None:
    for face in (Http(versioned.larder), Grpc(versioned.larder)):
        with pytest.raises(RefusedError) as refused:
            face.read(["v@v9:a"], {"driver_id": [1]})
        assert refused.value.error_class == "FeatureViewVersionNotFound"
        assert refused.value.message == f"Version v9 of feature view v does not exist in project {PROJECT}"
        assert refused.value.code in (404, grpc.StatusCode.NOT_FOUND)


def test_the_answer_tells_each_view_s_version(versioned: Rides) -> None:
    body = {
        "features": ["v@v1:a", "v:C"],
        "entities": {"driver_id": [1]},
        "include_feature_view_version_metadata": True,
    }
    metadata = versioned.larder.post("/get-online-features", body).json()["metadata"]
    assert metadata["feature_view_metadata"] == [{"name": "v", "version": 1}]


def test_a_service_may_hold_on_to_a_version(versioned: Rides) -> None:
    service = FeatureService(name="held", features=[view("a", "b")[["b"]]])
    service.feature_view_projections[0].version_tag = 1
    versioned.store.apply([service])
    for face in map(versioned.face, ("http", "grpc")):
        assert face.read("held", {"driver_id": [1]}).values("b") == [20]


def test_the_wire_offers_kept_versions(versioned: Rides) -> None:
    stub = registry(versioned.larder)
    assert history(stub.Proto(Empty())) == [
        (0, "feature_view", ["a"]),
        (1, "feature_view", ["a", "b"]),
        (2, "feature_view", ["C", "b"]),
    ]
    found = stub.GetFeatureView(pb.GetFeatureViewRequest(name="v@v1", project=PROJECT))
    assert {f.name for f in found.spec.features} >= {"a", "b"}
    assert found.meta.current_version_number == 1
    same = stub.GetAnyFeatureView(pb.GetAnyFeatureViewRequest(name="v@v1", project=PROJECT))
    assert same.any_feature_view.feature_view == found
    with pytest.raises(grpc.RpcError) as refused:
        stub.GetFeatureView(pb.GetFeatureViewRequest(name="v@v7", project=PROJECT))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_without_versioning_a_reference_says_what_to_set(tmp_path: Path, larder: StartLarder) -> None:
    rides = Rides.start(tmp_path / "repo", larder)
    rides.store.apply([view("a")])
    for face in (Http(rides.larder), Grpc(rides.larder)):
        with pytest.raises(RefusedError, match="Set 'enable_online_feature_view_versioning: true'"):
            face.read(["v@v0:a"], {"driver_id": [1]})


Step = Callable[[], FeatureView]
STEPS: list[tuple[str, Step]] = [
    ("new", lambda: view("a")),
    ("described", lambda: view("a", text="x")),
    ("changed", lambda: view("a", "b")),
    ("changed again", lambda: view("b", "C")),
    ("back", lambda: view("b", "C", version="v0")),
    ("forth", lambda: view("a", version="v2")),
    ("modified and pinned", lambda: view("z", version="v1")),
    ("ahead", lambda: view("d", version="version7")),
    ("goes on", lambda: view("e")),
]


def test_the_history_is_as_feasts_own_registry_keeps_it(tmp_path: Path, larder: StartLarder) -> None:
    rides = Rides.start(tmp_path / "repo", larder, ON)
    theirs = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry=RegistryConfig(path=str(tmp_path / "feast.db"), enable_online_feature_view_versioning=True),
            entity_key_serialization_version=3,
        )
    )
    theirs.registry.apply_entity(DRIVER, PROJECT)
    stub = registry(rides.larder)
    for name, make in STEPS:
        outcomes = []
        for store in (rides.store, theirs):
            try:
                store.registry.apply_feature_view(copy.copy(make()), PROJECT)
                outcomes.append("applied")
            except FeatureViewPinConflict as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], name
        assert history(stub.Proto(Empty())) == history(theirs.registry.proto()), name
        ours, feasts = (s.registry.get_feature_view("v", PROJECT) for s in (rides.store, theirs))
        assert [f.name for f in ours.features] == [f.name for f in feasts.features], name
        assert (ours.version, ours.tags) == (feasts.version, feasts.tags), name
    for store in (rides.store, theirs):
        store.registry.delete_feature_view("v", PROJECT)
    assert history(stub.Proto(Empty())) == history(theirs.registry.proto()) == []


def test_going_back_serves_the_old_table(tmp_path: Path, larder: StartLarder) -> None:
    rides = Rides.start(tmp_path / "repo", larder, ON)
    http = Http(rides.larder)
    rides.store.apply([view("a")])
    http.push("v_push", [row(1, a=1)])
    rides.store.apply([view("a", "b")])
    assert http.read(["v:a"], {"driver_id": [1]}).statuses("a") == ["NOT_FOUND"]
    http.push("v_push", [row(1, a=2, b=3)])
    rides.store.apply([view("a", "b", version="v0")])
    assert http.read(["v:a"], {"driver_id": [1]}).values("a") == [1]
    rides.larder.restart()
    assert http.read(["v:a", "v@v1:b"], {"driver_id": [1]}).values("b") == [3]
    rides.store.apply([view("a", "b")])
    assert http.read(["v:a"], {"driver_id": [1]}).statuses("a") == ["NOT_FOUND"], "a third version"

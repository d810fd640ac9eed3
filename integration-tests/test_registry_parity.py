"""Every reading call of the registry, beside Feast's own registry server with the same objects in it.

Compared field by field but for times. Where the two differ on purpose, the difference is named here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import yaml
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from conftest import StartLarder
from larder_env.process import Process, free_ports
from larder_env.repo import feast, store, write_config
from larder_env.server import Ports
from test_registry import APPLY, PROJECT, SERVICES, dataset, rpc, write_repo

TIMES = {"createdTimestamp", "lastUpdatedTimestamp"}
# Feast's server loses the project on the way through its Python objects; ours gives what was applied
PROJECTS = {"project"}
# a pickle differs from one Python process to the next, and says nothing beside the text
PICKLES = {"body"}
EMPTY: tuple[object, ...] = ({}, [], "", None)


@dataclass
class Pair:
    """Our registry and Feast's."""

    ours: RegistryServerStub
    feasts: RegistryServerStub

    def __iter__(self) -> Iterator[RegistryServerStub]:
        return iter((self.ours, self.feasts))

    def answers(self, call: str, request: Message) -> tuple[object, object]:
        """What both answer: the message without times, or the code and the detail of the refusal."""
        return answer(self.ours, call, request), answer(self.feasts, call, request)


def answer(stub: RegistryServerStub, call: str, request: Message) -> object:
    """A message as plain data, or a refusal."""
    try:
        return plain(MessageToDict(getattr(stub, call)(request, timeout=60)))
    except grpc.RpcError as error:
        details = error.details()
        return error.code().name, json.loads(details) if details.startswith("{") else details


def plain(value: object) -> object:
    """Without times and pickles, and without what is empty (Feast writes some defaults out)."""
    if isinstance(value, dict):
        kept = {name: plain(inner) for name, inner in value.items() if name not in TIMES | PICKLES | PROJECTS}
        return {name: inner for name, inner in kept.items() if inner not in EMPTY}
    if isinstance(value, list):
        items = [plain(inner) for inner in value]
        # a definition's features and a dataset's references come in any order from the SDK
        named = all(isinstance(item, str) or (isinstance(item, dict) and "valueType" in item) for item in items)
        return sorted(items, key=repr) if named else items
    return value


def differences(ours: object, feasts: object, at: str = "") -> list[str]:
    """Where the two differ, path by path."""
    if isinstance(ours, dict) and isinstance(feasts, dict):
        names = sorted(ours.keys() | feasts.keys())
        return [line for name in names for line in differences(ours.get(name), feasts.get(name), f"{at}.{name}")]
    if isinstance(ours, list) and isinstance(feasts, list) and len(ours) == len(feasts):
        pairs = enumerate(zip(ours, feasts, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{at}[{n}]")]
    return [] if ours == feasts else [f"{at}: ours {ours!r}, Feast's {feasts!r}"]


def unordered(value: object) -> object:
    """The lists in it as sets."""
    if isinstance(value, dict):
        return {name: unordered(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return sorted((unordered(inner) for inner in value), key=lambda v: json.dumps(v, sort_keys=True))
    return value


@pytest.fixture(scope="module")
def pair(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers, one of everything applied to each through its own wire."""
    work = tmp_path_factory.mktemp("parity")
    ports = Ports.free()
    repo = write_repo(work / "ours", ports)
    module_larder(repo, ports=ports, args=SERVICES)
    theirs = Ports.free()
    (port,) = free_ports(1)
    theirs = Ports(theirs.online, port, theirs.offline, theirs.metrics)
    served = work / "served"
    write_config(served, PROJECT, theirs)
    local = {"project": PROJECT, "provider": "local", "registry": str(work / "feast.db")}
    (served / "feature_store.yaml").write_text(yaml.safe_dump(local | {"entity_key_serialization_version": 3}))
    process = Process("feast", work / "feast.log")
    command: list[str | Path] = [
        Path(sys.executable).parent / "feast",
        "--chdir",
        served,
        "serve_registry",
        "--port",
        str(port),
    ]
    process.spawn(command, cwd=served)

    def ready() -> bool:
        try:
            rpc(theirs).ListProjects(pb.ListProjectsRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return True

    process.wait_ready(ready, 60)
    for directory in (repo, write_repo(work / "theirs", theirs)):
        feast(directory, *APPLY)
        store(directory).registry.apply_saved_dataset(dataset(), PROJECT)
    yield Pair(rpc(ports), rpc(theirs))
    process.kill()


LISTS = {
    "ListEntities": pb.ListEntitiesRequest,
    "ListDataSources": pb.ListDataSourcesRequest,
    "ListFeatureViews": pb.ListFeatureViewsRequest,
    "ListStreamFeatureViews": pb.ListStreamFeatureViewsRequest,
    "ListOnDemandFeatureViews": pb.ListOnDemandFeatureViewsRequest,
    "ListLabelViews": pb.ListLabelViewsRequest,
    "ListAllFeatureViews": pb.ListAllFeatureViewsRequest,
    "ListFeatureServices": pb.ListFeatureServicesRequest,
    "ListSavedDatasets": pb.ListSavedDatasetsRequest,
    # empty at both: Feast unpickles the profiler of a reference that is applied, with a package that is not here
    "ListValidationReferences": pb.ListValidationReferencesRequest,
    "ListPermissions": pb.ListPermissionsRequest,
    "ListFeatures": pb.ListFeaturesRequest,
}


# told apart below: Feast's list of all views leaves out label views, and its list of features has a stream view's
# join key among them and never the owner
OTHERS = {"ListAllFeatureViews", "ListFeatures"}
SAME = [call for call in LISTS if call not in OTHERS]


@pytest.mark.parametrize("call", SAME)
@pytest.mark.parametrize("tags", [{}, {"team": "x"}, {"team": "x", "no": "such"}], ids=["all", "tagged", "none"])
def test_lists(pair: Pair, call: str, tags: dict[str, str]) -> None:
    request = LISTS[call](project=PROJECT)
    request.tags.update(tags)
    ours, feasts = pair.answers(call, request)
    found = differences(unordered(ours), unordered(feasts))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("call", SAME)
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 50])
def test_pages(pair: Pair, call: str, order: str, limit: int) -> None:
    for page in (1, 2, 3, 9):
        request = LISTS[call](project=PROJECT)
        request.pagination.page, request.pagination.limit = page, limit
        request.sorting.sort_by, request.sorting.sort_order = "name", order
        ours, feasts = pair.answers(call, request)
        found = differences(ours, feasts)
        assert not found, f"page {page}\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("page", "limit"), [(0, 2), (1, 0), (-1, 2), (1, -1)], ids=["page 0", "limit 0", "page -1", "limit -1"]
)
def test_pages_that_are_none(pair: Pair, page: int, limit: int) -> None:
    request = pb.ListDataSourcesRequest(project=PROJECT)
    request.pagination.page, request.pagination.limit = page, limit
    request.sorting.sort_by, request.sorting.sort_order = "name", "asc"
    ours, feasts = pair.answers("ListDataSources", request)
    found = differences(ours, feasts)
    assert not found, "\n".join(found)


NARROWED = [
    ("ListFeatureServices", pb.ListFeatureServicesRequest(project=PROJECT, feature_view="stats")),
    ("ListEntities", pb.ListEntitiesRequest(project="nobody")),
    ("ListProjects", pb.ListProjectsRequest()),
    ("ListProjects", pb.ListProjectsRequest(tags={"team": "x"})),
    ("ListProjectMetadata", pb.ListProjectMetadataRequest(project="nobody")),
]


@pytest.mark.parametrize(("call", "request_"), NARROWED, ids=[f"{c}-{n}" for n, (c, _) in enumerate(NARROWED)])
def test_what_is_narrowed(pair: Pair, call: str, request_: Message) -> None:
    ours, feasts = pair.answers(call, request_)
    found = differences(unordered(ours), unordered(feasts))
    assert not found, "\n".join(found)


VIEWS = [
    pb.ListAllFeatureViewsRequest(project=PROJECT),
    pb.ListAllFeatureViewsRequest(project=PROJECT, tags={"team": "x"}),
    pb.ListAllFeatureViewsRequest(project=PROJECT, entity="driver"),
    pb.ListAllFeatureViewsRequest(project=PROJECT, feature="trips"),
    pb.ListAllFeatureViewsRequest(project=PROJECT, feature_service="activity"),
    pb.ListAllFeatureViewsRequest(project=PROJECT, data_source="stats_file"),
    pb.ListAllFeatureViewsRequest(project=PROJECT, data_source="push"),
    pb.ListAllFeatureViewsRequest(project=PROJECT, entity="nobody"),
]


@pytest.mark.parametrize("asked", VIEWS, ids=repr)
def test_all_views_are_feasts_and_the_label_views(pair: Pair, asked: pb.ListAllFeatureViewsRequest) -> None:
    ours, feasts = (stub.ListAllFeatureViews(asked).feature_views for stub in pair)
    views = [plain(MessageToDict(view)) for view in ours if not view.HasField("label_view")]
    assert unordered(views) == unordered([plain(MessageToDict(view)) for view in feasts])


FEATURES = [
    pb.ListFeaturesRequest(project=PROJECT),
    pb.ListFeaturesRequest(project=PROJECT, feature_view="stats"),
    pb.ListFeaturesRequest(project=PROJECT, name="trips"),
]


@pytest.mark.parametrize("asked", FEATURES, ids=repr)
def test_features_are_feasts_without_keys(pair: Pair, asked: pb.ListFeaturesRequest) -> None:
    ours, feasts = (
        [plain(MessageToDict(f)) for f in stub.ListFeatures(asked).features if f.name != "driver_id"] for stub in pair
    )
    assert [f.pop("owner", None) for f in feasts if isinstance(f, dict)] == [None] * len(feasts)
    for feature in ours:
        assert isinstance(feature, dict)
        assert (feature.pop("owner", None) == "ada@example.com") == (feature["featureView"] == "stats")
    assert unordered(ours) == unordered(feasts)


def arrows(relations: Iterable[pb.EntityRelation]) -> set[str]:
    """Each relation as a text."""
    return {f"{r.source.type}:{r.source.name} > {r.target.type}:{r.target.name}" for r in relations}


# what Feast's lineage forgets, each checked to be true of the definitions
MORE = {
    "dataSource:push > featureView:stats",
    "entity:driver > featureView:spending",
    "feature:clicks_5m > featureView:spending",
    "feature:sum_amount > featureView:spending",
    "feature:is_fraud > labelView:verdicts",
    "feature:labeler > labelView:verdicts",
    "featureView:stats > savedDataset:month",
}


def test_the_lineage_is_feasts_and_what_it_forgets(pair: Pair) -> None:
    request = pb.GetRegistryLineageRequest(project=PROJECT)
    ours, feasts = (stub.GetRegistryLineage(request) for stub in pair)
    assert arrows(ours.relationships) - arrows(feasts.relationships) == MORE
    assert arrows(feasts.relationships) <= arrows(ours.relationships)
    assert arrows(feasts.indirect_relationships) <= arrows(ours.indirect_relationships)


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("featureView", "stats"),
        ("dataSource", "stats_file"),
        ("entity", "driver"),
        ("featureService", "activity"),
        ("feature", "trips"),
        ("featureView", "nothing"),
    ],
)
def test_relationships_are_feasts_and_what_it_forgets(pair: Pair, kind: str, name: str, indirect: bool) -> None:
    request = pb.GetObjectRelationshipsRequest(
        project=PROJECT, object_type=kind, object_name=name, include_indirect=indirect
    )
    ours, feasts = (arrows(stub.GetObjectRelationships(request).relationships) for stub in pair)
    assert feasts <= ours
    if not indirect:
        assert ours - feasts <= MORE


GETS = {
    "GetEntity": (pb.GetEntityRequest, "driver"),
    "GetDataSource": (pb.GetDataSourceRequest, "stats_file"),
    "GetFeatureView": (pb.GetFeatureViewRequest, "stats"),
    "GetAnyFeatureView": (pb.GetAnyFeatureViewRequest, "verdicts"),
    "GetStreamFeatureView": (pb.GetStreamFeatureViewRequest, "spending"),
    "GetOnDemandFeatureView": (pb.GetOnDemandFeatureViewRequest, "per_km"),
    "GetLabelView": (pb.GetLabelViewRequest, "verdicts"),
    "GetFeatureService": (pb.GetFeatureServiceRequest, "activity"),
    "GetSavedDataset": (pb.GetSavedDatasetRequest, "month"),
    "GetPermission": (pb.GetPermissionRequest, "readers"),
}


@pytest.mark.parametrize("call", GETS)
@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
def test_gets(pair: Pair, call: str, there: bool) -> None:
    make, name = GETS[call]
    for allow_cache in (False, True):
        request = make(name=name if there else "nothing", project=PROJECT, allow_cache=allow_cache)
        ours, feasts = pair.answers(call, request)
        found = differences(ours, feasts)
        assert not found, "\n".join(found)

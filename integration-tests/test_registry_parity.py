"""Every reading call of the registry, beside Feast's own registry server with the same objects in it.

Compared field by field but for times. Where the two differ on purpose, the difference is named here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import grpc
import pytest
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from conftest import StartLarder
from feast_server import FeastRegistry
from larder_env.repo import feast, store
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
    reference = FeastRegistry(work / "served", PROJECT).start()
    theirs = replace(Ports.free(), registry=reference.port)
    for directory in (repo, write_repo(work / "theirs", theirs)):
        feast(directory, *APPLY)
        store(directory).registry.apply_saved_dataset(dataset(), PROJECT)
    yield Pair(rpc(ports), reference.calls)
    reference.kill()


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


LEAST, MOST = -(2**31), 2**31 - 1
ODD_PAGES = [(0, 0), (0, 2), (1, 0), (-1, 2), (1, -1), (LEAST, LEAST), (1, MOST), (MOST, 1), (MOST, MOST), (4, 3)]


@pytest.mark.parametrize("call", SAME)
@pytest.mark.parametrize(("page", "limit"), ODD_PAGES)
def test_odd_pages(pair: Pair, call: str, page: int, limit: int) -> None:
    request = LISTS[call](project=PROJECT)
    request.pagination.page, request.pagination.limit = page, limit
    request.sorting.sort_by, request.sorting.sort_order = "name", "asc"
    ours, feasts = pair.answers(call, request)
    found = differences(ours, feasts)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("page", "limit"), [(1, 1), (1, 2), (2, 2), (9, 2), *ODD_PAGES])
def test_pages_of_what_is_longer_here(pair: Pair, page: int, limit: int) -> None:
    """Where the lists differ, the pages are of our own list, and told as Feast tells its own."""
    for call in OTHERS:
        whole = getattr(pair.ours, call)(LISTS[call](project=PROJECT))
        items = whole.features if call == "ListFeatures" else whole.feature_views
        request = LISTS[call](project=PROJECT)
        request.pagination.page, request.pagination.limit = page, limit
        got = getattr(pair.ours, call)(request)
        on_page = got.features if call == "ListFeatures" else got.feature_views
        paged = page > 0 and limit > 0
        assert list(on_page) == (items[(page - 1) * limit : page * limit] if paged else list(items))
        told, total = got.pagination, len(items)
        pages = -(-total // limit) if paged else 1
        want = (page, limit, total, pages, page < pages, page > 1) if paged else (0, 0, total, 1, False, False)
        assert (told.page, told.limit, told.total_count, told.total_pages, told.has_next, told.has_previous) == want


def test_a_list_of_nothing_is_on_no_page(pair: Pair) -> None:
    for call, make in LISTS.items():
        request = make(project="nobody")
        request.pagination.page, request.pagination.limit = 3, 2
        request.sorting.sort_by = "size"
        ours, feasts = pair.answers(call, make(project="nobody", pagination=request.pagination))
        assert ours == feasts == {}, call
        # an order that there is not is refused here, be there anything to order or not
        assert isinstance(answer(pair.ours, call, request), tuple), call


def specs(message: object) -> list[dict[str, object]]:
    """The items of a list response, each as its spec (sources and references have none)."""
    assert isinstance(message, dict)
    (items,) = [value for value in message.values() if isinstance(value, list)] or [[]]
    views = [next(iter(item.values())) if "spec" not in item and len(item) == 1 else item for item in items]
    return [view.get("spec", view) for view in views]


@pytest.mark.parametrize("call", SAME)
@pytest.mark.parametrize("order", ["asc", "desc", "DESC", "Desc", "up", "", "descending"])
@pytest.mark.parametrize("attribute", ["name", "description", "owner"])
def test_orders(pair: Pair, call: str, order: str, attribute: str) -> None:
    request = LISTS[call](project=PROJECT)
    request.sorting.sort_by, request.sorting.sort_order = attribute, order
    ours, feasts = pair.answers(call, request)
    # what is equal may stand in any order: both keep that in which they have it
    assert [spec.get(attribute) for spec in specs(ours)] == [spec.get(attribute) for spec in specs(feasts)]


@pytest.mark.parametrize("call", [call for call in LISTS if call not in {"ListFeatures", "ListValidationReferences"}])
@pytest.mark.parametrize("attribute", ["created_timestamp", "last_updated_timestamp"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_orders_by_time(pair: Pair, call: str, attribute: str, order: str) -> None:
    request = LISTS[call](project=PROJECT)
    request.sorting.sort_by, request.sorting.sort_order = attribute, order
    (items,) = [value for _, value in getattr(pair.ours, call)(request).ListFields() if not isinstance(value, Message)]
    kinds = [getattr(item, item.WhichOneof("any_feature_view")) if "AllFeature" in call else item for item in items]
    times = [getattr(kind.meta, attribute).ToNanoseconds() for kind in kinds]
    assert times == sorted(times, reverse=order == "desc")
    assert len(set(times)) > 1 or len(times) == 1


@pytest.mark.parametrize("call", LISTS)
@pytest.mark.parametrize("attribute", ["size", "NAME", "spec.name", "name.x"])
def test_an_order_by_nothing_is_refused(pair: Pair, call: str, attribute: str) -> None:
    request = LISTS[call](project=PROJECT)
    request.sorting.sort_by = attribute
    # Feast leaves its own order, and says nothing
    assert isinstance(answer(pair.feasts, call, request), dict)
    refused = answer(pair.ours, call, request)
    assert isinstance(refused, tuple)
    assert refused[0] == "INVALID_ARGUMENT"
    assert f"cannot sort by '{attribute}'" in refused[1]["message"]


def test_blanks_around_an_attribute_are_nothing(pair: Pair) -> None:
    request = pb.ListDataSourcesRequest(project=PROJECT, sorting=pb.SortingParams(sort_by=" name ", sort_order="desc"))
    names = [source.name for source in pair.ours.ListDataSources(request).data_sources]
    assert names == sorted(names, key=str.lower, reverse=True)
    # all blank is no order, for both
    request.sorting.sort_by = "  "
    ours, feasts = pair.answers("ListDataSources", request)
    assert unordered(ours) == unordered(feasts)


def names_since(stub: RegistryServerStub, since: Timestamp | None) -> set[str]:
    """The views that changed since, without label views."""
    views = stub.ListAllFeatureViews(pb.ListAllFeatureViewsRequest(project=PROJECT, updated_since=since)).feature_views
    kinds = [view.WhichOneof("any_feature_view") for view in views]
    pairs = zip(views, kinds, strict=True)
    return {getattr(view, kind).spec.name for view, kind in pairs if kind != "label_view"}


def test_updated_since(pair: Pair) -> None:
    everything = names_since(pair.ours, None)
    assert everything == names_since(pair.feasts, None)
    for since in (Timestamp(), Timestamp(seconds=-1), Timestamp(nanos=999), Timestamp(seconds=1)):
        # the beginning of time is a time that is given, and everything is younger
        assert names_since(pair.ours, since) == names_since(pair.feasts, since) == everything
    future = Timestamp()
    future.GetCurrentTime()
    future.seconds += 3600
    assert names_since(pair.ours, future) == names_since(pair.feasts, future) == set()
    for stub in pair:
        updated = stub.GetFeatureView(
            pb.GetFeatureViewRequest(name="stats", project=PROJECT)
        ).meta.last_updated_timestamp
        assert "stats" in names_since(stub, updated)
        later = Timestamp()
        later.FromDatetime(updated.ToDatetime() + timedelta(microseconds=1))
        assert "stats" not in names_since(stub, later)
        # finer than a microsecond is cut
        updated.nanos += 999 - updated.nanos % 1000
        assert "stats" in names_since(stub, updated)


def test_a_list_since_is_counted_in_its_pages(pair: Pair) -> None:
    since = Timestamp(seconds=1)
    asked = pb.ListAllFeatureViewsRequest(
        project=PROJECT,
        updated_since=since,
        entity="driver",
        pagination=pb.PaginationParams(page=2, limit=1),
        sorting=pb.SortingParams(sort_by="name", sort_order="desc"),
    )
    ours, feasts = (stub.ListAllFeatureViews(asked) for stub in pair)
    # ours has the label view, and the stream view, which it finds by its entity as well
    assert ours.pagination.total_count == ours.pagination.total_pages == 3
    assert feasts.pagination.has_previous
    assert ours.pagination.has_previous
    assert ours.feature_views[0].WhichOneof("any_feature_view") == "feature_view"


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


RELATED = ("dataSource", "stats_file")


@pytest.mark.parametrize(("page", "limit"), [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 50), *ODD_PAGES])
@pytest.mark.parametrize("order", ["asc", "desc", "up"])
def test_pages_of_relationships(pair: Pair, page: int, limit: int, order: str) -> None:
    request = pb.GetObjectRelationshipsRequest(
        project=PROJECT,
        object_type=RELATED[0],
        object_name=RELATED[1],
        pagination=pb.PaginationParams(page=page, limit=limit),
        sorting=pb.SortingParams(sort_by="target.name", sort_order=order),
    )
    ours, feasts = pair.answers("GetObjectRelationships", request)
    found = differences(ours, feasts)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
@pytest.mark.parametrize("attribute", ["source.type", "source.name", "target.type", "target.name"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_the_lineage(pair: Pair, limit: int, attribute: str, order: str) -> None:
    side, part = attribute.split(".")
    sorting = pb.SortingParams(sort_by=attribute, sort_order=order)
    for stub in pair:
        whole = stub.GetRegistryLineage(pb.GetRegistryLineageRequest(project=PROJECT, sorting=sorting))
        for field in ("relationships", "indirect_relationships"):
            words = [getattr(getattr(r, side), part).lower() for r in getattr(whole, field)]
            assert words == sorted(words, reverse=order == "desc")
        direct, indirect = [], []
        pages = -(-len(whole.relationships) // limit)
        # both lists are on the same page: the shorter one ends before
        for page in range(1, pages + 1):
            asked = pb.PaginationParams(page=page, limit=limit)
            got = stub.GetRegistryLineage(
                pb.GetRegistryLineageRequest(project=PROJECT, sorting=sorting, pagination=asked)
            )
            direct += got.relationships
            indirect += got.indirect_relationships
            told = got.relationships_pagination
            counts = (told.page, told.limit, told.total_count, told.total_pages)
            assert counts == (page, limit, len(whole.relationships), pages)
            assert (told.has_next, told.has_previous) == (page < pages, page > 1)
            assert got.indirect_relationships_pagination.total_count == len(whole.indirect_relationships)
        assert direct == list(whole.relationships)
        assert indirect == list(whole.indirect_relationships)[: pages * limit]


HALF = [
    pb.GetRegistryLineageRequest(project=PROJECT),
    pb.GetRegistryLineageRequest(project=PROJECT, filter_object_type="featureView"),
    pb.GetRegistryLineageRequest(project=PROJECT, filter_object_name="stats"),
]


def test_filters_of_the_lineage(pair: Pair) -> None:
    for stub in pair:
        # half a filter is none
        counts = {len(stub.GetRegistryLineage(half).relationships) for half in HALF}
        assert len(counts) == 1
        nobody = stub.GetRegistryLineage(pb.GetRegistryLineageRequest(project="nobody"))
        assert not nobody.relationships
        assert nobody.relationships_pagination.total_pages == 0
    both = pb.GetRegistryLineageRequest(
        project=PROJECT, filter_object_type="featureService", filter_object_name="activity"
    )
    ours, feasts = (stub.GetRegistryLineage(both) for stub in pair)
    assert arrows(ours.relationships) == arrows(feasts.relationships)
    assert arrows(feasts.indirect_relationships) <= arrows(ours.indirect_relationships)
    # a type that there is not: Feast finds nothing here, and fails there
    both.filter_object_type = "nonsense"
    assert not pair.feasts.GetRegistryLineage(both).relationships
    relations = pb.GetObjectRelationshipsRequest(project=PROJECT, object_type="nonsense", object_name="stats")
    refused = [
        answer(pair.ours, "GetRegistryLineage", both),
        *pair.answers("GetObjectRelationships", relations),
    ]
    codes = [why[0] for why in refused if isinstance(why, tuple)]
    assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "UNKNOWN"]


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

"""The registry server as the unmodified SDK and its command line see it.

Every kind of object is applied, listed, read, changed and deleted; a restart; a registry file that Feast wrote.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.cli.cli import cli
from feast.errors import (
    ConflictingFeatureViewNames,
    DataSourceObjectNotFoundException,
    EntityNotFoundException,
    FeastError,
    FeastObjectNotFoundException,
    FeatureServiceNotFoundException,
    FeatureViewNotFoundException,
    PermissionObjectNotFoundException,
    ProjectObjectNotFoundException,
    SavedDatasetNotFound,
    ValidationReferenceNotFound,
)
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.protos.feast.core.Entity_pb2 import Entity as EntityProto
from feast.protos.feast.core.ValidationProfile_pb2 import GEValidationProfiler
from feast.protos.feast.core.ValidationProfile_pb2 import ValidationReference as ValidationReferenceProto
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from feast.saved_dataset import SavedDataset
from feast.types import Int64, String
from google.protobuf.empty_pb2 import Empty

from larder_env.repo import feast, store, write_config, write_feast
from larder_env.server import HOST, Larder, Ports

StartLarder = Callable[..., Larder]
PROJECT = "everything"
SERVICES = ["--services", "online,registry"]
# half of the sources are warehouses that are not there
APPLY = ("apply", "--skip-source-validation")

# Every kind of object that the SDK can apply, as a repo has them.
DEFINITIONS = """
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import (BatchFeatureView, BigQuerySource, Entity, FeatureService, FeatureView, Field, FileSource,
                   KafkaSource, KinesisSource, OnDemandFeatureView, Project, PushSource, RedshiftSource,
                   RequestSource, SnowflakeSource, StreamFeatureView, ValueType)
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat, ParquetFormat
from feast.labeling.label_view import LabelView
from feast.on_demand_feature_view import on_demand_feature_view
from feast.permissions.action import AuthzedAction
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy
from feast.types import Float64, Int64, String

project = Project(name="everything", description="one of each", owner="ada@example.com", tags={"team": "x"})
driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64, tags={"team": "x"})
city = Entity(name="city", join_keys=["city_id"], value_type=ValueType.STRING, description="where")

stats_file = FileSource(name="stats_file", path="data/stats.parquet", timestamp_field="event_timestamp",
                        created_timestamp_column="created", file_format=ParquetFormat(),
                        field_mapping={"t": "trips"}, tags={"team": "x", "empty": ""})
warehouse = BigQuerySource(name="warehouse", table="a.b.c", timestamp_field="ts")
redshift = RedshiftSource(name="redshift", table="t", schema="s", database="d", timestamp_field="ts")
snowflake = SnowflakeSource(name="snowflake", table="t", schema="s", database="d", timestamp_field="ts")
clicks = KafkaSource(name="clicks", kafka_bootstrap_servers="127.0.0.1:1", topic="clicks",
                     message_format=JsonFormat(schema_json="driver_id integer, amount double, event_timestamp string"),
                     timestamp_field="event_timestamp", batch_source=stats_file,
                     watermark_delay_threshold=timedelta(seconds=10))
kinesis = KinesisSource(name="kinesis", region="eu", stream_name="s", record_format=JsonFormat(schema_json="a integer"),
                        timestamp_field="ts", batch_source=stats_file)
push = PushSource(name="push", batch_source=stats_file)
labels_file = FileSource(name="labels_file", path="data/labels.parquet", timestamp_field="event_timestamp")
labels_push = PushSource(name="labels_push", batch_source=labels_file)
request = RequestSource(name="request", schema=[Field(name="distance", dtype=Float64)])

stats = FeatureView(name="stats", entities=[driver], ttl=timedelta(days=1), source=push, description="hourly",
                    schema=[Field(name="trips", dtype=Int64), Field(name="rate", dtype=Float64, tags={"unit": "1"}),
                            Field(name="rating", dtype=String, description="of the day")],
                    tags={"team": "x"}, owner="ada@example.com")
totals = FeatureView(name="totals", entities=[], source=stats_file, schema=[Field(name="all_trips", dtype=Int64)])
spending = StreamFeatureView(
    name="spending", entities=[driver], source=clicks, ttl=timedelta(days=1), timestamp_field="event_timestamp",
    aggregations=[Aggregation(column="amount", function="sum", time_window=timedelta(minutes=5)),
                  Aggregation(column="amount", function="count", time_window=timedelta(minutes=5), name="clicks_5m")],
    schema=[Field(name="sum_amount", dtype=Float64), Field(name="clicks_5m", dtype=Int64)], tags={"team": "y"})


@on_demand_feature_view(sources=[stats, request], schema=[Field(name="per_km", dtype=Float64)], mode="pandas")
def per_km(inputs: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame()
    out["per_km"] = inputs["trips"] / inputs["distance"]
    return out


@on_demand_feature_view(sources=[stats], schema=[Field(name="double_rate", dtype=Float64)], mode="python")
def double_rate(inputs: dict) -> dict:
    return {"double_rate": [2 * rate for rate in inputs["rate"]]}


verdicts = LabelView(name="verdicts", entities=[driver], source=labels_push, labeler_field="labeler",
                     schema=[Field(name="is_fraud", dtype=Int64), Field(name="labeler", dtype=String)])
activity = FeatureService(name="activity", features=[stats[["trips", "rate"]], per_km, spending.with_name("money")
                          if hasattr(spending, "with_name") else spending], tags={"team": "x"})
whole_view = FeatureService(name="whole_view", features=[stats], description="all of it")
readers = Permission(name="readers", types=[FeatureView], policy=RoleBasedPolicy(roles=["reader"]),
                     actions=[AuthzedAction.DESCRIBE, AuthzedAction.READ_ONLINE], name_patterns=["s.*"])
"""

ENTITIES = {"driver", "city"}
# a request source inside an on-demand view is registered too
SOURCES = {
    "stats_file", "warehouse", "redshift", "snowflake", "clicks", "kinesis", "push", "labels_file", "labels_push",
    "request",
}  # fmt: skip
VIEWS = {"stats", "totals"}


@pytest.fixture
def ports() -> Ports:
    """Free ports for the server and the SDK."""
    return Ports.free()


@pytest.fixture
def everything(tmp_path: Path, ports: Ports) -> Path:
    """A repo with one of each."""
    return write_repo(tmp_path / "repo", ports)


def write_repo(repo: Path, ports: Ports) -> Path:
    """The definitions, and the files that `feast apply` looks at."""
    write_config(repo, PROJECT, ports)
    (repo / "definitions.py").write_text(DEFINITIONS)
    (repo / "data").mkdir()
    now = [datetime.now(UTC)]
    stats = {"driver_id": [1], "trips": [1], "rate": [0.5], "rating": ["a"], "all_trips": [1], "created": now}
    pd.DataFrame({**stats, "event_timestamp": now}).to_parquet(repo / "data" / "stats.parquet")
    labels = {"driver_id": [1], "is_fraud": [0], "labeler": ["a"], "event_timestamp": now}
    pd.DataFrame(labels).to_parquet(repo / "data" / "labels.parquet")
    return repo


@pytest.fixture
def server(larder: StartLarder, everything: Path, ports: Ports) -> Larder:
    """A registry server on the repo, nothing applied."""
    return larder(everything, ports=ports, args=SERVICES)


@pytest.fixture
def applied(server: Larder, everything: Path, ports: Ports) -> FeatureStore:
    """The SDK on the repo, everything applied."""
    return apply_all(everything, ports)


@pytest.fixture(scope="module")
def shared(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, Path, Ports]:
    """The same for tests that only read, with its repo and ports."""
    ports = Ports.free()
    repo = write_repo(tmp_path_factory.mktemp("shared") / "repo", ports)
    module_larder(repo, ports=ports, args=SERVICES)
    return apply_all(repo, ports), repo, ports


def apply_all(repo: Path, ports: Ports) -> FeatureStore:
    """Apply the repo by the command line, and what only the SDK can apply by the SDK."""
    feast(repo, *APPLY)
    client = store(repo)
    client.registry.apply_saved_dataset(dataset(), PROJECT)
    # the SDK makes the message of a reference only where Great Expectations is installed
    rpc(ports).ApplyValidationReference(
        pb.ApplyValidationReferenceRequest(validation_reference=REFERENCE, project=PROJECT, commit=True)
    )
    return client


def dataset(description: str = "a month") -> SavedDataset:
    """A saved dataset."""
    made = SavedDataset(
        name="month",
        features=["stats:trips", "stats:rate"],
        join_keys=["driver_id"],
        storage=SavedDatasetFileStorage(path="data/month.parquet"),
        tags={"team": "x", "description": description},
    )
    made.min_event_timestamp = datetime(2026, 1, 1, tzinfo=UTC)
    made.max_event_timestamp = datetime(2026, 2, 1, tzinfo=UTC)
    return made


REFERENCE = ValidationReferenceProto(
    name="sane",
    reference_dataset_name="month",
    description="as last month",
    tags={"team": "x"},
    ge_profiler=GEValidationProfiler(profiler=GEValidationProfiler.UserDefinedProfiler(body=b"\x80pickle")),
)


def rpc(ports: Ports) -> RegistryServerStub:
    """The registry's RPCs without the SDK around them."""
    return RegistryServerStub(grpc.insecure_channel(f"{HOST}:{ports.registry}"))


def command(repo: Path, *words: str) -> str:
    """The SDK's command line in this process: twenty interpreters take minutes to start. Returns what it printed."""
    done = CliRunner().invoke(cli, ["--chdir", str(repo), *words], catch_exceptions=False)
    assert done.exit_code == 0, f"feast {' '.join(words)}\n{done.output}"
    return done.output


def names(objects: Sequence[object]) -> set[str]:
    """Their names."""
    return {o.name for o in objects}  # type: ignore[attr-defined]


def messages(client: FeatureStore) -> dict[str, list[bytes]]:
    """Every object as it is registered, by kind, in order; empty where nothing is."""
    whole = client.registry.proto()
    repeated = [(field.name, value) for field, value in whole.ListFields() if isinstance(value, Sequence)]
    return {
        name: sorted(m.SerializeToString(deterministic=True) for m in value)
        for name, value in repeated
        if not isinstance(value, str)
    }


def test_every_kind_of_object_is_listed_and_read_back(shared: tuple[FeatureStore, Path, Ports]) -> None:
    applied, _, ports = shared
    assert names(applied.list_projects()) == {PROJECT}
    assert names(applied.list_entities()) == ENTITIES
    assert names(applied.list_data_sources()) == SOURCES
    assert names(applied.list_batch_feature_views()) == VIEWS
    assert names(applied.list_stream_feature_views()) == {"spending"}
    assert names(applied.list_on_demand_feature_views()) == {"per_km", "double_rate"}
    assert names(applied.list_label_views()) == {"verdicts"}
    assert names(applied.list_feature_services()) == {"activity", "whole_view"}
    assert names(applied.list_saved_datasets()) == {"month"}
    assert names(applied.list_permissions()) == {"readers"}
    assert names(applied.list_all_feature_views()) == VIEWS | {"spending", "per_km", "double_rate", "verdicts"}

    project = applied.get_project(PROJECT)
    assert (project.description, project.owner, project.tags) == ("one of each", "ada@example.com", {"team": "x"})
    driver = applied.get_entity("driver")
    assert (driver.join_key, driver.tags) == ("driver_id", {"team": "x"})
    assert driver.created_timestamp == driver.last_updated_timestamp is not None
    source = applied.get_data_source("stats_file")
    assert isinstance(source, FileSource)
    assert (source.field_mapping, source.tags) == ({"t": "trips"}, {"team": "x", "empty": ""})
    stats = applied.get_feature_view("stats")
    assert {f.name: f.dtype for f in stats.features}["trips"] == Int64
    assert stats.stream_source is not None
    assert (stats.ttl, stats.description, stats.stream_source.name) == (timedelta(days=1), "hourly", "push")
    spending = applied.get_stream_feature_view("spending")
    assert [a.time_window for a in spending.aggregations] == [timedelta(minutes=5)] * 2
    per_km = applied.get_on_demand_feature_view("per_km")
    assert per_km.feature_transformation is not None
    assert per_km.feature_transformation.udf_string.startswith("@on_demand_feature_view")
    assert applied.get_label_view("verdicts").labeler_field == "labeler"
    service = applied.get_feature_service("activity")
    assert [p.name for p in service.feature_view_projections] == ["stats", "per_km", "spending"]
    assert applied.get_permission("readers").name_patterns == ["s.*"]
    month = applied.registry.get_saved_dataset("month", PROJECT)
    assert (month.features, month.join_keys) == (["stats:trips", "stats:rate"], ["driver_id"])
    assert month.max_event_timestamp is not None
    assert month.max_event_timestamp.replace(tzinfo=UTC) == datetime(2026, 2, 1, tzinfo=UTC)
    references = rpc(ports).ListValidationReferences(pb.ListValidationReferencesRequest(project=PROJECT))
    expected = ValidationReferenceProto()
    expected.CopyFrom(REFERENCE)
    expected.project = PROJECT
    assert list(references.validation_references) == [expected]


def test_the_command_line_lists_and_describes(shared: tuple[FeatureStore, Path, Ports]) -> None:
    _, everything, _ = shared
    lists = {
        "entities": ENTITIES,
        "data-sources": SOURCES,
        "feature-views": VIEWS | {"per_km", "double_rate"},
        "stream-feature-views": {"spending"},
        "on-demand-feature-views": {"per_km", "double_rate"},
        "feature-services": {"activity", "whole_view"},
        "label-views": {"verdicts"},
        "saved-datasets": {"month"},
        "permissions": {"readers"},
        "projects": {PROJECT},
    }
    for words, expected in lists.items():
        printed = command(everything, words, "list")
        missing = {name for name in expected if name not in printed}
        assert not missing, f"feast {words} list\n{printed}"
    described = {
        "entities": "driver",
        "data-sources": "clicks",
        "feature-views": "stats",
        "stream-feature-views": "spending",
        "on-demand-feature-views": "per_km",
        "feature-services": "activity",
        "saved-datasets": "month",
        "permissions": "readers",
        "projects": PROJECT,
    }
    for words, name in described.items():
        assert name in command(everything, words, "describe", name), words


def test_an_unchanged_apply_changes_nothing(applied: FeatureStore, server: Larder, everything: Path) -> None:
    before = messages(applied)
    written = server.log.count("registry changed")
    # another hash seed: the SDK does not keep the order of sets and maps over processes
    feast(everything, *APPLY, env={"PYTHONHASHSEED": "1"})
    assert messages(store(everything)) == before
    assert server.log.count("registry changed") == written, server.log


def test_a_change_is_applied_and_created_is_kept(applied: FeatureStore, everything: Path) -> None:
    before = applied.get_feature_view("stats")
    source = everything / "definitions.py"
    source.write_text(DEFINITIONS.replace('description="hourly"', 'description="by the hour"'))
    feast(everything, *APPLY)
    after = store(everything).get_feature_view("stats")
    assert after.description == "by the hour"
    assert after.created_timestamp == before.created_timestamp
    assert after.last_updated_timestamp is not None
    assert before.last_updated_timestamp is not None
    assert after.last_updated_timestamp > before.last_updated_timestamp
    untouched = store(everything).get_feature_view("totals")
    assert untouched.last_updated_timestamp == applied.get_feature_view("totals").last_updated_timestamp

    # what is gone from the repo is gone from the registry
    source.write_text(DEFINITIONS.replace('whole_view = FeatureService(name="whole_view"', 'FeatureService(name="_"'))
    feast(everything, *APPLY)
    assert names(store(everything).list_feature_services()) == {"activity"}


def test_versions_count_changes_of_the_schema(applied: FeatureStore, everything: Path) -> None:
    assert applied.get_feature_view("stats").current_version_number in (None, 0)
    source = everything / "definitions.py"
    changed = DEFINITIONS.replace('Field(name="rating", dtype=String', 'Field(name="grade", dtype=String')
    source.write_text(changed)
    table = pd.read_parquet(everything / "data" / "stats.parquet").assign(grade="a")
    table.to_parquet(everything / "data" / "stats.parquet")
    feast(everything, *APPLY)
    assert store(everything).get_feature_view("stats").current_version_number == 1


def test_a_restart_finds_the_same_registry(applied: FeatureStore, server: Larder, everything: Path) -> None:
    before = messages(applied)
    version = applied.registry.proto().version_id
    server.restart()
    again = store(everything)
    assert messages(again) == before
    assert again.registry.proto().version_id == version
    server.kill()
    server.start()
    assert messages(store(everything)) == before


def test_each_kind_can_be_deleted(applied: FeatureStore) -> None:
    registry = applied.registry
    registry.delete_feature_service("activity", PROJECT)
    registry.delete_validation_reference("sane", PROJECT)
    registry.delete_saved_dataset("month", PROJECT)
    registry.delete_permission("readers", PROJECT)
    for view in ("per_km", "spending", "verdicts", "stats"):
        registry.delete_feature_view(view, PROJECT)
    registry.delete_entity("driver", PROJECT)
    registry.delete_data_source("push", PROJECT)
    assert names(applied.list_feature_services()) == {"whole_view"}
    assert applied.list_saved_datasets() == applied.list_permissions() == applied.list_label_views() == []
    assert names(applied.list_all_feature_views()) == {"totals", "double_rate"}
    assert names(applied.list_entities()) == {"city"}
    assert "push" not in names(applied.list_data_sources())


MISSING = f"does not exist in project {PROJECT}"
NOT_FOUND = [
    ("entity", EntityNotFoundException, f"Entity x {MISSING}"),
    ("data_source", DataSourceObjectNotFoundException, f"Data source x {MISSING}"),
    ("feature_view", FeatureViewNotFoundException, f"Feature view x {MISSING}"),
    ("feature_service", FeatureServiceNotFoundException, f"Feature service x {MISSING}"),
    ("saved_dataset", SavedDatasetNotFound, f"Saved dataset x {MISSING}"),
    (
        "validation_reference",
        ValidationReferenceNotFound,
        "Validation reference x does not exist in project everything",
    ),
    ("permission", PermissionObjectNotFoundException, f"Permission x {MISSING}"),
]


@pytest.mark.parametrize(("kind", "error", "text"), NOT_FOUND, ids=[k for k, _, _ in NOT_FOUND])
@pytest.mark.parametrize("verb", ["get", "delete"])
def test_what_does_not_exist_is_feast_s_own_error(
    shared: tuple[FeatureStore, Path, Ports], verb: str, kind: str, error: type[FeastError], text: str
) -> None:
    registry = shared[0].registry
    with pytest.raises(error) as raised:
        getattr(registry, f"{verb}_{kind}")("x", PROJECT)
    assert str(raised.value) == text


def test_other_errors_are_feast_s_own_too(applied: FeatureStore, everything: Path) -> None:
    with pytest.raises(ProjectObjectNotFoundException, match="Project nowhere does not exist"):
        applied.registry.get_project("nowhere")
    taken = FeatureView(name="spending", entities=[], source=applied.get_data_source("stats_file"), schema=[])
    with pytest.raises(ConflictingFeatureViewNames, match="already used by a StreamFeatureView"):
        applied.registry.apply_feature_view(taken, PROJECT)
    for getter in ("get_stream_feature_view", "get_on_demand_feature_view", "get_label_view", "get_any_feature_view"):
        with pytest.raises(FeatureViewNotFoundException, match="Feature view x does not exist"):
            getattr(applied.registry, getter)("x", PROJECT)

    bad = DEFINITIONS.replace('function="sum"', 'function="harmonic_mean"').replace(
        "sum_amount", "harmonic_mean_amount"
    )
    (everything / "definitions.py").write_text(bad)
    done = subprocess.run(
        [Path(sys.executable).parent / "feast", *APPLY], cwd=everything, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "harmonic_mean" in done.stdout + done.stderr
    assert names(store(everything).list_stream_feature_views()) == {"spending"}


def test_teardown_leaves_nothing(applied: FeatureStore, everything: Path) -> None:
    feast(everything, "teardown")
    assert messages(store(everything)) == {}


def test_materialized_intervals_are_joined(applied: FeatureStore) -> None:
    view = applied.get_feature_view("stats")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    hours = [start + timedelta(hours=n) for n in range(6)]
    for begin, end in [(0, 1), (1, 2), (4, 5), (1, 3)]:
        applied.registry.apply_materialization(view, PROJECT, hours[begin], hours[end])
    assert applied.get_feature_view("stats").materialization_intervals == [(hours[0], hours[3]), (hours[4], hours[5])]
    assert applied.get_feature_view("stats").most_recent_end_time == hours[5]


def test_lists_can_be_narrowed_ordered_and_cut_into_pages(shared: tuple[FeatureStore, Path, Ports]) -> None:
    applied, _, ports = shared
    assert names(applied.list_entities(tags={"team": "x"})) == {"driver"}
    assert names(applied.list_data_sources(tags={"empty": ""})) == {"stats_file"}
    assert names(applied.list_all_feature_views(tags={"team": "y"})) == {"spending"}
    calls = rpc(ports)

    def page(number: int, order: str = "asc") -> pb.ListDataSourcesResponse:
        return calls.ListDataSources(
            pb.ListDataSourcesRequest(
                project=PROJECT,
                pagination=pb.PaginationParams(page=number, limit=4),
                sorting=pb.SortingParams(sort_by="name", sort_order=order),
            )
        )

    pages = [page(n) for n in (1, 2, 3)]
    assert [s.name for p in pages for s in p.data_sources] == sorted(SOURCES)
    assert [(p.pagination.has_previous, p.pagination.has_next) for p in pages] == [
        (False, True),
        (True, True),
        (True, False),
    ]
    assert (pages[0].pagination.total_count, pages[0].pagination.total_pages) == (len(SOURCES), 3)
    assert page(1, "desc").data_sources[0].name == max(SOURCES)

    def views(**asked: object) -> set[str]:
        found = calls.ListAllFeatureViews(pb.ListAllFeatureViewsRequest(project=PROJECT, **asked)).feature_views  # type: ignore[arg-type]
        return {getattr(v, v.WhichOneof("any_feature_view")).spec.name for v in found}

    assert views(entity="driver") == {"stats", "spending", "verdicts"}
    assert views(feature="per_km") == {"per_km"}
    assert views(data_source="request") == {"per_km"}
    assert views(data_source="stats_file") >= {"stats", "totals", "spending"}
    assert views(feature_service="activity") == {"stats", "per_km", "spending"}
    assert views(feature_service="activity", entity="driver", feature="trips") == {"stats"}
    future = datetime.now(UTC) + timedelta(hours=1)
    assert applied.registry.list_all_feature_views(PROJECT, updated_since=future) == []

    labels = calls.ListFeatures(pb.ListFeaturesRequest(project=PROJECT, kind="label")).features
    assert {f.name for f in labels} >= {"is_fraud"}
    feature = calls.GetFeature(pb.GetFeatureRequest(project=PROJECT, feature_view="stats", name="rate"))
    assert (feature.type, dict(feature.tags), feature.kind) == ("Float64", {"unit": "1"}, "feature")
    with pytest.raises(grpc.RpcError) as raised:
        calls.GetFeature(pb.GetFeatureRequest(project=PROJECT, feature_view="stats", name="x"))
    assert isinstance(FeastError.from_error_detail(raised.value.details()), FeastObjectNotFoundException)


def test_lineage(shared: tuple[FeatureStore, Path, Ports]) -> None:
    applied, _, _ = shared

    def texts(relations: Sequence[object]) -> set[tuple[str, str, str, str]]:
        return {(r.source.type.value, r.source.name, r.target.type.value, r.target.name) for r in relations}  # type: ignore[attr-defined]

    direct, indirect = applied.registry.get_registry_lineage(PROJECT)
    assert texts(direct) >= {
        ("entity", "driver", "featureView", "stats"),
        ("feature", "trips", "featureView", "stats"),
        ("dataSource", "push", "featureView", "stats"),
        ("featureView", "stats", "featureView", "per_km"),
        ("dataSource", "request", "featureView", "per_km"),
        ("featureView", "stats", "featureService", "activity"),
        ("dataSource", "labels_push", "labelView", "verdicts"),
        ("featureView", "stats", "savedDataset", "month"),
    }
    assert ("entity", "driver", "featureService", "activity") in texts(indirect)
    assert ("entity", "driver", "dataSource", "push") in texts(indirect)
    of_service = applied.registry.get_object_relationships(PROJECT, "featureService", "whole_view")
    assert texts(of_service) == {("featureView", "stats", "featureService", "whole_view")}


def test_fields_of_a_newer_sdk_survive(server: Larder, ports: Ports, everything: Path) -> None:
    calls = rpc(ports)
    entity = EntityProto()
    entity.spec.name = "future"
    # field 3000 of the message and field 3001 of its spec, which no descriptor knows
    sent = entity.SerializeToString() + b"\xc2\xbb\x01\x03new"
    spec = entity.spec.SerializeToString() + b"\xca\xbb\x01\x04news"
    sent = b"\x0a" + bytes([len(spec)]) + spec + b"\xc2\xbb\x01\x03new"
    calls.ApplyEntity(pb.ApplyEntityRequest(entity=EntityProto.FromString(sent), project=PROJECT, commit=True))
    server.restart()
    for read in (
        calls.GetEntity(pb.GetEntityRequest(name="future", project=PROJECT)),
        calls.Proto(Empty()).entities[0],
    ):
        whole = read.SerializeToString()
        assert b"\xc2\xbb\x01\x03new" in whole
        assert b"\xca\xbb\x01\x04news" in whole
        assert read.spec.project == PROJECT


def test_what_is_not_offered_says_so(server: Larder, ports: Ports) -> None:
    calls = rpc(ports)
    requests = {
        "CreateDatasetFromRetrieval": pb.CreateDatasetFromRetrievalRequest(name="x"),
        "GetDatasetData": pb.GetDatasetDataRequest(name="x"),
    }
    for name, request in requests.items():
        with pytest.raises(grpc.RpcError) as raised:
            getattr(calls, name)(request)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert "offline service" in raised.value.details()
    assert not calls.ListDatasetJobs(pb.ListDatasetJobsRequest()).jobs


def test_malformed_requests_harm_nobody(server: Larder, ports: Ports, everything: Path) -> None:
    channel = grpc.insecure_channel(f"{HOST}:{ports.registry}")
    call = channel.unary_unary("/feast.registry.RegistryServer/ApplyEntity")
    calls = rpc(ports)
    bad = {
        "no message": b"\xff\xff\xff",
        "no entity": pb.ApplyEntityRequest(project=PROJECT).SerializeToString(),
        "an entity that is none": b"\x0a\x04\x0a\x02\xff\xff\x12\x01p",
        "no name": pb.ApplyEntityRequest(entity=EntityProto(), project=PROJECT).SerializeToString(),
    }
    for what, body in bad.items():
        with pytest.raises(grpc.RpcError) as raised:
            call(body)
        # tonic answers INTERNAL for bytes that are no message before we see them
        assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL), what
        assert what == "no message" or raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT, raised.value.details()
    request = pb.ListEntitiesRequest(project=PROJECT, sorting=pb.SortingParams(sort_by="size"))
    with pytest.raises(grpc.RpcError) as raised:
        calls.ListEntities(request)
    assert "cannot sort by 'size'" in raised.value.details()
    assert store(everything).list_entities() == []


def local_repo(everything: Path, target: Path) -> FeatureStore:
    """Feast itself, with the same definitions and a registry file of its own."""
    write_feast(target, PROJECT, registry="registry.db")
    (target / "definitions.py").write_text((everything / "definitions.py").read_text())
    os.symlink(everything / "data", target / "data")
    feast(target, *APPLY)
    return FeatureStore(repo_path=str(target))


def test_a_registry_file_of_feast_is_served_and_followed(
    larder: StartLarder, everything: Path, ports: Ports, tmp_path: Path
) -> None:
    local = local_repo(everything, tmp_path / "local")
    path = tmp_path / "local" / "registry.db"
    config = {"project": PROJECT, "registry": {"type": "file", "path": str(path), "cache_ttl_seconds": 600}}
    (everything / "larder.yaml").write_text(yaml.safe_dump(config))
    server = larder(everything, ports=ports, args=SERVICES)
    client = store(everything)

    def same(getter: str) -> None:
        theirs = {o.name: o.to_proto() for o in getattr(local.registry, getter)(PROJECT)}
        ours = {o.name: o.to_proto() for o in getattr(client.registry, getter)(PROJECT)}
        assert ours == theirs, getter

    lists = ["entities", "data_sources", "feature_views", "stream_feature_views", "label_views", "feature_services"]
    for kind in lists:
        same(f"list_{kind}")

    # written by Feast behind our back, and read at once where no cache is allowed
    local.registry.delete_feature_service("whole_view", PROJECT)
    assert names(client.registry.list_feature_services(PROJECT)) == {"activity"}
    # written by us, and read by Feast
    entity = client.get_entity("city")
    entity.description = "changed through Larder"
    client.registry.apply_entity(entity, PROJECT)
    assert local.registry.get_entity("city", PROJECT).description == "changed through Larder"
    for kind in lists:
        same(f"list_{kind}")
    server.stop()


def test_a_registry_file_that_is_not_there_yet_is_empty(
    larder: StartLarder, everything: Path, ports: Ports, tmp_path: Path
) -> None:
    path = tmp_path / "later" / "registry.db"
    (everything / "larder.yaml").write_text(
        yaml.safe_dump({"project": PROJECT, "registry": {"type": "file", "path": str(path)}})
    )
    larder(everything, ports=ports, args=SERVICES)
    client = store(everything)
    assert client.list_entities() == []
    feast(everything, *APPLY)
    assert path.exists()
    assert names(FeatureStore(repo_path=str(everything)).list_entities()) == ENTITIES


def test_views_need_no_source_file_to_be_described(applied: FeatureStore) -> None:
    """A view made by hand, without the command line: the objects survive the way through to_proto and back."""
    view = FeatureView(
        name="by_hand",
        entities=[applied.get_entity("city")],
        source=FileSource(name="elsewhere", path="s3://bucket/x.parquet", timestamp_field="ts"),
        schema=[Field(name="city_id", dtype=String), Field(name="rides", dtype=Int64)],
        online=False,
        version="v3",
    )
    applied.registry.apply_feature_view(view, PROJECT)
    read = applied.get_feature_view("by_hand")
    assert (read.online, read.version, read.current_version_number) == (False, "v3", 3)
    assert [f.name for f in read.features] == ["rides"]
    assert [c.name for c in read.entity_columns] == ["city_id"]

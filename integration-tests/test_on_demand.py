"""On-demand features: the same definitions on Feast's own FeatureStore (SQLite, in this process) say the same."""

from __future__ import annotations

import math
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pandas as pd
import pytest
from feast import FeatureStore
from feast.protos.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView as OnDemandFeatureViewProto
from feast.protos.feast.registry.RegistryServer_pb2 import ApplyFeatureViewRequest
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub

from conftest import StartLarder
from faces import Grpc, Http, RefusedError, json_cell, now
from larder_env.repo import store, write_config, write_feast
from larder_env.server import HOST, Larder, Ports
from on_demand_views import HARMFUL, objects, wait_for_workers
from online import metric

PROJECT = "on_demand"
DEADLINE_MS = 6000
EVERY = ["sums:conv_plus", "sums:trips_plus", "listed:py_trips", "listed:py_label", "listed:py_tags"]
EVERY += ["listed:py_since", "listed:py_good", "data_only:doubled"]


@dataclass
class Both:
    """Larder with workers of its own, its SDK store, and Feast's store in this process, on the same rows."""

    larder: Larder
    remote: FeatureStore
    local: FeatureStore

    def agree(
        self, features: list[str] | str, entities: Mapping[str, Sequence[object]], full: bool = False
    ) -> dict[str, list[Any]]:
        """What both say, which must be the same."""
        answers = []
        for each in (self.remote, self.local):
            asked = each.get_feature_service(features) if isinstance(features, str) else features
            rows = {name: list(values) for name, values in entities.items()}
            answers.append(each.get_online_features(asked, rows, full_feature_names=full).to_dict())
        ours, theirs = answers
        # with full names Feast drops the features of mode python
        assert ours.keys() >= theirs.keys() if full else ours.keys() == theirs.keys()
        for name, values in theirs.items():
            assert [plain(v) for v in ours[name]] == [plain(v) for v in values], name
        return ours


def plain(value: object) -> object:
    """A value in a form that both transports can have: the SDK's remote store gets times and ids as text."""
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return value
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 9)
    return value


def repo(path: Path, transformations: str) -> Path:
    """A repo whose server has these lines behind its larder.yaml."""
    write_config(path, PROJECT, Ports.free())
    with (path / "larder.yaml").open("a") as config:
        config.write(transformations)
    return path


def rows() -> dict[str, pd.DataFrame]:
    """The rows of both pushed views. Driver 3 is nowhere."""
    at = now() - timedelta(minutes=5)
    stats = {
        "driver_id": [1, 2],
        "trips": [10, 20],
        "conv_rate": [0.25, 0.5],
        "rating": ["good", "bad"],
        "seats": [4, 7],
        "since": [at, at - timedelta(days=400)],
        "tags": [["a", "b"], ["c"]],
    }
    more = {
        "driver_id": [1, 2],
        "badge": [str(uuid.UUID(int=1)), str(uuid.UUID(int=2))],
        "trips": [5, 6],
    }
    return {
        name: pd.DataFrame({**view, "event_timestamp": [at, at]}) for name, view in (("stats", stats), ("more", more))
    }


@pytest.fixture(scope="module")
def both(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Both stores, applied and filled."""
    path = tmp_path_factory.mktemp("on_demand")
    own = f"transformations: {{python: {sys.executable}, workers: 2, deadline_ms: {DEADLINE_MS}, memory_mb: 600}}\n"
    larder = module_larder(repo(path / "repo", own))
    remote = store(path / "repo")
    write_feast(path / "feast", PROJECT)
    local = store(path / "feast")
    wait_for_workers(larder, 2)
    filled = rows()
    for each in (remote, local):
        each.apply(objects())
        for view, frame in filled.items():
            each.push(f"{view}_push", frame)
    return Both(larder, remote, local)


@pytest.mark.parametrize("full", [False, True])
def test_every_mode_says_what_feast_says(both: Both, full: bool) -> None:
    answer = both.agree([*EVERY, "stats:rating"], {"driver_id": [1, 2], "val": [1, 100], "factor": [2.0, 0.5]}, full)
    prefix = "sums__" if full else ""
    assert answer[f"{prefix}trips_plus"] == [11, 120]
    assert answer[f"{prefix}conv_plus"] == [4.5, 7.25]
    assert answer["listed__py_trips" if full else "py_trips"] == [11, 120]


@pytest.mark.parametrize("full", [False, True])
def test_a_substrait_plan_runs_in_process(both: Both, full: bool) -> None:
    before = sum(metric(both.larder, "larder_transformations_total", runner="substrait", outcome="ok"))
    features = ["planned:s_sum", "planned:s_trips", "planned:s_known"]
    answer = Http(both.larder).read(features, {"driver_id": [1, 2], "val": [1, 100], "factor": [0, 0]}, full)
    prefix = "planned__" if full else ""
    assert answer.values(f"{prefix}s_sum") == [1.25, 100.5]
    assert answer.values(f"{prefix}s_trips") == [10, 20]
    assert answer.values(f"{prefix}s_known") == [True, True]
    assert sum(metric(both.larder, "larder_transformations_total", runner="substrait", outcome="ok")) == before + 1
    if not full:  # with full names Feast's plan finds no columns
        both.agree(features, {"driver_id": [1, 2], "val": [1, 100], "factor": [0.0, 0.0]})


def stored_sum(both: Both, driver: int) -> object:
    (value,) = Http(both.larder).read(["stored:stored_sum"], {"driver_id": [driver]}).values("stored_sum")
    return value


def test_a_written_view_is_computed_by_the_write_and_read_like_any_other(both: Both) -> None:
    at = now().replace(microsecond=0) - timedelta(minutes=1)
    columns = {"driver_id": 31, "trips": 3, "conv_rate": 0.5, "rating": "good", "seats": 1}
    row = columns | {"since": at, "tags": ["x"], "event_timestamp": at}
    Http(both.larder).write("stored", [row])
    answer = Http(both.larder).read(["stored:stored_sum"], {"driver_id": [31]})
    assert answer.values("stored_sum") == [3.5]
    assert answer["stored_sum"][0].event_ts == int(at.timestamp()) * 1_000_000, "the row's own time"
    both.local.write_to_online_store("stored", pd.DataFrame([row]))
    assert both.local.get_online_features(["stored:stored_sum"], {"driver_id": [31]}).to_dict()["stored_sum"] == [3.5]
    # an older row changes nothing; a row that was computed before it was sent is written as it is
    Http(both.larder).write("stored", [row | {"trips": 9, "event_timestamp": at - timedelta(hours=1)}])
    assert stored_sum(both, 31) == 3.5
    Http(both.larder).write("stored", [{"driver_id": 31, "stored_sum": 8.5, "event_timestamp": at}])
    assert stored_sum(both, 31) == 8.5


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_sdk_writes_an_on_demand_view(both: Both, number: int) -> None:
    """Its remote store sends the join key twice, once as the entity's and once as the view's column."""
    at, drivers = now().replace(microsecond=0) - timedelta(minutes=1), [100 * number + n for n in range(number)]
    of = {"rating": "good", "seats": 1, "since": at, "tags": ["x"], "event_timestamp": at}
    rows = [{"driver_id": driver, "trips": driver, "conv_rate": 0.5} | of for driver in drivers]
    for each in (both.remote, both.local):
        each.write_to_online_store("stored", pd.DataFrame(rows))
    answer = both.agree(["stored:stored_sum"], {"driver_id": drivers})
    assert answer["stored_sum"] == [driver + 0.5 for driver in drivers]


def test_columns_of_other_lengths_are_refused(both: Both) -> None:
    columns = {"trips": [1, 2], "conv_rate": [0.5, 0.5], "event_timestamp": [now().isoformat()] * 2}
    for keys in ([1, 1, 2, 3], [1, 2, 1, 2], [1, 1, 1, 1, 2, 2], [1]):
        body = {"feature_view_name": "stored", "df": {"driver_id": keys, **columns}}
        assert both.larder.post("/write-to-online-store", body).status_code == 422, keys
    body = {"push_source_name": "stats_push", "df": {"driver_id": [1, 1, 2, 2], **columns}}
    assert both.larder.post("/push", body).status_code == 422, "no client does that"


@pytest.mark.parametrize("transform", [True, False])
def test_a_write_is_computed_unless_it_says_not_to(both: Both, transform: bool) -> None:
    driver = 34 + transform
    at = (now() - timedelta(minutes=1)).replace(microsecond=0)
    row = {"driver_id": driver, "trips": 3, "conv_rate": 0.5, "rating": "good", "seats": 1, "since": at, "tags": ["x"]}
    # the frame has both what the function takes and what it would give
    sent = {name: [json_cell(value)] for name, value in (row | {"stored_sum": 100.0, "event_timestamp": at}).items()}
    body = {"feature_view_name": "stored", "df": sent, "transform_on_write": transform}
    assert both.larder.post("/write-to-online-store", body).status_code == 200
    assert stored_sum(both, driver) == (3.5 if transform else 100.0)
    if not transform:  # with it, Feast writes what was sent over what its function gave
        frame = pd.DataFrame([row | {"stored_sum": 100.0, "event_timestamp": at}])
        both.local.write_to_online_store("stored", frame, transform_on_write=False)
        asked = both.local.get_online_features(["stored:stored_sum"], {"driver_id": [driver]})
        assert asked.to_dict()["stored_sum"] == [100.0]
    body = {"push_source_name": "stats_push", "df": sent | {"driver_id": [driver + 2]}, "transform_on_write": transform}
    assert both.larder.post("/push", body).status_code == 200
    assert stored_sum(both, driver + 2) == (3.5 if transform else None)
    assert Http(both.larder).read(["stats:rating"], {"driver_id": [driver + 2]}).values("rating") == ["good"]


def test_a_push_computes_the_written_views_of_what_it_pushes(both: Both) -> None:
    at = now()
    row = {
        "driver_id": 32,
        "trips": 1,
        "conv_rate": 0.5,
        "rating": "bad",
        "seats": 1,
        "since": at.replace(microsecond=0),
        "tags": ["x"],
    }
    Http(both.larder).push("stats_push", [row | {"event_timestamp": at}])
    assert stored_sum(both, 32) == 1.5
    # all or nothing: what the function refuses, nothing of the push is written
    with pytest.raises(RefusedError) as refused:
        Http(both.larder).push("stats_push", [row | {"driver_id": 33, "trips": None, "event_timestamp": at}])
    assert "TypeError" in refused.value.message
    assert Http(both.larder).read(["stats:rating"], {"driver_id": [33]}).statuses("rating") == ["NOT_FOUND"]


def test_a_singleton_gets_one_row_at_a_time(both: Both) -> None:
    features = ["single:one_trips", "single:one_list"]
    answer = both.agree(features, {"driver_id": [2], "val": [7], "factor": [1.0]})
    assert answer["one_trips"] == [47]
    # Feast computes the first row only; here every row has its own
    many = Http(both.larder).read(features, {"driver_id": [1, 2], "val": [0, 1], "factor": [1, 1]})
    assert many.values("one_trips") == [20, 41]
    assert many.values("one_list") == [[4.0, 0.5], [7.0, 0.5]]


def test_ids_and_maps_go_through_a_function(both: Both) -> None:
    answer = Grpc(both.larder).read(["rich:badge_again", "rich:extras_again"], {"driver_id": [1, 2]})
    assert answer.values("badge_again") == [uuid.UUID(int=1), uuid.UUID(int=2)]
    assert answer.values("extras_again") == [{"n": 5}, {"n": 6}]
    local = both.local.get_online_features(["rich:badge_again", "rich:extras_again"], {"driver_id": [1, 2]}).to_dict()
    assert local["badge_again"] == answer.values("badge_again")
    assert local["extras_again"] == answer.values("extras_again")


def test_two_sources_with_one_feature_name_are_told_apart(both: Both) -> None:
    answer = Http(both.larder).read(["twice:both"], {"driver_id": [1, 2], "val": [0, 0], "factor": [0, 0]})
    assert answer.values("both") == [10_005, 20_006]
    assert answer.statuses("both") == ["PRESENT", "PRESENT"]
    assert answer.names == ["driver_id", "both"], "request data and sources are not answered"


def test_a_service_renames(both: Both) -> None:
    answer = both.agree("mixed", {"driver_id": [1, 3], "val": [1, 2], "factor": [1.0, 1.0]}, full=True)
    assert answer["asked_for__doubled"] == [2, 4]
    assert answer["stats__rating"] == ["good", None]


def test_rows_without_a_source_row_are_null(both: Both) -> None:
    answer = Http(both.larder).read(["sums:trips_plus"], {"driver_id": [1, 3], "val": [1, 2], "factor": [1, 1]})
    assert answer.values("trips_plus") == [11, None]
    assert answer.statuses("trips_plus") == ["PRESENT", "PRESENT"], "as Feast has it"


def test_request_data_needs_no_entities(both: Both) -> None:
    answer = Http(both.larder).read(["data_only:doubled"], {"val": [1, 2, 3], "factor": [1, 1, 1]})
    assert answer.names == ["doubled"]
    assert answer.values("doubled") == [2, 4, 6]


def test_missing_request_data_is_feasts_error(both: Both) -> None:
    for face in (Http(both.larder), Grpc(both.larder)):
        with pytest.raises(RefusedError) as refused:
            face.read(["sums:trips_plus"], {"driver_id": [1], "val": [1]})
        assert refused.value.error_class == "RequestDataNotFoundInEntityRowsException"
        assert "'factor'" in refused.value.message


def harm(both: Both, kind: str) -> str:
    with pytest.raises(RefusedError) as refused:
        Http(both.larder).read(["danger:harm"], {"val": [HARMFUL[kind]], "factor": [1]})
    assert refused.value.code == 422
    assert "danger" in refused.value.message
    return refused.value.message


def test_an_exception_is_the_callers_with_its_type_and_text(both: Both) -> None:
    message = harm(both, "raise")
    assert "ZeroDivisionError: integer division or modulo by zero" in message


def test_a_wrong_type_names_feature_and_types(both: Both) -> None:
    message = harm(both, "text")
    assert "'harm'" in message
    assert "INT64" in message
    assert "much" in message


@pytest.mark.parametrize(
    ("kind", "said", "reason"),
    [
        ("kill", "exit status 3", "ended"),
        ("spin", f"{DEADLINE_MS} ms", "deadline"),
        ("swell", "transformations.memory_mb", "memory"),
    ],
)
def test_a_worker_that_breaks_is_replaced(both: Both, kind: str, said: str, reason: str) -> None:
    name = "larder_transformation_workers_replaced_total"
    before = sum(metric(both.larder, name, reason=reason))
    assert said in harm(both, kind)
    assert sum(metric(both.larder, name, reason=reason)) == before + 1
    wait_for_workers(both.larder, 2)
    answer = Http(both.larder).read(["danger:harm"], {"val": [1], "factor": [1]})
    assert answer.values("harm") == [1]


def test_many_at_once(both: Both) -> None:
    http = Http(both.larder)

    def ask(n: int) -> list[object]:
        return http.read(["sums:trips_plus"], {"driver_id": [1, 2], "val": [n, -n], "factor": [1, 1]}).values(
            "trips_plus"
        )

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(40))) == [[10 + n, 20 - n] for n in range(40)]


def test_a_function_that_cannot_be_loaded_is_named(both: Both) -> None:
    message = OnDemandFeatureViewProto()
    both.remote.get_on_demand_feature_view("data_only").to_proto()
    message.CopyFrom(both.remote.get_on_demand_feature_view("data_only").to_proto())
    message.spec.name, message.spec.project = "rotten", PROJECT
    function = message.spec.feature_transformation.user_defined_function
    function.body, function.body_text = b"no pickle", "this is no Python"
    with grpc.insecure_channel(f"{HOST}:{both.larder.ports.registry}") as channel:
        request = ApplyFeatureViewRequest(on_demand_feature_view=message, project=PROJECT, commit=True)
        RegistryServerStub(channel).ApplyFeatureView(request)
    with pytest.raises(RefusedError) as refused:
        Http(both.larder).read(["rotten:doubled"], {"val": [1], "factor": [1]})
    assert refused.value.code == 422
    assert "rotten: its function cannot be loaded: UnpicklingError" in refused.value.message
    with grpc.insecure_channel(f"{HOST}:{both.larder.ports.registry}") as channel:
        both.remote.registry.delete_feature_view("rotten", PROJECT)


def test_without_an_interpreter_the_error_says_what_to_configure(larder: StartLarder, tmp_path: Path) -> None:
    server = larder(repo(tmp_path / "repo", ""))
    store(tmp_path / "repo").apply(objects())
    with pytest.raises(RefusedError) as refused:
        Http(server).read(["data_only:doubled"], {"val": [1], "factor": [1]})
    assert refused.value.code == 400
    assert "transformations: {python: /path/to/python}" in refused.value.message


def test_an_interpreter_without_feast_is_told_from_the_function(larder: StartLarder, tmp_path: Path) -> None:
    system = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    assert system is not None
    server = larder(repo(tmp_path / "repo", f"transformations: {{python: {system}, workers: 1, deadline_ms: 2000}}\n"))
    store(tmp_path / "repo").apply(objects())
    with pytest.raises(RefusedError) as refused:
        Http(server).read(["data_only:doubled"], {"val": [1], "factor": [1]})
    assert refused.value.code == 503
    assert "ModuleNotFoundError" in refused.value.message

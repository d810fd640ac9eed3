"""Every refusal: its class and text as a Feast client sees it, its code on each face, and a server unharmed by it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial

import feast.errors
import grpc
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pytest
import requests
from feast.protos.feast.serving.GrpcServer_pb2 import PushRequest, WriteToOnlineStoreRequest
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesRequest
from feast.protos.feast.types.Value_pb2 import Value

from conftest import StartLarder
from faces import Face, Grpc, Http, RefusedError, Row, http_refusal, now
from larder_env.server import HOST
from rides import Rides, fresh, stats

AT = now() - timedelta(hours=1)
MAX_BODY = 200_000
MAX_ENTITIES = 300
SETTINGS = f"limits: {{max_body_bytes: {MAX_BODY}, max_entities: {MAX_ENTITIES}}}\n"

Code = grpc.StatusCode
NOT_FOUND = (404, Code.NOT_FOUND)
INVALID = (422, Code.INVALID_ARGUMENT)
TOO_LARGE = (413, Code.RESOURCE_EXHAUSTED)


@pytest.fixture(scope="module")
def served(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """The rides on a server with small limits that all tests of this file share."""
    return Rides.start(tmp_path_factory.mktemp("errors") / "repo", module_larder, SETTINGS)


@pytest.fixture(autouse=True)
def unharmed(served: Rides) -> Iterator[None]:
    """After every test the same process serves as before, has no new 5xx to own up to, and did not panic."""
    faults, pid = our_faults(served), served.larder.pid
    yield
    assert served.larder.process.running
    assert served.larder.pid == pid
    driver, http = fresh(), Http(served.larder)
    http.push("driver_stats_push", [stats(driver, 1, AT)])
    assert http.read(["driver_stats:trips"], {"driver_id": [driver]}).values("trips") == [1]
    assert our_faults(served) == faults
    assert "panicked" not in served.larder.log
    assert " ERROR " not in served.larder.log


def our_faults(served: Rides) -> list[str]:
    """What the server counts as its own fault: 5xx, UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS."""
    errors = re.findall(r"^larder_request_errors_total{.*$", served.larder.metrics(), re.MULTILINE)
    return sorted(line for line in errors if re.search(r'status="(50\d|UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS)"', line))


def assert_code(face: Face, refused: RefusedError, codes: tuple[int, grpc.StatusCode]) -> None:
    """The refusal has the face's own code; for the SDK it is an exception class of Feast's."""
    wanted = {"http": codes[0], "grpc": codes[1], "sdk": getattr(feast.errors, refused.error_class)}
    assert refused.code == wanted[face.name]


# --- reading -----------------------------------------------------------------------------------------------------

TRIPS = ["driver_stats:trips"]
ONE: Mapping[str, Sequence[object]] = {"driver_id": [1]}
COLLISION = str(feast.errors.FeatureNameCollisionError(["driver_forever:trips", "driver_stats:trips"], False))
FULL_COLLISION = str(feast.errors.FeatureNameCollisionError(["driver_stats:trips", "driver_stats:trips"], True))

READS: dict[str, tuple[list[str] | str, Mapping[str, Sequence[object]], str, str, tuple[int, grpc.StatusCode]]] = {
    "unknown view": (
        ["nope:trips"],
        ONE,
        "FeatureViewNotFoundException",
        "Feature view nope does not exist in project rides",
        NOT_FOUND,
    ),
    "unknown feature": (
        ["driver_stats:nope"],
        ONE,
        "FeatureViewNotFoundException",
        "Feature nope does not exist in feature view driver_stats of project rides",
        NOT_FOUND,
    ),
    "unknown service": (
        "nope",
        ONE,
        "FeatureServiceNotFoundException",
        "Feature service nope does not exist in project rides",
        NOT_FOUND,
    ),
    "a version where versioning is off": (
        ["driver_stats@v7:trips"],
        ONE,
        "FeastError",
        "online versioning is disabled",
        INVALID,
    ),
    "no reference": (["driver_stats"], ONE, "FeastError", "Invalid feature reference 'driver_stats'", INVALID),
    "no version": (["driver_stats@two:trips"], ONE, "FeastError", "Invalid version 'two'", INVALID),
    "collision": (
        ["driver_stats:trips", "driver_forever:trips"],
        ONE,
        "FeatureNameCollisionError",
        COLLISION,
        INVALID,
    ),
    "the same feature twice": (
        ["driver_stats:trips", "driver_stats:trips"],
        ONE,
        "FeatureNameCollisionError",
        "Duplicate features named trips found.",
        INVALID,
    ),
    "unknown entity column": (
        TRIPS,
        {"driver_id": [1], "shoe_size": [44]},
        "FeastError",
        "Unknown entity column 'shoe_size'",
        INVALID,
    ),
    "missing join key": (
        ["trip_stats:fare"],
        ONE,
        "FeastError",
        "Missing join key 'rider_id'",
        INVALID,
    ),
    "only another join key": (TRIPS, {"rider_id": ["ann"]}, "FeastError", "Missing join key 'driver_id'", INVALID),
    "unequal lengths": (
        ["trip_stats:fare"],
        {"driver_id": [1, 2], "rider_id": ["ann"]},
        "FeastError",
        "All entity rows must have the same columns",
        INVALID,
    ),
    "no features": ([], ONE, "FeastError", "No features specified for retrieval", INVALID),
    "no rows": (TRIPS, {}, "FeastError", "no entity rows", INVALID),
    "text for an integer": (
        TRIPS,
        {"driver_id": ["abc"]},
        "FeastError",
        "'driver_id': \"abc\" of type STRING",
        INVALID,
    ),
    "empty text for an integer": (
        TRIPS,
        {"driver_id": [""]},
        "FeastError",
        "'driver_id': \"\" of type STRING",
        INVALID,
    ),
    "a half": (TRIPS, {"driver_id": [1.5]}, "FeastError", "1.5 of type DOUBLE cannot become INT64", INVALID),
    "too great for 32 bits": (
        ["zone_stats:busy"],
        {"zone_id": [2**31]},
        "FeastError",
        "2147483648 of type INT64 cannot become INT32",
        INVALID,
    ),
    "null key": (TRIPS, {"driver_id": [1, None]}, "FeastError", "'driver_id'", INVALID),
    "key given twice": (TRIPS, {"driver_id": [1], "driver": [2]}, "FeastError", "given twice", INVALID),
    "too many rows": (
        TRIPS,
        {"driver_id": list(range(MAX_ENTITIES + 1))},
        "FeastError",
        f"{MAX_ENTITIES + 1} entity rows in one request, the limit is {MAX_ENTITIES} (limits.max_entities)",
        TOO_LARGE,
    ),
}


@pytest.mark.parametrize("case", READS)
def test_reading(face: Face, case: str) -> None:
    features, entities, error_class, message, codes = READS[case]
    with pytest.raises(RefusedError) as refused:
        face.read(features, entities)
    assert (refused.value.error_class, message in refused.value.message) == (error_class, True), str(refused.value)
    assert_code(face, refused.value, codes)


def test_a_collision_under_full_names(face: Face) -> None:
    with pytest.raises(RefusedError) as refused:
        face.read(["driver_stats:trips", "driver_stats:trips"], ONE, full_feature_names=True)
    assert (refused.value.error_class, refused.value.message) == ("FeatureNameCollisionError", FULL_COLLISION)


def test_as_many_rows_as_allowed_are_answered(face: Face) -> None:
    assert len(face.read(TRIPS, {"driver_id": list(range(MAX_ENTITIES))})["trips"]) == MAX_ENTITIES


def test_grpc_without_features(rpc: Grpc) -> None:
    with pytest.raises(RefusedError, match="feature_service or features") as refused:
        rpc.call(rpc.serving.GetOnlineFeatures, GetOnlineFeaturesRequest())
    assert refused.value.code == Code.INVALID_ARGUMENT


# --- writing -----------------------------------------------------------------------------------------------------


def test_an_unknown_push_source(face: Face) -> None:
    with pytest.raises(RefusedError) as refused:
        face.push("nope", [stats(1, 1, AT)])
    assert refused.value.error_class == "PushSourceNotFoundException"
    assert refused.value.message == "Unable to find push source 'nope'."
    assert_code(face, refused.value, INVALID)


def test_writing_to_an_unknown_view(wire: Face) -> None:
    """Not with the SDK, which looks in its own copy of the registry (and raises a bare KeyError)."""
    with pytest.raises(RefusedError) as refused:
        wire.write("nope", [stats(1, 1, AT)])
    assert refused.value.error_class == "FeatureViewNotFoundException"
    assert refused.value.message == "Feature view nope does not exist in project rides"
    assert_code(wire, refused.value, NOT_FOUND)


def without(row: Row, column: str) -> Row:
    """The row without a column."""
    return {name: value for name, value in row.items() if name != column}


GOOD = stats(1, 1, AT)
WRITES: dict[str, tuple[Row, str]] = {
    "no join key": (without(GOOD, "driver_id"), "Missing the join key column 'driver_id'"),
    "no event time": (without(GOOD, "event_timestamp"), "Missing the event timestamp column 'event_timestamp'"),
    "no feature": ({name: GOOD[name] for name in ("driver_id", "event_timestamp")}, "no column of the request"),
    "null key": ({**GOOD, "driver_id": None}, "driver_id"),
    "null event time": ({**GOOD, "event_timestamp": None}, "the event timestamp 'event_timestamp' is null"),
    "no time": ({**GOOD, "event_timestamp": "soon"}, "column 'event_timestamp'"),
    "no created time": ({**GOOD, "created": "soon"}, "column 'created'"),
    "text for an integer key": ({**GOOD, "driver_id": "abc"}, "column 'driver_id'"),
    "a half for an integer": ({**GOOD, "trips": 1.5}, "column 'trips'"),
    "text for an integer": ({**GOOD, "trips": "many"}, "column 'trips'"),
    "text for a number": ({**GOOD, "conv_rate": "high"}, "column 'conv_rate'"),
    "2^53 + 1 for a double": ({**GOOD, "conv_rate": 2**53 + 1}, "column 'conv_rate'"),
    "a number for text": ({**GOOD, "rating": 1.5}, "column 'rating'"),
}


@pytest.mark.parametrize("verb", ["push", "write"])
@pytest.mark.parametrize("case", WRITES)
def test_writing(wire: Face, verb: str, case: str) -> None:
    row, message = WRITES[case]
    send: Callable[[], None] = (
        partial(wire.push, "driver_stats_push", [row]) if verb == "push" else partial(wire.write, "driver_stats", [row])
    )
    with pytest.raises(RefusedError) as refused:
        send()
    assert (refused.value.error_class, message in refused.value.message) == ("FeastError", True), str(refused.value)
    assert_code(wire, refused.value, INVALID)


@pytest.mark.parametrize("value", [[1], {"a": 1}, True], ids=str)
def test_json_of_another_shape_is_no_text(http: Http, value: object) -> None:
    with pytest.raises(RefusedError, match="column 'rating'") as refused:
        http.push("driver_stats_push", [{**GOOD, "rating": value}])
    assert refused.value.code == 422


def test_an_unknown_destination(wire: Face) -> None:
    with pytest.raises(RefusedError, match="sideways is not a supported push format") as refused:
        wire.push("driver_stats_push", [GOOD], to="sideways")
    assert_code(wire, refused.value, INVALID)


def test_a_refused_request_writes_nothing_at_all(served: Rides, http: Http) -> None:
    """Neither the rows before the bad one, nor the views before the bad one, nor the batch source."""
    driver, path = fresh(), served.path / "data" / "driver_stats.parquet"
    before = path.read_bytes()
    with pytest.raises(RefusedError, match=r"row 2, column 'trips'"):
        http.push(
            "driver_stats_push",
            [stats(driver, 1, AT), stats(driver + 1, 2, AT), stats(driver, 1.5, AT)],
            to="online_and_offline",
        )
    times = {"event_timestamp": AT.isoformat(), "created": AT.isoformat()}
    for left, right in ((1, 1.5), (1.5, 1)):
        with pytest.raises(RefusedError, match=r"_count'"):
            http.push("twin_push", [{"driver_id": driver, "left_count": left, "right_count": right, **times}])
    answer = http.read(
        ["driver_stats:trips", "twin_left:left_count", "twin_right:right_count"], {"driver_id": [driver, driver + 1]}
    )
    assert [answer.statuses(name) for name in answer.names[1:]] == [["NOT_FOUND"] * 2] * 3
    assert path.read_bytes() == before


def test_grpc_features_of_both_kinds(rpc: Grpc) -> None:
    texts, typed = {"driver_id": "1"}, {"driver_id": Value(int64_val=1)}
    for method, request in (
        (
            rpc.feature_server.Push,
            PushRequest(stream_feature_view="driver_stats_push", features=texts, typed_features=typed, to="online"),
        ),
        (
            rpc.feature_server.WriteToOnlineStore,
            WriteToOnlineStoreRequest(feature_view_name="driver_stats", features=texts, typed_features=typed),
        ),
    ):
        with pytest.raises(RefusedError, match="Only one of features or typed_features") as refused:
            rpc.call(method, request)
        assert refused.value.code == Code.INVALID_ARGUMENT


# --- the registry, as the SDK sees it ----------------------------------------------------------------------------

MISSING: dict[str, tuple[Callable[[Rides], object], str, str]] = {
    "entity": (lambda r: r.store.get_entity("nope"), "EntityNotFoundException", "Entity nope"),
    "feature view": (
        lambda r: r.store.get_feature_view("nope"),
        "FeatureViewNotFoundException",
        "Feature view nope",
    ),
    "feature service": (
        lambda r: r.store.get_feature_service("nope"),
        "FeatureServiceNotFoundException",
        "Feature service nope",
    ),
    "data source": (lambda r: r.store.get_data_source("nope"), "DataSourceObjectNotFoundException", "Data source nope"),
    "saved dataset": (lambda r: r.store.get_saved_dataset("nope"), "SavedDatasetNotFound", "Saved dataset nope"),
    "validation reference": (
        lambda r: r.store.get_validation_reference("nope"),
        "ValidationReferenceNotFound",
        "Validation reference nope",
    ),
    "permission": (lambda r: r.store.get_permission("nope"), "PermissionObjectNotFoundException", "Permission nope"),
    "view to delete": (
        lambda r: r.store.delete_feature_view("nope"),
        "FeatureViewNotFoundException",
        "Feature view nope",
    ),
    "service to delete": (
        lambda r: r.store.delete_feature_service("nope"),
        "FeatureServiceNotFoundException",
        "Feature service nope",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_the_registry_does_not_have(served: Rides, what: str) -> None:
    call, error_class, message = MISSING[what]
    with pytest.raises(getattr(feast.errors, error_class), match=f"^{message} does not exist in project rides$"):
        call(served)


def test_history_of_an_unknown_view(served: Rides) -> None:
    rows = pd.DataFrame({"driver_id": [1], "event_timestamp": [pd.Timestamp.now(tz="UTC")]})
    with pytest.raises(
        feast.errors.FeatureViewNotFoundException, match=r"^Feature view nope does not exist in project"
    ):
        served.store.get_historical_features(rows, ["nope:trips"]).to_df()


# --- bodies that are not what they should be ---------------------------------------------------------------------

READ = "/get-online-features"
WRITE = "/write-to-online-store"
POSTS = [READ, "/push", WRITE, "/materialize", "/materialize-incremental"]

NOT_JSON = {
    "empty": b"",
    "cut off": b'{"features": ["driver_stats:trips"], "entities": {"driver_id": [1',
    "two values": b"{}{}",
    "comma": b'{"features": [],}',
    "not UTF-8": b'{"features": ["\xff\xfe"]}',
    "lone surrogate": b'{"features": ["\\ud800"]}',
    "deep": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "NaN": b'{"features": ["driver_stats:trips"], "entities": {"driver_id": [NaN]}}',
    "Infinity": b'{"features": ["driver_stats:trips"], "entities": {"driver_id": [-Infinity]}}',
    "binary": bytes(range(256)) * 10,
}
NOT_OBJECTS = {"null": b"null", "list": b"[]", "number": b"1", "text": b'"x"', "true": b"true"}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("case", [*NOT_JSON, *NOT_OBJECTS])
def test_bodies_that_are_no_json_object(http: Http, path: str, case: str) -> None:
    refused = post_raw(http, path, (NOT_JSON | NOT_OBJECTS)[case])
    assert (refused.code, refused.error_class) == (422, "FeastError")
    # what a call has no use for is skipped unread, for example the text of an unknown field
    skipped = case in ("not UTF-8", "lone surrogate") and path.startswith("/materialize")
    too_deep = case.startswith("deep") and "(limits.max_json_depth)" in refused.message
    assert "the request body is not the JSON that this call takes" in refused.message or skipped or too_deep


def post_raw(http: Http, path: str, body: object, **headers: str) -> RefusedError:
    """POST bytes as they are; the refusal that comes back."""
    response = requests.post(f"{http.larder.online_url}{path}", data=body, headers=headers, timeout=60)  # type: ignore[arg-type]
    assert response.headers["content-type"] == "application/json"
    return http_refusal(response.status_code, response.text)


TIMES = {"event_timestamp": [AT.isoformat()], "created": [AT.isoformat()]}
DF = {"driver_id": [1], "trips": [1]} | TIMES
SHAPES: dict[str, tuple[str, object, str]] = {
    "no entities": (READ, {"features": TRIPS}, "entities"),
    "entities as rows": (READ, {"features": TRIPS, "entities": [{"driver_id": 1}]}, "expected a map"),
    "entity without list": (READ, {"features": TRIPS, "entities": {"driver_id": 1}}, "'driver_id' is not a list"),
    "features as text": (READ, {"features": "driver_stats:trips", "entities": ONE}, "expected a sequence"),
    "features as numbers": (READ, {"features": [1], "entities": ONE}, "expected a string"),
    "names as text": (
        READ,
        {"features": TRIPS, "entities": ONE, "full_feature_names": "perhaps"},
        "expected true or false",
    ),
    "a key beyond 64 bits": (READ, {"features": TRIPS, "entities": {"driver_id": [2**63]}}, "does not fit in 64 bits"),
    "a key far beyond": (READ, {"features": TRIPS, "entities": {"driver_id": [10**30]}}, "driver_id"),
    "a list as key": (READ, {"features": TRIPS, "entities": {"driver_id": [[1]]}}, "driver_id"),
    "an object as key": (READ, {"features": TRIPS, "entities": {"driver_id": [{"a": 1}]}}, "driver_id"),
    "nothing asked": (READ, {"entities": ONE}, "No features specified for retrieval"),
    "no source": ("/push", {"df": DF}, "push_source_name"),
    "no frame": ("/push", {"push_source_name": "driver_stats_push"}, "df"),
    "frame as rows": ("/push", {"push_source_name": "driver_stats_push", "df": [DF]}, "expected a map"),
    "column as scalar": ("/push", {"push_source_name": "driver_stats_push", "df": DF | {"trips": 1}}, "'trips'"),
    "columns of unequal length": (
        "/push",
        {"push_source_name": "driver_stats_push", "df": DF | {"trips": [1, 2]}},
        "All arrays must be of the same length: column 'trips'",
    ),
    "columns of other rows": (
        "/push",
        {"push_source_name": "driver_stats_push", "df": {"driver_id": {"0": 1}, "trips": {"1": 1}}},
        "'trips'",
    ),
    "null destination": ("/push", {"push_source_name": "driver_stats_push", "df": DF, "to": None}, "expected a string"),
    "no view": (WRITE, {"df": DF}, "feature_view_name"),
    "null view": (WRITE, {"df": DF, "feature_view_name": None}, "expected a string"),
    "a value beyond 64 bits": (WRITE, {"feature_view_name": "driver_stats", "df": DF | {"trips": [2**64]}}, "trips"),
    "no start": ("/materialize", {"end_ts": "2026-01-01T00:00:00"}, "start_ts"),
    "start after end": ("/materialize", {"start_ts": "2026-01-02", "end_ts": "2026-01-01"}, "before"),
    "no time": ("/materialize", {"start_ts": "soon", "end_ts": "2026-01-01"}, "soon"),
    "no end": ("/materialize-incremental", {}, "end_ts"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_json_of_another_shape(http: Http, case: str) -> None:
    path, body, message = SHAPES[case]
    refused = post_raw(http, path, json.dumps(body))
    assert (refused.code, refused.error_class) == (422, "FeastError")
    assert message in refused.message


def test_materializing_an_unknown_view(http: Http) -> None:
    body = {"start_ts": "2026-01-01", "end_ts": "2026-01-02", "feature_views": ["nope"]}
    for path in ("/materialize", "/materialize-incremental"):
        refused = post_raw(http, path, json.dumps(body))
        assert (refused.code, refused.error_class) == (404, "FeatureViewNotFoundException")
        assert refused.message == "Feature view nope does not exist in project rides"


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(http: Http, path: str, chunked: bool) -> None:
    body = b'{"features": ["' + b"x" * MAX_BODY + b'"]}'
    refused = post_raw(http, path, (body[i : i + 10_000] for i in range(0, len(body), 10_000)) if chunked else body)
    assert (refused.code, refused.error_class) == (413, "FeastError")
    assert f"larger than {MAX_BODY} bytes (limits.max_body_bytes)" in refused.message


def test_the_content_type_does_not_matter(http: Http) -> None:
    """As in Feast's server: the body is JSON whatever it is called."""
    body = json.dumps({"features": TRIPS, "entities": ONE})
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        response = requests.post(f"{http.larder.online_url}{READ}", data=body, headers=headers, timeout=10)
        assert response.status_code == 200


def test_unknown_paths_and_methods(http: Http) -> None:
    refused = post_raw(http, "/get-offline-features", b"{}")
    assert (refused.code, refused.message) == (404, "there is no /get-offline-features here")
    for path in POSTS:
        response = requests.get(f"{http.larder.online_url}{path}", timeout=10)
        assert response.headers["allow"] == "POST"
        refused = http_refusal(response.status_code, response.text)
        assert refused.code == 405
        assert f"{path} takes another method" in refused.message


@pytest.mark.parametrize("path", ["/search", "/retrieve-online-documents"])
def test_vector_search_is_refused_in_words(http: Http, path: str) -> None:
    refused = post_raw(http, path, b"{}")
    assert refused.code == 400
    assert "vector search is not offered" in refused.message


# --- protobufs that are none -------------------------------------------------------------------------------------

METHODS = [
    "/feast.serving.ServingService/GetOnlineFeatures",
    "/GrpcFeatureServer/GetOnlineFeatures",
    "/GrpcFeatureServer/Push",
    "/GrpcFeatureServer/WriteToOnlineStore",
]
REGISTRY_METHODS = [
    "/feast.registry.RegistryServer/ApplyEntity",
    "/feast.registry.RegistryServer/ListFeatureViews",
    "/feast.registry.RegistryServer/GetFeatureService",
]
MAP_VAL = Value.DESCRIPTOR.fields_by_name["map_val"].number
TYPED_FEATURES = PushRequest.DESCRIPTOR.fields_by_name["typed_features"].number
NO_PROTOBUFS = {"no tag": b"\xff\xff\xff\xff", "cut off": b"\x0a\x7fabc", "wrong wire type": b"\x0b\x0b\x0b"}


def call_raw(port: int, method: str, body: bytes) -> grpc.RpcError:
    """Call a method with bytes as they are; the error that comes back."""
    with grpc.insecure_channel(f"{HOST}:{port}") as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(method, None, None)(body, timeout=30)
    return error.value


@pytest.mark.parametrize("method", METHODS + REGISTRY_METHODS)
@pytest.mark.parametrize("case", NO_PROTOBUFS)
def test_bytes_that_are_no_protobuf(served: Rides, method: str, case: str) -> None:
    ports = served.larder.ports
    error = call_raw(ports.registry if "registry" in method else ports.online, method, NO_PROTOBUFS[case])
    assert error.code() == Code.INVALID_ARGUMENT
    assert "decode" in error.details()


def test_an_object_that_is_no_protobuf(served: Rides) -> None:
    """Registered objects are kept as their bytes, so they are looked at when they are applied."""
    request = field(1, b"\x0a\x7fabc") + field(2, b"rides")  # ApplyEntityRequest{entity: cut off, project}
    error = call_raw(served.larder.ports.registry, "/feast.registry.RegistryServer/ApplyEntity", request)
    assert error.code() == Code.INVALID_ARGUMENT


def test_a_protobuf_nested_too_deeply(served: Rides) -> None:
    """PushRequest{typed_features: {"rating": map in a map in a map…}}, deeper than any client's encoder goes."""
    value = b""
    for _ in range(150):
        entry = field(1, b"a") + field(2, value)
        value = field(MAP_VAL, field(1, entry))
    request = field(2, b"driver_stats_push") + field(TYPED_FEATURES, field(1, b"rating") + field(2, value))
    error = call_raw(served.larder.ports.online, "/GrpcFeatureServer/Push", request)
    assert error.code() == Code.INVALID_ARGUMENT
    assert "recursion limit" in error.details()


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(number: int) -> bytes:
    """A base-128 varint."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


@pytest.mark.parametrize("method", METHODS + REGISTRY_METHODS)
def test_a_message_over_the_limit(served: Rides, method: str) -> None:
    ports = served.larder.ports
    error = call_raw(ports.registry if "registry" in method else ports.online, method, b"\x0a" * (MAX_BODY + 1))
    assert error.code() in (Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED)
    assert str(MAX_BODY) in error.details()


def test_unknown_methods_and_services(served: Rides) -> None:
    ports = served.larder.ports
    for port in (ports.online, ports.registry, ports.offline):
        for method in ("/feast.serving.ServingService/Nope", "/GrpcFeatureServer/Nope", "/no.such.Service/Call"):
            assert call_raw(port, method, b"").code() == Code.UNIMPLEMENTED


# --- Flight ------------------------------------------------------------------------------------------------------

COMMANDS = {
    "no JSON": b"\x00\xff",
    "no object": b"[]",
    "no api": b"{}",
    "unknown api": b'{"command_id": "x", "api": "drop_everything"}',
    "empty": b"",
}


@pytest.fixture
def flight(served: Rides) -> Iterator[fl.FlightClient]:
    """A Flight client of the offline server."""
    with fl.connect(f"grpc://{HOST}:{served.larder.ports.offline}") as client:
        yield client


@pytest.mark.parametrize("case", COMMANDS)
def test_flight_commands_that_are_none(flight: fl.FlightClient, case: str) -> None:
    descriptor, table = fl.FlightDescriptor.for_command(COMMANDS[case]), pa.table({"key": [1]})

    def exchange() -> object:
        writer, reader = flight.do_exchange(descriptor)
        with writer:
            writer.begin(table.schema)
            writer.write_table(table)
            writer.done_writing()
            return reader.read_all()

    def put() -> None:
        writer, _ = flight.do_put(descriptor, table.schema)
        writer.write_table(table)
        writer.close()

    for call in (exchange, put, lambda: flight.get_flight_info(descriptor)):
        with pytest.raises(pa.ArrowException) as error:
            call()
        text = str(error.value)
        assert "Flight error: " in text, text
        assert not isinstance(error.value, fl.FlightInternalError)
    with pytest.raises(pa.ArrowException, match="Flight error: "):
        flight.do_get(fl.Ticket(COMMANDS[case])).read_all()


@pytest.mark.parametrize("method", ["DoExchange", "DoPut"])
def test_flight_streams_that_are_no_arrow(served: Rides, method: str) -> None:
    for body in (b"\xff\xff\xff", b"", b"\x12\x04abcd\xc2\x3e\x04abcd"):
        with (
            grpc.insecure_channel(f"{HOST}:{served.larder.ports.offline}") as channel,
            pytest.raises(grpc.RpcError) as error,
        ):
            list(channel.stream_stream(f"/arrow.flight.protocol.FlightService/{method}")(iter([body]), timeout=30))
        assert error.value.code() == Code.INVALID_ARGUMENT
        assert error.value.details()


# --- what is no protocol at all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["online", "registry", "offline", "metrics"])
@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"\x00" * 1000,
    ],
    ids=["TLS", "HTTP/9.9", "broken HTTP/2", "negative length", "zeros"],
)
def test_noise_on_a_port(served: Rides, port: str, noise: bytes) -> None:
    """The connection is closed, or refused in words; nobody else notices."""
    with socket.create_connection((HOST, getattr(served.larder.ports, port)), timeout=10) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # reset, or not connected any more
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 200 " not in answer
    assert b" 50" not in answer.split(b"\r\n", 1)[0]


def test_a_client_that_hangs_up_in_mid_body(served: Rides) -> None:
    head = b"POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    for _ in range(20):
        with socket.create_connection((HOST, served.larder.ports.online), timeout=10) as connection:
            connection.sendall(head + b'{"push_source_name"')

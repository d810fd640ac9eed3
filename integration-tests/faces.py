"""The online server's faces as one interface: JSON over HTTP, gRPC, and the SDK. A test says what, a face says how.

Nothing here knows a feature: rows are dictionaries, an answer is columns of cells, a refusal is one exception.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import grpc
import pandas as pd
from feast import FeatureStore
from feast.data_source import PushMode
from feast.errors import FeastError
from feast.protos.feast.serving.GrpcServer_pb2 import PushRequest, WriteToOnlineStoreRequest
from feast.protos.feast.serving.GrpcServer_pb2_grpc import GrpcFeatureServerStub
from feast.protos.feast.serving.ServingService_pb2 import (
    FeatureList,
    FieldStatus,
    GetOnlineFeaturesRequest,
    GetOnlineFeaturesResponse,
)
from feast.protos.feast.serving.ServingService_pb2_grpc import ServingServiceStub
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.type_map import feast_value_type_to_python_type

from larder_env.server import HOST, Larder
from online import Cell, micros

Row = Mapping[str, object]
NEVER = 0
"""The event time of a row that does not exist: protobuf's timestamp cannot be null."""


@dataclass(frozen=True)
class Answer:
    """A response, column by column in the order of the wire."""

    names: list[str]
    columns: list[list[Cell]]

    def __getitem__(self, name: str) -> list[Cell]:
        """The one column of this name."""
        assert self.names.count(name) == 1, f"{name} in {self.names}"
        return self.columns[self.names.index(name)]

    def values(self, name: str) -> list[object]:
        """A column's values."""
        return [cell.value for cell in self[name]]

    def statuses(self, name: str) -> list[str]:
        """A column's statuses."""
        return [cell.status for cell in self[name]]


class RefusedError(Exception):
    """A call that the server refused: Feast's class and message, and the face's own code."""

    def __init__(self, error_class: str, message: str, code: object) -> None:
        super().__init__(f"{error_class}: {message} ({code})")
        self.error_class = error_class
        self.message = message
        self.code = code

    @classmethod
    def of_detail(cls, detail: str, code: object) -> RefusedError:
        """From the error detail that a Feast client rebuilds its exception from."""
        fields = json.loads(detail)
        assert set(fields) == {"module", "class", "message"}, fields
        assert fields["module"] == "feast.errors", fields
        return cls(fields["class"], fields["message"], code)


class Face(Protocol):
    """What every face can do."""

    name: str
    has_times: bool
    """Whether an answer carries event timestamps (the SDK's remote online store drops them)."""
    partial: bool
    """Whether a write may leave out columns (the SDK wants them all)."""

    def push(self, source: str, rows: Sequence[Row], to: str = "online") -> None:
        """Push rows; all have the same columns."""

    def write(self, view: str, rows: Sequence[Row]) -> None:
        """Write rows of one view."""

    def read(
        self,
        features: Sequence[str] | str,
        entities: Mapping[str, Sequence[object]],
        full_feature_names: bool = False,
    ) -> Answer:
        """Read references, or a feature service by its name."""


def json_cell(value: object) -> object:
    """A value as JSON carries it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def frame(rows: Sequence[Row]) -> dict[str, list[object]]:
    """Rows as the columns of a JSON `df`."""
    return {name: [json_cell(row[name]) for row in rows] for name in rows[0]}


def typed(value: object) -> Value:
    """A Python scalar as the value that a client of that type would send."""
    if isinstance(value, Value):
        return value
    if value is None:
        return Value()
    if isinstance(value, bool):
        return Value(bool_val=value)
    if isinstance(value, int):
        return Value(int64_val=value)
    if isinstance(value, float):
        return Value(double_val=value)
    if isinstance(value, bytes):
        return Value(bytes_val=value)
    return Value(string_val=value.isoformat() if isinstance(value, datetime) else str(value))


class Http:
    """JSON over HTTP."""

    name = "http"
    has_times = True
    partial = True

    def __init__(self, larder: Larder, prefix: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.larder = larder
        self.prefix = prefix
        self.headers = dict(headers or {})

    def push(self, source: str, rows: Sequence[Row], to: str = "online") -> None:
        """POST /push."""
        self._post("/push", {"push_source_name": source, "df": frame(rows), "to": to})

    def write(self, view: str, rows: Sequence[Row]) -> None:
        """POST /write-to-online-store."""
        self._post("/write-to-online-store", {"feature_view_name": view, "df": frame(rows)})

    def read(
        self,
        features: Sequence[str] | str,
        entities: Mapping[str, Sequence[object]],
        full_feature_names: bool = False,
    ) -> Answer:
        """POST /get-online-features."""
        body: dict[str, object] = {
            "entities": {name: list(values) for name, values in entities.items()},
            "full_feature_names": full_feature_names,
        }
        body |= {"feature_service": features} if isinstance(features, str) else {"features": list(features)}
        answer = self._post("/get-online-features", body)
        assert isinstance(answer, dict)
        columns = [
            # like Feast, an answer without rows has no timestamps
            [Cell(*c) for c in zip(r["values"], r["statuses"], map(micros, r.get("event_timestamps", [])), strict=True)]
            for r in answer["results"]
        ]
        return Answer(answer["metadata"]["feature_names"], columns)

    def _post(self, path: str, body: object) -> object:
        response = self.larder.post(self.prefix + path, body, headers=self.headers)
        if response.status_code != 200:
            raise http_refusal(response.status_code, response.text)
        return response.json() if response.content else None


def http_refusal(status: int, body: str) -> RefusedError:
    """The refusal in an HTTP body: the error detail, encoded twice."""
    detail = json.loads(body)
    assert isinstance(detail, str), f"{status}: {body} is not encoded twice"
    return RefusedError.of_detail(detail, status)


class Grpc:
    """gRPC: ServingService for reads, GrpcFeatureServer for writes (one row a call)."""

    name = "grpc"
    has_times = True
    partial = True

    def __init__(self, larder: Larder, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self.metadata = list(metadata)
        self.channel = grpc.insecure_channel(f"{HOST}:{larder.ports.online}")
        self.serving = ServingServiceStub(self.channel)
        self.feature_server = GrpcFeatureServerStub(self.channel)

    def push(self, source: str, rows: Sequence[Row], to: str = "online") -> None:
        """Push with typed features."""
        for row in rows:
            features = {name: typed(value) for name, value in row.items()}
            self.call(self.feature_server.Push, PushRequest(stream_feature_view=source, typed_features=features, to=to))

    def write(self, view: str, rows: Sequence[Row]) -> None:
        """WriteToOnlineStore with typed features."""
        for row in rows:
            features = {name: typed(value) for name, value in row.items()}
            request = WriteToOnlineStoreRequest(feature_view_name=view, typed_features=features)
            self.call(self.feature_server.WriteToOnlineStore, request)

    def read(
        self,
        features: Sequence[str] | str,
        entities: Mapping[str, Sequence[object]],
        full_feature_names: bool = False,
    ) -> Answer:
        """GetOnlineFeatures of ServingService; that of GrpcFeatureServer must say the same."""
        asked = {"feature_service": features} if isinstance(features, str) else {"features": FeatureList(val=features)}
        request = GetOnlineFeaturesRequest(
            **asked,
            entities={name: RepeatedValue(val=map(typed, values)) for name, values in entities.items()},
            full_feature_names=full_feature_names,
        )
        response = self.call(self.serving.GetOnlineFeatures, request)
        assert isinstance(response, GetOnlineFeaturesResponse)
        assert self.call(self.feature_server.GetOnlineFeatures, request) == response
        columns = [
            [
                Cell(
                    feast_value_type_to_python_type(value),
                    FieldStatus.Name(status),
                    time.seconds * 1_000_000 + time.nanos // 1000,
                )
                for value, status, time in zip(r.values, r.statuses, r.event_timestamps, strict=True)
            ]
            for r in response.results
        ]
        return Answer(list(response.metadata.feature_names.val), columns)

    def call(self, method: grpc.UnaryUnaryMultiCallable, request: object) -> object:
        """Call, and turn an error into a refusal."""
        try:
            return method(request, timeout=60, metadata=self.metadata)
        except grpc.RpcError as error:
            raise RefusedError.of_detail(error.details(), error.code()) from error


class Sdk:
    """The SDK's FeatureStore on remote stores."""

    name = "sdk"
    has_times = False
    partial = False

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def push(self, source: str, rows: Sequence[Row], to: str = "online") -> None:
        """`store.push`."""
        with self._refusals():
            self.store.push(source, pd.DataFrame(list(rows)), to=PushMode[to.upper()])

    def write(self, view: str, rows: Sequence[Row]) -> None:
        """`store.write_to_online_store`."""
        with self._refusals():
            self.store.write_to_online_store(view, pd.DataFrame(list(rows)))

    def read(
        self,
        features: Sequence[str] | str,
        entities: Mapping[str, Sequence[object]],
        full_feature_names: bool = False,
    ) -> Answer:
        """`store.get_online_features`."""
        with self._refusals():
            asked = self.store.get_feature_service(features) if isinstance(features, str) else list(features)
            response = self.store.get_online_features(
                asked,
                {name: list(values) for name, values in entities.items()},
                full_feature_names=full_feature_names,
            ).proto
        columns = [
            [
                Cell(feast_value_type_to_python_type(value), FieldStatus.Name(status), None)
                for value, status in zip(r.values, r.statuses, strict=True)
            ]
            for r in response.results
        ]
        return Answer(list(response.metadata.feature_names.val), columns)

    @staticmethod
    @contextlib.contextmanager
    def _refusals() -> Iterator[None]:
        try:
            yield
        except FeastError as error:
            raise RefusedError(type(error).__name__, str(error), type(error)) from error


def now() -> datetime:
    """The wall clock in UTC, in whole microseconds."""
    return datetime.now(UTC)

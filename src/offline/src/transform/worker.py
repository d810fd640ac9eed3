"""Runs the Python functions of on-demand feature views for Larder: one call at a time, over gRPC on a Unix socket.

Larder starts it as `python worker.py DIRECTORY SOCKET` and holds its standard input open; when that ends, Larder is
gone, and so is this process. It needs `feast[grpcio]` and whatever the functions import.

The service is Feast's `feast.serving.TransformationService`. Beside each request stands the metadata
`larder-call-bin`, JSON with `file` (the name in DIRECTORY of the serialized OnDemandFeatureView), `write` (whether rows
are written) and `keys` (the join keys then). Columns of types that Arrow has no one way for come and go as serialized
`feast.types.Value`s, in binary columns with the field metadata `larder.value`.
"""

import builtins
import ctypes
import dis
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections import OrderedDict
from concurrent import futures


def die_with_parent(directory: str) -> None:
    """End with Larder, however it ended: by the kernel's signal, or when its end of the pipe closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


# before the slow imports: Larder may be gone before they are done
DIRECTORY, SOCKET = sys.argv[1:3]
die_with_parent(DIRECTORY)
# what functions print goes to the log, and only the word "ready" to Larder
READY = os.dup(1)
os.dup2(2, 1)

import dill
import grpc
import numpy as np
import pandas as pd
import pyarrow as pa
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.online_response import _convert_uuids_for_arrow
from feast.protos.feast.core.OnDemandFeatureView_pb2 import (
    OnDemandFeatureView as OnDemandFeatureViewProto,
)
from feast.protos.feast.serving import TransformationService_pb2 as pb
from feast.protos.feast.serving import TransformationService_pb2_grpc as stubs
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType
from feast.version import get_version

AS_VALUES = b"larder.value"
PLAIN = {
    ValueType[name + suffix]
    for name in ("BYTES", "STRING", "INT32", "INT64", "DOUBLE", "FLOAT", "BOOL", "UNIX_TIMESTAMP")
    for suffix in ("", "_LIST")
}
KEPT = 256


class CallerError(Exception):
    """What the function's author must mend."""


def unresolved(function) -> bool:
    """Whether a function that was made from its source alone misses what stood around it in its module."""
    known = getattr(function, "__globals__", {})
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return any(name not in known and not hasattr(builtins, name) for name in names)


class Function:
    """An on-demand view and its function, loaded."""

    def __init__(self, data: bytes) -> None:
        message = OnDemandFeatureViewProto.FromString(data)
        self.view = OnDemandFeatureView.from_proto(message)
        self.call = self.view.feature_transformation.udf
        body = message.spec.feature_transformation.user_defined_function.body
        if body and unresolved(self.call):
            self.call = dill.loads(body)
        self.types = {f.name: f.dtype.to_value_type() for f in self.view.features}

    def both_names(self, columns: dict) -> dict:
        """Every feature under its short and its full name, as Feast has it."""
        for projection in self.view.source_feature_view_projections.values():
            for feature in projection.features:
                full = f"{projection.name}__{feature.name}"
                if full in columns:
                    columns.setdefault(feature.name, columns[full])
                elif feature.name in columns:
                    columns[full] = columns[feature.name]
        return columns

    def run(self, table: pa.Table, write: bool, keys: list) -> dict:
        """The features, and the join keys of what is written, as columns."""
        if self.view.mode == "pandas":
            return self.run_pandas(table, write, keys)
        columns = self.both_names({name: to_list(table, name) for name in table.column_names})
        if self.view.singleton:
            return self.run_singleton(columns, table.num_rows)
        given = self.call(columns)
        if not isinstance(given, dict):
            raise CallerError(f"it gave a {type(given).__name__}, not a dict")
        wanted = [*self.types, *(keys if write else ())]
        return {name: as_list(given[name]) for name in wanted if name in given}

    def run_pandas(self, table: pa.Table, write: bool, keys: list) -> dict:
        columns = self.both_names({name: to_series(table, name) for name in table.column_names})
        frame = pd.DataFrame(columns, index=range(table.num_rows))
        taken = set(frame.columns) if write else set()
        given = self.call(frame)
        if not isinstance(given, pd.DataFrame):
            raise CallerError(f"it gave a {type(given).__name__}, not a pandas.DataFrame")
        out = {}
        for name in [*self.types, *(keys if write else ())]:
            if write and name in taken and len(given) == table.num_rows:
                out[name] = columns[name]  # what was sent wins, as in Feast
                continue
            full = f"{self.view.name}__{name}"
            column = name if name in given.columns else full
            if column in given.columns:
                if not isinstance(given[column], pd.Series):
                    raise CallerError(f"it gave two columns named {column!r}")
                out[name] = given[column]
        return out

    def run_singleton(self, columns: dict, rows: int) -> dict:
        out: dict = {}
        for row in range(rows):
            given = self.call({name: values[row] for name, values in columns.items()})
            if not isinstance(given, dict):
                raise CallerError(f"it gave a {type(given).__name__}, not a dict")
            for name, value_type in self.types.items():
                if name in given:
                    out.setdefault(name, []).append(one(given[name], value_type))
        return out


def one(value, value_type):
    """A singleton function's value: it may stand alone, or in a list of one."""
    is_list = value_type.name.endswith(("_LIST", "_SET"))
    if isinstance(value, list) and len(value) == 1 and (not is_list or isinstance(value[0], (list, set, np.ndarray))):
        return value[0]
    return value


def as_list(column) -> list:
    """A column as a function may give it."""
    if isinstance(column, list):
        return column
    if isinstance(column, (np.ndarray, pd.Series, tuple)):
        return list(column)
    return [column]


def is_values(table: pa.Table, name: str) -> bool:
    return AS_VALUES in (table.schema.field(name).metadata or {})


def to_list(table: pa.Table, name: str) -> list:
    """A column as the values that Feast gives to functions of mode python."""
    values = table.column(name).to_pylist()
    if is_values(table, name):
        return [None if v is None else feast_value_type_to_python_type(Value.FromString(v)) for v in values]
    return values


def to_series(table: pa.Table, name: str) -> pd.Series:
    """A column as Feast gives it to functions of mode pandas: by way of Arrow."""
    if not is_values(table, name):
        return table.column(name).to_pandas()
    values = _convert_uuids_for_arrow({name: to_list(table, name)})[name]
    try:
        return pa.array(values).to_pandas()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pd.Series(values, dtype=object)


def to_array(name: str, value_type, values):
    """What the function gave, for the wire."""
    try:
        if value_type is None or value_type in PLAIN:
            return pa.field(name, (array := plain_array(values)).type), array
        values = list(values)
        if value_type.name.endswith("_LIST"):
            values = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
        protos = python_values_to_proto_values([none_of(v) for v in values], value_type)
        array = pa.array([p.SerializeToString() for p in protos], type=pa.binary())
        return pa.field(name, array.type, metadata={AS_VALUES: b"1"}), array
    except Exception as e:
        wanted = f" of type {value_type.name}" if value_type else ""
        raise CallerError(f"its column {name!r}{wanted} cannot be read: {type(e).__name__}: {e}") from e


def plain_array(values) -> pa.Array:
    if isinstance(values, pd.Series):
        array = pa.Array.from_pandas(values)
        return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pa.array([list(v) if isinstance(v, set) else v for v in values], from_pandas=True)


def none_of(value):
    """Every way of pandas to say nothing, as None."""
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    return value


def said(error: BaseException, within: str) -> str:
    """An exception of the function: type, message and line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.name == within]
    where = f" (line {lines[-1]} of {within})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"[:2000]


class Service(stubs.TransformationServiceServicer):
    """Feast's transformation service, over the functions in the directory."""

    def __init__(self) -> None:
        self.loaded: OrderedDict[str, Function] = OrderedDict()

    def GetTransformationServiceInfo(self, request, context):
        return pb.GetTransformationServiceInfoResponse(
            type=pb.TRANSFORMATION_SERVICE_TYPE_PYTHON,
            transformation_service_type_details=f"Python: {sys.version}, Feast: {get_version()}",
        )

    def function(self, file: str) -> Function:
        if file not in self.loaded:
            with open(os.path.join(DIRECTORY, file), "rb") as spec:
                self.loaded[file] = Function(spec.read())
            if len(self.loaded) > KEPT:
                self.loaded.popitem(last=False)
        self.loaded.move_to_end(file)
        return self.loaded[file]

    def TransformFeatures(self, request, context):
        fail = lambda text: context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)  # noqa: E731
        call = json.loads(dict(context.invocation_metadata())["larder-call-bin"])
        try:
            function = self.function(call["file"])
        except BaseException as e:  # noqa: BLE001 (a function may raise anything)
            return fail(f"its function cannot be loaded: {said(e, '')}")
        try:
            table = pa.ipc.open_file(pa.py_buffer(request.transformation_input.arrow_value)).read_all()
            given = function.run(table, call["write"], call["keys"])
            wire = [to_array(name, function.types.get(name), values) for name, values in given.items()]
            lengths = {field.name: len(array) for field, array in wire}
            if len(set(lengths.values())) > 1:
                raise CallerError(f"its columns have unequal lengths: {lengths}")
            out = pa.Table.from_arrays([array for _, array in wire], schema=pa.schema([field for field, _ in wire]))
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, out.schema) as writer:
                writer.write_table(out)
            value = pb.ValueType(arrow_value=sink.getvalue().to_pybytes())
        except CallerError as e:
            return fail(str(e)[:2000])
        except BaseException as e:  # noqa: BLE001 (a function may raise anything)
            return fail(f"its function failed: {said(e, getattr(function.call, '__name__', ''))}")
        return pb.TransformFeaturesResponse(transformation_output=value)


def main() -> None:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=unlimited)
    stubs.add_TransformationServiceServicer_to_server(Service(), server)
    server.add_insecure_port(f"unix:{SOCKET}")
    server.start()
    os.write(READY, b"ready\n")
    os.close(READY)
    server.wait_for_termination()


if __name__ == "__main__":
    main()

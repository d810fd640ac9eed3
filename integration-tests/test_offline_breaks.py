"""What breaks in mid-stream: answers that fail behind their first message, clients that hang up, lengths that are lies.

Each ends in words or in a count of its own, and the server goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from feast import Field
from feast.types import Array, Bool, Float64, Int32, Int64, String, UnixTimestamp

from conftest import StartLarder
from drivers import Drivers
from larder_env.server import HOST, Larder
from online import metric
from raw import PREFACE, connect, eventually, field, headers
from raw import frame as http2

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
MIB = 1 << 20
EXCHANGE = "/arrow.flight.protocol.FlightService/DoExchange"
SCHEMA = [
    Field(name="driver_id", dtype=Int64),
    Field(name="small", dtype=Int32),
    Field(name="whole", dtype=Int64),
    Field(name="real", dtype=Float64),
    Field(name="word", dtype=String),
    Field(name="yes", dtype=Bool),
    Field(name="at", dtype=UnixTimestamp),
    Field(name="many", dtype=Array(Int64)),
]


class World(Drivers):
    """A server with a view that is sound, one that is to be damaged, and one whose columns turn."""

    def ask(self, view: str, features: Sequence[str] = ("whole",)) -> pd.DataFrame:
        """The features of three drivers."""
        frame = pd.DataFrame({"driver_id": range(3), "event_timestamp": [BEGIN + timedelta(days=1)] * 3})
        return self.sdk.get_historical_features(frame, [f"{view}:{f}" for f in features]).to_df()

    def requests(self, **labels: str) -> float:
        """How many requests of the offline service with these labels were counted."""
        return total(self.larder, "larder_requests_total", service="offline", **labels)

    def calls(self, outcome: str) -> float:
        """How many retrievals ended so."""
        api = "get_historical_features"
        return total(self.larder, "larder_offline_requests_total", api=api, outcome=outcome)


def total(larder: Larder, name: str, **labels: str) -> float:
    """A counter, summed over all series that have these labels."""
    return sum(metric(larder, name, **labels))


def rows() -> pd.DataFrame:
    """One row per driver."""
    return pd.DataFrame(
        {
            "driver_id": range(3),
            "event_timestamp": [BEGIN] * 3,
            "small": np.array([1, 2, 3], "int32"),
            "whole": [10, 20, 30],
            "real": [0.5, 1.5, 2.5],
            "word": ["a", "b", "c"],
            "yes": [True, False, True],
            "at": [BEGIN] * 3,
            "many": [[1], [2, 3], []],
        }
    )


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Applied, each view over a file of its own."""
    world = World.start(module_larder, tmp_path_factory.mktemp("breaks"), "breaks")
    world.apply(["sound", "hurt", "turned"], SCHEMA, rows())
    return world


# --- answers that fail behind their first message --------------------------------------------------------------------


def test_a_stream_that_fails_in_the_middle_is_counted_as_that(world: World) -> None:
    """The head of the answer is sent before the source is read: its code stands in the trailers."""
    path = world.path("hurt")
    whole = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(3)
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    path.write_bytes(whole[:at] + b"\xff" * chunk.total_compressed_size + whole[at + chunk.total_compressed_size :])
    good, bad = (world.requests(endpoint=EXCHANGE, status=s) for s in ("OK", "INVALID_ARGUMENT"))
    with pytest.raises(Exception, match=r"data source 'hurt_file'.*hurt\.parquet"):
        world.ask("hurt")
    eventually(lambda: world.requests(endpoint=EXCHANGE, status="INVALID_ARGUMENT") == bad + 1)
    assert world.requests(endpoint=EXCHANGE, status="OK") == good
    path.write_bytes(whole)
    assert list(world.ask("hurt")["whole"]) == [10, 20, 30]
    eventually(lambda: world.requests(endpoint=EXCHANGE, status="OK") == good + 1)


# --- types -----------------------------------------------------------------------------------------------------------

MISFITS = {
    "small": ([1, 2, 1 << 40], "small", "INT32"),
    "whole": (["1", "two", "3"], "whole", "INT64"),
    "real": (["x", "y", "z"], "real", "DOUBLE"),
    "word": ([[1], [2], [3]], "word", "STRING"),
    "yes": (["maybe", "no", "yes"], "yes", "BOOL"),
    "at": (["yesterday", "today", "tomorrow"], "at", "time"),
    "many": ([["a"], ["b"], ["c"]], "many", "INT64"),
}


@pytest.mark.parametrize("column", MISFITS)
def test_values_that_are_not_of_the_registered_type_are_named(world: World, column: str) -> None:
    values, name, said = MISFITS[column]
    rows().assign(**{column: values}).to_parquet(world.path("turned"), index=False)
    with pytest.raises(Exception, match=r"\S") as raised:
        world.ask("turned", [column])
    message = str(raised.value)
    assert f"'{name}'" in message, message
    assert said.lower() in message.lower(), message
    assert "turned" in message, message
    assert "INTERNAL" not in message, message
    others = [f.name for f in SCHEMA[1:] if f.name != column]
    assert len(world.ask("turned", others)) == 3, "the other columns are as they were"
    rows().to_parquet(world.path("turned"), index=False)


# --- clients that hang up --------------------------------------------------------------------------------------------


def test_a_client_that_hangs_up_stops_the_work(world: World) -> None:
    """The call is counted as cancelled, long before all its rows were made."""
    number = 4_000_000
    command = {
        "api": "get_historical_features",
        "project": "breaks",
        "feature_view_names": ["sound"],
        "feature_refs": ["sound:whole", "sound:word", "sound:many"],
        "full_feature_names": False,
        "name_aliases": [None],
    }
    table = pa.table(
        {
            "driver_id": pa.array(np.arange(number) % 3),
            "event_timestamp": pa.array(np.full(number, pd.Timestamp(BEGIN).value // 1000), pa.timestamp("us", "UTC")),
        }
    )
    cancelled, ended = world.calls("cancelled"), world.requests(endpoint=EXCHANGE, status="CANCELLED")
    exported = total(world.larder, "larder_offline_rows_exported_total")
    client = fl.FlightClient(f"grpc+tcp://{HOST}:{world.larder.ports.offline}")
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(json.dumps(command).encode()))
    writer.begin(table.schema)
    writer.write_table(table, max_chunksize=1 << 16)
    writer.done_writing()
    assert reader.read_chunk().data.num_rows > 0
    reader.cancel()
    client.close()
    eventually(lambda: world.calls("cancelled") == cancelled + 1)
    eventually(lambda: world.requests(endpoint=EXCHANGE, status="CANCELLED") == ended + 1)
    made = total(world.larder, "larder_offline_rows_exported_total") - exported
    assert 0 < made < number / 2, made
    assert list(world.ask("sound")["whole"]) == [10, 20, 30]
    assert total(world.larder, "larder_offline_rows_exported_total") == exported + made + 3, "nothing of it goes on"


# --- lengths that are lies -------------------------------------------------------------------------------------------


def resident(larder: Larder) -> int:
    """The server's resident memory, bytes."""
    status = Path(f"/proc/{larder.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found.group(1)) * 1024


def test_a_message_that_only_says_it_is_long_takes_no_memory(world: World) -> None:
    before = resident(world.larder)
    with ExitStack() as stack:
        for _ in range(16):
            connection = stack.enter_context(connect(world.larder.ports.offline))
            head = b"".join(
                field(name, value)
                for name, value in {
                    ":method": "POST",
                    ":scheme": "http",
                    ":path": EXCHANGE,
                    ":authority": "x",
                    "content-type": "application/grpc",
                    "te": "trailers",
                }.items()
            )
            claim = b"\x00" + ((2 << 30) - 2).to_bytes(4, "big") + b"\x0a" * 64
            connection.sendall(PREFACE + headers(1, head, end=False) + http2(0, claim, stream=1))
        # They are all heard, for this is behind them.
        assert list(world.ask("sound")["whole"]) == [10, 20, 30]
        grown = resident(world.larder) - before
        assert grown < 256 * MIB, f"{grown / MIB:.0f} MiB for 32 GiB of promises"
    assert list(world.ask("sound")["whole"]) == [10, 20, 30]

"""Sources that are damaged or change, and clients that do not keep to the protocol: a clear error, and no harm done."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from feast import Field
from feast.types import Int64

from conftest import StartLarder
from drivers import Drivers
from larder_env.server import HOST

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
VIEWS = ["sound", "hurt", "turned", "shared"]


class World(Drivers):
    """A server with one small view per way to be damaged."""

    def ask(self, view: str) -> list[object]:
        """The feature of every row."""
        frame = pd.DataFrame({"driver_id": range(50), "event_timestamp": [BEGIN + timedelta(days=1)] * 50})
        return list(self.sdk.get_historical_features(frame, [f"{view}:trips"]).to_df()["trips"])

    def client(self) -> fl.FlightClient:
        """Without the SDK."""
        return fl.FlightClient(f"grpc+tcp://{HOST}:{self.larder.ports.offline}")


def rows() -> pd.DataFrame:
    """One row per driver."""
    return pd.DataFrame({"driver_id": range(50), "event_timestamp": [BEGIN] * 50, "trips": range(50)})


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Applied, each view over a file of its own."""
    world = World.start(module_larder, tmp_path_factory.mktemp("damage"), "damage")
    schema = [Field(name="driver_id", dtype=Int64), Field(name="trips", dtype=Int64)]
    world.apply(VIEWS, schema, rows())
    return world


def refused(world: World, view: str) -> str:
    """The caller's error of a question about a view; the others are answered as ever."""
    with pytest.raises(Exception, match=r"\S") as raised:
        world.ask(view)
    assert world.ask("sound") == list(range(50))
    return str(raised.value)


def test_a_corrupt_row_group_is_an_error_not_other_values(world: World) -> None:
    path = world.path("hurt")
    whole = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    path.write_bytes(whole[:at] + b"\xff" * chunk.total_compressed_size + whole[at + chunk.total_compressed_size :])
    refused(world, "hurt")
    path.write_bytes(whole[: len(whole) // 2])
    refused(world, "hurt")
    path.write_bytes(whole)
    assert world.ask("hurt") == list(range(50))


def test_a_source_that_changed_its_schema_is_named(world: World) -> None:
    path = world.path("turned")
    rows().rename(columns={"trips": "journeys"}).to_parquet(path, index=False)
    assert "trips" in refused(world, "turned")
    rows().assign(trips="many").to_parquet(path, index=False)
    assert "trips" in refused(world, "turned")
    rows().drop(columns=["event_timestamp"]).to_parquet(path, index=False)
    assert "event_timestamp" in refused(world, "turned")
    rows().astype({"trips": "int32"}).to_parquet(path, index=False)
    assert world.ask("turned") == list(range(50)), "another width is the same numbers"


def test_two_writers_on_one_source_both_count(world: World) -> None:
    def append(writer: int) -> None:
        for batch in range(5):
            number = 1000 + writer * 100 + batch
            frame = rows().head(1).assign(driver_id=number, trips=number)
            world.sdk.write_to_offline_store("shared", frame)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    wanted = {1000 + writer * 100 + batch for writer in range(4) for batch in range(5)}
    kept = pd.read_parquet(world.path("shared"))["driver_id"]
    assert set(kept) == wanted | set(range(50))
    assert len(kept) == 70


COMMAND: dict[str, object] = {"api": "get_historical_features", "project": "damage", "feature_view_names": ["sound"]}
COMMAND |= {"feature_refs": ["sound:trips"], "full_feature_names": False, "name_aliases": [None]}


def test_a_client_that_hangs_up_harms_nobody(world: World) -> None:
    frame = pa.table({"driver_id": [1], "event_timestamp": pa.array([BEGIN], pa.timestamp("us", "UTC"))})
    for _ in range(10):
        client = world.client()
        descriptor = fl.FlightDescriptor.for_command(json.dumps(COMMAND).encode())
        writer, _ = client.do_exchange(descriptor)
        writer.begin(frame.schema)
        writer.write_table(frame)
        client.close()
    assert world.ask("sound") == list(range(50))


def test_bytes_that_are_no_protocol_harm_nobody(world: World) -> None:
    for sent in (b"\x00" * 64, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 512):
        with socket.create_connection((HOST, world.larder.ports.offline), timeout=10) as connection:
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            except TimeoutError:
                raise
            except OSError:
                pass  # it may hang up before it has heard all of it
    assert world.ask("sound") == list(range(50))

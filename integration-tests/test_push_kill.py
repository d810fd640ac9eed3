"""SIGKILL in the middle of pushes: what was acknowledged is there, and no request is there in part."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import requests
from feast.protos.feast.serving.GrpcServer_pb2 import PushRequest

from conftest import StartLarder
from faces import Grpc, Http, Row, typed
from larder_env.process import wait_until
from rides import Rides, badge, stats

BASE = datetime.now(UTC) - timedelta(hours=12)
ROUNDS = 5


@dataclass
class Writer:
    """Pushes 1, 2, 3, … to all its drivers until the server is gone. Push n happened at BASE + n ms."""

    drivers: list[int]
    sent: int = 0
    acknowledged: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def start(self, push: Callable[[list[int], int, datetime], None]) -> threading.Thread:
        """Push in a thread of its own; it ends when the connection does."""

        def run() -> None:
            try:
                for number in itertools.count(self.sent + 1):
                    self.sent = number
                    push(self.drivers, number, BASE + timedelta(milliseconds=number))
                    self.acknowledged = number
            except requests.ConnectionError:
                return
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    self.failures.append(error)
            except BaseException as error:  # noqa: BLE001 - told to the test, which raises it
                self.failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


def stats_row(driver: int, number: int, at: datetime) -> Row:
    """All columns of a row tell which push it is from."""
    return stats(driver, number, at, rating=f"push {number}", conv_rate=number / 2)


def check(rides: Rides, by_http: list[Writer], by_grpc: list[Writer]) -> None:
    """All columns of all drivers of a writer are from one push: the last acknowledged, or the one in flight."""
    http = Http(rides.larder)
    for writer in by_http:
        refs = [f"driver_stats:{feature}" for feature in ("trips", "rating", "conv_rate")]
        answer = http.read(refs, {"driver_id": writer.drivers})
        cells = list(zip(answer["trips"], answer["rating"], answer["conv_rate"], strict=True))
        found = {cell[0].value for cell in cells}
        assert len(found) == 1, f"a request was applied in part: {found}"
        number = found.pop()
        assert isinstance(number, int), f"{writer.acknowledged} were acknowledged, nothing is there"
        assert writer.acknowledged <= number <= writer.sent
        for trips, rating, conv_rate in cells:
            assert (trips.value, rating.value, conv_rate.value) == (number, f"push {number}", number / 2)
            assert trips.event_ts == rating.event_ts == conv_rate.event_ts
    for writer in by_grpc:
        answer = http.read(["driver_forever:trips", "driver_forever:badge"], {"driver_id": writer.drivers})
        (trips,), (name,) = answer["trips"], answer["badge"]
        assert isinstance(trips.value, int)
        assert writer.acknowledged <= trips.value <= writer.sent
        assert name.value == f"push {trips.value}"


def test_kill_9_in_mid_push(larder: StartLarder, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rides = Rides.start(tmp_path / "repo", larder)
    by_http = [Writer(list(range(first, first + 25))) for first in (1000, 2000)]
    by_grpc = [Writer([driver]) for driver in (3000, 4000)]
    for round_number in range(ROUNDS):
        http, rpc = Http(rides.larder), Grpc(rides.larder)

        def push_http(drivers: list[int], number: int, at: datetime, http: Http = http) -> None:
            http.push("driver_stats_push", [stats_row(driver, number, at) for driver in drivers])

        def push_grpc(drivers: list[int], number: int, at: datetime, rpc: Grpc = rpc) -> None:
            for driver in drivers:
                row = badge(driver, number, at, f"push {number}")
                features = {name: typed(value) for name, value in row.items()}
                request = PushRequest(stream_feature_view="driver_forever_push", typed_features=features, to="online")
                assert rpc.feature_server.Push(request, timeout=30).status

        writers = by_http + by_grpc
        threads = [writer.start(push_http) for writer in by_http] + [writer.start(push_grpc) for writer in by_grpc]
        goals = [(writer, writer.acknowledged + chance.randrange(1, 60)) for writer in writers]
        wait_until(
            lambda goals=goals: all(writer.acknowledged >= goal or writer.failures for writer, goal in goals),  # type: ignore[misc]
            "the writers' pushes to be acknowledged",
            pause=chance.random() / 100,
        )
        rides.larder.kill()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert [failure for writer in writers for failure in writer.failures] == []
        rides.larder.start()
        check(rides, by_http, by_grpc)
        assert all(writer.acknowledged > round_number for writer in writers)
    rides.larder.restart()
    check(rides, by_http, by_grpc)

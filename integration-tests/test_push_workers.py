"""Raw events pushed to a windowed view count once: through several servers on one Redis, and over kill -9."""

from __future__ import annotations

import random
import subprocess
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import requests
import yaml
from feast import Field, FileSource, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import Int64, String

from conftest import StartLarder
from larder_env.process import wait_until
from larder_env.redis import Redis
from larder_env.repo import store
from larder_env.server import Larder
from online import metric, read_online
from test_streams import CARD, PROJECT, iso, make_repo, now_us

CARDS = [f"card-{number}" for number in range(3)]
PUSHES, EVENTS = 60, 8
ROUNDS, MANY = 6, 400


def pushed_windows() -> StreamFeatureView:
    """Counts and sums of what is pushed."""
    file = FileSource(name="pushed_file", path="data/cards.parquet", timestamp_field="ts")
    return StreamFeatureView(
        name="pushed",
        entities=[CARD],
        ttl=timedelta(days=30),
        mode="python",
        timestamp_field="ts",
        source=PushSource(name="card_push", batch_source=file),
        aggregations=[
            Aggregation(column="", function="count", time_window=timedelta(days=1), name="count_1d"),
            Aggregation(column="quantity", function="sum", time_window=timedelta(days=1), name="sum_1d"),
        ],
        schema=[
            Field(name="card_id", dtype=String),
            Field(name="count_1d", dtype=Int64),
            Field(name="sum_1d", dtype=Int64),
        ],
    )


@pytest.fixture
def servers(tmp_path: Path, larder: StartLarder) -> list[Larder]:
    """Two, with data directories of their own, that have the view."""
    redis = Redis(tmp_path).start()
    started = []
    for name in ["one", "two"]:
        repo = tmp_path / name
        make_repo(repo)
        config = {
            "project": PROJECT,
            "registry": {"type": "file", "path": str(tmp_path / "registry.db"), "cache_ttl_seconds": 1},
            "online_store": {"type": "redis", "connection_string": redis.connection_string},
        }
        (repo / "larder.yaml").write_text(yaml.safe_dump(config))
        started.append(larder(repo))
    store(tmp_path / "one").apply([CARD, pushed_windows()])
    body = {"features": ["pushed:count_1d"], "entities": {"card_id": CARDS}}
    wait_until(
        lambda: all(server.post("/get-online-features", body).status_code == 200 for server in started), "the view"
    )
    return started


class Pushing(threading.Thread):
    """Pushes events of few cards; one that is refused is sent again, for it was not applied."""

    def __init__(self, server: Larder, seed: int) -> None:
        super().__init__(daemon=True)
        self.counts: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self._server, self._rng = server, random.Random(seed)

    def run(self) -> None:
        """Some requests, one behind the other."""
        for _ in range(PUSHES):
            cards = [self._rng.choice(CARDS) for _ in range(EVENTS)]
            quantities = [self._rng.randrange(1, 100) for _ in range(EVENTS)]
            frame = {"card_id": cards, "quantity": quantities, "ts": [iso(now_us())] * EVENTS}
            body = {"push_source_name": "card_push", "df": frame, "to": "online"}
            while (answer := self._server.post("/push", body)).status_code != 200:
                assert answer.status_code == 503, answer.text
                self.refused[answer.status_code] += 1
            for card, quantity in zip(cards, quantities, strict=True):
                self.counts[card] += 1
                self.sums[card] += quantity


def test_events_of_one_card_pushed_through_two_servers_count_once(servers: list[Larder]) -> None:
    threads = [Pushing(server, seed) for seed, server in enumerate([*servers, *servers])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    counts = sum((thread.counts for thread in threads), Counter())
    sums = sum((thread.sums for thread in threads), Counter())
    assert counts.total() == len(threads) * PUSHES * EVENTS
    for server in servers:
        found = read_online(server, "pushed", ["count_1d", "sum_1d"], "card_id", CARDS)
        assert {card: found[card]["count_1d"].value for card in CARDS} == dict(counts)
        assert {card: found[card]["sum_1d"].value for card in CARDS} == dict(sums)


def test_kill_9_while_window_states_are_written_and_merged(
    tmp_path: Path, larder: StartLarder, larder_binary: Path
) -> None:
    """Push n is an event of each of 400 cards of its own, and one of a card that all have: whole, or not there."""
    repo = make_repo(tmp_path / "repo")
    config = {"project": PROJECT, "online_store": {"type": "sled", "log_bytes": 150_000, "tier_bytes": 0}}
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    server = larder(repo)
    store(repo).apply([CARD, pushed_windows()])
    chance = random.Random(random.SystemRandom().randrange(2**32))
    there: list[int] = []
    number, merged = 0, 0.0

    def cards(number: int) -> list[str]:
        return [f"card-{number}-{of}" for of in range(MANY)]

    def push(number: int) -> None:
        own = [*cards(number), "shared"]
        frame = {"card_id": own, "quantity": [number] * len(own), "ts": [iso(now_us())] * len(own)}
        answer = server.post("/push", {"push_source_name": "card_push", "df": frame, "to": "online"})
        assert answer.status_code == 200, answer.text

    for _ in range(ROUNDS):
        killing = threading.Timer(chance.uniform(0.3, 1.5), server.kill)
        killing.start()
        try:
            while True:
                number += 1
                merged = max(merged, sum(metric(server, "larder_online_merge_seconds_count")))
                push(number)
                there.append(number)
        except requests.ConnectionError:
            killing.join()
        server.start()
        # the one in flight may be there
        last = read_online(server, "pushed", ["count_1d"], "card_id", cards(number))
        counts = {row["count_1d"].value for row in last.values()}
        assert len(counts) == 1, f"push {number} is there in part: {counts}"
        if counts == {1} and number not in there:
            there.append(number)
        for one in [*chance.sample(there, min(5, len(there))), *there[-3:]]:
            found = read_online(server, "pushed", ["count_1d", "sum_1d"], "card_id", cards(one))
            assert {(row["count_1d"].value, row["sum_1d"].value) for row in found.values()} == {(1, one)}, one
        shared = read_online(server, "pushed", ["count_1d", "sum_1d"], "card_id", ["shared"])["shared"]
        assert (shared["count_1d"].value, shared["sum_1d"].value) == (len(there), sum(there))
    assert merged > 0, "it was not met in the middle of merges"
    assert server.stop() == 0
    assert checked(larder_binary, repo) == (0, [])
    # one bit of one file
    run = max((repo / "data/online/runs").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(run.read_bytes())
    content[len(content) // 3] ^= 4
    run.write_bytes(content)
    code, damaged = checked(larder_binary, repo)
    assert (code, damaged) == (1, ["damaged: a window state of view 'pushed' in project 'streams'"])


def checked(binary: Path, repo: Path) -> tuple[int, list[str]]:
    """What `larder check` ends with, and what it finds damaged."""
    command = [str(binary), "check", "-c", str(repo)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert " window states, " in said.stdout, said.stdout + said.stderr
    return said.returncode, [line for line in said.stdout.splitlines() if line.startswith("damaged: ")]

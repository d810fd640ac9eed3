"""Raw events pushed to a windowed view through several servers on one Redis: each counts once."""

from __future__ import annotations

import random
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from feast import Field, FileSource, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import Int64, String

from conftest import StartLarder
from larder_env.process import wait_until
from larder_env.redis import Redis
from larder_env.repo import store
from larder_env.server import Larder
from online import read_online
from test_streams import CARD, PROJECT, iso, make_repo, now_us

CARDS = [f"card-{number}" for number in range(3)]
PUSHES, EVENTS = 60, 8


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

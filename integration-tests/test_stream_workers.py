"""Several workers of a consumer group on one Redis: every event counts once, whoever is killed, paused or between."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from feast import FeatureStore, FeatureView

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.cut import Cut
from larder_env.process import free_ports, wait_until
from larder_env.redis import Redis
from larder_env.repo import store
from larder_env.server import HOST, Larder
from larder_env.topics import Topic
from online import metric, read_online
from test_streams import CARD, HOUR, PROJECT, TOTALS, make_repo, message, now_us, plain_view, windowed_view

PARTITIONS = 4
CARDS = [f"card-{number}" for number in range(24)]
# how often a worker is killed; a soak test may want more
KILLS = int(os.environ.get("LARDER_TEST_KILLS", "24"))
SESSION = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}


@dataclass
class Workers:
    """Two that consume, and one that only serves."""

    both: list[Larder]
    served: Larder
    features: FeatureStore

    def totals(self, server: Larder, feature: str = "count_1d", view: str = "totals") -> dict[str, int]:
        """A feature by card as a server has it; 0 where there is none yet."""
        found = read_online(server, view, [feature], "card_id", CARDS)
        return {str(card): int(str(row[feature].value or 0)) for card, row in found.items()}

    def until(self, wanted: Counter[str], view: str = "totals") -> None:
        """Wait until whoever is asked says that."""
        right = {card: wanted[card] for card in CARDS}
        for server in [self.served, *self.both]:

            def sum_is_there(server: Larder = server) -> bool:
                return sum(self.totals(server, view=view).values()) >= sum(right.values())

            try:
                wait_until(sum_is_there, f"{sum(right.values())} events at {server.repo.name}", 30)
            except TimeoutError:
                print("what is there is compared below")
            found = self.totals(server, view=view)
            wrong = {card: (found[card], right[card]) for card in CARDS if found[card] != right[card]}
            assert wrong == {}, f"{server.repo.name}: {len(wrong)} of {len(CARDS)} (found, wanted)"

    def apply(self, *views: FeatureView) -> None:
        """Apply, and wait until the one who only serves has looked at the registry file again."""
        self.features.apply([CARD, *views])
        body = {"features": ["totals:count_1d"], "entities": {"card_id": CARDS}}
        wait_until(lambda: self.served.post("/get-online-features", body).status_code == 200, "the view to be served")


def on_one_redis(tmp_path: Path, larder: StartLarder) -> Workers:
    """Three servers with data directories of their own on one registry file and one Redis."""
    redis = Redis(tmp_path).start()
    started = []
    for name in ["one", "two", "served"]:
        repo = tmp_path / name
        make_repo(repo)
        config = {
            "project": PROJECT,
            "registry": {"type": "file", "path": str(tmp_path / "registry.db"), "cache_ttl_seconds": 1},
            "online_store": {"type": "redis", "connection_string": redis.connection_string},
            "ingest": {"checkpoint_interval_ms": 100, "kafka": {**SESSION, "client.id": name}},
        }
        (repo / "larder.yaml").write_text(yaml.safe_dump(config))
        args = ["--services", "online,registry"] if name == "served" else []
        started.append(larder(repo, args=args))
    return Workers(started[:2], started[2], store(tmp_path / "one"))


@pytest.fixture
def workers(tmp_path: Path, larder: StartLarder) -> Workers:
    """On one Redis."""
    return on_one_redis(tmp_path, larder)


class Producing(threading.Thread):
    """Produces until told to stop: events up to an hour late, those of a card in one partition, or in any."""

    def __init__(self, topic: Topic, keyed: bool, pause: float = 0.01) -> None:
        super().__init__(daemon=True)
        self.counts: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self._topic, self._keyed, self._pause = topic, keyed, pause
        self._enough, self._rng = threading.Event(), random.Random(7)

    def run(self) -> None:
        """Small acknowledged batches, so that the workers are always in the middle of something."""
        while not self._enough.wait(self._pause):
            partition = self._rng.randrange(self._topic.partitions)
            cards = CARDS[partition :: self._topic.partitions] if self._keyed else CARDS
            batch = []
            for _ in range(20):
                card, quantity = self._rng.choice(cards), self._rng.randrange(1, 100)
                batch.append(message(card, now_us() - self._rng.randrange(HOUR), quantity=quantity))
                self.counts[card] += 1
                self.sums[card] += quantity
            self._topic.send(batch, partition=partition)

    def finish(self) -> None:
        """Stop, after the batch in hand is acknowledged."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive()


def assigned(server: Larder) -> int:
    """How many partitions a worker reads, as its metrics have it."""
    return len([value for value in metric(server, "larder_ingest_assigned", view="totals") if value > 0])


def test_two_workers_share_the_partitions_and_a_third_process_serves(workers: Workers, kafka: broker.Kafka) -> None:
    topic = Topic(kafka, PARTITIONS)
    workers.apply(windowed_view("totals", topic, TOTALS), plain_view("latest", topic))
    wait_until(lambda: [assigned(worker) for worker in workers.both] == [2, 2], "two partitions for each", 60)
    producing = Producing(topic, keyed=True)
    producing.start()
    wait_until(lambda: sum(workers.totals(workers.served).values()) > 500, "the stream to be served", 60)
    producing.finish()
    workers.until(producing.counts)
    for server in [workers.served, *workers.both]:
        assert workers.totals(server, "sum_1d") == {card: producing.sums[card] for card in CARDS}
    assert [sum(metric(worker, "larder_ingest_applied_total", view="totals")) > 0 for worker in workers.both] == [
        True
    ] * 2
    # one goes, and the other has all
    assert workers.both[1].stop() == 0
    topic.send([message(CARDS[0], now_us())] * 3, partition=0)
    topic.send([message(CARDS[1], now_us())] * 3, partition=1)
    producing.counts.update({CARDS[0]: 3, CARDS[1]: 3})
    wait_until(
        lambda: workers.totals(workers.served) == {card: producing.counts[card] for card in CARDS}, "the rest", 60
    )


def test_every_event_counts_once_whoever_is_killed(workers: Workers, kafka: broker.Kafka) -> None:
    topic = Topic(kafka, PARTITIONS)
    workers.apply(windowed_view("totals", topic, TOTALS))
    producing = Producing(topic, keyed=True)
    producing.start()
    draw = random.Random(11)

    def counted() -> int:
        return sum(workers.totals(workers.served).values())

    for round in range(KILLS):
        before = counted()
        wait_until(lambda before=before: counted() > before + 200, "the stream to go on", 60)  # type: ignore[misc]
        victim = draw.choice(workers.both)
        victim.kill()
        if round % 8 == 7:
            # so long that its partitions go to the other one
            other = workers.both[1 - workers.both.index(victim)]
            wait_until(lambda other=other: assigned(other) == PARTITIONS, "the other to have all partitions", 60)  # type: ignore[misc]
        victim.start()
        # what was served is served: positions and states are one write
        assert counted() >= before
    producing.finish()
    workers.until(producing.counts)
    for server in [workers.served, *workers.both]:
        assert workers.totals(server, "sum_1d") == {card: producing.sums[card] for card in CARDS}


def test_a_worker_that_was_away_can_no_longer_write(workers: Workers, kafka: broker.Kafka) -> None:
    """It is stopped, not ended, until its partitions are another's; then it goes on with what it has in memory."""
    topic = Topic(kafka, PARTITIONS)
    workers.apply(windowed_view("totals", topic, TOTALS))
    producing = Producing(topic, keyed=True, pause=0.003)
    producing.start()
    for round in range(3):
        away, other = workers.both[round % 2], workers.both[1 - round % 2]
        wait_until(lambda: [assigned(worker) for worker in workers.both] == [2, 2], "two partitions for each", 60)
        seen = sum(workers.totals(workers.served).values())
        wait_until(lambda seen=seen: sum(workers.totals(workers.served).values()) > seen + 300, "it to work", 60)  # type: ignore[misc]
        os.kill(away.pid, signal.SIGSTOP)
        try:
            wait_until(lambda other=other: assigned(other) == PARTITIONS, "the other to have all partitions", 60)  # type: ignore[misc]
            enough = producing.counts.total()
            wait_until(
                lambda enough=enough: sum(workers.totals(workers.served).values()) >= enough,  # type: ignore[misc]
                "it to have caught up",
                60,
            )
        finally:
            os.kill(away.pid, signal.SIGCONT)
    producing.finish()
    workers.until(producing.counts)
    for server in [workers.served, *workers.both]:
        assert workers.totals(server, "sum_1d") == {card: producing.sums[card] for card in CARDS}


@pytest.mark.parametrize("silent", [True, False], ids=["silence", "closed"])
def test_a_worker_that_is_cut_off_from_kafka_alone_loses_its_partitions_and_no_event(
    workers: Workers, tmp_path: Path, silent: bool
) -> None:
    """It has its store and its clients all the time, and states in memory that the other goes on with."""
    cut, [port] = Cut(), free_ports(1)
    own = broker.start(tmp_path / "kafka", listeners=[broker.Listener("CUT", port, advertised=cut.port)])
    try:
        cut.start(port)
        topic = Topic(own, PARTITIONS)
        workers.apply(windowed_view("totals", topic, TOTALS, servers=f"{HOST}:{cut.port}"))
        producing = Producing(topic, keyed=True, pause=0.003)
        producing.start()
        for away, other in [workers.both, workers.both[::-1]]:
            wait_until(lambda: [assigned(worker) for worker in workers.both] == [2, 2], "two partitions for each", 60)
            seen = sum(workers.totals(workers.served).values())
            wait_until(lambda seen=seen: sum(workers.totals(workers.served).values()) > seen + 300, "it to work", 60)  # type: ignore[misc]
            cut.cut(away.repo.name, silent)
            wait_until(lambda other=other: assigned(other) == PARTITIONS, "the other to have all partitions", 60)  # type: ignore[misc]
            enough = producing.counts.total()
            wait_until(
                lambda enough=enough: sum(workers.totals(workers.served).values()) >= enough,  # type: ignore[misc]
                "it to have caught up",
                60,
            )
            # who is cut off serves, and knows that it reads nothing
            assert sum(workers.totals(away).values()) > 0
            wait_until(lambda away=away: assigned(away) == 0, "it to give up its partitions", 60)  # type: ignore[misc]
            assert "session timed out" in away.log
            cut.heal(away.repo.name)
        producing.finish()
        workers.until(producing.counts)
        for server in [workers.served, *workers.both]:
            assert workers.totals(server, "sum_1d") == {card: producing.sums[card] for card in CARDS}
    finally:
        cut.stop()
        own.stop()


def test_entities_in_the_partitions_of_both_are_counted_right(workers: Workers, kafka: broker.Kafka) -> None:
    topic = Topic(kafka, PARTITIONS)
    workers.apply(windowed_view("totals", topic, TOTALS))
    wait_until(lambda: [assigned(worker) for worker in workers.both] == [2, 2], "two partitions for each", 60)
    producing = Producing(topic, keyed=False)
    producing.start()
    wait_until(lambda: producing.counts.total() > 5000, "enough to be sent", 60)
    producing.finish()
    workers.until(producing.counts)
    for server in [workers.served, *workers.both]:
        assert workers.totals(server, "sum_1d") == {card: producing.sums[card] for card in CARDS}
    conflicts = [sum(metric(worker, "larder_ingest_state_conflicts_total", view="totals")) for worker in workers.both]
    assert sum(conflicts) > 0, "that they met, and were told apart"

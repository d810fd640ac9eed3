"""A backfilled state takes what its stream has before it is read: no value goes back, whatever happens meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, defaultdict, deque
from pathlib import Path

import pytest
import requests

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.server import Larder
from larder_env.topics import Topic
from online import metric, read_online
from test_backfill import LIFETIME, Repo, at, by_card, write_history
from test_stream_workers import PARTITIONS, assigned, on_one_redis
from test_streams import CARD, TOTALS, assert_same, make_repo, message, now_us, settled, windowed_view
from windows_oracle import HOUR, MINUTE, Event

CARDS = [f"card-{number}" for number in range(8)]
FEATURES = [window.feature for window in LIFETIME]


class Producing(threading.Thread):
    """Produces events of now until told to stop."""

    def __init__(self, topic: Topic) -> None:
        super().__init__(daemon=True)
        self.sent: list[tuple[str, Event]] = []
        self._topic, self._enough = topic, threading.Event()

    def run(self) -> None:
        """Small acknowledged batches, to one partition after the other, those of a card to one."""
        number = 0
        # as fast as it can it would leave no processor to the server
        while not self._enough.wait(0.01):
            batch, partition = [], number // 20 % self._topic.partitions
            for _ in range(20):
                card = CARDS[partition :: self._topic.partitions][number % (len(CARDS) // self._topic.partitions)]
                event = Event(now_us(), {"amount": 1.0, "quantity": number % 7})
                batch.append(message(card, event.ts, **event.values))
                self.sent.append((card, event))
                number += 1
            self._topic.send(batch, partition=partition)

    def more(self, count: int) -> None:
        """Wait until so many more are sent."""
        wanted = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= wanted, f"{count} more events", 60)

    def finish(self) -> None:
        """Stop, after the batch in hand is acknowledged."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive()


class Reading(threading.Thread):
    """Reads all cards all the time, and remembers every value that is less than it was so many seconds before."""

    def __init__(self, larder: Larder, view: str, slack: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.wrong: list[object] = []
        self.reads = 0
        self._larder, self._view, self._slack = larder, view, slack
        self._enough = threading.Event()

    def run(self) -> None:
        """Until told to stop."""
        least: dict[tuple[object, str], int] = {}
        recent: deque[tuple[float, tuple[object, str], int]] = deque()
        while not self._enough.is_set():
            while recent and recent[0][0] <= time.monotonic() - self._slack:
                _, cell_of, value = recent.popleft()
                least[cell_of] = max(least.get(cell_of, 0), value)
            for card, row in read_online(self._larder, self._view, FEATURES, "card_id", CARDS).items():
                for feature, cell in row.items():
                    value = int(str(cell.value or 0))
                    if value < least.get((card, feature), 0):
                        self.wrong.append((card, feature, least[card, feature], value, cell.status))
                    recent.append((time.monotonic(), (card, feature), value))
            self.reads += 1

    def finish(self) -> None:
        """Stop; nothing went back."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive()
        assert self.reads > 10
        assert self.wrong == []


def old_events(count: int, now: int) -> list[tuple[str, Event]]:
    """Events of an hour ago to half an hour ago, in their order."""
    step = 30 * MINUTE // count
    return [
        (CARDS[number % len(CARDS)], Event(now - HOUR + number * step, {"amount": 1.0, "quantity": number % 5}))
        for number in range(count)
    ]


def send(topic: Topic, events: list[tuple[str, Event]]) -> None:
    """To the partitions in turn, with the time of the event as the broker's."""
    by_partition: dict[int, list[dict[str, object]]] = defaultdict(list)
    for number, (card, event) in enumerate(events):
        by_partition[number % topic.partitions].append(message(card, event.ts, **event.values))
    for partition, messages in by_partition.items():
        topic.send(
            messages, partition=partition, stamp=lambda m: int(str(m["ts"])) // 1000 if isinstance(m, dict) else 0
        )


def begin(world: Repo, view: str, cut_over: int) -> str:
    """Ask for a backfill; the job's id."""
    body = {"start_ts": at(0).isoformat(), "end_ts": at(cut_over).isoformat(), "feature_views": [view]}
    accepted = world.larder.post("/materialize?async=true", body)
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["id"])


def done(world: Repo, view: str) -> None:
    """Wait for the end of the view's last backfill."""
    try:
        wait_until(lambda: world.states(view)[0] == "done", f"the backfill of {view}", 60)
    finally:
        print(world.jobs(view)[0])


def waiting_to_go(world: Repo) -> int:
    """How many tables are to be removed."""
    return int(sum(metric(world.larder, "larder_online_clears_pending")))


def test_no_value_goes_back_while_an_old_cut_over_is_backfilled_under_load(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    path = make_repo(tmp_path / "repo")
    world = Repo(larder(path), store(path), kafka, path)
    topic, name, now = Topic(kafka, partitions=2), "lifetime", now_us()
    old = old_events(20_000, now)
    send(topic, old)
    write_history(path, old)
    world.features.apply([CARD, windowed_view(name, topic, LIFETIME)])
    world.drained(topic, name)
    producing, reading = Producing(topic), Reading(world.larder, name)
    producing.start()
    reading.start()
    for minutes, replaced in [(45, 1), (55, 2)]:
        producing.more(200)
        begin(world, name, now - minutes * MINUTE)
        done(world, name)
        assert waiting_to_go(world) == replaced
        producing.more(200)
    producing.finish()
    world.drained(topic, name)
    reading.finish()
    events = by_card([*old, *producing.sent])
    assert_same(*settled(world, name, LIFETIME, events))
    world.larder.restart(signal.SIGKILL)
    # what a crash takes back the stream brings again
    world.drained(topic, name)
    assert_same(*settled(world, name, LIFETIME, events))
    # the old states stay for who does not know yet that they were replaced, and go then
    wait_until(lambda: waiting_to_go(world) == 0, "the old states to be removed")


def catching_up(world: Repo, view: str) -> dict[str, object]:
    """The view's last job, once it catches up, and waits for a broker that is away."""

    def waits() -> bool:
        job = world.jobs(view)[0]
        return job["phase"] == "catching_up" and job["waits"] is not None

    wait_until(waits, "the backfill to wait for the broker", 60)
    return world.jobs(view)[0]


def test_a_broker_that_is_away_is_waited_for_and_the_old_state_serves_through_cancel_and_kill(
    tmp_path: Path, larder: StartLarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    own = broker.start(tmp_path / "kafka")
    try:
        path = make_repo(tmp_path / "repo")
        world = Repo(larder(path), store(path), own, path)
        topic, name, now = Topic(own, partitions=2), "lifetime", now_us()
        old = old_events(200, now)
        send(topic, old)
        # what only history knows shows that the new state is read
        more = [(card, Event(event.ts - HOUR, event.values)) for card, event in old]
        write_history(path, [*more, *old])
        world.features.apply([CARD, windowed_view(name, topic, LIFETIME)])
        world.drained(topic, name)
        before, after, cut_over = by_card(old), by_card([*more, *old]), now - 45 * MINUTE
        own.stop()

        job = begin(world, name, cut_over)
        told = catching_up(world, name)
        assert (told["status"], told["applied"]) == ("running", len(CARDS))
        assert "broker" in str(told["waits"])
        assert_same(*settled(world, name, LIFETIME, before))
        assert requests.delete(f"{world.larder.online_url}/jobs/{job}", timeout=30).status_code == 200
        assert world.states(name) == ["cancelled"]
        assert_same(*settled(world, name, LIFETIME, before))

        # a kill as a stop: the job begins anew
        begin(world, name, cut_over)
        for how in [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]:
            catching_up(world, name)
            world.larder.restart(how)
            assert_same(*settled(world, name, LIFETIME, before))
        catching_up(world, name)
        own.start_again()
        done(world, name)
        assert_same(*settled(world, name, LIFETIME, after))
        world.drained(topic, name)
        assert_same(*settled(world, name, LIFETIME, after))
        own.stop()
    finally:
        own.stop()


def test_a_backfill_that_was_killed_too_often_leaves_nothing(
    tmp_path: Path, larder: StartLarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    own = broker.start(tmp_path / "kafka")
    try:
        path = make_repo(tmp_path / "repo")
        world = Repo(larder(path), store(path), own, path)
        topic, name = Topic(own), "lifetime"
        history = old_events(200, now_us())
        write_history(path, history)
        world.features.apply([CARD, windowed_view(name, topic, LIFETIME)])
        world.drained(topic, name)
        own.stop()
        begin(world, name, now_us())
        for _ in range(3):
            catching_up(world, name)
            world.larder.restart(signal.SIGKILL)
        assert world.states(name) == ["failed"]
        wait_until(lambda: waiting_to_go(world) == 0, "what is left to be removed")
        assert sum(metric(world.larder, "larder_online_cleared_rows_total")) >= len(CARDS)
        assert_same(*settled(world, name, LIFETIME, by_card([])))
    finally:
        own.stop()


def test_a_paused_view_goes_over_to_where_it_was_paused(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    path = make_repo(tmp_path / "repo")
    world = Repo(larder(path), store(path), kafka, path)
    topic, name, now = Topic(kafka, partitions=2), "lifetime", now_us()
    old = old_events(2000, now)
    send(topic, old)
    more = [(card, Event(event.ts - HOUR, event.values)) for card, event in old]
    write_history(path, [*more, *old])
    world.features.apply([CARD, windowed_view(name, topic, LIFETIME)])
    world.drained(topic, name)
    steer = f"{world.larder.online_url}/streams/{name}"
    assert requests.post(f"{steer}/pause", timeout=30).status_code == 200
    wait_until(lambda: sum(metric(world.larder, "larder_ingest_assigned", view=name)) == 0, "the consumer to stop")
    waiting = [(card, Event(now + number, event.values)) for number, (card, event) in enumerate(old)]
    send(topic, waiting)
    begin(world, name, now - 45 * MINUTE)
    done(world, name)
    assert_same(*settled(world, name, LIFETIME, by_card([*more, *old])))
    assert requests.post(f"{steer}/resume", timeout=30).status_code == 200
    world.drained(topic, name)
    assert_same(*settled(world, name, LIFETIME, by_card([*more, *old, *waiting])))


@pytest.mark.parametrize("killed", [False, True], ids=["both_go_on", "one_is_killed_behind_the_commit"])
def test_two_workers_go_over_one_after_the_other(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka, killed: bool
) -> None:
    """The one that runs the backfill reads all partitions until the other has heard of the commit."""
    workers = on_one_redis(tmp_path, larder)
    one = workers.both[0]
    world = Repo(one, workers.features, kafka, one.repo)
    topic, name, now = Topic(kafka, PARTITIONS), "totals", now_us()
    old = old_events(8000, now)
    send(topic, old)
    write_history(one.repo, old)
    workers.features.apply([CARD, windowed_view(name, topic, [*TOTALS, *LIFETIME])])
    wait_until(lambda: [assigned(worker) for worker in workers.both] == [2, 2], "two partitions for each", 60)
    producing = Producing(topic)
    producing.start()
    producing.more(200)

    def total(server: Larder) -> int:
        return sum(workers.totals(server, "count_all").values())

    for server in [workers.served, *workers.both]:
        wait_until(lambda server=server: total(server) > len(old), "the stream to be served", 60)  # type: ignore[misc]
    # another process' events can be read from its next checkpoint on, and what it has in memory goes with it
    reading = [Reading(server, name, slack=3.0) for server in [workers.served, *([] if killed else workers.both)]]
    for reader in reading:
        reader.start()
    for minutes in [45, 55]:
        begin(world, name, now - minutes * MINUTE)
        done(world, name)
        if killed:
            one.restart(signal.SIGKILL)
        wait_until(lambda: [assigned(worker) for worker in workers.both] == [2, 2], "two partitions for each", 90)
        producing.more(200)
    producing.finish()
    wanted = Counter(card for card, _ in [*old, *producing.sent])
    for server in [workers.served, *workers.both]:
        wait_until(lambda server=server: total(server) >= wanted.total(), "all to be served", 60)  # type: ignore[misc]
        found = workers.totals(server, "count_all")
        assert {card: found[card] for card in CARDS} == wanted
    for reader in reading:
        reader.finish()

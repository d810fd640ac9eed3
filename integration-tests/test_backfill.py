"""Backfill: a windowed view's state from its batch source, cut over to its stream: nothing missed, nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
import requests
from feast import StreamFeatureView

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.topics import Topic
from online import metric, read_online
from test_streams import (
    CARD,
    COUNT_DAY,
    TOTALS,
    World,
    assert_same,
    make_repo,
    message,
    now_us,
    random_events,
    settled,
    two_windows,
    windowed_view,
)
from windows_oracle import DAY, HOUR, MINUTE, SECOND, Event, Window

LIFETIME = [Window("count_all", "count", "", 0), Window("sum_all", "sum", "quantity", 0)]


def at(ts: int) -> datetime:
    """A time as the SDK takes it."""
    return pd.Timestamp(ts, unit="us", tz="UTC").to_pydatetime()


def write_history(repo: Path, events: Iterable[tuple[str, Event]]) -> None:
    """The batch source of every view here, with these events."""
    rows = [
        {"card_id": card, "ts": event.ts, "created": event.ts, "merchant": "m", "vip": True, **event.values}
        for card, event in events
    ]
    frame = pd.DataFrame(rows, columns=["card_id", "amount", "quantity", "merchant", "vip", "ts", "created"])
    for column in ["ts", "created"]:
        frame[column] = pd.to_datetime(frame[column], unit="us", utc=True).astype("datetime64[us, UTC]")
    frame["quantity"] = frame["quantity"].astype("Int64")
    # whoever reads it meanwhile has the old file open
    beside = repo / "data" / "new.parquet"
    frame.to_parquet(beside, index=False)
    beside.rename(repo / "data" / "cards.parquet")


@dataclass
class Repo(World):
    """A server of a repo of its own: its history can be written anew."""

    path: Path

    def jobs(self, view: str) -> list[dict[str, object]]:
        """GET /jobs, those of a view, the newest first."""
        found = requests.get(f"{self.larder.online_url}/jobs", timeout=30).json()["jobs"]
        return [job for job in found if job["feature_view"] == view]

    def states(self, view: str) -> list[object]:
        """The status of the view's jobs, the newest first."""
        return [job["status"] for job in self.jobs(view)]

    def backfill(self, view: str, cut_over: int, start: int = 0) -> None:
        """`store.materialize` of the view up to the cut-over."""
        self.features.materialize(at(start), at(cut_over), feature_views=[view])

    def drained(self, topic: Topic, view: str) -> None:
        """Wait until the view's consumer has taken all that is in the topic, by a last event in each partition."""
        self.drain(topic, [view], "count_1d" if view.startswith("totals") else "count_all")


@pytest.fixture(scope="module")
def module_repo(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka) -> Repo:
    """One server for tests that leave it as it is."""
    path = make_repo(tmp_path_factory.mktemp("backfill") / "repo")
    return Repo(module_larder(path), store(path), kafka, path)


def by_card(events: Iterable[tuple[str, Event]]) -> dict[str, list[Event]]:
    """The events of each card, in their order."""
    found: dict[str, list[Event]] = defaultdict(list, never=[])
    for card, event in events:
        found[card].append(event)
    return found


# --- the seam -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stamped", [False, True], ids=["produced_now", "produced_then"])
def test_what_was_before_the_cut_over_comes_from_history_and_all_else_from_the_stream(
    module_repo: Repo, stamped: bool
) -> None:
    """History and stream both hold events on both sides, and other ones: each must be asked for its own side alone."""
    topic, name = Topic(module_repo.kafka, partitions=2), f"seam_{stamped}"
    windows = [*two_windows(), *LIFETIME]
    history, stream = random_events(11, 6, 300), random_events(12, 6, 300)
    cut_over = now_us() - 30 * MINUTE
    # one of each side with exactly the cut-over's time: it is the stream's
    history.append(("card-3", Event(cut_over, {"amount": 1000.0, "quantity": 1000})))
    stream.append(("card-3", Event(cut_over, {"amount": 3.0, "quantity": 3})))
    history.append(("card-3", Event(cut_over - 1, {"amount": 5.0, "quantity": 5})))
    # so close before it that the broker's index does not leave it out
    stream.append(("card-4", Event(cut_over - SECOND // 2, {"amount": 7.0, "quantity": 7})))
    write_history(module_repo.path, history)
    sent: dict[int, list[dict[str, object]]] = defaultdict(list)
    for number, (card, event) in enumerate(sorted(stream, key=lambda pair: pair[1].ts)):
        sent[number % 2].append(message(card, event.ts, **event.values))
    for partition, messages in sent.items():
        # a producer's clock may be seconds behind that of the events
        stamp = (lambda m: int(m["ts"]) // 1000 - 4000) if stamped else (lambda _: 0)
        topic.send(messages, partition=partition, stamp=stamp)
    module_repo.features.apply([CARD, windowed_view(name, topic, windows)])
    module_repo.backfill(name, cut_over)
    module_repo.drained(topic, name)
    want = by_card(
        [(card, event) for card, event in history if event.ts < cut_over]
        + [(card, event) for card, event in stream if event.ts >= cut_over]
    )
    assert_same(*settled(module_repo, name, windows, want))
    [job] = module_repo.jobs(name)
    assert job["status"] == "done"
    assert job["rows"] == sum(event.ts < cut_over for _, event in history)
    left_out = sum(metric(module_repo.larder, "larder_ingest_before_cut_over_total", view=name))
    early = sum(event.ts < cut_over for _, event in stream)
    # with the producer's times, the broker's index leaves out most of them
    assert 0 < left_out < early if stamped else left_out == early
    view = module_repo.features.get_stream_feature_view(name)
    assert [end for _, end in view.materialization_intervals] == [at(cut_over)]


def test_no_event_is_missed_or_doubled_while_the_stream_flows(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    """Twice, under a producer that never stops: history has every event of before the cut-over and some behind it."""
    path = make_repo(tmp_path / "repo")
    world = Repo(larder(path), store(path), kafka, path)
    topic, name = Topic(kafka, partitions=2), "totals"
    world.features.apply([CARD, windowed_view(name, topic, TOTALS)])
    sent: list[tuple[str, Event]] = []
    stop = threading.Event()

    def produce() -> None:
        number = 0
        while not stop.is_set():
            batch: dict[int, list[dict[str, object]]] = defaultdict(list)
            for _ in range(20):
                card, event = f"card-{number % 5}", Event(now_us(), {"amount": 1.0, "quantity": number})
                batch[number % 2].append(message(card, event.ts, **event.values))
                sent.append((card, event))
                number += 1
            for partition, messages in batch.items():
                topic.send(messages, partition=partition)

    def more(count: int) -> None:
        wanted = len(sent) + count
        wait_until(lambda: len(sent) >= wanted, f"{count} more events")

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for _ in range(2):
            more(500)
            cut_over = now_us()
            while sent[-1][1].ts < cut_over + SECOND:
                more(1)
            write_history(path, list(sent))
            world.backfill(name, cut_over, cut_over - 2 * DAY)
            more(200)
    finally:
        stop.set()
        producer.join()
    world.drained(topic, name)
    assert_same(*settled(world, name, TOTALS, by_card(sent)))
    world.larder.restart(signal.SIGKILL)
    assert_same(*settled(world, name, TOTALS, by_card(sent)))


def test_the_old_state_is_read_until_the_new_one_is_whole(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    """A backfill that is cancelled, one that fails, and one that a crash interrupts, which goes on by itself."""
    path = make_repo(tmp_path / "repo")
    world = Repo(larder(path), store(path), kafka, path)
    topic, name = Topic(kafka), "totals"
    world.features.apply([CARD, windowed_view(name, topic, TOTALS)])
    now = now_us()
    streamed = [("card-0", Event(now - HOUR, {"amount": 1.0, "quantity": 7}))]
    topic.send([message(card, event.ts, **event.values) for card, event in streamed])
    world.drained(topic, name)
    cards = 40_000
    rng = random.Random(3)
    history = [
        (f"card-{number % cards}", Event(now - rng.randrange(2 * HOUR, 20 * HOUR), {"amount": 1.0, "quantity": 1}))
        for number in range(5 * cards)
    ]
    write_history(path, history)
    old = by_card(streamed)
    cut_over, body = now - 90 * MINUTE, {"start_ts": at(now - 2 * DAY).isoformat()}

    def begin() -> str:
        request = {**body, "end_ts": at(cut_over).isoformat(), "feature_views": [name]}
        accepted = world.larder.post("/materialize?async=true", request)
        assert accepted.status_code == 202, accepted.text
        wait_until(lambda: int(str(world.jobs(name)[0]["rows"])) > 0, "the first states", pause=0.001)
        return str(accepted.json()["id"])

    job = begin()
    assert_same(*settled(world, name, TOTALS, old))
    assert requests.delete(f"{world.larder.online_url}/jobs/{job}", timeout=30).status_code == 200
    assert world.states(name) == ["cancelled"]
    assert_same(*settled(world, name, TOTALS, old))

    (path / "data" / "cards.parquet").rename(path / "data" / "away.parquet")
    with pytest.raises(RuntimeError, match="cards"):
        world.backfill(name, cut_over, now - 2 * DAY)
    assert_same(*settled(world, name, TOTALS, old))
    (path / "data" / "away.parquet").rename(path / "data" / "cards.parquet")

    begin()
    world.larder.restart(signal.SIGKILL)
    assert world.states(name)[0] in {"waiting", "running", "done"}
    wait_until(lambda: world.states(name)[0] == "done", "the job to go on", 60)
    world.drained(topic, name)
    some = by_card([*history, *streamed])
    assert_same(*settled(world, name, TOTALS, {card: some[card] for card in ["card-0", "card-1", "card-39999"]}))
    counted = Counter(card for card, _ in history)
    found = read_online(world.larder, name, [COUNT_DAY.feature], "card_id", list(counted))
    wrong = {
        card for card, count in counted.items() if found[card][COUNT_DAY.feature].value != count + (card == "card-0")
    }
    assert wrong == set()


def test_the_command_shows_how_far_it_is_and_fails_with_the_reason(module_repo: Repo, larder_binary: Path) -> None:
    topic, name = Topic(module_repo.kafka), "by_command"
    history = random_events(5, 4, 100)
    write_history(module_repo.path, history)
    module_repo.features.apply([CARD, windowed_view(name, topic, LIFETIME)])
    now = now_us()

    def larder(*args: str) -> subprocess.CompletedProcess[str]:
        command = [str(larder_binary), *args, "-c", str(module_repo.path), "--server", module_repo.larder.online_url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = larder("backfill", name, "--cutover", at(now).isoformat())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{name}: 4 entities from 100 events (0 rows without key or time) in ")
    assert_same(*settled(module_repo, name, LIFETIME, by_card(history)))
    module_repo.drained(topic, name)
    for args, reason in [
        (["backfill", "nosuch", "--cutover", at(now).isoformat()], "nosuch"),
        (["backfill", name, "--cutover", "soon"], "soon"),
        (["streams", "pause", "nosuch"], "nosuch"),
        (["streams", "seek", name, "--to", "there"], "there"),
    ]:
        refused = larder(*args)
        assert refused.returncode == 1
        assert reason in refused.stderr
    shown = larder("streams").stdout
    assert f"{topic.name} " in shown
    assert "come from a backfill" in shown
    assert "paused" in larder("streams", "pause", name).stdout
    assert "paused" not in larder("streams", "resume", name).stdout
    assert "come from" not in larder("streams", "seek", name, "--to", "latest").stdout


# --- a changed view -----------------------------------------------------------------------------------------------


def changed(view: StreamFeatureView) -> StreamFeatureView:
    """The view with the tag that lets its windows change."""
    view.tags = {"larder.windows": "rebuild"}
    return view


def test_a_changed_view_is_refused_or_rebuilt_and_never_served_from_the_old_state(module_repo: Repo) -> None:
    world, topic, name = module_repo, Topic(module_repo.kafka), "totals_changing"
    history, now = random_events(21, 5, 200), now_us()
    write_history(world.path, history)
    recent = [(f"card-{number}", Event(now_us(), {"amount": 2.0, "quantity": 9})) for number in range(5)]
    topic.send([message(card, event.ts, **event.values) for card, event in [*history, *recent]])
    world.features.apply([CARD, windowed_view(name, topic, TOTALS)])
    world.drained(topic, name)
    events = by_card([*history, *recent])
    assert_same(*settled(world, name, TOTALS, events))
    other_window = [COUNT_DAY, Window("sum_1d", "sum", "quantity", HOUR)]
    more = [*TOTALS, Window("max_1d", "max", "quantity", DAY)]
    for new, what in [
        (windowed_view(name, topic, other_window), "its aggregations"),
        (windowed_view(name, topic, more), "its aggregations"),
        (windowed_view(name, Topic(world.kafka), TOTALS), "its topic"),
    ]:
        with pytest.raises(Exception, match=f"{name}.*{what}.*changed.*larder.windows=rebuild.*larder backfill {name}"):
            world.features.apply([CARD, new])
        assert_same(*settled(world, name, TOTALS, events))
    # another name for the same windows is served from the state that is there
    renamed = [Window("n_1d", "count", "", DAY), TOTALS[1]]
    world.features.apply([CARD, windowed_view(name, topic, renamed)])
    assert_same(*settled(world, name, renamed, events))

    world.features.apply([CARD, changed(windowed_view(name, topic, more))])
    body = {"features": [f"{name}:sum_1d"], "entities": {"card_id": ["card-0"]}}

    def refused() -> bool:
        answer = world.larder.post("/get-online-features", body)
        return answer.status_code == 503 and f"larder backfill {name}" in answer.text

    # until its reader has heard of the change, the old windows answer as they were
    wait_until(refused, "reads to be refused")
    world.backfill(name, now)
    world.drained(topic, name)
    assert_same(*settled(world, name, more, events))
    # and back, by history alone: the topic is another one
    world.features.apply([CARD, changed(windowed_view(name, Topic(world.kafka), TOTALS))])
    world.backfill(name, now)
    assert_same(*settled(world, name, TOTALS, by_card(history)))

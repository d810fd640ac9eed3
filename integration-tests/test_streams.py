"""Kafka to the online store: rows, windows evaluated at request time, dead letters, and what a crash may not do."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, KafkaSource, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Bool, Float64, Int64, PrimitiveFeastType, String
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports
from larder_env.topics import Topic
from online import Cell, metric, micros, read_online
from windows_oracle import DAY, HOUR, MINUTE, SECOND, Event, Window, answer

PROJECT = "streams"
SCHEMA = "card_id string, amount double, quantity bigint, merchant string, vip boolean, ts timestamp, created timestamp"
CARD = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)


def now_us() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def iso(ts: int) -> str:
    """A time as a producer would write it."""
    return pd.Timestamp(ts, unit="us", tz="UTC").isoformat()


def card_source(name: str, topic: Topic, servers: str = "") -> KafkaSource:
    """The Kafka source of one view, by another of the broker's addresses where one is named; all have one file."""
    return KafkaSource(
        name=f"{name}_stream",
        kafka_bootstrap_servers=servers or topic.kafka.bootstrap_servers,
        topic=topic.name,
        timestamp_field="ts",
        created_timestamp_column="created",
        watermark_delay_threshold=timedelta(minutes=5),
        message_format=JsonFormat(schema_json=SCHEMA),
        batch_source=FileSource(
            name=f"{name}_file", path="data/cards.parquet", timestamp_field="ts", created_timestamp_column="created"
        ),
    )


def row_schema() -> list[Field]:
    """The features of a view without windows: columns of the message."""
    return [
        Field(name="card_id", dtype=String),
        Field(name="amount", dtype=Float64),
        Field(name="quantity", dtype=Int64),
        Field(name="merchant", dtype=String),
        Field(name="vip", dtype=Bool),
    ]


def plain_view(name: str, topic: Topic, ttl: timedelta = timedelta(0)) -> FeatureView:
    """A FeatureView on the topic."""
    return FeatureView(name=name, entities=[CARD], ttl=ttl, source=card_source(name, topic), schema=row_schema())


def plain_stream_view(name: str, topic: Topic) -> StreamFeatureView:
    """A StreamFeatureView without aggregations on the topic."""
    return StreamFeatureView(
        name=name,
        entities=[CARD],
        ttl=timedelta(0),
        mode="python",
        timestamp_field="ts",
        source=card_source(name, topic),
        schema=row_schema(),
    )


def windowed_view(
    name: str, topic: Topic, windows: Sequence[Window], tiling: int = 0, servers: str = ""
) -> StreamFeatureView:
    """A StreamFeatureView with these windows on the topic."""
    return StreamFeatureView(
        name=name,
        entities=[CARD],
        ttl=timedelta(days=30),
        mode="python",
        timestamp_field="ts",
        source=card_source(name, topic, servers),
        aggregations=[
            Aggregation(
                column=window.column,
                function=window.function,
                time_window=timedelta(microseconds=window.width) if window.width else None,
                slide_interval=timedelta(microseconds=window.slide) if window.slide else None,
                name=window.feature,
            )
            for window in windows
        ],
        enable_tiling=tiling > 0,
        tiling_hop_size=timedelta(microseconds=tiling) if tiling else None,
        schema=[
            Field(name="card_id", dtype=String),
            *(Field(name=window.feature, dtype=feature_type(window)) for window in windows),
        ],
    )


def feature_type(window: Window) -> PrimitiveFeastType:
    """The type that a window's value has: counts and what is made of integers alone are integers."""
    integer = window.function == "count" or (window.column == "quantity" and window.function != "mean")
    return Int64 if integer else Float64


COUNT_DAY = Window("count_1d", "count", "", DAY)
SUM_DAY = Window("sum_1d", "sum", "quantity", DAY)
TOTALS = [COUNT_DAY, SUM_DAY]


def message(card: str | None, ts: int | str | None, **columns: object) -> dict[str, object]:
    """One JSON message."""
    return {"card_id": card, "ts": ts, "created": ts, "amount": 1.0, "quantity": 1, **columns}


@dataclass
class World:
    """A server, the Feast repo it serves, and the broker."""

    larder: Larder
    features: FeatureStore
    kafka: broker.Kafka

    def rows(self, view: str, cards: Sequence[str], features: Sequence[str] = ("quantity",)) -> dict[object, object]:
        """The value of one feature by card; the status where there is no value."""
        found = read_online(self.larder, view, features, "card_id", cards)
        cells = {card: row[features[0]] for card, row in found.items()}
        return {card: cell.value if cell.status == "PRESENT" else cell.status for card, cell in cells.items()}

    def drain(self, topic: Topic, views: Sequence[str], feature: str = "quantity") -> None:
        """Send a last message to every partition, and wait until each view shows it.

        A partition keeps its order: then all that was sent before has been taken too.
        """
        last = {partition: f"last-{partition}-{now_us()}" for partition in range(topic.partitions)}
        for partition, card in last.items():
            topic.send([message(card, now_us())], partition=partition)
        for view in views:

            def taken(view: str = view) -> bool:
                return set(self.rows(view, list(last.values()), [feature]).values()) == {1}

            wait_until(taken, f"the end of {topic.name} in {view}", 60)


def make_repo(directory: Path) -> Path:
    """A repo whose one data file has the columns of the stream and a single old row."""
    write_config(directory, PROJECT, Ports.free())
    (directory / "data").mkdir()
    at = pd.Timestamp("2020-01-01", tz="UTC").as_unit("us")
    row = {"card_id": "old", "amount": 1.0, "quantity": 1, "merchant": "m", "vip": True, "ts": at, "created": at}
    pd.DataFrame([row]).to_parquet(directory / "data" / "cards.parquet", index=False)
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka) -> World:
    """One server for the file, started before anything is applied: every view here is picked up later."""
    repo = make_repo(tmp_path_factory.mktemp("streams") / "repo")
    larder = module_larder(repo)
    return World(larder, store(repo), kafka)


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [plain_view, plain_stream_view], ids=["feature_view", "stream_feature_view"])
def test_rows_are_served_and_the_last_write_by_event_time_wins(
    world: World, make: Callable[[str, Topic], FeatureView]
) -> None:
    topic, name = Topic(world.kafka), f"rows_{make.__name__}"
    world.features.apply([CARD, make(name, topic)])
    at = now_us() - HOUR
    topic.send(
        [
            message("a", iso(at), amount=1.5, quantity=1, merchant="first", vip=True),
            message("a", iso(at + SECOND), amount=2.5, quantity=2, merchant="newest", vip=False),
            message("a", iso(at - SECOND), amount=3.5, quantity=3, merchant="late", vip=True),
            # equal event times: the one created later wins, whenever it comes; all equal: the later arrival
            message("b", at, created=at + 5, quantity=1),
            message("b", at, created=at + 3, quantity=2),
            message("c", at, created=at, quantity=1),
            message("c", at, created=at, quantity=2),
            message("d", at, amount=None, quantity=7, merchant=None),
        ]
    )
    world.drain(topic, [name])
    assert world.rows(name, ["a", "b", "c", "d", "never"]) == {"a": 2, "b": 1, "c": 2, "d": 7, "never": "NOT_FOUND"}
    features = ["amount", "quantity", "merchant", "vip"]
    cells = read_online(world.larder, name, features, "card_id", ["a", "d"])
    assert cells["a"] == {
        "amount": Cell(2.5, "PRESENT", at + SECOND),
        "quantity": Cell(2, "PRESENT", at + SECOND),
        "merchant": Cell("newest", "PRESENT", at + SECOND),
        "vip": Cell(False, "PRESENT", at + SECOND),
    }
    assert cells["d"]["amount"] == Cell(None, "NULL_VALUE", at)
    served = world.features.get_online_features([f"{name}:{feature}" for feature in features], [{"card_id": "a"}])
    assert served.to_dict() == {
        "card_id": ["a"],
        "amount": [2.5],
        "quantity": [2],
        "merchant": ["newest"],
        "vip": [False],
    }


def test_a_row_older_than_the_ttl_is_outside_max_age(world: World) -> None:
    topic = Topic(world.kafka)
    world.features.apply([CARD, plain_view("with_ttl", topic, ttl=timedelta(minutes=10))])
    at = now_us()
    topic.send([message("old", at - HOUR, quantity=5), message("fresh", at - MINUTE, quantity=6)])
    world.drain(topic, ["with_ttl"])
    cells = read_online(world.larder, "with_ttl", ["quantity"], "card_id", ["old", "fresh"])
    assert cells["old"]["quantity"] == Cell(None, "OUTSIDE_MAX_AGE", at - HOUR)
    assert cells["fresh"]["quantity"] == Cell(6, "PRESENT", at - MINUTE)


# --- windows ------------------------------------------------------------------------------------------------------


def two_windows(tiling: int = 0) -> list[Window]:
    """Every function over five minutes and over an hour, and one with a slide of its own."""
    made = [
        Window(f"{function}_{column or 'events'}_{label}", function, column, width, tiling=tiling)
        for label, width in [("5m", 5 * MINUTE), ("1h", HOUR)]
        for function, column in [
            ("count", ""),
            ("count", "amount"),
            ("sum", "amount"),
            ("sum", "quantity"),
            ("mean", "amount"),
            ("min", "amount"),
            ("max", "quantity"),
        ]
    ]
    return [*made, Window("sum_20m_by_4m", "sum", "amount", 20 * MINUTE, slide=4 * MINUTE, tiling=tiling)]


def settled(
    world: World, view: str, windows: Sequence[Window], events: dict[str, list[Event]]
) -> tuple[dict[object, dict[str, Cell]], dict[str, dict[str, Cell]]]:
    """Ask until the definition gives one answer for the whole time of the question: the answer, and what it must be."""
    for _ in range(50):
        before = expected(windows, events, now_us())
        served = read_online(world.larder, view, [window.feature for window in windows], "card_id", list(events))
        if before == expected(windows, events, now_us()):
            return served, before
    raise AssertionError("the windows moved during each of 50 questions")


def expected(windows: Sequence[Window], events: dict[str, list[Event]], t: int) -> dict[str, dict[str, Cell]]:
    """The cells that WINDOWS.md wants at t."""
    cells = {}
    for card, of_card in events.items():
        found = answer(windows, of_card, t)
        if found is None:
            cells[card] = {window.feature: Cell(None, "NOT_FOUND", None) for window in windows}
        else:
            cells[card] = {
                name: Cell(value, "NULL_VALUE" if value is None else "PRESENT", found.event_ts)
                for name, value in found.values.items()
            }
    return cells


def assert_same(served: dict[object, dict[str, Cell]], wanted: dict[str, dict[str, Cell]]) -> None:
    """Everything exactly, floating values to 1e-12; an unknown entity has no time to compare."""
    for card, row in wanted.items():
        for name, cell in row.items():
            got = served[card][name]
            if isinstance(cell.value, float):
                assert got.value == pytest.approx(cell.value, rel=1e-12, abs=1e-12), (card, name)
            else:
                assert got.value == cell.value, (card, name)
            assert got.status == cell.status, (card, name)
            if cell.status != "NOT_FOUND":
                assert got.event_ts == cell.event_ts, (card, name)


def random_events(seed: int, cards: int, count: int) -> list[tuple[str, Event]]:
    """Events of the last 80 minutes in no order at all, some equal in time, some with nulls."""
    rng = random.Random(seed)
    now = now_us()
    made: list[tuple[str, Event]] = []
    for number in range(count):
        # the first card has only events of more than ten minutes ago, the second of more than an hour
        card = rng.randrange(cards)
        youngest = [10 * MINUTE, 65 * MINUTE][card] if card < 2 else SECOND
        ts = now - rng.randrange(youngest, 80 * MINUTE)
        if number % 10 == 9 and card > 1:
            ts = made[-1][1].ts
        values: dict[str, float | int | None] = {
            "amount": None if rng.random() < 0.15 else rng.uniform(-100, 1e6),
            "quantity": None if rng.random() < 0.15 else rng.randrange(-50, 1000),
        }
        made.append((f"card-{card}", Event(ts, values)))
    return made


@pytest.mark.parametrize("tiling", [0, 20 * SECOND], ids=["ladder", "tiling_hop_size"])
def test_windows_equal_the_definition_for_events_in_any_order(world: World, tiling: int) -> None:
    topic, name, windows = Topic(world.kafka, partitions=2), f"windows_{tiling}", two_windows(tiling)
    world.features.apply([CARD, windowed_view(name, topic, windows, tiling)])
    events: dict[str, list[Event]] = defaultdict(list, never=[])
    batches: dict[int, list[dict[str, object]]] = defaultdict(list)
    for number, (card, event) in enumerate(random_events(seed=tiling + 1, cards=7, count=400)):
        events[card].append(event)
        # both forms of time; one card's events are on both partitions
        batches[number % 3 % 2].append(message(card, event.ts if number % 2 else iso(event.ts), **event.values))
    for partition, batch in batches.items():
        topic.send(batch, partition=partition)
    world.drain(topic, [name], "sum_quantity_5m")

    served, wanted = settled(world, name, windows, dict(events))
    assert_same(served, wanted)
    # the cases that are meant to be in there are in there
    assert wanted["card-0"]["count_events_5m"] == Cell(0, "PRESENT", max(e.ts for e in events["card-0"]))
    assert wanted["card-0"]["mean_amount_5m"].status == "NULL_VALUE"
    assert wanted["card-0"]["count_events_1h"].value
    assert {cell.status for cell in wanted["card-1"].values()} == {"NOT_FOUND"}
    assert {cell.status for cell in wanted["never"].values()} == {"NOT_FOUND"}
    assert wanted["card-2"]["sum_20m_by_4m"].status == "PRESENT"

    # and the SDK sees the same
    answered = world.features.get_online_features(
        [f"{name}:count_events_1h", f"{name}:mean_amount_5m"], [{"card_id": card} for card in ("card-0", "never")]
    ).to_dict()
    assert answered["count_events_1h"] == [wanted["card-0"]["count_events_1h"].value, None]
    assert answered["mean_amount_5m"] == [None, None]


def test_a_late_event_repairs_the_answer_at_once(world: World) -> None:
    topic, windows = Topic(world.kafka), two_windows()
    world.features.apply([CARD, windowed_view("late", topic, windows)])
    at = now_us()
    events = {"a": [Event(at - SECOND, {"amount": 10.0, "quantity": 1})]}
    topic.send([message("a", event.ts, **event.values) for event in events["a"]])
    world.drain(topic, ["late"], "sum_quantity_5m")
    assert_same(*settled(world, "late", windows, events))
    # half an hour behind a watermark of five minutes; and one that no window can show any more
    late = [Event(at - 30 * MINUTE, {"amount": 5.0, "quantity": 2}), Event(at - DAY, {"amount": 7.0, "quantity": 3})]
    events["a"] += late
    topic.send([message("a", event.ts, **event.values) for event in late])
    world.drain(topic, ["late"], "sum_quantity_5m")
    served, wanted = settled(world, "late", windows, events)
    assert_same(served, wanted)
    assert (wanted["a"]["count_events_5m"].value, wanted["a"]["count_events_1h"].value) == (1, 2)
    assert metric(world.larder, "larder_ingest_late_dropped_total", view="late") == [1]


def test_a_window_falls_back_by_itself_as_time_passes(world: World) -> None:
    topic = Topic(world.kafka)
    windows = [
        Window("count_2s", "count", "", 2 * SECOND),
        Window("mean_2s", "mean", "amount", 2 * SECOND),
        Window("count_4s", "count", "", 4 * SECOND),
    ]
    world.features.apply([CARD, windowed_view("passing", topic, windows)])
    world.drain(topic, ["passing"], "count_4s")
    events = {"a": [Event(now_us(), {"amount": 3.0, "quantity": 1})]}
    topic.send([message("a", event.ts, **event.values) for event in events["a"]])
    wait_until(lambda: world.rows("passing", ["a"], ["count_4s"]) == {"a": 1}, "the event", pause=0.01)
    seen = []

    def gone() -> bool:
        served, wanted = settled(world, "passing", windows, events)
        assert_same(served, wanted)
        state = tuple((cell.value, cell.status) for cell in served["a"].values())
        if state not in seen:
            seen.append(state)
        return served["a"]["count_4s"].status == "NOT_FOUND"

    wait_until(gone, "the widest window to pass", 20)
    assert seen == [
        ((1, "PRESENT"), (3.0, "PRESENT"), (1, "PRESENT")),
        ((0, "PRESENT"), (None, "NULL_VALUE"), (1, "PRESENT")),
        ((None, "NOT_FOUND"),) * 3,
    ]


def test_a_lifetime_window_counts_from_the_beginning(world: World) -> None:
    topic = Topic(world.kafka)
    windows = [Window("ever", "count", "", 0), Window("last_hour", "sum", "amount", HOUR)]
    world.features.apply([CARD, windowed_view("lifetime", topic, windows)])
    ages = [4000 * DAY, 30 * DAY, DAY, 2 * HOUR, MINUTE]
    events = {"a": [Event(now_us() - age, {"amount": 1.5, "quantity": 1}) for age in ages]}
    events["b"] = events["a"][:2]
    for card, of_card in events.items():
        topic.send([message(card, event.ts, **event.values) for event in of_card])
    world.drain(topic, ["lifetime"], "ever")
    served, wanted = settled(world, "lifetime", windows, events)
    assert_same(served, wanted)
    assert (wanted["a"]["ever"].value, wanted["b"]["ever"].value) == (5, 2)
    assert wanted["b"]["last_hour"].status == "NULL_VALUE"


def test_online_and_historical_answers_are_the_same_number(world: World) -> None:
    topic, windows = Topic(world.kafka), two_windows()
    view = windowed_view("parity", topic, windows)
    made = random_events(seed=7, cards=5, count=200)
    history = pd.DataFrame(
        [
            {
                "card_id": card,
                "amount": event.values["amount"],
                "quantity": event.values["quantity"],
                "merchant": None,
                "vip": None,
                "ts": pd.Timestamp(event.ts, unit="us", tz="UTC"),
                "created": pd.Timestamp(event.ts, unit="us", tz="UTC"),
            }
            for card, event in made
        ]
    ).astype({"quantity": "Int64", "merchant": "string", "vip": "boolean"})
    history.to_parquet(world.larder.repo / "data" / "parity.parquet", index=False)
    assert isinstance(view.stream_source, KafkaSource)
    view.stream_source.batch_source = view.batch_source = FileSource(
        name="parity_file", path="data/parity.parquet", timestamp_field="ts", created_timestamp_column="created"
    )
    world.features.apply([CARD, view])
    topic.send([message(card, event.ts, **event.values) for card, event in made])
    world.drain(topic, ["parity"], "sum_quantity_5m")
    events: dict[str, list[Event]] = defaultdict(list)
    for card, event in made:
        events[card].append(event)
    served, wanted = settled(world, "parity", windows, dict(events))
    assert_same(served, wanted)
    names = [window.feature for window in windows]
    asked = pd.DataFrame({"card_id": list(events), "event_timestamp": pd.Timestamp.now("UTC")})
    trained = world.features.get_historical_features(asked, [f"parity:{name}" for name in names]).to_df()
    later = expected(windows, dict(events), int(micros(asked["event_timestamp"][0]) or 0))
    for row in trained.to_dict("records"):
        for name in names:
            value = later[row["card_id"]][name].value
            got = None if pd.isna(row[name]) else row[name]
            assert got == (value and pytest.approx(value, rel=1e-12)), (row["card_id"], name)


# --- what is no event ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windowed", [False, True], ids=["rows", "windows"])
def test_what_cannot_be_used_goes_to_the_dead_letter_topic_and_the_stream_goes_on(world: World, windowed: bool) -> None:
    topic, name = Topic(world.kafka), f"dead_{windowed}".lower()
    view = windowed_view(name, topic, TOTALS) if windowed else plain_view(name, topic)
    world.features.apply([CARD, view])
    at = now_us()
    bad: list[tuple[str, dict[str, object] | bytes | None]] = [
        ("undecodable", b"\xff\x00 no json"),
        ("undecodable", b"[1, 2]"),
        ("undecodable", b'{"card_id": "a", "ts"'),
        ("missing_key", message(None, at)),
        ("missing_key", {"ts": at, "quantity": 1}),
        ("missing_timestamp", message("a", None)),
        ("missing_timestamp", {"card_id": "a", "quantity": 1}),
        ("wrong_type", message("a", at, quantity="many")),
        ("wrong_type", message("a", "at noon")),
        ("future", message("a", at + 10 * MINUTE)),
        ("tombstone", None),
    ]
    topic.send([message("a", at - MINUTE, quantity=1)])
    for number, (_reason, sent) in enumerate(bad):
        topic.send([sent], key=f"key-{number}")
        topic.send([message("a", at - SECOND, quantity=1)])
    world.drain(topic, [name], "count_1d" if windowed else "quantity")

    letters = topic.dead_letters.read(len(bad))
    for number, (letter, (reason, sent)) in enumerate(zip(letters, bad, strict=True)):
        assert letter.headers["larder-reason"].startswith(f"{reason}: "), letter
        assert len(letter.headers["larder-reason"]) > len(reason) + 2
        assert letter.headers["larder-topic"] == topic.name
        assert letter.headers["larder-partition"] == "0"
        assert letter.headers["larder-offset"] == str(1 + 2 * number)
        assert letter.key == f"key-{number}".encode()
        assert (letter.value or None) == (json.dumps(sent).encode() if isinstance(sent, dict) else sent)
    good = len(bad) + 1
    assert world.rows(name, ["a"], ["count_1d"] if windowed else ["quantity"]) == {"a": good if windowed else 1}
    for reason, count in Counter(reason for reason, _ in bad).items():
        assert metric(world.larder, "larder_ingest_dead_letters_total", view=name, reason=reason) == [count]


# --- crashes ------------------------------------------------------------------------------------------------------


class Producing(threading.Thread):
    """Produces to all partitions of a topic until told to stop, and remembers what the broker acknowledged."""

    def __init__(self, topic: Topic, cards: int) -> None:
        super().__init__(daemon=True)
        self.counts: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self._topic, self._cards, self._enough = topic, cards, threading.Event()
        self._rng = random.Random(20)

    def run(self) -> None:
        """Small acknowledged batches, so that the server is always in the middle of something."""
        while not self._enough.wait(0.01):
            batch = []
            for _ in range(40):
                card, quantity = f"card-{self._rng.randrange(self._cards)}", self._rng.randrange(1, 100)
                batch.append(message(card, now_us() - self._rng.randrange(HOUR), quantity=quantity))
                self.counts[card] += 1
                self.sums[card] += quantity
            self._topic.send(batch, partition=self._rng.randrange(self._topic.partitions))

    def finish(self) -> None:
        """Stop, after the batch in hand is acknowledged."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive()


@pytest.mark.parametrize("merging", [False, True], ids=["", "while_states_are_merged"])
def test_sigkill_in_mid_stream_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka, merging: bool
) -> None:
    repo = make_repo(tmp_path / "repo")
    if merging:
        # hardly a checkpoint fits into the log, so that each becomes a run; nothing is served from memory
        online = {"type": "sled", "tier_bytes": 0, "log_bytes": 20_000}
        config = {"project": PROJECT, "online_store": online, "ingest": {"checkpoint_interval_ms": 50}}
        (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    world = World(larder(repo), store(repo), kafka)
    topic = Topic(kafka, partitions=3)
    world.features.apply([CARD, windowed_view("totals", topic, TOTALS), plain_view("latest", topic)])
    cards = [f"card-{number}" for number in range(400 if merging else 20)]

    def counted() -> int:
        return sum(
            int(str(value)) for value in world.rows("totals", cards, ["count_1d"]).values() if value != "NOT_FOUND"
        )

    def checkpoints() -> float:
        return sum(metric(world.larder, "larder_ingest_checkpoint_seconds_count", view="totals"))

    def merges() -> float:
        return sum(metric(world.larder, "larder_online_merge_seconds_count"))

    producing = Producing(topic, len(cards))
    producing.start()
    kept = 0
    for _ in range(6):
        enough = kept + 300
        wait_until(lambda: counted() > enough, "the stream to go on", 60)  # noqa: B023 - called before the next round
        # the second checkpoint from now on begins behind what is read here; what came since the last one is taken back
        kept, written = counted(), checkpoints() + 1
        wait_until(lambda: checkpoints() > written, "two checkpoints", 60)  # noqa: B023 - as above
        wait_until(lambda: not merging or merges() > 0, "runs of states to be merged", 60)
        world.larder.kill()
        world.larder.start()
        assert counted() >= kept
    producing.finish()
    world.drain(topic, ["totals"], "count_1d")
    world.drain(topic, ["latest"])
    assert world.rows("totals", cards, ["count_1d"]) == producing.counts
    assert world.rows("totals", cards, ["sum_1d"]) == producing.sums
    assert world.larder.stop() == 0
    # a clean stop and start changes nothing either
    world.larder.start()
    topic.send([message(cards[0], now_us(), quantity=1000)])
    world.drain(topic, ["totals"], "count_1d")
    assert world.rows("totals", cards[:2], ["sum_1d"]) == {
        cards[0]: producing.sums[cards[0]] + 1000,
        cards[1]: producing.sums[cards[1]],
    }


def test_views_that_join_a_running_stream_count_every_event_once(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    """Each reads alone what the others have read before it, then goes on with them; kills included."""
    repo = make_repo(tmp_path / "repo")
    world = World(larder(repo), store(repo), kafka)
    topic = Topic(kafka, partitions=3)
    cards = [f"card-{number}" for number in range(20)]
    views = [f"joined_{number}" for number in range(4)]

    def counted(view: str) -> int:
        found = world.rows(view, cards, ["count_1d"]).values()
        return sum(int(str(value)) for value in found if value != "NOT_FOUND")

    world.features.apply([CARD, windowed_view(views[0], topic, TOTALS)])
    producing = Producing(topic, len(cards))
    producing.start()
    for number in range(1, len(views)):
        enough = counted(views[0]) + 300
        wait_until(lambda: counted(views[0]) > enough, "the stream to go on", 60)  # noqa: B023 - called before the next round
        world.features.apply([CARD, *(windowed_view(view, topic, TOTALS) for view in views[: number + 1])])
        if number > 1:
            world.larder.kill()
            world.larder.start()
    producing.finish()
    world.drain(topic, views, "count_1d")
    for view in views:
        assert world.rows(view, cards, ["count_1d"]) == producing.counts, view
        assert world.rows(view, cards, ["sum_1d"]) == producing.sums, view


# --- views and topics that come and go ----------------------------------------------------------------------------


def test_a_view_applied_later_reads_its_topic_from_the_beginning(world: World) -> None:
    topic = Topic(world.kafka, partitions=4)
    for partition in range(topic.partitions):
        topic.send([message("a", now_us(), quantity=10 + partition)] * 5, partition=partition)
    world.features.apply([CARD, windowed_view("later", topic, TOTALS)])
    world.drain(topic, ["later"], "count_1d")
    assert world.rows("later", ["a"], ["count_1d"]) == {"a": 20}
    assert world.rows("later", ["a"], ["sum_1d"]) == {"a": 5 * (10 + 11 + 12 + 13)}


def test_a_topic_may_come_after_its_view(world: World) -> None:
    topic = Topic(world.kafka, partitions=2, create=False)
    world.features.apply([CARD, plain_view("early", topic)])
    assert world.rows("early", ["a"]) == {"a": "NOT_FOUND"}
    topic.create()
    topic.send([message("a", now_us(), quantity=3)], partition=1)
    world.drain(topic, ["early"])
    assert world.rows("early", ["a"]) == {"a": 3}


def test_a_view_that_moves_to_another_topic(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    """What its consumer group was given before does not count: the new topic is read, the old one no more."""
    old, new = Topic(kafka, partitions=2), Topic(kafka, partitions=2)
    repo = make_repo(tmp_path / "repo")
    with (repo / "larder.yaml").open("a") as config:
        config.write("ingest: {group_prefix: moving, kafka: {session.timeout.ms: '6000'}}\n")
    world = World(larder(repo), store(repo), kafka)
    world.features.apply([CARD, plain_view("moved", old)])
    world.drain(old, ["moved"])
    world.features.apply([CARD, plain_view("moved", new)])
    world.drain(new, ["moved"])
    old.send([message("a", now_us(), quantity=1)])
    world.larder.kill()
    world.larder.start()
    new.send([message("b", now_us(), quantity=2)])
    world.drain(new, ["moved"])
    assert world.rows("moved", ["a", "b"]) == {"a": "NOT_FOUND", "b": 2}


def test_two_views_on_one_topic_each_take_every_message(world: World) -> None:
    topic = Topic(world.kafka, partitions=2)
    world.features.apply([CARD, windowed_view("both_totals", topic, TOTALS), plain_view("both_rows", topic)])
    at = now_us()
    topic.send([message("a", at + number, quantity=number) for number in range(100)], partition=1)
    world.drain(topic, ["both_totals"], "count_1d")
    world.drain(topic, ["both_rows"])
    assert world.rows("both_totals", ["a"], ["count_1d"]) == {"a": 100}
    assert world.rows("both_totals", ["a"], ["sum_1d"]) == {"a": sum(range(100))}
    assert world.rows("both_rows", ["a"]) == {"a": 99}


def test_a_deleted_view_stops_and_is_built_anew_when_applied_again(world: World) -> None:
    topic = Topic(world.kafka)
    world.features.apply([CARD, windowed_view("deleted", topic, TOTALS), plain_view("survivor", topic)])
    topic.send([message("a", now_us())] * 10)
    world.drain(topic, ["deleted"], "count_1d")
    assert world.rows("deleted", ["a"], ["count_1d"]) == {"a": 10}
    view = world.features.get_stream_feature_view("deleted")
    world.features.apply([], objects_to_delete=[view], partial=False)
    answered = world.larder.post(
        "/get-online-features", {"features": ["deleted:count_1d"], "entities": {"card_id": ["a"]}}
    )
    assert answered.status_code == 404
    wait_until(
        lambda: not any(metric(world.larder, "larder_ingest_view_state", view="deleted")), "the consumer to be stopped"
    )
    taken = metric(world.larder, "larder_ingest_messages_total", view="deleted")
    topic.send([message("a", now_us())] * 5)
    world.drain(topic, ["survivor"])
    assert metric(world.larder, "larder_ingest_messages_total", view="deleted") == taken
    world.features.apply([CARD, windowed_view("deleted", topic, TOTALS)])
    world.drain(topic, ["deleted"], "count_1d")
    assert world.rows("deleted", ["a"], ["count_1d"]) == {"a": 15}


def test_a_view_whose_windows_cannot_be_computed_is_refused_with_the_reason(world: World) -> None:
    topic = Topic(world.kafka)
    for name, window, reason in [
        ("bad_function", Window("x", "medianish", "amount", HOUR), "medianish"),
        ("bad_column", Window("x", "sum", "price", HOUR), "price"),
        ("bad_type", Window("x", "sum", "merchant", HOUR), "merchant"),
    ]:
        with pytest.raises(Exception, match=reason):
            world.features.apply([CARD, windowed_view(name, topic, [window])])
        names = [view.name for view in world.features.list_stream_feature_views()]
        assert name not in names


def test_an_ordinary_apply_and_start_warn_of_nothing(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    """Feast's client applies a view before its entity; and a stream need not have all of a view's columns."""
    topic = Topic(kafka)
    world = World(larder(make_repo(tmp_path / "repo")), store(tmp_path / "repo"), kafka)
    partial = plain_view("quiet", topic)
    partial.features.append(Field(name="by_push", dtype=Int64))
    world.features.apply([CARD, partial])
    world.drain(topic, ["quiet"])
    world.larder.restart()
    world.drain(topic, ["quiet"])
    assert [line for line in world.larder.log.splitlines() if "WARN" in line or "ERROR" in line] == []
    assert "is not consumed until its entity is applied" in world.larder.log
    assert "pushes and materializations fill it" in world.larder.log


# --- lag, brokers -------------------------------------------------------------------------------------------------


def test_the_lag_of_every_partition_goes_to_zero(world: World) -> None:
    topic = Topic(world.kafka, partitions=3)
    world.features.apply([CARD, plain_view("lagging", topic)])
    for partition in range(topic.partitions):
        topic.send([message("a", now_us())] * 500, partition=partition)
    world.drain(topic, ["lagging"])
    wait_until(
        lambda: metric(world.larder, "larder_ingest_consumer_lag", view="lagging") == [0, 0, 0],
        "no lag on 3 partitions",
    )
    assert metric(world.larder, "larder_ingest_position", view="lagging") == [501, 501, 501]


def test_a_broker_that_is_not_there_harms_nobody_and_is_used_when_it_comes(
    tmp_path: Path, larder: StartLarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    own = broker.start(tmp_path / "kafka")
    try:
        topic = Topic(own)
        topic.send([message("a", now_us(), quantity=1)])
        own.stop()
        repo = make_repo(tmp_path / "repo")
        world = World(larder(repo), store(repo), own)
        push = PushSource(
            name="card_push", batch_source=FileSource(name="f", path="data/cards.parquet", timestamp_field="ts")
        )
        pushed = FeatureView(name="pushed", entities=[CARD], ttl=timedelta(0), source=push, schema=row_schema())
        world.features.apply([CARD, push, pushed, plain_view("waiting", topic)])
        wait_until(lambda: "Kafka is not available" in world.larder.log, "the log to say that the broker is away")
        row = {"card_id": "a", "amount": 1.0, "quantity": 9, "merchant": "m", "vip": True, "ts": datetime.now(UTC)}
        world.features.push("card_push", pd.DataFrame([row]))
        assert world.rows("pushed", ["a"]) == {"a": 9}
        assert world.rows("waiting", ["a"]) == {"a": "NOT_FOUND"}
        world.larder.restart()
        assert world.rows("pushed", ["a"]) == {"a": 9}
        own.start_again()
        wait_until(lambda: world.rows("waiting", ["a"]) == {"a": 1}, "the message that waited", 60)
        # and away again, in the middle
        own.stop()
        assert world.rows("waiting", ["a"]) == {"a": 1}
        own.start_again()
        topic.send([message("a", now_us(), quantity=2)])
        wait_until(lambda: world.rows("waiting", ["a"]) == {"a": 2}, "the message after the broker's restart", 60)
        own.stop()
        assert world.larder.stop() == 0
    finally:
        own.stop()

"""Every window function through a real broker: online, offline and the oracle of WINDOWS.md give one answer."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from feast import Entity, FeatureStore, Field, FileSource, KafkaSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.types import Array, Bool, FeastType, Float64, Int64, Map, PrimitiveFeastType, String
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports
from larder_env.topics import Topic
from online import Cell, read_online
from windows_oracle import HOUR, MINUTE, SECOND, Answer, Event, Value, Window, answer

CARD = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
SCHEMA = "card_id string, amount double, quantity bigint, merchant string, vip boolean, ts timestamp"
COLUMNS: dict[str, PrimitiveFeastType] = {"amount": Float64, "quantity": Int64, "merchant": String, "vip": Bool}
NUMBERS = ["amount", "quantity"]
ANY = [*COLUMNS]
EVENTS = [""]

FUNCTIONS: list[tuple[str, list[str]]] = [
    ("count", [*EVENTS, *ANY]),
    ("sum", NUMBERS),
    ("mean", NUMBERS),
    ("avg", ["amount"]),
    ("min", ANY),
    ("max", ANY),
    ("var", NUMBERS),
    ("stddev", NUMBERS),
    ("first", ANY),
    ("last", ANY),
    ("skew", NUMBERS),
    ("kurtosis", NUMBERS),
    ("seconds_since_last", [*EVENTS, "merchant"]),
    ("seconds_since_first", [*EVENTS, "merchant"]),
    ("decayed_sum(900)", NUMBERS),
    ("decayed_count(900)", [*EVENTS, "vip"]),
    ("session_count(240)", [*EVENTS, "merchant"]),
    ("session_sum(240)", NUMBERS),
    ("session_duration(240)", [*EVENTS, "merchant"]),
    ("sum_last_k(5)", NUMBERS),
    ("mean_last_k(5)", NUMBERS),
    ("min_last_k(5)", ANY),
    ("max_last_k(5)", ANY),
    ("first_k(3)", ANY),
    ("last_k(3)", ANY),
    ("top_k(4)", ANY),
    ("bottom_k(4)", ANY),
    ("histogram", ["quantity", "merchant", "vip"]),
    ("count_distinct", ANY),
    ("approx_count_distinct", ANY),
    ("approx_percentile(0.9)", NUMBERS),
    ("median", NUMBERS),
]
INTEGER = ("count", "count_distinct", "approx_count_distinct", "session_count")
OF_THE_COLUMN = ("sum", "min", "max", "first", "last", "session_sum", "sum_last_k", "min_last_k", "max_last_k")
LISTS = ("first_k", "last_k", "top_k", "bottom_k")
# What changes with every microsecond of the question.
FLOWING = ("seconds_since_last", "seconds_since_first", "decayed_sum", "decayed_count")
# Relative errors that WINDOWS.md allows: parity to 1e-12 for what is summed, a percentile's 1 %, and four standard
# errors of 4,096 registers, or one where values are
# few and two share a register. Moments and decays are compared to 1e-9 with the oracle, which rounds its own way.
ERRORS = {
    "approx_percentile": 0.0101,
    "median": 0.0101,
    "approx_count_distinct": 0.065,
    "skew": 1e-9,
    "kurtosis": 1e-9,
    "decayed_sum": 1e-9,
    "decayed_count": 1e-9,
}


def base(window: Window) -> str:
    """The function's name without its parameters."""
    return window.function.partition("(")[0]


def windows_of(widths: dict[str, int]) -> list[Window]:
    """Every function over every column that it takes, in each of the widths."""
    return [
        Window(f"f{number}_{column or 'events'}_{label}", function, column, width)
        for label, width in widths.items()
        for number, (function, columns) in enumerate(FUNCTIONS)
        for column in columns
    ]


VIEWS = {"ever": windows_of({"ever": 0}), "sliding": windows_of({"12m": 12 * MINUTE, "2h": 2 * HOUR})}


def feature_type(window: Window) -> FeastType:
    """The type that the function gives."""
    if base(window) in INTEGER:
        return Int64
    if base(window) == "histogram":
        return Map
    if base(window) in LISTS:
        return Array(COLUMNS[window.column])
    return COLUMNS[window.column] if base(window) in OF_THE_COLUMN else Float64


def view(name: str, topic: Topic) -> StreamFeatureView:
    """A view with all functions on the topic, with the same events in a file."""
    return StreamFeatureView(
        name=name,
        entities=[CARD],
        ttl=timedelta(days=30),
        mode="python",
        timestamp_field="ts",
        source=KafkaSource(
            name=f"{name}_stream",
            kafka_bootstrap_servers=topic.kafka.bootstrap_servers,
            topic=topic.name,
            timestamp_field="ts",
            watermark_delay_threshold=timedelta(minutes=5),
            message_format=JsonFormat(schema_json=SCHEMA),
            batch_source=FileSource(name=f"{name}_file", path="data/cards.parquet", timestamp_field="ts"),
        ),
        aggregations=[
            Aggregation(
                column=window.column,
                function=window.function,
                time_window=timedelta(microseconds=window.width) if window.width else None,
                name=window.feature,
            )
            for window in VIEWS[name]
        ],
        schema=[
            Field(name="card_id", dtype=String),
            *(Field(name=window.feature, dtype=feature_type(window)) for window in VIEWS[name]),
        ],
    )


def now_us() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def make_events(rng: random.Random, now: int) -> list[tuple[str, Event]]:
    """In no order of time, some equal in it, with nulls, and whole numbers among the floats."""
    # how far back a card's events lie: fresh ones, none in the narrow window, none in the wide one, one alone
    ages = {
        "busy": (30 * SECOND, 3 * HOUR, 250),
        "rare": (14 * MINUTE, 3 * HOUR, 60),
        "old": (150 * MINUTE, 4 * HOUR, 30),
    }
    ages["single"] = (MINUTE, 2 * MINUTE, 1)
    made: list[tuple[str, Event]] = []
    for card, (youngest, oldest, count) in ages.items():
        for number in range(count):
            ts = now - rng.randrange(youngest, oldest)
            if number % 8 == 7:
                ts = made[-1][1].ts
            values: dict[str, Value] = {
                "amount": rng.choice([None, 0.0, -3.0, 0.1, rng.uniform(-100, 1e6), rng.uniform(-1e-3, 1e-3)]),
                "quantity": rng.choice([None, rng.randrange(-50, 50), rng.randrange(-(10**12), 10**12)]),
                "merchant": rng.choice([None, "", "böx", *(f"m{n}" for n in range(12))]),
                "vip": rng.choice([None, True, False]),
            }
            made.append((card, Event(ts, values)))
    rng.shuffle(made)
    return made


@dataclass
class World:
    """A server that took the events from the broker, and has them in a file."""

    larder: Larder
    features: FeatureStore
    events: dict[str, list[Event]]

    def offline(self, name: str, rows: Sequence[tuple[str, int]]) -> list[dict[str, Value]]:
        """A training set's features for cards and times, row by row."""
        asked = pd.DataFrame(
            {
                "card_id": [card for card, _ in rows],
                "event_timestamp": pd.to_datetime([t for _, t in rows], unit="us", utc=True).as_unit("us"),
            }
        )
        names = [window.feature for window in VIEWS[name]]
        table = self.features.get_historical_features(asked, [f"{name}:{feature}" for feature in names]).to_arrow()
        places = {
            (row["card_id"], int(row["event_timestamp"].timestamp() * 1e6 + 0.5)): row for row in table.to_pylist()
        }
        return [{feature: unpacked(places[row][feature]) for feature in names} for row in rows]


def unpacked(value: Value) -> Value:
    """A map as a dictionary: Feast's Map is a map of text to text in Arrow, so its counts are text there."""
    pairs: list[Any] = [pair for pair in value if isinstance(pair, tuple)] if isinstance(value, list) else []
    return {category: int(count) for category, count in pairs} if pairs else value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka) -> World:
    """All events are in the file and in the views."""
    repo = tmp_path_factory.mktemp("functions") / "repo"
    write_config(repo, "functions", Ports.free())
    (repo / "data").mkdir()
    made = make_events(random.Random(7), now_us())
    frame = pd.DataFrame([{"card_id": card, "ts": event.ts, **event.values} for card, event in made])
    frame["ts"] = pd.to_datetime(frame["ts"], unit="us", utc=True).astype("datetime64[us, UTC]")
    frame.astype({"quantity": "Int64", "vip": "boolean"}).to_parquet(repo / "data" / "cards.parquet", index=False)
    larder, features, topic = module_larder(repo), store(repo), Topic(kafka)
    views = [view(name, topic) for name in VIEWS]
    features.apply([CARD, *views])
    topic.send([{"card_id": card, "ts": event.ts, **event.values} for card, event in made])
    topic.send([{"card_id": "end", "ts": now_us(), "quantity": 1}])
    for name, windows in VIEWS.items():

        def taken(name: str = name, feature: str = windows[0].feature) -> bool:
            return read_online(larder, name, [feature], "card_id", ["end"])["end"][feature].value == 1

        wait_until(taken, f"the end of the topic in {name}", 60)
    events: dict[str, list[Event]] = defaultdict(list, never=[])
    for card, event in made:
        events[card].append(event)
    return World(larder, features, dict(events))


def alike(window: Window, got: object, wanted: Value) -> bool:
    """Whether a value is the wanted one, to what its function may be off."""
    if wanted is None:
        return got is None
    if base(window) == "approx_count_distinct":
        return got == pytest.approx(wanted, rel=ERRORS["approx_count_distinct"], abs=1)
    if isinstance(wanted, float):
        return got == pytest.approx(wanted, rel=ERRORS.get(base(window), 1e-12), abs=1e-12)
    return type(got) is type(wanted) and got == wanted


def assert_answer(windows: Sequence[Window], got: dict[str, Value], wanted: Answer | None, where: object) -> None:
    """Feature by feature what the oracle says; null for an entity that is unknown."""
    for window in windows:
        want = wanted.values[window.feature] if wanted else None
        assert alike(window, got[window.feature], want), (where, window, got[window.feature], want)


@pytest.mark.parametrize("name", VIEWS)
def test_a_training_set_has_what_the_oracle_says_at_each_time(world: World, name: str) -> None:
    rng, now = random.Random(11), now_us()
    rows = {(card, now - rng.randrange(4 * HOUR)) for card in world.events for _ in range(6)}
    # at the very microsecond of an event, and just before it
    exact = {
        (card, event.ts - early) for card, events in world.events.items() for event in events[:3] for early in (0, 1)
    }
    asked = sorted(rows | exact)
    for (card, t), got in zip(asked, world.offline(name, asked), strict=True):
        assert_answer(VIEWS[name], got, answer(VIEWS[name], world.events[card], t), (card, t))


@pytest.mark.parametrize("name", VIEWS)
def test_online_offline_and_oracle_agree_at_the_time_of_the_question(world: World, name: str) -> None:
    windows = VIEWS[name]
    cards = sorted(world.events)
    for _ in range(50):
        begun = now_us()
        online = read_online(world.larder, name, [w.feature for w in windows], "card_id", cards)
        ended = now_us()
        between = [{card: answer(windows, world.events[card], t) for card in cards} for t in (begun, ended)]
        if all(steady(windows, between[0][card], between[1][card]) for card in cards):
            break
    else:
        raise AssertionError("a window moved during each of 50 questions")
    offline = world.offline(name, [(card, t) for card in cards for t in (begun, ended)])
    for number, card in enumerate(cards):
        first, last = offline[2 * number : 2 * number + 2]
        for got, wanted in zip((first, last), between, strict=True):
            assert_answer(windows, got, wanted[card], card)
        for window in windows:
            served = online[card][window.feature]
            assert served.status == status(between[0][card], window), (card, window)
            assert_between(window, served, first[window.feature], last[window.feature], card)


def steady(windows: Sequence[Window], one: Answer | None, other: Answer | None) -> bool:
    """Whether nothing moved between two times but what always flows."""
    if one is None or other is None:
        return one is other
    resting = [window.feature for window in windows if base(window) not in FLOWING]
    flowing = [window.feature for window in windows if base(window) in FLOWING]
    return (
        one.event_ts == other.event_ts
        and all(one.values[feature] == other.values[feature] for feature in resting)
        and all((one.values[feature] is None) == (other.values[feature] is None) for feature in flowing)
    )


def status(known: Answer | None, window: Window) -> str:
    """The status that goes with an answer."""
    if known is None:
        return "NOT_FOUND"
    return "NULL_VALUE" if known.values[window.feature] is None else "PRESENT"


def assert_between(window: Window, served: Cell, first: Value, last: Value, card: str) -> None:
    """The value at a time between two: the same as at both to the last bit, or between them where it flows."""
    if base(window) not in FLOWING or first is None:
        assert served.value == first == last, (card, window)
        return
    assert isinstance(served.value, float)
    assert isinstance(first, float)
    assert isinstance(last, float)
    slack = 1e-12 * max(abs(first), abs(last))
    assert min(first, last) - slack <= served.value <= max(first, last) + slack, (card, window)

"""SQL before the windows of a stream: the same online, from the event log and over the batch source."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from feast import Field, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.topics import Topic
from online import metric
from test_streams import CARD, HOUR, MINUTE, World, card_source, make_repo, message, now_us

SQL = """
    WITH real AS (SELECT * FROM events WHERE merchant <> 'test')
    SELECT lower(card_id) AS card_id, amount * quantity AS spent, 100 / quantity AS share,
           CASE WHEN vip THEN 1 ELSE 0 END AS vips, ts, created
    FROM real
    WHERE amount > 0
"""
FEATURES = ["n", "spent_1d", "share_1d", "vips_1d"]


def day(column: str, function: str, name: str) -> Aggregation:
    """An aggregation over a day."""
    return Aggregation(column=column, function=function, time_window=timedelta(days=1), name=name)


def view(name: str, topic: Topic, sql: str = SQL) -> StreamFeatureView:
    """Windows over what the SQL gives; the text stands in the tag, for Feast's mode `sql` takes no function."""
    return StreamFeatureView(
        name=name,
        entities=[CARD],
        ttl=timedelta(days=30),
        mode="sql",
        tags={"larder.sql": sql},
        timestamp_field="ts",
        source=card_source(name, topic),
        aggregations=[
            day("", "count", "n"),
            day("spent", "sum", "spent_1d"),
            day("share", "sum", "share_1d"),
            day("vips", "sum", "vips_1d"),
        ],
        schema=[
            Field(name="card_id", dtype=String),
            Field(name="n", dtype=Int64),
            Field(name="spent_1d", dtype=Float64),
            Field(name="share_1d", dtype=Int64),
            Field(name="vips_1d", dtype=Int64),
        ],
    )


def events(count: int, seed: int, until: int) -> list[dict[str, object]]:
    """Messages of five cards in two spellings, some of them to be left out."""
    draw = random.Random(seed)
    return [
        message(
            draw.choice(["A", "a", "B", "b", "C"]),
            until - draw.randrange(0, 10 * HOUR),
            amount=draw.choice([None, -1.0, 0.0, 0.25, 4.0, 12.5]),
            quantity=draw.randrange(1, 9),
            merchant=draw.choice(["shop", "test", "mill"]),
            vip=draw.choice([True, False, None]),
        )
        for _ in range(count)
    ]


def expected(messages: list[dict[str, object]]) -> dict[str, list[float]]:
    """What the features are, worked out in Python."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0, 0])
    for event in messages:
        amount, quantity = event["amount"], event["quantity"]
        if event["merchant"] == "test" or not isinstance(amount, float) or amount <= 0:
            continue
        assert isinstance(quantity, int)
        total = totals[str(event["card_id"]).lower()]
        total[0] += 1
        total[1] += amount * quantity
        total[2] += 100 // quantity
        total[3] += 1 if event["vip"] else 0
    return totals


def online(world: World, name: str, cards: list[str]) -> dict[str, list[object]]:
    """The features that are served, by card."""
    refs = [f"{name}:{feature}" for feature in FEATURES]
    found = world.features.get_online_features(refs, [{"card_id": card} for card in cards]).to_dict()
    return {card: [found[feature][at] for feature in FEATURES] for at, card in enumerate(cards)}


def offline(world: World, name: str, cards: list[str]) -> dict[str, list[object]]:
    """The same from history."""
    entities = pd.DataFrame({"card_id": cards, "event_timestamp": pd.Timestamp.now(tz="UTC")})
    found = world.features.get_historical_features(entities, [f"{name}:{feature}" for feature in FEATURES]).to_df()
    return {card: [found[feature][at] for feature in FEATURES] for at, card in enumerate(cards)}


@pytest.mark.parametrize("logged", [True, False], ids=["event_log", "batch_source"])
def test_the_same_comes_out_online_and_of_history(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka, logged: bool
) -> None:
    repo = make_repo(tmp_path / "repo")
    if logged:
        config = yaml.safe_load((repo / "larder.yaml").read_text())
        (repo / "larder.yaml").write_text(yaml.safe_dump({**config, "offline": {"event_log": "events"}}))
    world = World(larder(repo), store(repo), kafka)
    topic = Topic(kafka, partitions=2)
    world.features.apply([CARD, view("spent_sql", topic)])
    now = now_us()
    past, sent = events(300, 1, now - 12 * HOUR), events(400, 2, now - MINUTE)
    if not logged:
        past = sent
    # of messages as they came: amounts as integers where the message has doubles, and a column that nobody reads
    raw = pd.DataFrame(past).assign(other=1)
    for column in ["ts", "created"]:
        raw[column] = pd.to_datetime(raw[column], unit="us", utc=True)
    raw["vip"] = raw["vip"].astype("boolean")
    raw["quantity"] = raw["quantity"].astype("int32")
    raw.to_parquet(repo / "data" / "cards.parquet", index=False)
    zero = message("a", now - MINUTE, amount=1.0, quantity=0, merchant="shop", vip=True)
    half = len(sent) // 2
    topic.send(sent[:half], partition=0)
    topic.send([*sent[half:], zero, b"no JSON"], partition=1)
    want = expected(sent)

    def arrived() -> bool:
        served = online(world, "spent_sql", sorted(want))
        return [served[card][0] for card in sorted(want)] == [want[card][0] for card in sorted(want)]

    wait_until(arrived, "all events in the windows", 60)
    assert online(world, "spent_sql", sorted(want)) == {card: pytest.approx(want[card]) for card in want}
    assert online(world, "spent_sql", ["A"])["A"] == [None] * 4, "its key is what the SQL gives"
    letters = {letter.headers["larder-reason"].split(":")[0]: letter for letter in topic.dead_letters.read(2)}
    assert set(letters) == {"transformation", "undecodable"}
    assert "ivide by zero" in letters["transformation"].headers["larder-reason"]
    assert json.loads(letters["transformation"].value or b"")["quantity"] == 0
    left_out = len(sent) - sum(int(total[0]) for total in want.values())
    labels = {"view": "spent_sql"}
    wait_until(
        lambda: sum(metric(world.larder, "larder_ingest_filtered_total", **labels)) == left_out, "what is left out"
    )
    # history: the source's messages, and what the log has of those that came
    both = expected(past + sent) if logged else want
    cards = sorted(both)
    if logged:
        wait_until(lambda: offline(world, "spent_sql", cards)["a"][0] == both["a"][0], "the log at its checkpoint")
    found = offline(world, "spent_sql", cards)
    assert found == {card: pytest.approx(both[card]) for card in cards}


def test_a_backfill_goes_through_the_sql(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    repo = make_repo(tmp_path / "repo")
    world = World(larder(repo), store(repo), kafka)
    cut_over = now_us() - MINUTE
    past = events(300, 3, cut_over - HOUR)
    raw = pd.DataFrame(past)
    for column in ["ts", "created"]:
        raw[column] = pd.to_datetime(raw[column], unit="us", utc=True)
    raw.to_parquet(repo / "data" / "cards.parquet", index=False)
    topic = Topic(kafka)
    world.features.apply([CARD, view("filled", topic)])
    world.features.materialize(as_time(0), as_time(cut_over), feature_views=["filled"])
    new = [message("A", cut_over + 1, amount=2.0, quantity=2, merchant="shop", vip=True)]
    topic.send(new)
    want = expected(past + new)
    cards = sorted(want)
    wait_until(lambda: online(world, "filled", cards)["a"][0] == want["a"][0], "the event behind the cut-over", 60)
    assert online(world, "filled", cards) == {card: pytest.approx(want[card]) for card in cards}


def as_time(us: int) -> datetime:
    """µs since 1970 as a time."""
    return datetime.fromtimestamp(us / 1e6, UTC)


def test_rows_go_through_sql_too(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    repo = make_repo(tmp_path / "repo")
    world = World(larder(repo), store(repo), kafka)
    topic = Topic(kafka)
    sql = "SELECT card_id, upper(merchant) AS name, amount + 1 AS more, ts, created FROM big_stream WHERE amount >= 2"
    rows = StreamFeatureView(
        name="big",
        entities=[CARD],
        ttl=timedelta(0),
        mode="sql",
        tags={"larder.sql": sql},
        timestamp_field="ts",
        source=card_source("big", topic),
        schema=[
            Field(name="card_id", dtype=String),
            Field(name="name", dtype=String),
            Field(name="more", dtype=Float64),
        ],
    )
    world.features.apply([CARD, rows])
    at = now_us()
    topic.send([message("a", at, amount=2.0, merchant="mill"), message("a", at + 1, amount=1.0, merchant="shop")])
    topic.send([message("b", at, amount=5.0, merchant=None)])
    wait_until(lambda: world.rows("big", ["b"], ["more"]) == {"b": 6.0}, "the last row")
    assert world.rows("big", ["a"], ["more"]) == {"a": 3.0}
    assert world.rows("big", ["a"], ["name"]) == {"a": "MILL"}


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT card_id, sum(amount) AS spent FROM events GROUP BY card_id", "Aggregate"),
        ("SELECT card_id, now() AS ts, amount AS spent FROM events", r"now\(\)"),
        ("SELECT card_id, ts FROM events", "no column 'share'"),
        ("SELECT card_id, price AS spent, 1 AS share, 1 AS vips, ts FROM events", "price"),
        ("SELECT card_id, merchant AS spent, 1 AS share, 1 AS vips, ts FROM events", "'spent'.*CAST"),
        ("SELECT card_id FROM elsewhere", "elsewhere"),
        ("DELETE FROM events", "no SELECT"),
    ],
    ids=["aggregation", "clock", "lacking", "unknown_column", "wrong_type", "unknown_table", "no_query"],
)
def test_sql_that_cannot_be_is_refused_when_it_is_applied(sql_world: World, sql: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        sql_world.features.apply([CARD, view("refused", Topic(sql_world.kafka), sql)])


@pytest.fixture(scope="module")
def sql_world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka) -> World:
    """One server for what is refused."""
    repo = make_repo(tmp_path_factory.mktemp("stream_sql") / "repo")
    return World(module_larder(repo), store(repo), kafka)


def test_changed_sql_needs_a_rebuild(sql_world: World) -> None:
    topic = Topic(sql_world.kafka)
    sql_world.features.apply([CARD, view("changing", topic)])
    changed = SQL.replace("amount > 0", "amount > 1")
    with pytest.raises(Exception, match="its SQL changed"):
        sql_world.features.apply([CARD, view("changing", topic, changed)])

"""What a stream survives: messages and topics that nobody would send or make on purpose."""

from __future__ import annotations

import gzip
import json
import re
import signal
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.redis import Redis
from larder_env.repo import store
from larder_env.topics import Topic
from online import metric
from test_streams import (
    CARD,
    COUNT_DAY,
    DAY,
    MINUTE,
    PROJECT,
    SUM_DAY,
    Window,
    World,
    make_repo,
    message,
    now_us,
    plain_view,
    windowed_view,
)
from test_streams_admin import lag, streams

LIFE = Window("count_all", "count", "", 0)
YEAR_3000 = 32_503_680_000_000_000
GREAT = 100 << 20
LIMIT = "max.message.bytes"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka) -> World:
    """One server for the file."""
    repo = make_repo(tmp_path_factory.mktemp("breaks") / "repo")
    return World(module_larder(repo), store(repo), kafka)


def test_times_at_the_ends_of_time_and_numbers_that_are_none(world: World) -> None:
    topic = Topic(world.kafka)
    world.features.apply([CARD, windowed_view("ends", topic, [COUNT_DAY, LIFE])])
    sent: list[dict[str, object] | bytes] = [
        message("a", 0),
        message("a", "1969-12-31T23:59:59Z"),
        message("a", now_us() - 2 * DAY),
        message("a", YEAR_3000),
        message("a", "3000-01-01T00:00:00Z"),
        json.dumps(message("a", now_us(), amount=float("nan"))).encode(),
        json.dumps(message("a", now_us(), amount=float("inf"))).encode(),
        b"",
        b" ",
        message("a", now_us() - MINUTE),
    ]
    topic.send(sent)
    world.drain(topic, ["ends"], "count_1d")
    # what is old counts in the window without an end, and in no other
    assert world.rows("ends", ["a"], ["count_all"]) == {"a": 4}
    assert world.rows("ends", ["a"], ["count_1d"]) == {"a": 1}
    reasons = [letter.headers["larder-reason"].split(":")[0] for letter in topic.dead_letters.read(6)]
    assert reasons == ["future", "future", *["undecodable"] * 4]


def test_what_is_too_old_for_every_window_is_counted(world: World) -> None:
    topic = Topic(world.kafka, partitions=2)
    world.features.apply([CARD, windowed_view("too_old", topic, [COUNT_DAY])])
    topic.send([message("a", now_us()), message("a", 0), message("a", now_us() - 2 * DAY), b"{"], partition=0)
    topic.send([message("a", now_us()), message("a", now_us() - 10 * MINUTE), message("a", 0)], partition=1)
    world.drain(topic, ["too_old"], "count_1d")
    assert world.rows("too_old", ["a"], ["count_1d"]) == {"a": 3}
    # by partition: of what is late some is too old, and what is no event is neither
    for name, counts in [("late", [2, 2]), ("late_dropped", [2, 1]), ("dead_letters", [1])]:
        for partition, count in enumerate(counts):
            found = metric(world.larder, f"larder_ingest_{name}_total", view="too_old", partition=str(partition))
            assert found == [count], (name, partition)


def test_rows_that_are_older_than_what_is_stored_are_counted(world: World) -> None:
    topic = Topic(world.kafka, partitions=2)
    world.features.apply([CARD, plain_view("older", topic)])
    now = now_us()
    for partition, card in enumerate("ab"):
        events = [message(card, now - ago * MINUTE, quantity=ago) for ago in [1, 2, 0, 3]]
        topic.send(events[: 3 + partition], partition=partition)
    world.drain(topic, ["older"])
    assert world.rows("older", ["a", "b"]) == {"a": 0, "b": 0}
    for partition, count in enumerate([1, 2]):
        found = metric(world.larder, "larder_ingest_stale_total", view="older", partition=str(partition))
        assert found == [count], partition


@pytest.mark.parametrize("good", [True, False], ids=["event", "dead_letter"])
def test_a_message_of_100_megabytes_does_not_stop_the_stream(world: World, good: bool) -> None:
    """It comes compressed, as only then a broker takes it; what does not fit into a dead letter is named there."""
    topic, name = Topic(world.kafka), f"great_{good}".lower()
    world.features.apply([CARD, windowed_view(name, topic, [COUNT_DAY])])
    value = json.dumps(message("great", now_us(), pad="x" * GREAT)).encode()
    value = value if good else value[:-1]
    assert len(value) > GREAT > 500 * len(gzip.compress(value))
    topic.send([message("a", now_us())])
    producer = Producer(
        {
            "bootstrap.servers": world.kafka.bootstrap_servers,
            "message.max.bytes": 2 * GREAT,
            "compression.type": "gzip",
        }
    )
    producer.produce(topic.name, value=value, partition=0)
    assert producer.flush(60) == 0
    topic.send([message("a", now_us())])
    world.drain(topic, [name], "count_1d")
    assert world.rows(name, ["a", "great"], ["count_1d"]) == {"a": 2, "great": 1 if good else "NOT_FOUND"}
    if not good:
        [letter] = topic.dead_letters.read(1)
        assert letter.value is None
        assert letter.headers["larder-value-omitted"] == "too large"
        assert letter.headers["larder-offset"] == "1"
    assert metric(world.larder, "larder_ingest_dead_letters_total", view=name) == ([] if good else [1])


def test_a_topic_gains_partitions(world: World) -> None:
    topic = Topic(world.kafka)
    world.features.apply([CARD, windowed_view("gaining", topic, [COUNT_DAY])])
    topic.send([message("a", now_us())])
    world.drain(topic, ["gaining"], "count_1d")
    admin = topic.kafka.admin()
    admin.create_partitions([NewPartitions(topic.name, 3)])[topic.name].result(30)
    # all that is in them counts, also what came before the reader knew of them

    def partitions() -> int:
        return len(admin.list_topics(topic.name, timeout=10).topics[topic.name].partitions)

    wait_until(lambda: partitions() == 3, "three partitions")
    # a producer that knows of them
    topic = Topic(world.kafka, 3, topic.name, create=False)
    for partition in [1, 2]:
        topic.send([message("a", now_us())] * 5, partition=partition)
    world.drain(topic, ["gaining"], "count_1d")
    assert world.rows("gaining", ["a"], ["count_1d"]) == {"a": 11}


def test_a_topic_vanishes_and_comes_back(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    repo = make_repo(tmp_path / "repo")
    world = World(larder(repo), store(repo), kafka)
    topic, other = Topic(kafka), Topic(kafka)
    world.features.apply([CARD, windowed_view("vanishing", topic, [COUNT_DAY]), plain_view("beside", other)])
    topic.send([message("a", now_us())] * 3)
    world.drain(topic, ["vanishing"], "count_1d")
    admin = kafka.admin()
    admin.delete_topics([topic.name])[topic.name].result(30)
    wait_until(lambda: topic.name not in admin.list_topics(timeout=10).topics, "the topic to be gone")
    wait_until(lambda: "WARN" in world.larder.log and topic.name in world.larder.log, "the log to say so")
    # what was counted is served, and others are not harmed
    assert world.rows("vanishing", ["a"], ["count_1d"]) == {"a": 3}
    other.send([message("a", now_us(), quantity=7)])
    world.drain(other, ["beside"])
    topic.create()
    topic.send([message("a", now_us())] * 2)
    world.drain(topic, ["vanishing"], "count_1d")
    assert world.rows("vanishing", ["a"], ["count_1d"]) == {"a": 5}


def test_messages_that_were_deleted_before_they_were_read_are_told(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    repo = make_repo(tmp_path / "repo")
    world = World(larder(repo), store(repo), kafka)
    topic = Topic(kafka)
    world.features.apply([CARD, windowed_view("gap", topic, [COUNT_DAY])])
    topic.send([message("a", now_us())] * 3)
    world.drain(topic, ["gap"], "count_1d")
    assert world.larder.stop() == 0
    topic.send([message("a", now_us())] * 10)
    # the first four were read, of these ten six are gone
    admin = kafka.admin()
    for deleted in admin.delete_records([TopicPartition(topic.name, 0, 4 + 6)]).values():
        deleted.result(30)
    world.larder.start()
    world.drain(topic, ["gap"], "count_1d")
    assert world.rows("gap", ["a"], ["count_1d"]) == {"a": 3 + 4}
    assert metric(world.larder, "larder_ingest_position_lost_total", view="gap") == [1]
    [line] = [line for line in world.larder.log.splitlines() if "another offset than the stored one" in line]
    assert "stored=4" in line
    assert "found=10" in line


def test_a_store_that_stands_still_holds_the_stream_back_and_memory_stays(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    """What waits is in the broker: of 320 MB no more is fetched than the client's queue takes (64 MB)."""
    redis = Redis(tmp_path).start()
    repo = make_repo(tmp_path / "repo")
    store_config = {"type": "redis", "connection_string": redis.connection_string}
    (repo / "larder.yaml").write_text(yaml.safe_dump({"project": PROJECT, "online_store": store_config}))
    world, topic = World(larder(repo), store(repo), kafka), Topic(kafka)
    world.features.apply([CARD, windowed_view("held", topic, [COUNT_DAY]), plain_view("rows", topic)])
    world.drain(topic, ["held"], "count_1d")

    def resident() -> int:
        status = Path(f"/proc/{world.larder.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10

    def tries() -> float:
        return sum(metric(world.larder, "larder_ingest_retries_total", view="held"))

    before, events = resident(), 40_000
    redis.process.signal(signal.SIGSTOP)
    sent = json.dumps(message("a", now_us(), pad="x" * 8_000)).encode()
    topic.send([sent] * events)
    enough = tries() + 3
    wait_until(lambda: tries() >= enough, "the store to be tried again and again", 60)
    assert resident() - before < 160 << 20
    assert metric(world.larder, "larder_ingest_view_state", view="held", state="retrying") == [1]
    redis.process.signal(signal.SIGCONT)
    world.drain(topic, ["held"], "count_1d")
    world.drain(topic, ["rows"])
    assert world.rows("held", ["a"], ["count_1d"]) == {"a": events}
    assert resident() - before < 200 << 20
    assert streams(world)["held"]["state"] == "running"
    redis.stop()


def test_of_transactions_what_was_committed_counts_once(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    """As Flink and Kafka Streams write: some are aborted, and the last offsets of a partition are no messages."""
    repo = make_repo(tmp_path / "repo")
    world, topic = World(larder(repo), store(repo), kafka), Topic(kafka)
    world.features.apply([CARD, windowed_view("committed", topic, [COUNT_DAY])])
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic.name})
    producer.init_transactions(30)

    def are(wanted: int) -> None:
        wait_until(lambda: world.rows("committed", ["a"], ["count_1d"]) == {"a": wanted}, f"{wanted}", 60)

    for number in range(6):
        producer.begin_transaction()
        for _ in range(10):
            producer.produce(topic.name, json.dumps(message("a", now_us())).encode(), partition=0)
        if number % 2:
            assert producer.flush(30) == 0
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
        are(10 * (number // 2 + 1))
        if number % 3 == 2:
            world.larder.restart(signal.SIGKILL)
            are(10 * (number // 2 + 1))
    # one that nobody ends yet holds back what is behind it, and no more
    producer.begin_transaction()
    producer.produce(topic.name, json.dumps(message("a", now_us())).encode(), partition=0)
    assert producer.flush(30) == 0
    topic.send([message("b", now_us())])
    assert world.rows("committed", ["a", "b"], ["count_1d"]) == {"a": 30, "b": "NOT_FOUND"}
    producer.commit_transaction(30)
    world.drain(topic, ["committed"], "count_1d")
    assert world.rows("committed", ["a", "b"], ["count_1d"]) == {"a": 31, "b": 1}
    # a mark behind the last message is nothing that waits
    producer.begin_transaction()
    producer.produce(topic.name, json.dumps(message("a", now_us())).encode(), partition=0)
    producer.commit_transaction(30)
    are(32)
    wait_until(lambda: lag(streams(world)["committed"]) == 0, "nothing to wait", 60)
    # nor, before the next message, anything that was lost
    world.larder.restart(signal.SIGTERM)
    wait_until(lambda: lag(streams(world)["committed"]) == 0, "nothing to wait", 60)
    world.drain(topic, ["committed"], "count_1d")
    assert metric(world.larder, "larder_ingest_position_lost_total", view="committed") == []


def test_a_dead_letter_that_cannot_be_sent_holds_the_stream_back(world: World) -> None:
    topic = Topic(world.kafka)
    letters = NewTopic(topic.dead_letters.name, num_partitions=1, replication_factor=1, config={LIMIT: "10"})
    admin = world.kafka.admin()
    admin.create_topics([letters])[letters.topic].result(30)
    world.features.apply([CARD, windowed_view("undeliverable", topic, [COUNT_DAY])])
    topic.send([message("a", now_us()), b"{", message("a", now_us())])
    wait_until(lambda: streams(world)["undeliverable"]["state"] == "retrying", "the state to say so", 60)
    assert "dead-letter topic" in str(streams(world)["undeliverable"]["reason"])
    assert metric(world.larder, "larder_ingest_dead_letters_total", view="undeliverable") == []
    more = ConfigEntry(LIMIT, "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, letters.topic, incremental_configs=[more])
    admin.incremental_alter_configs([resource])[resource].result(30)
    world.drain(topic, ["undeliverable"], "count_1d")
    assert world.rows("undeliverable", ["a"], ["count_1d"]) == {"a": 2}
    assert [letter.value for letter in topic.dead_letters.read(1)] == [b"{"]
    assert metric(world.larder, "larder_ingest_dead_letters_total", view="undeliverable") == [1]


def test_views_of_one_stream_stay_exact_when_one_cannot_read_a_message(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    """Their windows are kept together, over columns of their own, until one cannot read a message; SIGKILL included."""
    repo = make_repo(tmp_path / "repo")
    config = {"project": PROJECT, "ingest": {"checkpoint_interval_ms": 50}}
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    world = World(larder(repo, env={"RUST_LOG": "info,service=debug"}), store(repo), kafka)
    topic = Topic(kafka, partitions=2)
    sums = Window("amounts_1d", "sum", "amount", DAY)
    merchants = Window("merchants_1d", "count_distinct", "merchant", 2 * DAY)
    views = {"quantities": [COUNT_DAY, SUM_DAY], "amounts": [COUNT_DAY, sums], "merchants": [COUNT_DAY, merchants]}
    world.features.apply([CARD, *(windowed_view(name, topic, windows) for name, windows in views.items())])
    cards = [f"card-{number}" for number in range(10)]
    wanted: dict[str, dict[str, float]] = {name: dict.fromkeys(cards, 0) for name in ("all", "good", "quantity")}
    amounts, shops = dict.fromkeys(cards, 0.0), {card: set[str]() for card in cards}

    def send(count: int, bad: bool) -> None:
        batch = []
        for number in range(count):
            card, shop, quantity = cards[number % 10], f"shop-{number % 7}", number % 13
            amount = "many" if bad and number % 40 == 7 else float(number % 5)
            batch.append(message(card, now_us(), quantity=quantity, amount=amount, merchant=shop))
            wanted["all"][card] += 1
            wanted["quantity"][card] += quantity
            shops[card].add(shop)
            if isinstance(amount, float):
                wanted["good"][card] += 1
                amounts[card] += amount
        for partition in range(2):
            topic.send(batch[partition::2], partition=partition)

    def taken() -> bool:
        return all(
            world.rows(name, cards, ["count_1d"]) == wanted["good" if name == "amounts" else "all"] for name in views
        )

    for number in range(6):
        send(400, bad=number in (2, 3, 5))
        if number in (1, 3, 4):
            world.larder.kill()
            world.larder.start()
        wait_until(taken, f"round {number}", 60)
    log = world.larder.process.log_text()
    assert "window states are kept together" in log
    assert "window states are kept apart" in log
    assert world.rows("quantities", cards, ["sum_1d"]) == wanted["quantity"]
    assert world.rows("amounts", cards, ["amounts_1d"]) == amounts
    assert world.rows("merchants", cards, ["merchants_1d"]) == {card: len(shops[card]) for card in cards}
    # and what is stored is what was served
    assert world.larder.stop() == 0
    world.larder.start()
    assert taken()
    assert world.rows("amounts", cards, ["amounts_1d"]) == amounts

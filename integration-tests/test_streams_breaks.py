"""What a stream survives: messages and topics that nobody would send or make on purpose."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewPartitions

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.topics import Topic
from online import metric
from test_streams import (
    CARD,
    COUNT_DAY,
    DAY,
    MINUTE,
    Window,
    World,
    make_repo,
    message,
    now_us,
    plain_view,
    windowed_view,
)

LIFE = Window("count_all", "count", "", 0)
YEAR_3000 = 32_503_680_000_000_000
GREAT = 100 << 20


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
    topic = Topic(world.kafka)
    world.features.apply([CARD, windowed_view("too_old", topic, [COUNT_DAY])])
    topic.send([message("a", 0), message("a", now_us() - 2 * DAY), message("a", now_us())])
    world.drain(topic, ["too_old"], "count_1d")
    assert world.rows("too_old", ["a"], ["count_1d"]) == {"a": 1}
    assert metric(world.larder, "larder_ingest_late_dropped_total", view="too_old") == [2]


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

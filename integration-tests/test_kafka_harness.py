"""The broker fixture itself: what is produced is consumed, and it can be stopped and started again."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from larder_env import kafka as broker
from larder_env.paths import MissingError
from larder_env.process import Process, ProcessError


def produce(bootstrap: str, topic: str, values: list[int]) -> None:
    """Produce the numbers and wait until the broker has acknowledged every one."""
    failed: list[object] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    for value in values:
        producer.produce(topic, json.dumps(value).encode(), on_delivery=delivered)
    assert producer.flush(30) == 0
    assert failed == []


def consume(bootstrap: str, topic: str, count: int) -> list[int]:
    """Read `count` numbers from the start of the topic."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        values: list[int] = []
        while len(values) < count:
            message = consumer.poll(20)
            assert message is not None, f"only {len(values)} of {count} messages came"
            assert message.error() is None
            values.append(json.loads(message.value() or b""))
        return values
    finally:
        consumer.close()


def test_what_is_produced_is_consumed(kafka: broker.Kafka) -> None:
    topic = f"harness-{uuid.uuid4().hex}"
    kafka.create_topic(topic, partitions=3)
    produce(kafka.bootstrap_servers, topic, list(range(1000)))
    assert sorted(consume(kafka.bootstrap_servers, topic, 1000)) == list(range(1000))


def test_create_topic_leaves_an_existing_topic_as_it_is(kafka: broker.Kafka) -> None:
    topic = f"harness-{uuid.uuid4().hex}"
    kafka.create_topic(topic, partitions=2)
    kafka.create_topic(topic, partitions=5)
    assert len(kafka.admin().list_topics(timeout=10).topics[topic].partitions) == 2


def test_messages_survive_a_restart_of_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    own = broker.start(tmp_path)
    try:
        own.create_topic("kept")
        produce(own.bootstrap_servers, "kept", [1, 2, 3])
        own.stop()
        own.start_again()
        assert consume(own.bootstrap_servers, "kept", 3) == [1, 2, 3]
    finally:
        own.stop()


def test_a_named_broker_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    with pytest.raises(MissingError, match=r"127\.0\.0\.1:1: no broker answers"):
        broker.external()


def test_a_process_that_dies_at_once_shows_its_log(tmp_path: Path) -> None:
    process = Process("doomed", tmp_path / "doomed.log")
    process.spawn(["sh", "-c", "echo the reason; exit 3"], cwd=tmp_path)
    with pytest.raises(ProcessError, match=r"(?s)doomed exited with 3.*the reason"):
        process.wait_ready(lambda: False, seconds=10)

"""A topic of a real Kafka: produce JSON or raw bytes and wait for the acknowledgements; read all that is in it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from larder_env.kafka import Kafka
from larder_env.process import wait_until


@dataclass(frozen=True)
class Record:
    """One message as it was read."""

    value: bytes | None
    key: bytes | None
    headers: dict[str, str]


class Topic:
    """A topic with a name of its own, so that tests which share a broker do not meet."""

    def __init__(self, kafka: Kafka, partitions: int = 1, name: str = "", create: bool = True) -> None:
        self.kafka = kafka
        self.partitions = partitions
        self.name = name or f"test-{uuid.uuid4().hex[:12]}"
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "acks": "all", "linger.ms": 2})
        if create:
            self.create()

    def create(self) -> None:
        """Create it, and wait until it can be written."""
        self.kafka.create_topic(self.name, self.partitions)

    @property
    def dead_letters(self) -> Topic:
        """The topic that takes what the server could not use."""
        return Topic(self.kafka, name=f"{self.name}.dlq", create=False)

    def send(
        self,
        messages: Iterable[Mapping[str, object] | bytes | None],
        key: str | None = None,
        partition: int = 0,
        stamp: Callable[[Mapping[str, object] | bytes | None], int] = lambda _: 0,
    ) -> None:
        """Produce to one partition, in order (a mapping as JSON), and wait until the broker has all of it.

        `stamp` gives a message's time as Kafka has it, ms since 1970; 0 is now.
        """
        failed: list[object] = []

        def delivered(error: object, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        for message in messages:
            value = json.dumps(message).encode() if isinstance(message, Mapping) else message
            self._producer.produce(
                self.name,
                value=value,
                key=key and key.encode(),
                partition=partition,
                on_delivery=delivered,
                timestamp=stamp(message),
            )
            self._producer.poll(0)
        left = self._producer.flush(30)
        assert left == 0, f"{left} messages to {self.name} were not acknowledged"
        assert failed == []

    def read(self, count: int, seconds: float = 30.0) -> list[Record]:
        """The first `count` messages; raises TimeoutError when they do not come."""
        found: list[Record] = []
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        admin = self.kafka.admin()
        try:
            wait_until(lambda: self.name in admin.list_topics(timeout=10).topics, f"topic {self.name}", seconds)
            partitions = admin.list_topics(self.name, timeout=10).topics[self.name].partitions
            consumer.assign([TopicPartition(self.name, number, 0) for number in partitions])

            def enough() -> bool:
                message = consumer.poll(0.2)
                if message is not None and message.error() is None:
                    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
                    headers = {name: (value or b"").decode() for name, value in pairs}
                    found.append(Record(message.value(), message.key(), headers))
                return len(found) >= count

            wait_until(enough, f"{count} messages in {self.name}", seconds, pause=0)
        finally:
            consumer.close()
        return found

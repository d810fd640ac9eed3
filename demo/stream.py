"""Two ways for raw departures to reach Larder: a Kafka topic, or the push API where there is no broker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from confluent_kafka import Producer
from tqdm import tqdm

from larder_env import kafka
from larder_env.kafka import Kafka
from larder_env.paths import MissingError
from larder_env.process import ProcessError
from larder_env.server import Larder
from report import check

PUSH_ROWS = 250


@dataclass(frozen=True)
class Stream:
    """How this run replays; `broker` is None for the push API, and then `why` says why."""

    broker: Kafka | None
    topic: str
    why: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What `feast apply` of feature_repo/ has to know."""
        if self.broker is None:
            return {"DEPARTURES_STREAM": "push"}
        return {
            "DEPARTURES_STREAM": "kafka",
            "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "DEPARTURES_TOPIC": self.topic,
        }

    def close(self) -> None:
        """Stop our own broker; on somebody else's, remove the topic that we made."""
        if self.broker is None:
            return
        if not self.broker.own:
            self.broker.admin().delete_topics([self.topic])[self.topic].result(30)
        self.broker.stop()


def open_stream(work: Path, how: str, outlive: bool) -> Stream:
    """A broker if there is one (`how` = "auto" or "kafka"), else the push API (`how` = "auto" or "push")."""
    if how == "push":
        return Stream(None, "", "asked for")
    try:
        broker = kafka.external() or kafka.start(work, outlive)
    except (MissingError, ProcessError) as error:
        check(how == "auto", str(error))
        return Stream(None, "", str(error).splitlines()[0])
    # somebody else's broker may hold the departures of another run: take a topic of our own
    topic = "departures" if broker.own else f"departures-demo-{time.time_ns()}"
    broker.create_topic(topic, partitions=3)
    return Stream(broker, topic)


def replay(stream: Stream, larder: Larder, departures: pd.DataFrame) -> None:
    """Send every departure, in order of time, behind a progress bar; returns when all are acknowledged."""
    with tqdm(total=len(departures), desc="    replay", unit=" departures", ncols=100, leave=False) as bar:
        if stream.broker is None:
            _push(larder, departures, bar)
        else:
            _produce(stream.broker, stream.topic, departures, bar)


def _records(departures: pd.DataFrame) -> Iterator[dict[str, object]]:
    frame = departures.copy()
    for column in ("event_timestamp", "created"):
        frame[column] = frame[column].map(pd.Timestamp.isoformat)
    yield from frame.to_dict("records")


def _produce(broker: Kafka, topic: str, departures: pd.DataFrame, bar: tqdm) -> None:
    refused: list[object] = []

    def acknowledged(error: object, _message: object) -> None:
        if error is not None:
            refused.append(error)
        bar.update()

    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "linger.ms": 5})
    for record in _records(departures):
        producer.produce(topic, json.dumps(record).encode(), key=str(record["tailnum"]), on_delivery=acknowledged)
        producer.poll(0)
    left = producer.flush(30)
    check(
        not refused and left == 0,
        f"Kafka refused {len(refused)} departures and left {left} unacknowledged: {refused[:1]}",
    )


def _push(larder: Larder, departures: pd.DataFrame, bar: tqdm) -> None:
    records = list(_records(departures))
    for start in range(0, len(records), PUSH_ROWS):
        batch = records[start : start + PUSH_ROWS]
        columns = {name: [record[name] for record in batch] for name in batch[0]}
        answer = larder.post("/push", {"push_source_name": "departures", "df": columns, "to": "online"})
        check(answer.status_code == 200, f"/push answered {answer.status_code}: {answer.text}")
        bar.update(len(batch))

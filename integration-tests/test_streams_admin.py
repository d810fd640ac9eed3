"""The streams of views as an operator sees them: listed, paused, resumed and read from another place."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import requests
import yaml
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.topics import Topic
from online import micros
from test_streams import CARD, PROJECT, TOTALS, World, make_repo, message, now_us, plain_view, windowed_view
from windows_oracle import HOUR, MINUTE

JSON = dict[str, object]


def streams(world: World) -> dict[object, JSON]:
    """GET /streams, by view."""
    answer = requests.get(f"{world.larder.online_url}/streams", timeout=30)
    assert answer.status_code == 200, answer.text
    return {stream["feature_view"]: stream for stream in answer.json()["streams"]}


def steer(world: World, view: str, verb: str, body: object = None) -> JSON:
    """POST /streams/VIEW/VERB: the stream as it is then."""
    answer = world.larder.post(f"/streams/{view}/{verb}", body)
    assert answer.status_code == 200, answer.text
    found: JSON = answer.json()
    return found


def positions(stream: JSON) -> dict[int, int]:
    """The position of each partition of a stream that has one."""
    partitions = stream["partitions"]
    assert isinstance(partitions, list)
    return {p["partition"]: p["position"] for p in partitions if p["position"] is not None}


def lag(stream: JSON) -> int | None:
    """What waits in all partitions; None where one is not known yet."""
    partitions = stream["partitions"]
    assert isinstance(partitions, list)
    lags = [p["lag"] for p in partitions]
    return None if not lags or None in lags else sum(lags)


def text_of(seconds: int) -> str:
    """A time, seconds since 1970, as a person writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def begin(directory: Path, larder: StartLarder, kafka: broker.Kafka) -> World:
    """A server of its own: what is paused must not meet another test."""
    repo = make_repo(directory / "repo")
    return World(larder(repo), store(repo), kafka)


def test_state_position_lag_and_watermark_are_told(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    world, topic = begin(tmp_path, larder, kafka), Topic(kafka, partitions=2)
    world.features.apply([CARD, plain_view("rows", topic), windowed_view("totals", topic, TOTALS)])
    latest = now_us() - MINUTE
    topic.send([message("a", latest - HOUR), message("a", latest)], partition=0)
    topic.send([message("b", latest - HOUR)], partition=1)
    for view in ["rows", "totals"]:

        def taken(view: str = view) -> bool:
            return positions(streams(world)[view]) == {0: 2, 1: 1} and lag(streams(world)[view]) == 0

        wait_until(taken, f"all of {view}", 60)
        stream = streams(world)[view]
        assert (stream["state"], stream["reason"]) == ("running", None)
        assert (stream["topic"], stream["group"]) == (topic.name, f"larder.streams.{view}")
        assert stream["cut_over"] is None
        partitions = stream["partitions"]
        assert isinstance(partitions, list)
        assert [micros(p["watermark"]) for p in partitions] == [latest - 5 * MINUTE, latest - HOUR - 5 * MINUTE]


def test_a_paused_view_stays_paused_over_a_crash_and_goes_on_where_it_was(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    world, topic = begin(tmp_path, larder, kafka), Topic(kafka)
    world.features.apply([CARD, windowed_view("totals", topic, TOTALS), windowed_view("other", topic, TOTALS)])
    topic.send([message("a", now_us(), quantity=1)])
    wait_until(lambda: world.rows("totals", ["a"], ["sum_1d"]) == {"a": 1}, "the first event", 60)
    assert steer(world, "totals", "pause")["state"] == "paused"
    assert steer(world, "totals", "pause")["state"] == "paused"
    stopped = f"{topic.name}"
    wait_until(lambda: "stopped consuming" in world.larder.log, f"the consumer of {stopped} to stop")
    topic.send([message("a", now_us(), quantity=2)])
    wait_until(lambda: world.rows("other", ["a"], ["sum_1d"]) == {"a": 3}, "the view that is not paused")
    assert world.rows("totals", ["a"], ["sum_1d"]) == {"a": 1}
    world.larder.restart(signal.SIGKILL)
    topic.send([message("a", now_us(), quantity=4)])
    wait_until(lambda: world.rows("other", ["a"], ["sum_1d"]) == {"a": 7}, "the view that is not paused", 60)
    assert world.rows("totals", ["a"], ["sum_1d"]) == {"a": 1}
    assert streams(world)["totals"]["state"] == "paused"
    # applied again, it is still paused
    world.features.apply([CARD, windowed_view("totals", topic, TOTALS)])
    assert streams(world)["totals"]["state"] == "paused"
    assert steer(world, "totals", "resume")["state"] != "paused"
    wait_until(lambda: world.rows("totals", ["a"], ["sum_1d"]) == {"a": 7}, "what came meanwhile", 60)


def test_seek_reads_again_or_leaves_out_and_counts_nothing_twice(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    world, topic = begin(tmp_path, larder, kafka), Topic(kafka)
    world.features.apply([CARD, windowed_view("totals", topic, TOTALS), plain_view("rows", topic)])
    now = now_us()
    # what the broker is told of their times, in ms, is what a seek to a time goes by
    topic.send([message("a", now - 3 * HOUR, quantity=1)], stamp=lambda _: (now - 3 * HOUR) // 1000)
    topic.send([message("a", now - 2 * HOUR, quantity=2)], stamp=lambda _: (now - 2 * HOUR) // 1000)
    topic.send([message("a", now - HOUR, quantity=4)], stamp=lambda _: (now - HOUR) // 1000)

    def total(wanted: object) -> None:
        wait_until(lambda: world.rows("totals", ["a"], ["sum_1d"]) == {"a": wanted}, f"{wanted}", 60)

    total(7)
    steer(world, "totals", "seek", {"to": "earliest"})
    total(7)
    at = text_of((now - 2 * HOUR) // 1_000_000 - 1)
    steer(world, "totals", "seek", {"to": at})
    total(6)
    world.larder.restart(signal.SIGKILL)
    total(6)
    steer(world, "totals", "seek", {"to": "latest"})
    wait_until(lambda: positions(streams(world)["totals"]) == {0: 3}, "the end to be stored", 60)
    topic.send([message("a", now, quantity=8)])
    total(8)

    wait_until(lambda: world.rows("rows", ["a"]) == {"a": 8}, "the row")
    steer(world, "rows", "seek", {"to": "earliest"})
    wait_until(lambda: positions(streams(world)["rows"]) == {0: 4}, "all of it again", 60)
    assert world.rows("rows", ["a"]) == {"a": 8}


def test_a_stream_begins_where_kafka_has_its_group(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    """As one that another consumer read before; by the configuration, or by a seek."""
    repo = make_repo(tmp_path / "repo")
    (repo / "larder.yaml").write_text(
        yaml.safe_dump({"project": PROJECT, "ingest": {"auto_offset_reset": "committed"}})
    )
    world, topic = World(larder(repo), store(repo), kafka), Topic(kafka, partitions=2)
    for partition in [0, 1]:
        topic.send(
            [message("ab"[partition], now_us(), quantity=quantity) for quantity in [1, 2, 4]], partition=partition
        )
    admin, group = kafka.admin(), "larder.streams.totals"

    def asked(offset: int | None) -> ConsumerGroupTopicPartitions:
        at = TopicPartition(topic.name, 0) if offset is None else TopicPartition(topic.name, 0, offset)
        return ConsumerGroupTopicPartitions(group, [at])

    def commit(offset: int) -> None:
        admin.alter_consumer_group_offsets([asked(offset)])[group].result(30)

    def committed() -> int:
        [found] = admin.list_consumer_group_offsets([asked(None)])[group].result(30).topic_partitions
        return int(found.offset)

    def are(wanted: dict[str, int]) -> None:
        def there() -> bool:
            return world.rows("totals", [*wanted], ["sum_1d"]) == wanted

        wait_until(there, f"{wanted}", 60)

    commit(1)
    world.features.apply([CARD, windowed_view("totals", topic, TOTALS)])
    # where Kafka has nothing, at the oldest
    are({"a": 6, "b": 7})
    # what is read is told to Kafka, and nothing is behind it
    wait_until(lambda: committed() == 3, "the position in Kafka")
    commit(2)
    steer(world, "totals", "seek", {"to": "committed"})
    are({"a": 4})
    world.larder.restart(signal.SIGKILL)
    topic.send([message("a", now_us(), quantity=8)])
    are({"a": 12})


def test_a_stream_begins_at_a_configured_time(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> None:
    """At the first message that was produced then or later, in each partition; at the end of one that has none."""
    repo = make_repo(tmp_path / "repo")
    start = (now_us() - HOUR) // 1_000_000
    config = {"project": PROJECT, "ingest": {"auto_offset_reset": text_of(start)}}
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    world, topic = World(larder(repo), store(repo), kafka), Topic(kafka, partitions=2)
    for partition, minutes in [(0, [-9, -1, 0, 9]), (1, [-2, -1])]:
        for number, minute in enumerate(minutes):
            event = message("ab"[partition], now_us(), quantity=1 << number)
            topic.send([event], partition=partition, stamp=lambda _, at=start + 60 * minute: at * 1000)  # type: ignore[misc]
    world.features.apply([CARD, windowed_view("totals", topic, TOTALS)])

    def total(wanted: dict[str, int | str]) -> None:
        wait_until(lambda: world.rows("totals", [*wanted], ["sum_1d"]) == wanted, f"{wanted}", 60)

    total({"a": 4 + 8, "b": "NOT_FOUND"})
    topic.send([message("b", now_us(), quantity=4)], partition=1)
    total({"a": 4 + 8, "b": 4})
    # only where no position is stored
    topic.send([message("a", now_us(), quantity=16)], partition=0, stamp=lambda _: (start - 60) * 1000)
    total({"a": 4 + 8 + 16, "b": 4})
    world.larder.restart(signal.SIGKILL)
    total({"a": 4 + 8 + 16, "b": 4})


def test_what_cannot_be_steered_is_refused_with_the_reason(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    world, topic = begin(tmp_path, larder, kafka), Topic(kafka)
    world.features.apply([CARD, plain_view("rows", topic)])
    for path, body, status, reason in [
        ("/streams/nosuch/pause", None, 404, "nosuch"),
        ("/streams/rows/seek", {"to": "yesterday-ish"}, 400, "yesterday-ish"),
        ("/streams/rows/seek", {}, 400, "to"),
    ]:
        answer = world.larder.post(path, body)
        assert answer.status_code == status or (status == 400 and answer.status_code == 422), answer.text
        assert reason in answer.text

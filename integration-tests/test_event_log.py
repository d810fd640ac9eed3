"""The event log: what streams brought is there once, whatever was killed, and training sets are made of it."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds
import yaml

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.disk import SmallDisk
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.topics import Topic
from online import metric
from test_streams import (
    CARD,
    HOUR,
    MINUTE,
    PROJECT,
    TOTALS,
    World,
    make_repo,
    message,
    now_us,
    plain_view,
    windowed_view,
)
from test_streams_admin import streams

CARDS = [f"card-{number}" for number in range(5)]


def logged(repo: Path, view: str, topic: Topic) -> pd.DataFrame:
    """The files of a view's log, as any reader of Parquet finds them."""
    folder = repo / "events" / "streams" / view / topic.name
    if not folder.exists():
        return pd.DataFrame({"__partition": [], "__offset": []})
    return ds.dataset(folder, partitioning="hive").to_table().to_pandas()


def test_events_are_logged_once_over_a_kill_and_training_sets_are_made_of_them(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    repo = make_repo(tmp_path / "repo")
    config = yaml.safe_load((repo / "larder.yaml").read_text())
    (repo / "larder.yaml").write_text(yaml.safe_dump({**config, "offline": {"event_log": "events"}}))
    world = World(larder(repo), store(repo), kafka)
    topic = Topic(kafka, partitions=2)
    world.features.apply([CARD, windowed_view("spent", topic, TOTALS), plain_view("seen", topic)])
    sent = 0
    for round in range(4):
        for partition in range(2):
            # some of them of two days ago: they are in a folder of their own, and in no window any more
            times = [now_us() - (number * MINUTE if number % 4 else 48 * HOUR) for number in range(50)]
            events = [message(CARDS[number % 5], ts, quantity=number) for number, ts in enumerate(times)]
            topic.send([*events, b"no JSON"], partition=partition)
            sent += len(events)
        if round % 2:
            world.larder.restart(signal.SIGKILL)
    world.drain(topic, ["seen"])
    world.drain(topic, ["spent"], "count_1d")
    sent += 2 * topic.partitions

    def in_log(view: str) -> int:
        return len(logged(repo, view, topic))

    for view in ["spent", "seen"]:
        wait_until(lambda view=view: in_log(view) >= sent, f"{sent} events of {view} in the log")  # type: ignore[misc]
        found = logged(repo, view, topic)
        assert max(Counter(zip(found["__partition"], found["__offset"], strict=True)).values()) == 1
        assert len(found) == sent
        assert set(found["card_id"]) >= set(CARDS)
        assert {str(date) for date in found["event_date"]} == {str(ts.date()) for ts in found["ts"]}
        assert (found["__arrived"] <= pd.Timestamp.now(tz="UTC")).all()
    # the batch source has none of these events
    features = ["spent:count_1d", "spent:sum_1d", "seen:quantity"]
    online = world.features.get_online_features(features, [{"card_id": card} for card in CARDS]).to_dict()
    entities = pd.DataFrame({"card_id": CARDS, "event_timestamp": pd.Timestamp.now(tz="UTC")})
    offline = world.features.get_historical_features(entities, features).to_df()
    for feature in ["count_1d", "sum_1d", "quantity"]:
        assert offline[feature].tolist() == online[feature], feature
    assert sum(online["count_1d"]) == 4 * 2 * 37
    # and a clean stop leaves nothing out
    topic.send([message(CARDS[0], now_us(), quantity=1)])
    wait_until(lambda: world.rows("spent", CARDS[:1], ["count_1d"])[CARDS[0]] == online["count_1d"][0] + 1, "the last")
    world.larder.stop()
    assert in_log("spent") == sent + 1


def test_a_disk_without_room_holds_the_stream_back_and_nothing_is_lost_or_there_twice(
    tmp_path: Path, larder: StartLarder, kafka: broker.Kafka
) -> None:
    repo = make_repo(tmp_path / "repo")
    config = {"project": PROJECT, "offline": {"event_log": "data/events"}}
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    disk = SmallDisk(repo / "data", 64)
    world = World(larder(repo, prefix=disk.enter), store(repo), kafka)
    topic, views = Topic(kafka, partitions=2), {"spent": "count_1d", "seen": "quantity"}
    world.features.apply([CARD, windowed_view("spent", topic, TOTALS), plain_view("seen", topic)])
    sent = 0

    def send(count: int) -> int:
        for partition in range(2):
            topic.send([message(CARDS[number % 5], now_us()) for number in range(count)], partition=partition)
        return 2 * count

    def drain() -> int:
        for view, feature in views.items():
            world.drain(topic, [view], feature)
        return 2 * topic.partitions

    def tries(view: str) -> float:
        return sum(metric(world.larder, "larder_ingest_retries_total", view=view))

    for number, killed in enumerate([False, True]):
        sent += send(100) + drain()
        disk.fill()
        before = {view: tries(view) for view in views}
        sent += send(500)
        for view, tried in before.items():
            wait_until(lambda view=view, tried=tried: tries(view) > tried, f"{view} to be tried again", 60)  # type: ignore[misc]
        assert streams(world)["spent"]["state"] == "retrying"
        assert world.rows("spent", CARDS[:1], ["count_1d"])[CARDS[0]] != "NOT_FOUND"
        disk.empty()
        if killed:
            world.larder.restart(signal.SIGKILL)
        sent += drain()
        assert world.rows("spent", CARDS, ["count_1d"]) == dict.fromkeys(CARDS, 240 * (number + 1))
        for view in views:

            def all_are_there(view: str = view, sent: int = sent) -> bool:
                return len(logged(disk.path, view, topic)) >= sent

            wait_until(all_are_there, f"{sent} events of {view} in the log")
            found = logged(disk.path, view, topic)
            assert max(Counter(zip(found["__partition"], found["__offset"], strict=True)).values()) == 1
            assert len(found) == sent
    world.larder.kill()
    disk.close()

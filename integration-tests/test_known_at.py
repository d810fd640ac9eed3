"""Training sets as they were served: a late event is in the plain one and not in the one of what was known then."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from feast import StreamFeatureView
from feast.infra.offline_stores.remote import _call_exchange, build_arrow_flight_client

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import wait_until
from larder_env.repo import store
from larder_env.server import HOST
from larder_env.topics import Topic
from online import read_online
from test_backfill import LIFETIME, Repo, write_history
from test_event_log import logged
from test_stream_sql import view as sql_view
from test_streams import (
    CARD,
    HOUR,
    MINUTE,
    PROJECT,
    SECOND,
    TOTALS,
    make_repo,
    message,
    now_us,
    plain_view,
    windowed_view,
)
from windows_oracle import DAY, Event, Window

CARDS = [f"card-{number}" for number in range(4)]
WINDOWS = [*TOTALS, *LIFETIME, Window("max_1d", "max", "amount", DAY), Window("last3", "sum_last_k(3)", "amount", 0)]


@dataclass
class Known(Repo):
    """A server that keeps the event log, and its binary."""

    binary: Path

    def asked(self, at: dict[str, int]) -> pd.DataFrame:
        """An entity row for each card at its time."""
        times = pd.to_datetime(list(at.values()), unit="us", utc=True)
        return pd.DataFrame({"card_id": list(at), "event_timestamp": times.astype("datetime64[us, UTC]")})

    def plain(self, features: list[str], frame: pd.DataFrame) -> pd.DataFrame:
        """What the SDK gets."""
        return self.features.get_historical_features(frame, features, full_feature_names=True).to_df()

    def exchange(self, features: list[str], frame: pd.DataFrame, **more: object) -> pd.DataFrame:
        """What the SDK would send if its remote store took the parameter."""
        views = list(dict.fromkeys(feature.partition(":")[0] for feature in features))
        parameters = {
            "feature_view_names": views,
            "name_aliases": [None] * len(views),
            "feature_refs": features,
            "project": PROJECT,
            "full_feature_names": True,
            **more,
        }
        client = build_arrow_flight_client("http", HOST, self.larder.ports.offline, self.features.config.auth_config)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        return _call_exchange("get_historical_features", parameters, client, None, table).to_pandas()

    def export(self, features: list[str], frame: pd.DataFrame, *words: str) -> pd.DataFrame:
        """`larder export` of the running server."""
        entities, out = self.path / "entities.parquet", self.path / "out.parquet"
        frame.to_parquet(entities, index=False)
        server = ["--server", f"{HOST}:{self.larder.ports.offline}", "--full-feature-names", "--overwrite"]
        files = ["--entities", str(entities), "--out", str(out), "--features", ",".join(features)]
        command = [str(self.binary), "export", "-c", str(self.path), *server, *files, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return pd.read_parquet(out)

    def online(self, features: list[str], cards: list[str]) -> dict[str, list[object]]:
        """What is served now, feature by feature."""
        found = self.features.get_online_features(features, [{"card_id": card} for card in cards], True).to_dict()
        return {name: values for name, values in found.items() if name != "card_id"}

    def written(self, view: str, topic: Topic, count: int) -> None:
        """Wait until the log of a view has so many events."""
        wait_until(lambda: len(logged(self.path, view, topic)) >= count, f"{count} events of {view} in the log")


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka, larder_binary: Path
) -> Known:
    """One server for the file."""
    path = make_repo(tmp_path_factory.mktemp("known") / "repo")
    config = yaml.safe_load((path / "larder.yaml").read_text())
    (path / "larder.yaml").write_text(yaml.safe_dump({**config, "offline": {"event_log": "events"}}))
    return Known(module_larder(path), store(path), kafka, path, larder_binary)


def values(frame: pd.DataFrame, name: str) -> list[object]:
    """A column of a training set, with None where it has nothing."""
    column = frame[name.replace(":", "__")].astype(object)
    return list(column.where(column.notna(), None))


def same(frame: pd.DataFrame, served: dict[str, list[object]]) -> None:
    """A training set has what was served."""
    for name, wanted in served.items():
        assert values(frame, name) == wanted, name


def test_a_late_event_does_not_leak_into_the_past(world: Known) -> None:
    topic, start = Topic(world.kafka), now_us()
    views = [windowed_view("spent", topic, WINDOWS), plain_view("seen", topic), sql_view("real", topic)]
    world.features.apply([CARD, *views])
    topic.send([message("a", start - 20 * MINUTE, quantity=3, merchant="shop"), message("b", start - HOUR)])
    counted = {"spent": "count_1d", "seen": "quantity", "real": "n"}

    def taken(card: str) -> None:
        topic.send([message(card, now_us(), merchant="shop")])
        for view, feature in counted.items():
            wait_until(lambda: world.rows(view, [card], [feature]) == {card: 1}, f"{card} in {view}")  # noqa: B023

    taken("first")
    features = [*(f"spent:{window.feature}" for window in WINDOWS), "seen:quantity", "real:n", "real:spent_1d"]
    then, served = now_us(), world.online(features, ["a", "b"])
    assert (served["spent__count_1d"], served["seen__quantity"]) == ([1, 1], [3, 1])
    late = message("a", start - 10 * MINUTE, quantity=50, amount=9.5, merchant="shop")
    topic.send([late])
    taken("last")
    for view in counted:
        # `real` leaves out the message without a merchant
        world.written(view, topic, 4 if view == "real" else 5)
    frame = world.asked({"a": then, "b": then})
    plain = world.plain(features, frame)
    assert (values(plain, "spent:count_1d"), values(plain, "spent:sum_1d")) == ([2, 1], [53, 1])
    assert (values(plain, "seen:quantity"), values(plain, "real:n")) == ([50, 1], [2, None])
    same(world.exchange(features, frame, filter_by_created_timestamp=True), served)
    same(world.export(features, frame, "--known-at"), served)
    # and from when it came it counts, as it does online
    now, served_now = now_us(), world.online(features, ["a", "b"])
    assert (served_now["spent__count_1d"], served_now["seen__quantity"]) == ([2, 1], [50, 1])
    same(world.exchange(features, world.asked({"a": now, "b": now}), filter_by_created_timestamp=True), served_now)


def test_a_view_can_say_it_by_a_tag_for_every_client(world: Known) -> None:
    topic, at = Topic(world.kafka), now_us() - MINUTE

    def tagged(value: str) -> StreamFeatureView:
        view = windowed_view("tagged", topic, TOTALS)
        view.tags = {"larder.known_at": value}
        return view

    with pytest.raises(Exception, match=r"the tag larder\.known_at of view 'tagged' is 'yes': say true or"):
        world.features.apply([CARD, tagged("yes")])
    world.features.apply([CARD, tagged("True"), windowed_view("untagged", topic, TOTALS)])
    topic.send([message("t", at)])
    for view in ["tagged", "untagged"]:
        world.drain(topic, [view], "count_1d")
        # its own event, and the last ones of both views
        world.written(view, topic, 2)
    features = ["tagged:count_1d", "untagged:count_1d"]
    # by now it had happened, and nobody knew of it
    frame = world.asked({"t": at + SECOND})
    counts = [values(world.plain(features, frame), feature) for feature in features]
    assert counts == [[None], [1]]
    assert values(world.export(features, frame), "tagged:count_1d") == [None]
    assert values(world.export(features, frame, "--known-at=false"), "tagged:count_1d") == [1]
    assert values(world.export(features, frame, "--known-at"), "untagged:count_1d") == [None]


def test_random_streams_are_as_they_were_served(world: Known) -> None:
    """Late, equal and out-of-order events with reads between them, over a clean stop, beside a history."""
    topic, draw, start = Topic(world.kafka, partitions=2), random.Random(5), now_us()
    history = [(card, Event(start - 2 * HOUR - 7 * SECOND, {"amount": 0.5, "quantity": 2})) for card in CARDS[:2]]
    write_history(world.path, history)
    world.features.apply([CARD, windowed_view("mixed", topic, WINDOWS), plain_view("rows", topic)])
    world.backfill("mixed", start - 2 * HOUR)
    features = [*(f"mixed:{window.feature}" for window in WINDOWS), "rows:amount", "rows:quantity"]
    noted: list[tuple[int, dict[str, list[object]]]] = []
    sent = 0
    for part in range(5):
        for number, card in enumerate(CARDS):
            ages = [draw.choice([SECOND, MINUTE, 50 * MINUTE]) * draw.randrange(1, 3) for _ in range(6)]
            events = [
                message(card, start - age, amount=draw.randrange(1, 99) / 4, quantity=draw.randrange(9)) for age in ages
            ]
            topic.send(events, partition=number % 2)
            sent += len(events)
        world.drain(topic, ["mixed"], "count_all")
        world.drain(topic, ["rows"])
        sent += 2 * topic.partitions
        noted.append((now_us(), world.online(features, CARDS)))
        if part == 2:
            world.larder.restart()
    for view in ["mixed", "rows"]:
        world.written(view, topic, sent)
    late = 0
    for at, served in noted:
        # the source has no row for these that nobody knew of: the history was there before the view
        frame = world.asked(dict.fromkeys(CARDS, at))
        same(world.exchange(features, frame, filter_by_created_timestamp=True), served)
        plain = world.plain(features, frame)
        late += sum(values(plain, feature) != served[feature.replace(":", "__")] for feature in features)
    assert late > 0
    cells = read_online(world.larder, "mixed", ["count_all"], "card_id", CARDS)
    assert sum(int(str(cells[card]["count_all"].value)) for card in CARDS) == 5 * 6 * len(CARDS) + 2

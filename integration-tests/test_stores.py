"""Feast's own online stores under Larder: SQLite and Redis, each written and read by both, in Feast's layout.

`larder serve` stands where `feast serve` stood, in the same directory: same feature_store.yaml, same rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
import yaml
from feast import FeatureStore

from conftest import StartLarder
from feast_server import FeastServer
from larder_env.process import wait_until
from larder_env.redis import Redis
from larder_env.repo import feast, store, write_feast
from larder_env.server import Larder, Ports
from synthetic import DRIVERS, SyntheticRepo

JSON = dict[str, object]
STATS = ["driver_stats:trips", "driver_stats:conv_rate", "driver_stats:rating"]


def local_repo(path: Path, online_store: object) -> SyntheticRepo:
    """A repo whose SDK writes into the online store itself, applied; nothing is materialized."""
    write_feast(path, "drivers", online_store=online_store)
    repo = SyntheticRepo.create(path)
    repo.apply()
    return repo


def frame(driver: int, at: datetime, **features: object) -> pd.DataFrame:
    """One row as a client pushes it."""
    return pd.DataFrame([{"driver_id": driver, "event_timestamp": at, "created": at, **features}])


def push(larder: Larder, driver: int, at: datetime, **features: object) -> None:
    """One row through Larder's /push; some of the features are enough."""
    row = {"driver_id": driver, "event_timestamp": at.isoformat(), "created": at.isoformat(), **features}
    body = {"push_source_name": "driver_push", "df": {k: [v] for k, v in row.items()}, "to": "online"}
    answer = larder.post("/push", body)
    assert answer.status_code == 200, answer.text


def ask(url: str, features: list[str], entities: dict[str, list[object]], full: bool = False) -> JSON:
    """`/get-online-features` of either server."""
    body: Any = {"features": features, "entities": entities, "full_feature_names": full}
    answer = requests.post(f"{url}/get-online-features", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def column(answer: JSON, feature: str, part: str = "values") -> list[object]:
    """One feature's values (or statuses, or event_timestamps), row by row."""
    names = answer["metadata"]["feature_names"]  # type: ignore[index]
    return list(answer["results"][names.index(feature)][part])  # type: ignore[index]


def by_name(answer: JSON) -> dict[str, object]:
    """Each column's values, statuses and times; Feast puts a view's features into another order on every start."""
    return dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))  # type: ignore[index,call-overload]


def by_sdk(local: FeatureStore, drivers: list[int]) -> dict[str, list[object]]:
    """What Feast itself reads out of the store."""
    rows: list[dict[str, object]] = [{"driver_id": driver} for driver in drivers]
    return local.get_online_features(features=STATS, entity_rows=rows).to_dict()


@pytest.fixture(scope="module")
def feast_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `feast init`, `feast apply` and `feast materialize` leave behind, untouched."""
    path = tmp_path_factory.mktemp("init")
    feast(path, "init", "shop")
    repo = path / "shop" / "feature_repo"
    feast(repo, "apply")
    now = datetime.now(UTC)
    feast(repo, "materialize", (now - timedelta(days=15)).isoformat(), now.isoformat())
    return repo


def test_larder_answers_in_place_of_feast_serve(feast_init: Path, larder: StartLarder) -> None:
    """All features of the repo's views, for all drivers and an unknown one: the same columns from both."""
    other = FeastServer(feast_init).start()
    ours = larder(feast_init, ports=Ports.free())
    views = [view for view in store(feast_init).list_feature_views() if view.online]
    features = [f"{view.name}:{field.name}" for view in views for field in view.features]
    assert {"driver_hourly_stats:conv_rate", "driver_hourly_stats_fresh:driver_metadata"} <= set(features)
    for drivers in [[1001, 1002, 1003, 1004, 1005], [1003], [1005, 7, 1001, 1005]]:
        for some, full in [(features, True), ([f for f in features if f.startswith(f"{views[0].name}:")], False)]:
            entities: dict[str, list[object]] = {"driver_id": list(drivers)}
            theirs = ask(other.url, some, entities, full)
            assert by_name(ask(ours.online_url, some, entities, full)) == by_name(theirs)
            known = theirs["results"][1]["statuses"]  # type: ignore[index]
            assert known == ["NOT_FOUND" if driver == 7 else "PRESENT" for driver in drivers]
    other.stop()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of the test's own."""
    directory = tmp_path / "redis"
    directory.mkdir()
    found = Redis(directory, password="a-secret-of-ours").start()
    yield found
    found.stop()


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> SyntheticRepo:
    """A repo on each of Feast's stores that Larder has, with no rows yet."""
    if request.param == "sqlite":
        return local_repo(tmp_path / "repo", {"type": "sqlite"})
    server: Redis = request.getfixturevalue("redis")
    return local_repo(tmp_path / "repo", {"type": "redis", "connection_string": server.connection_string})


def test_each_reads_what_the_other_wrote(shared: SyntheticRepo, larder: StartLarder) -> None:
    """Feast materializes, Larder serves; Larder takes a push, Feast serves; and once more round."""
    local, server = shared.store(), larder(shared.path, ports=Ports.free())
    assert "embedded store" not in server.log
    entities: dict[str, list[object]] = {"driver_id": [*DRIVERS, 4711]}
    before = ask(server.online_url, STATS, entities)
    assert column(before, "trips", "statuses") == ["NOT_FOUND"] * 6, "no rows, and maybe no table yet"

    local.materialize(shared.newest - timedelta(days=3), shared.newest + timedelta(minutes=1))
    answer = ask(server.online_url, STATS, entities)
    newest = shared.rows_at(47)
    for feature in ["trips", "conv_rate", "rating"]:
        assert column(answer, feature) == [row[feature] for row in newest] + [None]
    assert column(answer, "trips", "event_timestamps")[0] == shared.newest.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert column(answer, "rating", "statuses") == ["PRESENT"] * 4 + ["NULL_VALUE", "NOT_FOUND"]

    at = shared.newest + timedelta(minutes=5, microseconds=123456)
    push(server, 1001, at, trips=7, conv_rate=0.5, rating="pushed")
    push(server, 4711, at, trips=8, conv_rate=0.25, rating=None)
    read = by_sdk(local, [1001, 4711, 1002])
    assert (read["trips"], read["rating"]) == ([7, 8, newest[1]["trips"]], ["pushed", None, newest[1]["rating"]])

    later = at + timedelta(minutes=1)
    local.push("driver_push", frame(1001, later, trips=9, conv_rate=0.75, rating="Feast again"))
    answer = ask(server.online_url, STATS, {"driver_id": [1001]})
    assert (column(answer, "trips"), column(answer, "rating")) == ([9], ["Feast again"])


def test_the_last_event_time_wins_over_feasts_rows_too(shared: SyntheticRepo, larder: StartLarder) -> None:
    """What Feast wrote is compared with: an older push changes nothing, a newer one of one feature only that."""
    local, server = shared.store(), larder(shared.path, ports=Ports.free())
    local.push("driver_push", frame(1001, shared.newest, trips=1, conv_rate=0.5, rating="Feast"))
    push(server, 1001, shared.newest - timedelta(seconds=1), trips=0, conv_rate=0.0, rating="old")
    assert by_sdk(local, [1001])["rating"] == ["Feast"]
    push(server, 1001, shared.newest + timedelta(seconds=5), trips=2)
    push(server, 1001, shared.newest + timedelta(seconds=3), trips=1, rating="in between")
    for _ in range(2):
        answer = ask(server.online_url, STATS, {"driver_id": [1001]})
        assert [column(answer, f)[0] for f in ["trips", "conv_rate", "rating"]] == [2, 0.5, "in between"]
        seconds = [column(answer, f, "event_timestamps")[0] for f in ["trips", "conv_rate", "rating"]]
        times = [shared.newest + timedelta(seconds=s) for s in (5, 0, 3)]
        assert seconds == [t.strftime("%Y-%m-%dT%H:%M:%SZ") for t in times]
        server.restart()
    assert by_sdk(local, [1001])["trips"] == [2]


def test_times_of_another_time_zone(tmp_path: Path, larder: StartLarder) -> None:
    """Feast's SQLite times are of its process' zone: in the same zone Larder reads them right, and writes them so."""
    repo = local_repo(tmp_path / "repo", {"type": "sqlite", "path": "elsewhere/rows.db"})
    zone = {"TZ": "America/New_York"}
    span = [(repo.newest - timedelta(days=3)).isoformat(), (repo.newest + timedelta(minutes=1)).isoformat()]
    feast(repo.path, "materialize", *span, env=zone)
    server = larder(repo.path, ports=Ports.free(), env=zone)
    answer = ask(server.online_url, STATS, {"driver_id": [1001]})
    assert column(answer, "trips", "event_timestamps") == [repo.newest.strftime("%Y-%m-%dT%H:%M:%SZ")]
    push(server, 1002, repo.newest, trips=7, conv_rate=0.5, rating="pushed")
    with sqlite3.connect(repo.path / "elsewhere" / "rows.db") as db:
        stored = db.execute("SELECT DISTINCT event_ts FROM drivers_driver_stats").fetchall()
    assert len(stored) == 1, "Larder's push of the same time is stored as Feast's rows are"


def test_redis_that_goes_away(tmp_path: Path, larder: StartLarder, redis: Redis) -> None:
    """A 503 that says where and what to do, never the password; and it is served again when it is back."""
    repo = local_repo(tmp_path / "repo", {"type": "redis", "connection_string": redis.connection_string})
    server = larder(repo.path, ports=Ports.free())
    push(server, 1001, repo.newest, trips=7, conv_rate=0.5, rating="pushed")
    redis.stop()
    answer = server.post("/get-online-features", {"features": STATS, "entities": {"driver_id": [1001]}})
    assert answer.status_code == 503, answer.text
    assert str(redis.port) in answer.text
    assert "try again later" in answer.text
    redis.start()

    def served() -> bool:
        body = {"features": STATS, "entities": {"driver_id": [1001]}}
        return server.post("/get-online-features", body).status_code == 200

    wait_until(served, "Larder to find Redis again")
    push(server, 1001, repo.newest, trips=8, conv_rate=0.5, rating="pushed")
    assert by_sdk(repo.store(), [1001])["trips"] == [8]
    assert str(redis.password) not in answer.text + server.log


def test_a_store_is_chosen_in_larder_yaml(tmp_path: Path, larder: StartLarder, redis: Redis) -> None:
    """The same names as Feast's, in our own configuration; entities live as long as key_ttl_seconds says."""
    repo = local_repo(tmp_path / "repo", {"type": "redis", "connection_string": redis.connection_string})
    chosen = {"type": "redis", "connection_string": redis.connection_string, "key_ttl_seconds": 1000}
    config = {"project": "drivers", "registry": {"type": "file", "path": "data/registry.db"}, "online_store": chosen}
    (repo.path / "larder.yaml").write_text(yaml.safe_dump(config))
    server = larder(repo.path, ports=Ports.free())
    push(server, 1001, repo.newest, trips=7, conv_rate=0.5, rating="pushed")
    assert by_sdk(repo.store(), [1001])["trips"] == [7]
    client = redis.client()
    [key] = client.scan_iter("*drivers")
    assert 900 < client.ttl(key) <= 1000  # type: ignore[operator]

"""Training sets by version (`view@v2:feature`), and of what was known at the entity row's time."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService, FeatureView
from feast.infra.offline_stores.remote import _call_exchange, build_arrow_flight_client
from feast.types import Int64, String

from conftest import StartLarder
from larder_env.repo import store, write_feast
from larder_env.server import HOST
from rides import DRIVER, PROJECT, Rides, pushed_view

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
ON = "registry: {type: sled, enable_online_feature_view_versioning: true}\n"
HOUR = timedelta(hours=1)


def view(*features: str, ttl: timedelta = timedelta(0)) -> FeatureView:
    """A view of these int64 features (those in capitals are texts)."""
    return pushed_view("v", [DRIVER], ttl, {f: String if f.isupper() else Int64 for f in features})


@dataclass
class World:
    """A server with versions, where `v` has had three definitions over one file."""

    rides: Rides
    binary: Path

    def exchange(self, refs: Sequence[str], frame: pd.DataFrame, **more: object) -> pd.DataFrame:
        """What the SDK would send for these references."""
        views = list(dict.fromkeys(r.partition(":")[0].partition("@")[0] for r in refs))
        parameters = {
            "feature_view_names": views,
            "name_aliases": [None] * len(views),
            "feature_refs": list(refs),
            "project": PROJECT,
            "full_feature_names": True,
            **more,
        }
        client = build_arrow_flight_client(
            "http", HOST, self.rides.larder.ports.offline, self.rides.store.config.auth_config
        )
        table = _call_exchange("get_historical_features", parameters, client, None, pa.Table.from_pandas(frame))
        return table.to_pandas()

    def export(self, entities: Path, *words: object) -> pd.DataFrame:
        """`larder export` of the running server."""
        out = entities.with_name("out.parquet")
        command = [
            self.binary,
            "export",
            "-c",
            self.rides.path,
            "--server",
            f"{HOST}:{self.rides.larder.ports.offline}",
        ]
        done = subprocess.run(
            [*map(str, command), "--entities", str(entities), "--out", str(out), "--overwrite", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return pd.read_parquet(out)


def asked(*after: timedelta, driver: int = 1) -> pd.DataFrame:
    """A row per time after the row of the file."""
    return pd.DataFrame({"driver_id": [driver] * len(after), "event_timestamp": [AT + a for a in after]})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, larder_binary: Path) -> World:
    """Version 1 has a ttl, the others have none."""
    rides = Rides.start(tmp_path_factory.mktemp("versions") / "repo", module_larder, ON)
    rows = pd.DataFrame(
        {
            "driver_id": [1, 1],
            "a": [1, 10],
            "b": [2, 20],
            "C": ["three", "thirty"],
            "event_timestamp": [AT, AT + 10 * HOUR],
            # The second row came a day late.
            "created": [AT, AT + 34 * HOUR],
        }
    )
    rows.to_parquet(rides.path / "data" / "v.parquet", index=False)
    for made in (view("a"), view("a", "b", ttl=HOUR), view("b", "C")):
        rides.store.apply([made])
    held = FeatureService(name="held", features=[view("a", "b")[["b"]]])
    held.feature_view_projections[0].version_tag = 1
    mapped = FeatureService(name="mapped", features=[view("b", "C").with_join_key_map({"driver_id": "who"})])
    rides.store.apply([held, mapped])
    return World(rides, larder_binary)


# --- versions ---------------------------------------------------------------------------------------------------


def test_every_version_is_joined_by_its_own_definition(world: World) -> None:
    refs = ["v@v0:a", "v@v1:a", "v@V1:b", "v@v2:b", "v:C", "v@latest:b"]
    got = world.exchange(refs, asked(timedelta(0), 2 * HOUR, -HOUR))
    assert list(got.columns[2:]) == ["v@v0__a", "v@v1__a", "v@v1__b", "v@v2__b", "v__C", "v__b"]
    found = got.astype(object).where(got.notna(), None).to_numpy()[:, 2:].tolist()
    assert found == [[1, 1, 2, 2, "three", 2], [1, None, None, 2, "three", 2], [None] * 6]


def test_versions_collide_as_names_do(world: World) -> None:
    with pytest.raises(Exception, match=r"Duplicate features|collid|FeatureNameCollision"):
        world.exchange(["v@v0:a", "v@v1:a"], asked(HOUR), full_feature_names=False)


def test_a_version_or_feature_that_is_not_kept_is_named(world: World) -> None:
    with pytest.raises(Exception, match=f"Version v9 of feature view v does not exist in project {PROJECT}"):
        world.exchange(["v@v9:a"], asked(HOUR))
    with pytest.raises(Exception, match="Feature C does not exist in feature view v"):
        world.exchange(["v@v1:C"], asked(HOUR))


def test_the_sdk_asks_by_version_where_its_registry_knows_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Feast's RemoteRegistry says nothing of versions, and the SDK refuses before it asks: this one says them.
    registry = type(world.rides.store.registry)
    monkeypatch.setattr(registry, "enable_online_versioning", True, raising=False)

    def by_version(self: object, name: str, project: str, number: int, allow_cache: bool = False) -> FeatureView:
        return world.rides.store.registry.get_feature_view(f"{name}@v{number}", project)

    monkeypatch.setattr(registry, "get_feature_view_by_version", by_version)
    features = ["v@v0:a", "v@v1:b"]
    job = world.rides.store.get_historical_features(asked(HOUR), features, full_feature_names=True)
    got = job.to_df()
    assert got[["v@v0__a", "v@v1__b"]].to_numpy().tolist() == [[1, 2]]


def test_a_service_may_hold_on_to_a_version(world: World, tmp_path: Path) -> None:
    asked(HOUR, 2 * HOUR).to_parquet(tmp_path / "in.parquet", index=False)
    got = world.export(tmp_path / "in.parquet", "--service", "held", "--full-feature-names")
    assert list(got.columns) == ["driver_id", "event_timestamp", "v@v1__b"]
    assert got["v@v1__b"].fillna(0).tolist() == [2, 0]


def test_a_service_without_an_alias_has_its_join_keys(world: World, tmp_path: Path) -> None:
    asked(HOUR).rename(columns={"driver_id": "who"}).to_parquet(tmp_path / "in.parquet", index=False)
    got = world.export(tmp_path / "in.parquet", "--service", "mapped")
    assert got[["b", "C"]].to_numpy().tolist() == [[2, "three"]]


def test_without_versioning_a_reference_says_what_to_set(
    tmp_path: Path, larder: StartLarder, larder_binary: Path
) -> None:
    plain = World(Rides.start(tmp_path / "repo", larder), larder_binary)
    plain.rides.store.apply([view("a")])
    with pytest.raises(Exception, match="Set 'enable_online_feature_view_versioning: true'"):
        plain.exchange(["v@v0:a"], asked(HOUR))


# --- what was known ---------------------------------------------------------------------------------------------


def test_what_came_later_does_not_count_where_that_is_asked_for(world: World, tmp_path: Path) -> None:
    frame = asked(9 * HOUR, 10 * HOUR, 33 * HOUR, 34 * HOUR)
    anyhow = world.exchange(["v:b"], frame)
    assert anyhow["v__b"].tolist() == [2, 20, 20, 20]
    known = world.exchange(["v:b"], frame, filter_by_created_timestamp=True)
    assert known["v__b"].tolist() == [2, 2, 2, 20]
    # With a ttl, the older row is no substitute once it is too old.
    by_version = world.exchange(["v@v1:b"], frame, filter_by_created_timestamp=True)
    assert by_version["v@v1__b"].isna().all()
    frame.to_parquet(tmp_path / "in.parquet", index=False)
    exported = world.export(tmp_path / "in.parquet", "--features", "v:b", "--full-feature-names", "--known-at")
    assert exported["v__b"].tolist() == [2, 2, 2, 20]


def test_feasts_own_store_says_the_same(world: World, tmp_path: Path) -> None:
    """Feast 0.67's own stores know the parameter; its remote client refuses to send it."""
    frame = asked(9 * HOUR, 10 * HOUR, 33 * HOUR, 34 * HOUR)
    with pytest.raises(NotImplementedError, match="not supported by RemoteOfflineStore"):
        world.rides.store.get_historical_features(frame, ["v:b"], filter_by_created_timestamp=True)
    feast = tmp_path / "feast"
    write_feast(feast, PROJECT)
    (feast / "data").mkdir(exist_ok=True)
    shutil.copy(world.rides.path / "data" / "v.parquet", feast / "data")
    theirs = store(feast)
    theirs.apply([DRIVER, view("b", "C")])
    got = theirs.get_historical_features(frame, ["v:b"], filter_by_created_timestamp=True).to_df()
    ours = world.exchange(["v:b"], frame, filter_by_created_timestamp=True)
    assert got.sort_values("event_timestamp")["b"].tolist() == ours["v__b"].tolist() == [2, 2, 2, 20]


def test_a_word_that_is_no_boolean_is_refused(world: World) -> None:
    with pytest.raises(Exception, match="not what a Feast client sends"):
        world.exchange(["v:b"], asked(HOUR), filter_by_created_timestamp="yes")

"""A Feast repo for the online tests: drivers, riders and zones, one push source per view, and a server on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Bool, FeastType, Float64, Int32, Int64, String

from faces import Face, Grpc, Http, Row, Sdk
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports

PROJECT = "rides"
DAY = timedelta(days=1)

DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
RIDER = Entity(name="rider", join_keys=["rider_id"], value_type=ValueType.STRING)
ZONE = Entity(name="zone", join_keys=["zone_id"], value_type=ValueType.INT32)

fresh = itertools.count(1000).__next__
"""An id that no test has used yet: tests share a server and must not meet."""


def batch_source(name: str) -> FileSource:
    """The Parquet file behind a view."""
    return FileSource(
        name=f"{name}_file",
        path=f"data/{name}.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


def pushed_view(name: str, entities: list[Entity], ttl: timedelta, schema: dict[str, FeastType]) -> FeatureView:
    """A view that is filled by the push source `<name>_push`."""
    return FeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        source=PushSource(name=f"{name}_push", batch_source=batch_source(name)),
        schema=[Field(name=feature, dtype=dtype) for feature, dtype in schema.items()],
    )


def objects() -> list[object]:
    """Fresh objects to apply."""
    stats = pushed_view("driver_stats", [DRIVER], DAY, {"trips": Int64, "conv_rate": Float64, "rating": String})
    forever = pushed_view("driver_forever", [DRIVER], timedelta(0), {"trips": Int64, "badge": String})
    trips = pushed_view("trip_stats", [DRIVER, RIDER], timedelta(0), {"fare": Float64, "seats": Int32})
    zones = pushed_view("zone_stats", [ZONE], timedelta(0), {"busy": Bool})
    riders = pushed_view("rider_stats", [RIDER], timedelta(0), {"rides": Int64})
    city = pushed_view("city", [], timedelta(0), {"surge": Float64, "mood": String})
    twin_source = PushSource(name="twin_push", batch_source=batch_source("twin"))
    left, right = (
        FeatureView(
            name=f"twin_{side}",
            entities=[DRIVER],
            ttl=timedelta(0),
            source=twin_source,
            schema=[Field(name=feature, dtype=Int64)],
        )
        for side, feature in (("left", "left_count"), ("right", "right_count"))
    )
    return [
        *(DRIVER, RIDER, ZONE),
        *(stats, forever, trips, zones, riders, city, left, right),
        FeatureService(name="two_views", features=[stats[["trips", "rating"]], trips]),
        FeatureService(
            name="both_ends",
            features=[
                stats.with_name("origin").with_join_key_map({"driver_id": "origin_id"}),
                stats.with_name("destination").with_join_key_map({"driver_id": "destination_id"}),
            ],
        ),
        FeatureService(name="renamed", features=[stats[["trips"]].with_name("work"), forever[["badge"]]]),
    ]


def stats(driver: object, trips: object, at: datetime, rating: str | None = "good", **more: object) -> Row:
    """A row of driver_stats; created when it happened, unless said otherwise."""
    row = {"driver_id": driver, "trips": trips, "conv_rate": 0.5, "rating": rating}
    return row | {"event_timestamp": at, "created": at} | more


def badge(driver: int, trips: int, at: datetime, name: str | None = None) -> Row:
    """A row of driver_forever."""
    return {"driver_id": driver, "trips": trips, "badge": name, "event_timestamp": at, "created": at}


@dataclass
class Rides:
    """The repo, the server on it, and the SDK's store."""

    path: Path
    larder: Larder
    store: FeatureStore

    @classmethod
    def start(cls, path: Path, start: Callable[..., Larder], settings: str = "", **options: object) -> Rides:
        """Write the repo, start a server with these lines behind its larder.yaml, and apply the objects."""
        write_config(path, PROJECT, Ports.free())
        with (path / "larder.yaml").open("a") as config:
            config.write(settings)
        (path / "data").mkdir()
        old = pd.Timestamp("2020-01-01", tz="UTC")
        times = {"event_timestamp": [old], "created": [old]}
        driver = {"driver_id": [1], "trips": [1], "conv_rate": [0.1], "rating": ["first"]}
        pd.DataFrame(driver | times).to_parquet(path / "data" / "driver_stats.parquet", index=False)
        larder = start(path, **options)
        applied = store(path)
        applied.apply(objects())  # type: ignore[arg-type]
        return cls(path, larder, applied)

    def face(self, name: str) -> Face:
        """The server's face of this name."""
        faces: dict[str, Callable[[], Face]] = {
            "http": lambda: Http(self.larder),
            "grpc": lambda: Grpc(self.larder),
            "sdk": lambda: Sdk(self.store),
        }
        return faces[name]()

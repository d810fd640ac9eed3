"""A small Feast repo of drivers, written to a directory: a batch view, a push source, a feature service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Float64, Int64, String

from larder_env.repo import store

DRIVERS = [1001, 1002, 1003, 1004, 1005]
HOURS = 48


@dataclass(frozen=True)
class SyntheticRepo:
    """Where it is, and its newest hour. Values are functions of driver and hour, so a test can tell what to expect."""

    path: Path
    newest: datetime

    @classmethod
    def create(cls, path: Path) -> SyntheticRepo:
        """Write the hourly table of the last HOURS hours, up to the last full hour."""
        newest = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        repo = cls(path, newest)
        (path / "data").mkdir(parents=True, exist_ok=True)
        repo.table().to_parquet(path / "data" / "driver_stats.parquet", index=False)
        return repo

    def table(self) -> pd.DataFrame:
        """All rows, in order of time."""
        return pd.DataFrame([row for hour in range(HOURS) for row in self.rows_at(hour)])

    def rows_at(self, hour: int) -> list[dict[str, object]]:
        """The rows of one hour: 0 is the oldest, HOURS - 1 the newest. Driver 1005 has no rating."""
        at = self.newest - timedelta(hours=HOURS - 1 - hour)
        return [
            {
                "driver_id": driver,
                "trips": (driver - 1000) * 100 + hour,
                "conv_rate": hour / HOURS,
                "rating": None if driver == 1005 else f"r{driver}-{hour}",
                "event_timestamp": pd.Timestamp(at),
                "created": pd.Timestamp(at),
            }
            for driver in DRIVERS
        ]

    def objects(self) -> list[object]:
        """Fresh objects to apply: driver, view driver_stats, push source driver_push, service driver_activity."""
        driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        batch = FileSource(
            name="driver_stats_file",
            path="data/driver_stats.parquet",
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        push = PushSource(name="driver_push", batch_source=batch)
        stats = FeatureView(
            name="driver_stats",
            entities=[driver],
            ttl=timedelta(days=1),
            source=push,
            schema=[
                Field(name="trips", dtype=Int64),
                Field(name="conv_rate", dtype=Float64),
                Field(name="rating", dtype=String),
            ],
        )
        return [driver, push, stats, FeatureService(name="driver_activity", features=[stats])]

    def store(self) -> FeatureStore:
        """The SDK's FeatureStore on this repo."""
        return store(self.path)

    def apply(self) -> FeatureStore:
        """Apply the objects through the SDK, and return the store they were applied with."""
        applied = self.store()
        applied.apply(self.objects())  # type: ignore[arg-type]
        return applied

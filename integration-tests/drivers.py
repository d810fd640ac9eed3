"""A server with small views of drivers, each over a Parquet file of its own, which a test may damage or change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.value_type import ValueType

from conftest import StartLarder
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports

DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)


@dataclass
class Drivers:
    """The server, and the SDK's store that points at it."""

    larder: Larder
    sdk: FeatureStore

    def path(self, view: str) -> Path:
        """A view's file."""
        return self.larder.repo / f"{view}.parquet"

    @classmethod
    def start(cls, start: StartLarder, repo: Path, project: str, *args: str) -> Self:
        """A server on an empty repo."""
        write_config(repo, project, Ports.free())
        return cls(start(repo, args=list(args)), store(repo))

    def apply(self, views: Sequence[str], schema: list[Field], rows: pd.DataFrame) -> None:
        """Write every view's file, and apply them all."""
        for view in views:
            rows.to_parquet(self.path(view), index=False)
        self.sdk.apply([DRIVER, *(view_of(view, schema) for view in views)])


def view_of(name: str, schema: list[Field], timestamp: str = "event_timestamp") -> FeatureView:
    """A view on a file of its own."""
    source = FileSource(name=f"{name}_file", path=f"{name}.parquet", timestamp_field=timestamp)
    return FeatureView(name=name, entities=[DRIVER], source=source, schema=schema, ttl=timedelta(0))

"""Feast's side of the comparison: the feature repo that all servers share, and its rows written by Feast's own SDK.

    feast_peer.py apply DIR STORE          feature_store.yaml and registry.db in DIR
    feast_peer.py fill DIR KEYS VIEWS      rows of the users 0 … KEYS-1 into the first VIEWS views

STORE is `sqlite`, or the HOST:PORT of a Redis. Values are those of `src/bench/src/workload.rs`.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64

VIEWS, WIDTH = 25, 10
EVENT = datetime(2026, 1, 1, tzinfo=UTC)
CHUNK = 5_000


def feature(view: int, at: int) -> str:
    """A feature's name."""
    return f"v{view:02}_f{at}"


def value(user: int, view: int, at: int) -> int:
    """A feature's value: the same arithmetic as in Rust, on 64 bits."""
    seed = user * 1_000 + view * WIDTH + at
    return ((seed * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 33) % 1_000_000_000


def apply(directory: Path, store: str) -> None:
    """Write the configuration, and register 25 views with a push source each."""
    (directory / "data").mkdir(parents=True, exist_ok=True)
    online = (
        {"type": "sqlite", "path": "data/online.db"}
        if store == "sqlite"
        else {"type": "redis", "connection_string": store}
    )
    config = {
        "project": "bench",
        "provider": "local",
        "registry": "data/registry.db",
        "online_store": online,
        "offline_store": {"type": "file"},
        "entity_key_serialization_version": 3,
    }
    (directory / "feature_store.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    names = [feature(view, at) for view in range(VIEWS) for at in range(WIDTH)]
    row = {"user_id": [0], "event_timestamp": [pd.Timestamp(EVENT)]} | {name: [0] for name in names}
    pd.DataFrame(row).to_parquet(directory / "data" / "stats.parquet", index=False)

    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    objects: list[Any] = [user]
    for view in range(VIEWS):
        batch = FileSource(name=f"file_{view:02}", path="data/stats.parquet", timestamp_field="event_timestamp")
        push = PushSource(name=f"push_{view:02}", batch_source=batch)
        schema = [Field(name="user_id", dtype=Int64)]
        schema += [Field(name=feature(view, at), dtype=Int64) for at in range(WIDTH)]
        objects += [
            push,
            FeatureView(name=f"stats_{view:02}", entities=[user], ttl=timedelta(days=3650), source=push, schema=schema),
        ]
    FeatureStore(repo_path=str(directory)).apply(objects)


def fill(directory: Path, keys: int, views: int) -> None:
    """Write the rows through the SDK's online store, some thousand at a time."""
    store = FeatureStore(repo_path=str(directory))
    provider = store._get_provider()
    for view in range(views):
        table = store.get_feature_view(f"stats_{view:02}")
        for start in range(0, keys, CHUNK):
            rows: list[Any] = [
                (
                    EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)]),
                    {feature(view, at): Value(int64_val=value(user, view, at)) for at in range(WIDTH)},
                    EVENT,
                    None,
                )
                for user in range(start, min(start + CHUNK, keys))
            ]
            provider.online_write_batch(store.config, table, rows, None)


def main() -> int:
    """Run one command; see the top of the file."""
    match sys.argv[1:]:
        case ["apply", directory, store]:
            apply(Path(directory), store)
        case ["fill", directory, keys, views]:
            fill(Path(directory), int(keys), int(views))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

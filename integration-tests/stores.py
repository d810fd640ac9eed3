"""The online stores that tests run over, as larder.yaml has them. They must not know what runs on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from larder_env.redis import Redis

STORES = {
    "sled": "",
    "sled_untiered": "online_store: {type: sled, tier_bytes: 0}\n",
    "memory": "online_store: {type: memory}\n",
    "sqlite": "online_store: {type: sqlite, path: data/online.db}\n",
    "redis": "online_store: {type: redis, connection_string: 'REDIS'}\n",
}
"""What larder.yaml says of each store."""
DURABLE = ["sled", "sled_untiered", "sqlite", "redis"]
"""Stores whose rows outlive the server."""


@contextmanager
def settings_of(kind: str, directory: Path) -> Iterator[str]:
    """The store's settings, with a Redis behind them, in this directory, where it is one."""
    if kind != "redis":
        yield STORES[kind]
        return
    directory.mkdir(exist_ok=True)
    redis = Redis(directory).start()
    yield STORES[kind].replace("REDIS", redis.connection_string)
    redis.stop()

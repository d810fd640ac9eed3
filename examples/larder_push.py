"""Rows of a stream job into a push source of Larder, with nothing but the standard library.

A push is all or nothing and, with Larder's default durability, on disk when it is answered. What arrives twice changes
nothing: the last write wins by event time, and the same row again is the same row. So a job that pushes before it
commits its offsets, and begins a batch again when a push fails, loses nothing.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence

ROWS = 5_000
"""Rows of one request."""


class PushError(RuntimeError):
    """Larder refused the rows, or could not be reached for as long as was waited; the message has its answer."""


def push(
    server: str, source: str, columns: Mapping[str, Sequence[object]], to: str = "online", patience: float = 60.0
) -> int:
    """Push columns of equal length (times as RFC 3339 texts) to a push source; returns how many rows that were.

    Raises PushError at once for a 4xx, which is the caller's fault, and after `patience` seconds for anything else.
    """
    count = len(next(iter(columns.values()), ()))
    for start in range(0, count, ROWS):
        part = {name: list(values[start : start + ROWS]) for name, values in columns.items()}
        _post(f"{server}/push", {"push_source_name": source, "df": part, "to": to}, patience)
    return count


def _post(url: str, body: object, patience: float) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + patience
    pause = 0.1
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except urllib.error.HTTPError as refused:
            problem = f"{url}: {refused.code}: {refused.read().decode(errors='replace')}"
            if refused.code < 500:
                raise PushError(problem) from refused
        except OSError as unreachable:
            problem = f"{url}: {unreachable}"
        if time.monotonic() > deadline:
            raise PushError(f"{problem} (tried for {patience:g} s)")
        time.sleep(pause)  # the server's end of its trouble cannot be waited for otherwise
        pause = min(2 * pause, 5.0)

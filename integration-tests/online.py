"""What the HTTP feature server says, cell by cell: value, status and event timestamp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from larder_env.server import Larder


@dataclass(frozen=True)
class Cell:
    """One feature of one entity; `event_ts` in µs since 1970, None where the server gives none."""

    value: object
    status: str
    event_ts: int | None


def read_online(
    larder: Larder, view: str, features: Sequence[str], join_key: str, keys: Sequence[object]
) -> dict[object, dict[str, Cell]]:
    """POST /get-online-features: for every key, the cells by feature name."""
    body = {"features": [f"{view}:{feature}" for feature in features], "entities": {join_key: list(keys)}}
    response = larder.post("/get-online-features", body)
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    answer = response.json()
    cells: dict[object, dict[str, Cell]] = {key: {} for key in keys}
    for name, column in zip(answer["metadata"]["feature_names"], answer["results"], strict=True):
        if name == join_key:
            continue
        times = column.get("event_timestamps") or [None] * len(keys)
        for key, value, status, time in zip(keys, column["values"], column["statuses"], times, strict=True):
            cells[key][name] = Cell(value, status, micros(time))
    assert all(set(row) == set(features) for row in cells.values())
    return cells


def micros(time: object) -> int | None:
    """A time as µs since 1970, exactly; None for none. A naive one is UTC."""
    if time is None:
        return None
    stamp = pd.Timestamp(time)
    return (stamp.tz_localize("UTC") if stamp.tz is None else stamp).value // 1000


def metric(larder: Larder, name: str, **labels: str) -> list[float]:
    """All samples of a metric whose labels include these."""
    return [
        sample.value
        for family in text_string_to_metric_families(larder.metrics())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]

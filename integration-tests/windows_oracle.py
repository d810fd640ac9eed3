"""The windows of WINDOWS.md, written down as naively as they are defined there: the oracle of the tests.

Integers are microseconds since 1970. Nothing here is fast, and nothing here is Larder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MS = 1_000
SECOND = 1_000 * MS
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

LADDER = [
    100 * MS,
    SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    MINUTE,
    5 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    6 * HOUR,
    DAY,
]


@dataclass(frozen=True)
class Event:
    """One event of one entity; `values` by column, None for null."""

    ts: int
    values: dict[str, float | int | None]


@dataclass(frozen=True)
class Window:
    """One aggregation: `width` 0 is a lifetime, `slide` 0 means not given, `tiling` 0 means no tiling."""

    feature: str
    function: str
    column: str
    width: int
    slide: int = 0
    tiling: int = 0

    @property
    def hop(self) -> int:
        """The step in which the trailing edge moves."""
        if 0 < self.slide < self.width:
            return self.slide
        if self.tiling:
            return self.tiling
        return max([step for step in LADDER if step <= self.width / 300], default=LADDER[0])

    def holds(self, event: Event, t: int) -> bool:
        """Whether start <= ts <= t, start = floor((t - W) / h) * h."""
        if event.ts > t:
            return False
        return self.width == 0 or event.ts >= (t - self.width) // self.hop * self.hop

    def value(self, events: Sequence[Event], t: int) -> float | int | None:
        """The function over the events in the window; nulls are skipped, an empty `count` counts events."""
        inside = [event for event in events if self.holds(event, t)]
        if self.function == "count" and not self.column:
            return len(inside)
        values = [value for event in inside if (value := event.values[self.column]) is not None]
        if self.function == "count":
            return len(values)
        if not values:
            return None
        match self.function:
            case "sum":
                return sum(values)
            case "mean":
                return sum(values) / len(values)
            case "min":
                return min(values)
            case "max":
                return max(values)
        raise ValueError(self.function)


@dataclass(frozen=True)
class Answer:
    """What is known of one entity at one time: the time of its latest event, and its features."""

    event_ts: int
    values: dict[str, float | int | None]


def answer(windows: Sequence[Window], events: Sequence[Event], t: int) -> Answer | None:
    """All features of a view at t; None when no event is in the widest window: the entity is unknown."""
    widest = max(windows, key=lambda window: (window.width == 0, window.width))
    inside = [event.ts for event in events if widest.holds(event, t)]
    if not inside:
        return None
    return Answer(max(inside), {window.feature: window.value(events, t) for window in windows})

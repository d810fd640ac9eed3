"""The stream benchmark beyond its process: Larder behind a real Kafka, and its peers, for `larder-bench streams`.

    stream_peer.py kafka OUT EVENTS WORK LARDER VIEWSxWINDOWS    a topic of the events, until all of it is durable
    stream_peer.py fresh OUT EVENTS WORK LARDER RATE SECONDS     from an event's production to its value in an answer
    stream_peer.py flink OUT EVENTS WORK PYTHON FLINK_HOP        flink_hop.py, with the PyFlink of that Python
    stream_peer.py spark OUT EVENTS WORK PYTHON                  the same in PySpark Structured Streaming
    stream_peer.py spark-job EVENTS WORK                         what `spark` runs

Each writes JSON to OUT. `wall` and `cpu` are seconds: of the server from the view's registration until it rests, of
a peer's processes (sampled, all descendants) from start to end; `engine` is a peer's own time for the job alone, `rss`
the peak in MB, `rows` and `sum` what came out.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
TICKS = os.sysconf("SC_CLK_TCK")
FUNCTIONS = ["count", "sum", "max", "mean", "min"]
# in a broker's run the events are moved so that the last one is now, and these windows hold all of them
WINDOW = timedelta(hours=1)
HOP = timedelta(minutes=1)
PARTITIONS = 2


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mb(pid: int) -> float:
    """The most memory that a process has had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e3


def descendants(root: int) -> list[int]:
    """A process and all that came from it and live."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def watched(command: list[str], work: Path, env: dict[str, str]) -> dict[str, float]:
    """Runs a peer to its end: what its processes used, and the numbers `name=value` of its last line."""
    start = time.monotonic()
    child = subprocess.Popen(command, cwd=work, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)
    cpu: dict[int, float] = {}
    peak = 0.0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.1):
            sizes = []
            for pid in descendants(child.pid):
                try:
                    cpu[pid] = cpu_seconds(pid)
                    sizes.append(
                        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
                    )
                except OSError:
                    continue
            peak = max(peak, sum(sizes))

    sampler = threading.Thread(target=sample)
    sampler.start()
    printed, _ = child.communicate()
    done.set()
    sampler.join()
    if child.returncode != 0:
        sys.exit(f"the peer failed with {child.returncode}")
    said = dict(part.split("=") for part in printed.strip().splitlines()[-1].split() if "=" in part)
    numbers = {"engine": float(said["seconds"]), "rows": float(said["rows"]), "sum": float(said["sum"])}
    return {"wall": time.monotonic() - start, "cpu": sum(cpu.values()), "rss": peak, **numbers}


# --- peers --------------------------------------------------------------------------------------------------------


def flink(events: Path, work: Path, python: str, program: str) -> dict[str, float]:
    """The shared PyFlink program."""
    # Flink's Python worker is the `python` of the path
    env = {"PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    return watched([python, program, str(events), str(work / "flink-out")], work, env)


def spark(events: Path, work: Path, python: str) -> dict[str, float]:
    """The command `spark-job`."""
    env = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": python}
    return watched([python, __file__, "spark-job", str(events), str(work)], work, env)


def spark_job(events: Path, work: Path) -> None:
    """The events' directory as a stream, until all of it is through; prints what `flink_hop.py` prints."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    out, source = work / "spark-out", work / "spark-in"
    for folder in (out, source, work / "spark-checkpoint"):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir()
    (source / "events.jsonl").symlink_to(events)
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.memory", "3g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )
    start = time.time()
    (
        session.readStream.schema("user_id string, ts bigint, amount double")
        .json(str(source))
        .withColumn("et", f.timestamp_millis("ts"))
        .withWatermark("et", "10 seconds")
        .groupBy("user_id", f.window("et", "5 minutes", "1 minute"))
        .count()
        .select("user_id", f.col("window.start").alias("start"), "count")
        .writeStream.outputMode("update")
        .foreachBatch(lambda batch, _: batch.write.mode("append").csv(str(out)))
        .option("checkpointLocation", str(work / "spark-checkpoint"))
        .trigger(availableNow=True)
        .start()
        .awaitTermination()
    )
    seconds = time.time() - start
    # in the mode `update` a window comes as often as it changed: its last count is its answer
    counts: dict[tuple[str, str], int] = {}
    for part in sorted(out.glob("part-*.csv"), key=lambda file: file.stat().st_mtime_ns):
        for line in part.open():
            user, begin, count = line.rstrip().split(",")
            counts[user, begin] = max(int(count), counts.get((user, begin), 0))
    print(f"spark seconds={seconds:.1f} rows={len(counts)} sum={sum(counts.values())}")


# --- Larder behind a broker ---------------------------------------------------------------------------------------


def moved(events: Path) -> Iterator[bytes]:
    """The events, moved in time so that the last one is now."""
    lines = events.read_bytes().splitlines()
    times = [int(line.partition(b'"ts": ')[2].partition(b",")[0]) for line in lines]
    shift = int(time.time() * 1000) - max(times)
    for line, ts in zip(lines, times, strict=True):
        yield line.replace(b'"ts": %d' % ts, b'"ts": %d' % (ts + shift), 1)


class Served:
    """A broker with a topic, and a server whose views are on it."""

    def __init__(self, work: Path, binary: str) -> None:
        sys.path.insert(0, str(CHECKOUT / "integration-tests"))
        from larder_env import kafka
        from larder_env.repo import store, write_config
        from larder_env.server import Larder, Ports

        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        self.broker = kafka.start(work / "kafka")
        self.broker.create_topic("events", PARTITIONS)
        self.greet()
        repo = work / "repo"
        write_config(repo, "bench", Ports.free())
        from larder_env.repo import ports_in

        self.larder = Larder(Path(binary), repo, ports_in(repo), args=["--services", "online,registry,ingest"])
        self.larder.start()
        self.features = store(repo)

    def greet(self) -> None:
        """Asks for a position: the broker has the topic of positions then, which its first group waits for."""
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        client = Consumer({"bootstrap.servers": self.broker.bootstrap_servers, "group.id": "first"})
        deadline = time.monotonic() + 60
        while True:
            try:
                client.committed([TopicPartition("events", 0)], timeout=30)
                break
            except KafkaException:
                # no coordinator until the topic is there
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)  # nothing else tells when it is
        client.close()

    def apply(self, views: int, windows: int, extra: list[tuple[str, str]] | None = None) -> None:
        """Registers views of so many aggregations each, or one view of (function, column)."""
        from feast import Entity, Field, FileSource, KafkaSource, StreamFeatureView
        from feast.aggregation import Aggregation
        from feast.data_format import JsonFormat
        from feast.types import Float64, Int64, String
        from feast.value_type import ValueType

        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
        batch = FileSource(name="events_file", path="data/events.parquet", timestamp_field="ts")
        source = KafkaSource(
            name="events",
            kafka_bootstrap_servers=self.broker.bootstrap_servers,
            topic="events",
            timestamp_field="ts",
            watermark_delay_threshold=timedelta(minutes=1),
            message_format=JsonFormat(schema_json="user_id string, ts bigint, amount double, merchant string"),
            batch_source=batch,
        )
        chosen = extra or [(FUNCTIONS[n % len(FUNCTIONS)], "amount") for n in range(windows)]
        made = [
            StreamFeatureView(
                name=f"v{number}",
                entities=[user],
                ttl=timedelta(0),
                mode="python",
                source=source,
                timestamp_field="ts",
                aggregations=[
                    Aggregation(
                        column=column,
                        function=function,
                        time_window=WINDOW + n * timedelta(minutes=5),
                        slide_interval=HOP,
                        name=f"f{n}",
                    )
                    for n, (function, column) in enumerate(chosen)
                ],
                schema=[
                    Field(name="user_id", dtype=String),
                    *(
                        Field(name=f"f{n}", dtype=Int64 if name == "count" else Float64)
                        for n, (name, _) in enumerate(chosen)
                    ),
                ],
            )
            for number in range(views)
        ]
        self.features.apply([user, *made])

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = (line for line in self.larder.metrics().splitlines() if line.startswith(name + "{"))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def wait(self, name: str, least: float) -> None:
        """Until a counter has come so far; asked for seldom while it is far away, for that costs the server time."""
        deadline = time.monotonic() + 600
        while (come := self.metric(name)) < least:
            if time.monotonic() > deadline:
                sys.exit(f"{name} did not come to {least:g}: {self.larder.process.log_tail(30)}")
            time.sleep(0.1 if come < 0.9 * least else 0.01)  # a page of metrics can only be asked for

    def rest(self) -> float:
        """Until the last checkpoint is written: the processor time used by then."""
        used = cpu_seconds(self.larder.pid)
        while True:
            time.sleep(1.5)  # longer than the interval of checkpoints
            now = cpu_seconds(self.larder.pid)
            if now - used < 0.1:
                return used
            used = now

    def counts(self, users: list[str], batch: int = 100) -> list[int]:
        """The feature f0 of the first view, of each user."""
        found: list[int] = []
        for start in range(0, len(users), batch):
            body = {"features": ["v0:f0"], "entities": {"user_id": users[start : start + batch]}}
            results = self.larder.post("/get-online-features", body).json()["results"]
            found += [value or 0 for value in results[1]["values"]]
        return found

    def stop(self) -> None:
        """Ends both."""
        self.larder.stop()
        self.broker.stop()


def producer(servers: str) -> object:
    """A producer that batches."""
    from confluent_kafka import Producer

    return Producer({"bootstrap.servers": servers, "linger.ms": 5, "queue.buffering.max.messages": 2_000_000})


def kafka(events: Path, work: Path, binary: str, shape: str) -> dict[str, float]:
    """All events are in the topic when the views are registered."""
    views, windows = map(int, shape.split("x"))
    served = Served(work / "broker", binary)
    sender = producer(served.broker.bootstrap_servers)
    count = 0
    users: set[str] = set()
    for line in moved(events):
        user = line.partition(b'"user_id": "')[2].partition(b'"')[0]
        sender.produce("events", line, key=user)  # type: ignore[attr-defined]
        users.add(user.decode())
        count += 1
        if count % 10_000 == 0:
            sender.poll(0)  # type: ignore[attr-defined]
    sender.flush()  # type: ignore[attr-defined]
    before, start = cpu_seconds(served.larder.pid), time.monotonic()
    served.apply(views, windows)
    served.wait("larder_ingest_applied_total", views * count)
    wall = time.monotonic() - start
    cpu = served.rest() - before
    counts = served.counts(sorted(users))
    answer = {
        "wall": wall,
        "cpu": cpu,
        "rss": peak_mb(served.larder.pid),
        "rows": sum(n > 0 for n in counts),
        "sum": sum(counts),
    }
    served.stop()
    return answer


def fresh(events: Path, work: Path, binary: str, rate: str, seconds: str) -> dict[str, float]:
    """Under a steady rate of events, probes one after the other: produced, then asked for until the answer has them."""
    served = Served(work / "broker", binary)
    served.apply(1, 0, [("count", "amount"), ("sum", "amount"), ("last", "amount")])
    sender = producer(served.broker.bootstrap_servers)
    lines = events.read_bytes().splitlines()
    done = threading.Event()
    sent = 0

    def load() -> None:
        nonlocal sent
        begin = time.monotonic()
        while not done.is_set():
            due = int((time.monotonic() - begin) * float(rate))
            now = int(time.time() * 1000)
            for number in range(sent, due):
                line = lines[number % len(lines)]
                head, _, rest = line.partition(b'"ts": ')
                sender.produce("events", head + b'"ts": %d' % now + rest[13:])  # type: ignore[attr-defined]
            sent = due
            sender.poll(0)  # type: ignore[attr-defined]
            time.sleep(0.002)  # the rate

    from confluent_kafka import Producer

    prober = Producer({"bootstrap.servers": served.broker.bootstrap_servers, "linger.ms": 0})
    connection = http.client.HTTPConnection("127.0.0.1", served.larder.ports.online)
    body = json.dumps({"features": ["v0:f2"], "entities": {"user_id": ["probe"]}})

    def last() -> float | None:
        connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
        value: float | None = json.loads(connection.getresponse().read())["results"][1]["values"][0]
        return value

    loader = threading.Thread(target=load)
    loader.start()
    times: list[float] = []
    warm = 20
    begin = time.monotonic()
    while time.monotonic() - begin < float(seconds) + 3 or len(times) < 2 * warm:
        number = float(len(times) + 1)
        start = time.monotonic()
        event = {"user_id": "probe", "ts": int(time.time() * 1000), "amount": number, "merchant": "m"}
        prober.produce("events", json.dumps(event).encode(), key=b"probe")
        prober.poll(0)
        while last() != number:
            if time.monotonic() - start > 30:
                sys.exit(f"probe {number:g} was not seen: {served.larder.process.log_tail(30)}")
        times.append(time.monotonic() - start)
    elapsed = time.monotonic() - begin
    done.set()
    loader.join()
    sender.flush()  # type: ignore[attr-defined]
    times = sorted(times[warm:])
    answer = {
        "p50": 1e3 * times[len(times) // 2],
        "p99": 1e3 * times[int(len(times) * 0.99)],
        "worst": 1e3 * times[-1],
        "probes": len(times),
        "rate": sent / elapsed,
    }
    served.stop()
    return answer


def main() -> None:
    """See above."""
    what, *arguments = sys.argv[1:]
    if what == "spark-job":
        return spark_job(*map(Path, arguments))
    out, events, work, *rest = arguments
    run = {"kafka": kafka, "fresh": fresh, "flink": flink, "spark": spark}[what]
    answer = run(Path(events).resolve(), Path(work).resolve(), *rest)  # type: ignore[operator]
    Path(out).write_text(json.dumps(answer))
    return None


if __name__ == "__main__":
    main()

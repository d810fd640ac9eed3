"""The examples as a user runs them: Spark's and Flink's jobs, from a real Kafka, through the push API, to the SDK."""

from __future__ import annotations

import os
import random
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from feast import FeatureStore

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env import paths
from larder_env.process import DIE_WITH_PARENT
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports
from larder_env.topics import Topic

CARDS = [f"card{number}" for number in range(20)]
START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=2)
Payment = Mapping[str, object]


@dataclass
class World:
    """A server with the examples' view, and a topic of payments."""

    larder: Larder
    features: FeatureStore
    topic: Topic
    work: Path

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None) -> str:
        """A job to its end; what it printed."""
        options = ["--bootstrap-servers", self.topic.kafka.bootstrap_servers, "--topic", self.topic.name, "--once"]
        done = subprocess.run(
            [*DIE_WITH_PARENT, *map(str, command), *options, "--larder", self.larder.online_url],
            env={**os.environ, **(env or {})},
            cwd=self.work,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    def served(self) -> dict[str, tuple[int, float]]:
        """Per card: payments and their sum."""
        names = ["card_minutes:payments", "card_minutes:spent"]
        answer = self.features.get_online_features(names, [{"card_id": card} for card in CARDS]).to_dict()
        cells = zip(answer["card_id"], answer["payments"], answer["spent"], strict=True)
        return {card: (payments, spent) for card, payments, spent in cells if payments is not None}


def payments(seed: int, start: datetime, minutes: int) -> list[dict[str, object]]:
    """Payments of some minutes, a little out of order."""
    dice = random.Random(seed)
    times = sorted(dice.uniform(0, 60 * minutes) for _ in range(400))
    times = sorted(times, key=lambda seconds: seconds + dice.uniform(0, 5))
    return [
        {
            "card_id": dice.choice(CARDS[:-1]),
            "amount": dice.randrange(1, 4000) / 4,
            "ts": (start + timedelta(milliseconds=round(seconds * 1000))).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
        }
        for seconds in times
    ]


def last_minutes(sent: list[dict[str, object]]) -> dict[str, tuple[int, float]]:
    """What must be served: of each card the minute of its last payment."""
    minutes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for payment in sent:
        minutes[str(payment["card_id"]), str(payment["ts"])[:16]].append(float(str(payment["amount"])))
    latest = dict(sorted(minutes))
    return {card: (len(minutes[card, minute]), sum(minutes[card, minute])) for card, minute in latest.items()}


@pytest.fixture
def world(tmp_path: Path, larder: StartLarder, kafka: broker.Kafka) -> World:
    repo = tmp_path / "repo"
    write_config(repo, "examples", Ports.free())
    server = larder(repo, args=["--services", "online,registry"])
    names: dict[str, object] = {}
    exec(compile((paths.EXAMPLES / "features.py").read_text(), "features.py", "exec"), names)
    features = store(repo)
    features.apply([names["card"], names["card_minutes"]])  # type: ignore[list-item]
    return World(server, features, Topic(kafka, partitions=1), tmp_path)


def spark(world: World) -> str:
    """`spark-submit`, going on from its own checkpoint."""
    jars = ",".join(map(str, sorted(paths.jars("spark").glob("*.jar"))))
    settings = {"spark.ui.enabled": "false", "spark.driver.memory": "600m", "spark.sql.shuffle.partitions": "2"}
    venv = paths.engine("spark")
    return world.run(
        venv / "bin" / "spark-submit",
        *("--master", "local[2]", "--jars", jars, "--py-files", paths.EXAMPLES / "larder_push.py"),
        *(part for name, value in settings.items() for part in ("--conf", f"{name}={value}")),
        *(paths.EXAMPLES / "spark" / "job.py", "--checkpoint", world.work / "checkpoint"),
        env={"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": str(venv / "bin" / "python")},
    )


def flink(world: World) -> str:
    """The job in a cluster of its own, from the topic's start each time."""
    jars = sorted(paths.jars("flink").glob("*.jar"))
    python = paths.engine("flink") / "bin" / "python"
    # Flink's Python worker is the `python` of the path
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return world.run(python, paths.EXAMPLES / "flink" / "job.py", "--jars", *jars, env={"PATH": path})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("job", [spark, flink])
def test_a_stream_job_pushes_what_it_computes(world: World, job: Callable[[World], str]) -> None:
    sent = payments(1, START, 3)
    world.topic.send([*sent, b"no JSON", {"amount": 1.0, "ts": "2026-01-01T00:00:00Z"}])
    job(world)
    assert world.served() == last_minutes(sent)
    # Later ones, and one so late that it belongs to a minute that is no card's last: it replaces nothing.
    later = payments(2, START + timedelta(minutes=10), 3)[:200]
    later.append({"card_id": later[0]["card_id"], "amount": 999.0, "ts": sent[0]["ts"]})
    world.topic.send(later)
    job(world)
    assert world.served() == last_minutes(sent + later)

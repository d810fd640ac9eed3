"""A real Apache Kafka: one KRaft node on loopback, or the one that KAFKA_BOOTSTRAP_SERVERS names."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from larder_env.paths import MissingError, jars
from larder_env.process import Process, ProcessError, free_ports, wait_until

JVM = ["-Xms96m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

LOG4J = """\
status = warn
rootLogger.level = warn
rootLogger.appenderRef.out.ref = OUT
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
appender.out.type = Console
appender.out.name = OUT
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %m (%c)%n
"""


@dataclass(frozen=True)
class Listener:
    """Another address of the broker; `advertised` is the port that clients are told."""

    name: str
    port: int
    advertised: int
    protocol: str = "PLAINTEXT"
    properties: Mapping[str, object] = field(default_factory=dict)


class Kafka:
    """A broker to use; `stop` ends it only if this object started it."""

    def __init__(self, bootstrap_servers: str, process: Process | None = None) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.process = process

    @property
    def own(self) -> bool:
        """Whether this object started the broker."""
        return self.process is not None

    def admin(self) -> AdminClient:
        """An admin client of this broker."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers})

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic and wait until its partitions have leaders; one that exists is left as it is."""
        admin = self.admin()
        if name not in admin.list_topics(timeout=10).topics:
            admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1)])[name].result(30)

        def led() -> bool:
            topic = admin.list_topics(timeout=10).topics.get(name)
            return (
                topic is not None and bool(topic.partitions) and all(p.leader >= 0 for p in topic.partitions.values())
            )

        wait_until(led, f"topic {name} to have leaders")

    def stop(self) -> None:
        """Stop the broker if it is ours."""
        if self.process is not None:
            self.process.stop(seconds=30)

    def start_again(self) -> None:
        """Start our stopped broker again on its port and data."""
        if self.process is None:
            raise ProcessError(f"the broker at {self.bootstrap_servers} is not ours to start")
        _spawn(self.process, self.bootstrap_servers)


def external() -> Kafka | None:
    """The broker that KAFKA_BOOTSTRAP_SERVERS names. Named but not reachable is an error, not a fallback."""
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if not named:
        return None
    try:
        AdminClient({"bootstrap.servers": named}).list_topics(timeout=10)
    except KafkaException as error:
        raise MissingError(f"KAFKA_BOOTSTRAP_SERVERS={named}: no broker answers there ({error})") from error
    return Kafka(named)


def start(work: Path, outlive: bool = False, listeners: Sequence[Listener] = ()) -> Kafka:
    """Format storage below `work` and start one node on free ports; returns when it serves metadata."""
    if shutil.which("java") is None:
        raise MissingError("java is not installed: apt-get install default-jre-headless")
    classpath = jars("kafka")
    broker_port, controller_port = free_ports(2)
    work.mkdir(parents=True, exist_ok=True)
    (work / "log4j2.properties").write_text(LOG4J)
    (work / "server.properties").write_text(_properties(work / "storage", broker_port, controller_port, listeners))
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    formatted = subprocess.run(
        [
            *_java(classpath, work),
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster}",
            "-c",
            work / "server.properties",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if formatted.returncode != 0:
        raise ProcessError(f"kafka.tools.StorageTool format failed:\n{formatted.stdout}{formatted.stderr}")
    kafka = Kafka(f"127.0.0.1:{broker_port}", Process("kafka", work / "kafka.log", outlive))
    kafka.start_again()
    return kafka


def _spawn(process: Process, bootstrap_servers: str) -> None:
    work = process.log.parent
    command = [*_java(jars("kafka"), work), "kafka.Kafka", work / "server.properties"]
    process.spawn(command, cwd=work)
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})

    def serves() -> bool:
        try:
            return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    process.wait_ready(serves, seconds=90)


def _java(classpath: Path, work: Path) -> list[str | Path]:
    return ["java", *JVM, f"-Dlog4j2.configurationFile={work / 'log4j2.properties'}", "-cp", f"{classpath}/*"]


def _properties(storage: Path, broker_port: int, controller_port: int, more: Sequence[Listener]) -> str:
    of_listeners = {
        f"listener.name.{each.name.lower()}.{key}": value for each in more for key, value in each.properties.items()
    }
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": ",".join(
            [
                *(f"PLAINTEXT://127.0.0.1:{broker_port}", f"CONTROLLER://127.0.0.1:{controller_port}"),
                *(f"{each.name}://127.0.0.1:{each.port}" for each in more),
            ]
        ),
        "advertised.listeners": ",".join(
            [f"PLAINTEXT://127.0.0.1:{broker_port}", *(f"{each.name}://127.0.0.1:{each.advertised}" for each in more)]
        ),
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": ",".join(
            ["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT", *(f"{each.name}:{each.protocol}" for each in more)]
        ),
        "log.dirs": storage,
        # one node: nothing can be replicated
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # a test should not wait for other group members to come
        "group.initial.rebalance.delay.ms": 0,
        # replayed events carry old times: nothing may be deleted by age
        "log.retention.hours": -1,
        "num.network.threads": 2,
        "num.io.threads": 2,
        **of_listeners,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())

"""Streams from a broker that wants TLS and a password, or a certificate; and from one that does not know them yet."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.process import free_ports, wait_until
from larder_env.repo import store
from larder_env.server import HOST
from larder_env.topics import Topic
from online import metric
from test_streams import CARD, COUNT_DAY, PROJECT, World, make_repo, message, now_us, windowed_view
from test_streams_admin import streams

USER = "larder"
PLAIN_MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM_MODULE = "org.apache.kafka.common.security.scram.ScramLoginModule"


@dataclass
class Secured:
    """A broker with listeners that are no plain ones, and what is known of its certificates."""

    kafka: broker.Kafka
    ports: dict[str, int]
    directory: Path

    def file(self, name: str) -> str:
        """A certificate or a key."""
        return str(self.directory / name)

    def let_in(self, password: str) -> None:
        """The user by SCRAM, with this password from now on."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(USER, info, password.encode())
        admin = self.kafka.admin()
        for done in admin.alter_user_scram_credentials([change]).values():
            done.result(30)


def certificates(directory: Path) -> None:
    """An authority, and what it signed: for the broker on loopback, and for a client."""

    def make(name: str, *more: str) -> None:
        made = ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem")]
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run([*new, "-days", "2", "-subj", f"/CN={name}", *made, *more], check=True, capture_output=True)

    make("authority", "-addext", "basicConstraints=critical,CA:TRUE")
    make("stranger", "-addext", "basicConstraints=critical,CA:TRUE")
    by = ["-CA", str(directory / "authority.pem"), "-CAkey", str(directory / "authority.key")]
    leaf = ["-addext", "basicConstraints=critical,CA:FALSE"]
    make("broker", *by, *leaf, "-addext", f"subjectAltName=IP:{HOST}")
    make("client", *by, *leaf)
    both = [(directory / f"broker.{kind}").read_text() for kind in ["key", "pem"]]
    (directory / "store.pem").write_text("".join(both))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One broker for the file, with a plain listener for the tests themselves."""
    directory = tmp_path_factory.mktemp("secured")
    certificates(directory)
    stores = {"ssl.keystore.type": "PEM", "ssl.keystore.location": directory / "store.pem"}
    trust = {"ssl.truststore.type": "PEM", "ssl.truststore.location": directory / "authority.pem"}
    kinds: dict[str, tuple[str, dict[str, object]]] = {
        "PASSWORD": (
            "SASL_SSL",
            {
                **stores,
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
                "plain.sasl.jaas.config": f'{PLAIN_MODULE} required user_{USER}="plain secret";',
                "scram-sha-512.sasl.jaas.config": f"{SCRAM_MODULE} required;",
            },
        ),
        "CERTIFICATE": ("SSL", {**stores, **trust, "ssl.client.auth": "required"}),
    }
    ports = dict(zip(kinds, free_ports(len(kinds)), strict=True))
    listeners = [broker.Listener(name, ports[name], ports[name], *kind) for name, kind in kinds.items()]
    kafka = broker.start(directory / "kafka", listeners=listeners)
    yield Secured(kafka, ports, directory)
    kafka.stop()


def begin(
    directory: Path, larder: StartLarder, secured: Secured, listener: str, properties: dict[str, str]
) -> tuple[World, Topic]:
    """A server with these properties, and a view on a topic that it reads through this listener."""
    repo = make_repo(directory / "repo")
    config = {"project": PROJECT, "ingest": {"kafka": properties}}
    (repo / "larder.yaml").write_text(yaml.safe_dump(config))
    world, topic = World(larder(repo, env={"SECRET": "plain secret"}), store(repo), secured.kafka), Topic(secured.kafka)
    topic.send([message("a", now_us()), b"{", message("a", now_us())])
    servers = f"{HOST}:{secured.ports[listener]}"
    world.features.apply([CARD, windowed_view("secured", topic, [COUNT_DAY], servers=servers)])
    return world, topic


def properties_of(secured: Secured, kind: str) -> dict[str, str]:
    """What a client says to the broker."""
    authority = {"ssl.ca.location": secured.file("authority.pem")}
    password = {"security.protocol": "SASL_SSL", "sasl.username": USER, **authority}
    return {
        "plain": {**password, "sasl.mechanism": "PLAIN", "sasl.password": "$SECRET"},
        "scram": {**password, "sasl.mechanism": "SCRAM-SHA-512", "sasl.password": "scram secret"},
        "certificate": {
            **authority,
            "security.protocol": "SSL",
            "ssl.certificate.location": secured.file("client.pem"),
            "ssl.key.location": secured.file("client.key"),
        },
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "scram", "certificate"])
def test_events_come_and_dead_letters_go_through_tls(
    tmp_path: Path, larder: StartLarder, secured: Secured, kind: str
) -> None:
    secured.let_in("scram secret")
    listener = "CERTIFICATE" if kind == "certificate" else "PASSWORD"
    world, topic = begin(tmp_path, larder, secured, listener, properties_of(secured, kind))
    world.drain(topic, ["secured"], "count_1d")
    assert world.rows("secured", ["a"], ["count_1d"]) == {"a": 2}
    [letter] = topic.dead_letters.read(1)
    assert letter.value == b"{"
    assert metric(world.larder, "larder_ingest_broker_errors_total", view="secured") == []
    assert "secret" not in world.larder.log


@pytest.mark.parametrize("wrong", ["password", "authority", "no_certificate", "no_tls"])
def test_who_is_not_let_in_says_why_and_reads_all_once_it_is(
    tmp_path: Path, larder: StartLarder, secured: Secured, wrong: str
) -> None:
    good = properties_of(secured, "certificate" if wrong == "no_certificate" else "scram")
    bad = {
        "password": {**good, "sasl.password": "of tomorrow, secret"},
        "authority": {**good, "ssl.ca.location": secured.file("stranger.pem")},
        "no_certificate": {key: value for key, value in good.items() if "certificate" not in key and "key" not in key},
        "no_tls": {"session.timeout.ms": "6000"},
    }[wrong]
    secured.let_in("scram secret")
    listener = "CERTIFICATE" if wrong == "no_certificate" else "PASSWORD"
    world, topic = begin(tmp_path, larder, secured, listener, bad)
    wait_until(lambda: "Kafka is not available to the consumer" in world.larder.log, "the log to say so", 60)
    wait_until(lambda: metric(world.larder, "larder_ingest_broker_errors_total", view="secured"), "the count")
    wait_until(lambda: streams(world)["secured"]["state"] == "retrying", "the state to say so", 60)
    assert "Kafka is not available" in str(streams(world)["secured"]["reason"])
    assert metric(world.larder, "larder_ingest_view_state", view="secured", state="retrying") == [1]
    assert world.rows("secured", ["a"], ["count_1d"]) == {"a": "NOT_FOUND"}
    if wrong == "password":
        # without a restart
        secured.let_in("of tomorrow, secret")
    else:
        config = {"project": PROJECT, "ingest": {"kafka": good}}
        (world.larder.repo / "larder.yaml").write_text(yaml.safe_dump(config))
        assert world.larder.stop() == 0
        world.larder.start()
    world.drain(topic, ["secured"], "count_1d")
    wait_until(lambda: streams(world)["secured"]["state"] == "running", "the state to say so")
    assert world.rows("secured", ["a"], ["count_1d"]) == {"a": 2}
    assert "secret" not in world.larder.log

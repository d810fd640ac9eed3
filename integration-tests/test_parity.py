"""Parity: at the same moment, online and a training set give the same numbers; where they do not, it is told why."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import StartLarder
from larder_env import kafka as broker
from larder_env.repo import store
from larder_env.topics import Topic
from test_backfill import LIFETIME, Repo, write_history
from test_streams import CARD, make_repo, message, now_us, random_events, two_windows, windowed_view
from windows_oracle import MINUTE, SECOND, Event

# `make soak-parity` says for how long random histories are compared; a test run does one
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, module_larder: StartLarder, kafka: broker.Kafka) -> Repo:
    """One server for the file."""
    path = make_repo(tmp_path_factory.mktemp("parity") / "repo")
    return Repo(module_larder(path), store(path), kafka, path)


def parity(repo: Repo, binary: Path, view: str, *args: str) -> subprocess.CompletedProcess[str]:
    """`larder parity VIEW` against the server."""
    command = [str(binary), "parity", view, "-c", str(repo.path), "--server", repo.larder.online_url, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.timeout(SOAK_SECONDS + 180)
def test_random_histories_give_the_same_numbers_on_both_sides(repo: Repo, larder_binary: Path) -> None:
    """Late, equal and out-of-order events, restarts, a backfill on the way: zero differences every time."""
    until, round_number = time.monotonic() + SOAK_SECONDS, 0
    while round_number == 0 or time.monotonic() < until:
        seed = 100 + round_number
        print(f"seed {seed}")
        topic, name, rng = Topic(repo.kafka, partitions=2), f"parity_{seed}", random.Random(seed)
        windows = [*two_windows(), *LIFETIME]
        repo.features.apply([CARD, windowed_view(name, topic, windows)])
        events = random_events(seed, 12, 300)
        cut = rng.randrange(len(events))
        for part in [events[:cut], events[cut:]]:
            for card, event in part:
                # a card keeps its partition: among equal times the order of arrival counts
                topic.send([message(card, event.ts, **event.values)], partition=int(card.split("-")[1]) % 2)
            if rng.random() < 0.5:
                repo.larder.restart(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        write_history(repo.path, events)
        if rng.random() < 0.5:
            repo.backfill(name, now_us() - 20 * MINUTE)
        repo.drained(topic, name)
        found = parity(repo, larder_binary, name, "--for", "2")
        assert (found.returncode, found.stderr) == (0, ""), found.stdout
        assert f"{name}: {12 * len(windows)} values of 12 entities at " in found.stdout
        round_number += 1


def test_a_difference_fails_and_shows_the_events_that_explain_it(repo: Repo, larder_binary: Path) -> None:
    topic, name = Topic(repo.kafka), "parity_apart"
    repo.features.apply([CARD, windowed_view(name, topic, LIFETIME)])
    events = [(f"card-{n}", Event(now_us() - n * MINUTE - SECOND, {"amount": 1.0, "quantity": n})) for n in range(3)]
    topic.send([message(card, event.ts, **event.values) for card, event in events])
    repo.drained(topic, name)
    write_history(repo.path, [*events, ("card-1", Event(now_us() - SECOND, {"amount": 1.0, "quantity": 77}))])
    found = parity(repo, larder_binary, name)
    assert found.returncode == 1
    assert "2 of 6 values differ" in found.stderr
    assert '{"card_id":"card-1"} count_all: online 1, offline 2; its latest events' in found.stdout
    assert '{"card_id":"card-1"} sum_all: online 1, offline 78; its latest events' in found.stdout
    assert '"quantity":77} (online has seen none so late)' in found.stdout
    assert "card-2" not in found.stdout
    write_history(repo.path, [])
    nothing = parity(repo, larder_binary, name)
    assert nothing.returncode == 1
    assert "nothing is compared" in nothing.stderr
    unknown = parity(repo, larder_binary, "nosuch")
    assert unknown.returncode == 1
    assert "nosuch" in unknown.stderr

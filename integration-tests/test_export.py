"""`larder export`: a training set into Parquet, by a running server and on its own, the same as the SDK gets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import termios
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from feast import FileSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

from conftest import StartLarder
from larder_env.process import free_ports, wait_until
from larder_env.repo import store, write_config
from larder_env.server import HOST, Larder, Ports
from synthetic import DRIVERS, SyntheticRepo

COLUMNS = ["driver_id", "event_timestamp", "note", "trips", "conv_rate", "rating"]


@dataclass(frozen=True)
class World:
    """A repo that is applied, entity rows, and what the SDK makes of them; the server runs or not."""

    binary: Path
    repo: SyntheticRepo
    server: Larder
    entities: Path
    wanted: pd.DataFrame

    def place(self, where: str) -> list[str]:
        """Flags: this server or its own process, for which the server must let go of the registry."""
        if where == "server":
            if not self.server.process.running:
                self.server.start()
            return ["--server", f"{HOST}:{self.server.ports.offline}"]
        if self.server.process.running:
            self.server.stop()
        return []

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """`larder export` on the repo's configuration."""
        return export(self.binary, self.repo.path, *words)


def command(binary: Path, repo: Path, *words: object) -> list[str]:
    """`larder export -c repo`."""
    return [str(binary), "export", "-c", str(repo), *map(str, words)]


def export(binary: Path, repo: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run to its end."""
    words = tuple(command(binary, repo, *words))
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(module_larder: StartLarder, larder_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Five drivers at several hours, one unknown, with a column that is nobody's."""
    path = tmp_path_factory.mktemp("export") / "repo"
    write_config(path, "drivers", Ports.free())
    repo = SyntheticRepo.create(path)
    server = module_larder(path)
    sdk = repo.apply()
    rows = [
        {"driver_id": driver, "event_timestamp": repo.newest - timedelta(minutes=at), "note": f"n{at}"}
        for at in (0, 30, 100, 60 * 47, 60 * 100)
        for driver in [*DRIVERS, 4711]
    ]
    frame = pd.DataFrame(rows).sample(frac=1.0, random_state=7, ignore_index=True)
    entities = path.parent / "entities.parquet"
    frame.to_parquet(entities, index=False)
    job = sdk.get_historical_features(entity_df=frame, features=sdk.get_feature_service("driver_activity"))
    return World(larder_binary, repo, server, entities, job.to_df())


def same(got: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Row by row, in order."""
    assert list(got.columns) == list(wanted.columns)
    pd.testing.assert_frame_equal(got, wanted, check_dtype=False)


PLACES = pytest.mark.parametrize("where", ["server", "own"])


@PLACES
def test_a_service_for_the_rows_of_a_file(world: World, where: str, tmp_path: Path) -> None:
    """All features of the service, the file's rows and columns in their order, and a sentence of what was written."""
    out = tmp_path / "set.parquet"
    done = world.run("--service", "driver_activity", "--entities", world.entities, "--out", out, *world.place(where))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: {len(world.wanted)} rows of {len(COLUMNS)} columns in ")
    got = pd.read_parquet(out)
    same(got, world.wanted)
    assert got["trips"].notna().sum() == 4 * len(DRIVERS), "of the last, no row is young enough"


@PLACES
def test_named_features_into_a_directory(world: World, where: str, tmp_path: Path) -> None:
    """Some features, under their full names; a directory that is there is replaced only when told."""
    out = tmp_path / "set"
    words = ["--features", "driver_stats:rating,driver_stats:trips", "--full-feature-names", "--out", out]
    words += ["--entities", world.entities, *world.place(where)]
    assert world.run(*words).returncode == 0
    wanted = world.wanted[["driver_id", "event_timestamp", "note", "rating", "trips"]]
    wanted = wanted.rename(columns={name: f"driver_stats__{name}" for name in ("rating", "trips")})
    same(pd.read_parquet(out), wanted)
    again = world.run(*words)
    assert again.returncode == 1
    assert f"{out} is there already: replace it with --overwrite" in again.stderr
    assert world.run(*words, "--overwrite").returncode == 0
    same(pd.read_parquet(out), wanted)
    assert [name for name in os.listdir(out) if name.startswith(".")] == []


@PLACES
def test_entities_by_sql_or_by_a_span_of_time(world: World, where: str, tmp_path: Path) -> None:
    """A SELECT over a data source by its name, and every driver with a row within the last hour."""
    out = tmp_path / "sql.parquet"
    sql = "SELECT driver_id, max(event_timestamp) AS event_timestamp FROM driver_stats_file GROUP BY driver_id"
    done = world.run("--service", "driver_activity", "--entities", sql, "--out", out, *world.place(where))
    assert done.returncode == 0, done.stderr
    newest = {row["driver_id"]: row["trips"] for row in world.repo.rows_at(47)}
    got = pd.read_parquet(out)
    assert dict(zip(got["driver_id"], got["trips"], strict=True)) == newest

    out = tmp_path / "span.parquet"
    end = world.repo.newest
    span = ["--from", (end - timedelta(minutes=30)).isoformat(), "--to", end.isoformat()]
    done = world.run("--service", "driver_activity", *span, "--out", out, *world.place(where))
    assert done.returncode == 0, done.stderr
    got = pd.read_parquet(out)
    assert dict(zip(got["driver_id"], got["trips"], strict=True)) == newest


@PLACES
def test_what_cannot_be_exported_is_named_and_nothing_is_written(world: World, where: str, tmp_path: Path) -> None:
    """An unknown service, view or project, a missing column, entity rows that are no Parquet."""
    out, text = tmp_path / "set.parquet", tmp_path / "rows.csv"
    text.write_text("driver_id,event_timestamp\n1001,2026-01-01\n")
    keyless = tmp_path / "keyless.parquet"
    pd.read_parquet(world.entities).drop(columns=["driver_id"]).to_parquet(keyless)
    place = world.place(where)
    for words, wanted in (
        (["--service", "nope", "--entities", world.entities], "Feature service nope does not exist in project drivers"),
        (["--features", "nope:trips", "--entities", world.entities], "Feature view nope does not exist"),
        (["--service", "driver_activity", "--project", "nope", "--entities", world.entities], "nope"),
        (["--service", "driver_activity", "--entities", keyless], "driver_id"),
        (["--service", "driver_activity", "--entities", text], str(text)),
        (["--service", "driver_activity", "--entities", tmp_path / "gone.parquet"], "gone.parquet"),
        (["--service", "driver_activity", "--entities", "SELECT * FROM nope"], "nope"),
    ):
        done = world.run(*words, "--out", out, *place)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert done.stderr.startswith("larder: ")
        assert wanted in done.stderr, words
    assert sorted(os.listdir(tmp_path)) == ["keyless.parquet", "rows.csv"]


@PLACES
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_is_interrupted_leaves_nothing(world: World, where: str, how: signal.Signals, tmp_path: Path) -> None:
    """Neither a part of the file nor what was spilled; what is there already stays."""
    out = tmp_path / "set.parquet"
    out.write_text("what was there")
    # so many rows that nobody waits for the last of them
    tables = ", ".join(f"driver_stats_file AS t{number}" for number in range(4))
    sql = f"SELECT t0.driver_id, t0.event_timestamp FROM {tables}"
    words = ["--service", "driver_activity", "--entities", sql, "--out", out, "--overwrite", *world.place(where)]
    running = subprocess.Popen(
        command(world.binary, world.repo.path, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: list(tmp_path.glob(".*.part")), "the first rows", 60)
    running.send_signal(how)
    said = running.communicate(timeout=60)
    assert (running.returncode, said) == (1, ("", "larder: interrupted: nothing was written\n"))
    assert os.listdir(tmp_path) == ["set.parquet"]
    assert out.read_text() == "what was there"
    if where == "own":
        assert os.listdir(world.repo.path / "data" / "offline-spill") == []


def parts(folder: Path) -> list[Path]:
    """Files in the making."""
    return list(folder.glob(".*.part"))


def test_what_a_killed_process_was_writing_goes_with_the_next_write(world: World, tmp_path: Path) -> None:
    """By the server's `persist` and by the command line; what another process is writing stays."""
    world.place("server")
    sdk = store(world.repo.path)
    storage = SavedDatasetFileStorage(path=str(tmp_path / "kept.parquet"))
    name = storage.to_data_source().name
    sdk.apply([FileSource(name=name, path=str(tmp_path / "kept.parquet"), timestamp_field="event_timestamp")])
    # so many rows that nobody waits for the last of them
    tables = ", ".join(f"driver_stats_file AS t{number}" for number in range(4))
    endless = f"SELECT t0.driver_id, t0.event_timestamp FROM {tables}"
    few = "SELECT driver_id, event_timestamp FROM driver_stats_file LIMIT 5"
    service = sdk.get_feature_service("driver_activity")

    def persist(text: str) -> None:
        sdk.get_historical_features(text, service).persist(storage, allow_overwrite=True)

    with ThreadPoolExecutor() as pool:
        persisting = pool.submit(persist, endless)
        wait_until(lambda: parts(tmp_path), "the first rows", 60)
        world.server.kill()
        assert persisting.exception(60) is not None
    left = parts(tmp_path)
    assert os.listdir(tmp_path) == [file.name for file in left], "a killed process removes nothing"
    world.server.start()

    words = ["--service", "driver_activity", "--out", tmp_path / "other.parquet", *world.place("server")]
    running = subprocess.Popen(
        command(world.binary, world.repo.path, *words, "--entities", endless),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: set(parts(tmp_path)) - set(left), "the first rows of the other", 60)
    assert not any(file.exists() for file in left), "gone with the next write beside it, by whomever"
    written = parts(tmp_path)
    persist(few)
    assert (parts(tmp_path), running.poll()) == (written, None), "what is being written stays"
    running.kill()
    running.wait(60)
    assert parts(tmp_path) == written
    persist(few)
    assert os.listdir(tmp_path) == ["kept.parquet"]
    assert len(pd.read_parquet(tmp_path / "kept.parquet")) == 5


@PLACES
def test_a_terminal_shows_how_far_it_is(world: World, where: str, tmp_path: Path) -> None:
    """A bar, which is gone when the sentence comes; where no terminal is (the tests above) there is none."""
    count = 300_000
    rows = pd.read_parquet(world.entities)
    many, out = tmp_path / "many.parquet", tmp_path / "set.parquet"
    pd.concat([rows] * (count // len(rows))).to_parquet(many, index=False)
    words = ["--service", "driver_activity", "--entities", many, "--out", out, *world.place(where)]
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (30, 120))
    running = subprocess.Popen(command(world.binary, world.repo.path, *words), stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # which is how a terminal without a process ends
        while more := os.read(ours, 65_536):
            said += more
    os.close(ours)
    assert running.wait(60) == 0, said
    text = said.decode()
    total = f"{count // len(rows) * len(rows):,}"
    shown = {found.replace(",", "") for found in re.findall(rf"([\d,]+)/{total} rows, \S+ left", text)}
    assert any(0 < int(number) < count for number in shown), text
    last = text.rstrip().splitlines()[-1]
    assert f"set.parquet: {total} rows of {len(COLUMNS)} columns in " in last


def test_where_there_is_no_registry_to_read_it_says_whom_to_ask(world: World, tmp_path: Path) -> None:
    """The registry is another process's, is not there, or the server does not answer."""
    words = ["--service", "driver_activity", "--entities", world.entities, "--out", tmp_path / "set.parquet"]
    world.place("server")
    held = world.run(*words)
    assert held.returncode == 1
    assert "--server" in held.stderr
    (port,) = free_ports(1)
    silent = world.run(*words, "--server", f"http://{HOST}:{port}")
    assert silent.returncode == 1
    assert f"{HOST}:{port}" in silent.stderr
    empty = tmp_path / "empty"
    write_config(empty, "drivers", Ports.free())
    none = export(world.binary, empty, *words)
    assert none.returncode == 1
    assert "holds no registry" in none.stderr
    assert not (empty / "data").exists(), "asking makes nothing"

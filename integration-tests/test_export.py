"""`larder export`: a training set into Parquet, by a running server and on its own, the same as the SDK gets."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from conftest import StartLarder
from larder_env.process import free_ports
from larder_env.repo import write_config
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


def export(binary: Path, repo: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`larder export -c repo`."""
    command = [str(binary), "export", "-c", str(repo), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


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

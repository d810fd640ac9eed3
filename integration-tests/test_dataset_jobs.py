"""Dataset jobs: a retrieval that the registry server runs and keeps, beside Feast's own registry server.

The same request goes to both, each writes a file of its own, and what is told of the job, registered, written and
previewed is compared. Where the two differ on purpose, the difference is named here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pandas as pd
import pytest
import requests
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, Project, ValueType
from feast.protos.feast.registry import RegistryServer_pb2 as pb
from feast.protos.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from feast.types import Array, Float64, Int64, String
from google.protobuf.json_format import MessageToDict

from conftest import StartLarder
from feast_server import FeastRegistry
from larder_env.process import wait_until
from larder_env.repo import store, write_config
from larder_env.server import Larder, Ports
from test_registry import rpc

PROJECT = "rides"
DAY = datetime(2026, 1, 1, tzinfo=UTC)
FEATURES = ["stats:trips", "stats:rate", "stats:rating", "stats:route"]
ENDED = {"completed", "failed"}


def objects(data: Path) -> list[object]:
    """A view on one key, a view on two, and a service with an alias."""
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)
    file = FileSource(name="stats_file", path=str(data / "stats.parquet"), timestamp_field="event_timestamp")
    fares_file = FileSource(name="fares_file", path=str(data / "fares.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name="trips", dtype=Int64), Field(name="rate", dtype=Float64)]
    schema += [Field(name="rating", dtype=String), Field(name="route", dtype=Array(Int64))]
    stats = FeatureView(name="stats", entities=[driver], ttl=timedelta(days=30), source=file, schema=schema)
    fare = [Field(name="fare", dtype=Float64)]
    fares = FeatureView(name="fares", entities=[driver, city], ttl=timedelta(days=30), source=fares_file, schema=fare)
    service = FeatureService(name="activity", features=[stats[["trips", "rate"]]])
    return [Project(name=PROJECT), driver, city, file, fares_file, stats, fares, service]


def tables(data: Path) -> None:
    """Three days of four drivers."""
    data.mkdir(parents=True)
    rows = [
        {
            "driver_id": driver,
            "event_timestamp": DAY + timedelta(days=day),
            "trips": driver * 10 + day,
            "rate": None if driver == 2 else day / 4,
            "rating": "abc"[day],
            "route": [driver, day],
            "city": "ab"[driver % 2],
            "fare": driver + day / 2,
        }
        for day in range(3)
        for driver in range(1, 5)
    ]
    frame = pd.DataFrame(rows)
    frame.drop(columns=["city", "fare"]).to_parquet(data / "stats.parquet")
    frame[["driver_id", "city", "event_timestamp", "fare"]].to_parquet(data / "fares.parquet")
    asked = pd.DataFrame({"driver_id": [4, 1, 1, 9], "event_timestamp": [DAY + timedelta(days=1, hours=1)] * 4})
    asked.to_parquet(data / "asked.parquet")
    text = asked.assign(event_timestamp=asked["event_timestamp"].map(lambda time: time.isoformat()))
    text.rename(columns={"event_timestamp": "timestamp"}).to_parquet(data / "asked_in_text.parquet")


@dataclass
class Pair:
    """Our registry and Feast's, and where each writes."""

    ours: RegistryServerStub
    feasts: RegistryServerStub
    repo: Path
    data: Path

    def __iter__(self) -> Iterator[tuple[str, RegistryServerStub]]:
        return iter((("ours", self.ours), ("feasts", self.feasts)))

    def run(self, **fields: object) -> tuple[pb.GetDatasetJobStatusResponse, pb.GetDatasetJobStatusResponse]:
        """Submit the same to both, each with a path of its own, and wait for the ends."""
        mine, theirs = (submit(calls, **asked(self.data, where, **fields)) for where, calls in self)
        return ended(self.ours, mine), ended(self.feasts, theirs)


def asked(data: Path, where: str, **fields: object) -> dict[str, object]:
    """A request's fields with what most have in common."""
    name = fields.setdefault("name", "set")
    usual: dict[str, object] = {
        "project": PROJECT,
        "entity_source_type": "inline",
        "storage_type": "file",
        "storage_path": str(data / where / f"{name}.parquet"),
    }
    return usual | fields


def submit(calls: RegistryServerStub, **fields: object) -> str:
    """Submit a job; its id."""
    answer = calls.CreateDatasetFromRetrieval(pb.CreateDatasetFromRetrievalRequest(**fields))  # type: ignore[arg-type]
    assert answer.status in {"pending", "running"}
    return answer.job_id


def status(calls: RegistryServerStub, job: str) -> pb.GetDatasetJobStatusResponse:
    """How a job goes."""
    return calls.GetDatasetJobStatus(pb.GetDatasetJobStatusRequest(job_id=job))


def ended(calls: RegistryServerStub, job: str) -> pb.GetDatasetJobStatusResponse:
    """Wait for a job's end."""
    wait_until(lambda: status(calls, job).status in ENDED, f"the end of dataset job {job}", 60)
    return status(calls, job)


def preview(calls: RegistryServerStub, name: str, limit: int = 0) -> pb.GetDatasetDataResponse:
    """The first rows of a dataset."""
    return calls.GetDatasetData(pb.GetDatasetDataRequest(name=name, project=PROJECT, limit=limit))


def refused(calls: RegistryServerStub, call: str, request: object) -> tuple[str, str]:
    """The code and the message of a refusal."""
    with pytest.raises(grpc.RpcError) as raised:
        getattr(calls, call)(request)
    details = raised.value.details()
    return raised.value.code().name, json.loads(details)["message"] if details.startswith("{") else details


@pytest.fixture(scope="module")
def pair(module_larder: StartLarder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers over the same tables."""
    work = tmp_path_factory.mktemp("jobs")
    tables(work / "data")
    for where in ("ours", "feasts"):
        (work / "data" / where).mkdir()
    repo, ports = work / "repo", Ports.free()
    write_config(repo, PROJECT, ports)
    module_larder(repo, ports=ports)
    store(repo).apply(objects(work / "data"))  # type: ignore[arg-type]
    theirs = FeastRegistry(work / "feast", PROJECT)
    FeatureStore(repo_path=str(theirs.repo)).apply(objects(work / "data"))  # type: ignore[arg-type]
    theirs.start()
    yield Pair(rpc(ports), theirs.calls, repo, work / "data")
    theirs.kill()


LATE = "2026-01-03T12:00:00Z"
SAME: dict[str, dict[str, object]] = {
    "one_key": {"features": FEATURES, "entity_keys": ["driver_id"], "entity_values": "1, 2\n3,9", "end_date": LATE},
    "spread": {
        "features": ["stats:trips"],
        "entity_keys": ["driver_id"],
        "entity_values": "1,1,1",
        "start_date": "2026-01-01",
        "end_date": "2026-01-03",
    },
    "two_keys": {
        "features": ["fares:fare", "stats:trips"],
        "entity_keys": ["driver_id", "city"],
        "entity_values": "1,b\n2,a\n2,b\n3",
        "end_date": LATE,
        "tags": {"team": "x"},
    },
    "service": {
        "feature_service_name": "activity",
        "entity_keys": ["driver_id"],
        "entity_values": "1",
        "end_date": LATE,
        "extra_columns": "k=1\nrate_limit = 0.5\nnothing",
    },
}


def written(file: Path) -> pd.DataFrame:
    """What a job wrote, without the order of its rows, which is not Feast's strength."""
    frame = pd.read_parquet(file)
    frame["event_timestamp"] = frame["event_timestamp"].astype("datetime64[us, UTC]")
    for column in ("route",):
        if column in frame:
            frame[column] = [None if value is None else list(value) for value in frame[column]]
    keys = [name for name in ("driver_id", "city", "event_timestamp") if name in frame]
    return frame.sort_values(keys).reset_index(drop=True)


@pytest.mark.parametrize("name", SAME)
def test_a_job_keeps_and_registers_what_feasts_does(pair: Pair, name: str) -> None:
    mine, theirs = pair.run(name=name, **SAME[name])
    assert (mine.status, mine.error) == (theirs.status, theirs.error) == ("completed", "")
    assert (mine.dataset_name, mine.project) == (theirs.dataset_name, theirs.project) == (name, PROJECT)
    assert datetime.fromisoformat(mine.created_at) <= datetime.fromisoformat(mine.completed_at)
    ours, feasts = (written(pair.data / where / f"{name}.parquet") for where, _ in pair)
    pd.testing.assert_frame_equal(ours, feasts)
    got = pb.GetSavedDatasetRequest(name=name, project=PROJECT)
    datasets = [MessageToDict(calls.GetSavedDataset(got)) for _, calls in pair]
    for where, dataset in zip(("ours", "feasts"), datasets, strict=True):
        assert dataset["spec"]["storage"]["fileStorage"].pop("uri").endswith(f"{where}/{name}.parquet")
        assert dataset["meta"].pop("createdTimestamp")
        dataset["meta"].pop("lastUpdatedTimestamp", None)
        dataset["spec"].pop("project", None)
        # Feast's come out of a set
        dataset["spec"]["joinKeys"].sort()
    # the service that the features are of, which Feast does not note here
    assert datasets[0]["spec"].pop("featureServiceName", "") == SAME[name].get("feature_service_name", "")
    assert datasets[0] == datasets[1]


@pytest.mark.parametrize("name", SAME)
def test_the_sdk_reads_what_a_job_kept(pair: Pair, name: str) -> None:
    if not (pair.data / "ours" / f"{name}.parquet").exists():
        pair.run(name=name, **SAME[name])
    sdk = store(pair.repo)
    dataset = sdk.registry.get_saved_dataset(name, PROJECT)
    assert {ref.split(":")[1] for ref in dataset.features} <= set(written(pair.data / "ours" / f"{name}.parquet"))
    assert dataset.name in {found.name for found in sdk.registry.list_saved_datasets(PROJECT)}


def as_json(answer: pb.GetDatasetDataResponse) -> list[dict[str, object]]:
    """Rows by column; what is no JSON, as Feast writes NaN and arrays, as None and as lists."""

    def value(text: str) -> object:
        read = json.loads(text, parse_constant=lambda _: None)
        if isinstance(read, str) and read.startswith("["):
            return [int(word) for word in read.strip("[]").split()]
        return read

    rows = [dict(zip(answer.columns, map(value, row.values), strict=True)) for row in answer.rows]
    return sorted(rows, key=lambda row: json.dumps([row.get("driver_id"), row.get("city"), row["event_timestamp"]]))


@pytest.mark.parametrize("name", SAME)
def test_a_preview_is_feasts(pair: Pair, name: str) -> None:
    if not (pair.data / "ours" / f"{name}.parquet").exists():
        pair.run(name=name, **SAME[name])
    ours, feasts = (preview(calls, name) for _, calls in pair)
    assert as_json(ours) == as_json(feasts)
    assert (ours.total_rows, ours.sample_size) == (feasts.total_rows, feasts.sample_size)
    # ours are keys, features as they were asked for, time; Feast's are in any order
    assert sorted(ours.columns) == sorted(feasts.columns)
    refs = store(pair.repo).registry.get_saved_dataset(name, PROJECT).features
    assert [name for name in ours.columns if f"stats:{name}" in refs] == [
        ref.split(":")[1] for ref in refs if ref.startswith("stats:")
    ]
    for row in ours.rows:
        for text in row.values:
            # strictly JSON: no NaN, no text of a list
            assert not isinstance(json.loads(text, parse_constant=pytest.fail), float) or "." in text


def test_a_preview_says_how_many_there_are(pair: Pair) -> None:
    fields = SAME["one_key"] | {"entity_values": ",".join(map(str, range(1, 31)))}
    pair.run(name="many", **fields)
    for limit, size in ((0, 10), (-3, 10), (7, 7), (50, 30)):
        ours, feasts = (preview(calls, "many", limit) for _, calls in pair)
        assert len(ours.rows) == len(feasts.rows) == ours.sample_size == feasts.sample_size == size
        # Feast's total is that of the sample
        assert (ours.total_rows, feasts.total_rows) == (30, size)
    # who names no project means the server's own
    for _, calls in pair:
        assert calls.GetDatasetData(pb.GetDatasetDataRequest(name="many")).sample_size == 10
    too_many = pb.GetDatasetDataRequest(name="many", project=PROJECT, limit=10_001)
    code, message = refused(pair.ours, "GetDatasetData", too_many)
    assert code == "INVALID_ARGUMENT"
    assert "10000" in message


def test_entity_rows_from_a_file_stay_as_they_are(pair: Pair) -> None:
    fields = {
        "features": ["stats:trips"],
        "entity_source_type": "reference",
        "entity_source_path": str(pair.data / "asked.parquet"),
        "extra_columns": "k=1\nrequest=x",
    }
    mine, theirs = pair.run(name="file", **fields)
    assert (mine.status, theirs.status) == ("completed", "completed"), (mine, theirs)
    ours, feasts = (pd.read_parquet(pair.data / where / "file.parquet") for where, _ in pair)
    assert list(ours.columns) == list(feasts.columns)
    assert ours["driver_id"].tolist() == [4, 1, 1, 9]
    assert ours["trips"].tolist()[:3] == [41, 11, 11]
    # Feast loses the row that is there twice, and the order
    assert sorted(feasts["driver_id"]) == [1, 4, 9]
    pd.testing.assert_frame_equal(
        ours.drop_duplicates().sort_values("driver_id").reset_index(drop=True),
        feasts.sort_values("driver_id").reset_index(drop=True),
    )


def test_times_in_text_are_event_times(pair: Pair) -> None:
    fields = {"entity_source_type": "reference", "entity_source_path": str(pair.data / "asked_in_text.parquet")}
    mine, theirs = pair.run(name="text", features=["stats:trips"], **fields)
    assert (mine.status, theirs.status) == ("completed", "completed"), (mine, theirs)
    # Feast keeps the column's name, and then finds no event_timestamp
    assert [json.loads(row.values[-1]) for row in preview(pair.ours, "text").rows] == ["2026-01-02 01:00:00+00:00"] * 4
    assert "event_timestamp" in refused(pair.feasts, "GetDatasetData", pb.GetDatasetDataRequest(name="text"))[1]


TRIPS: dict[str, object] = {
    "features": ["stats:trips"],
    "entity_keys": ["driver_id"],
    "entity_values": "1",
    "end_date": LATE,
}
FAILING: dict[str, tuple[dict[str, object], str]] = {
    # what is the same text as Feast's stands first
    "no_view": (TRIPS | {"features": ["nobody:trips"]}, "Feature view nobody does not exist in project rides"),
    "no_service": (
        TRIPS | {"features": [], "feature_service_name": "nobody"},
        "Feature service nobody does not exist in project rides",
    ),
    "no_values": (TRIPS | {"entity_values": ","}, "No entity values could be parsed from the input."),
    "no_feature": (TRIPS | {"features": ["stats:nobody"]}, "Feature nobody"),
    "no_key": (TRIPS | {"entity_keys": ["rider"]}, "driver_id"),
    "no_time": (TRIPS | {"end_date": "soon"}, "soon"),
    "text_for_a_number": (TRIPS | {"entity_values": "x"}, "driver_id"),
    "no_file": (TRIPS | {"entity_source_type": "reference", "entity_source_path": "/nowhere.parquet"}, "/nowhere"),
}
WORD_FOR_WORD = {"no_view", "no_service", "no_values"}


@pytest.mark.parametrize("name", FAILING)
def test_a_job_that_cannot_be_done_says_why(pair: Pair, name: str) -> None:
    fields, message = FAILING[name]
    mine, theirs = pair.run(name=name, **fields)
    assert (mine.status, theirs.status) == ("failed", "failed")
    assert message in mine.error
    assert message in theirs.error
    assert name not in WORD_FOR_WORD or mine.error == theirs.error
    assert mine.completed_at
    for where, calls in pair:
        assert not (pair.data / where / f"{name}.parquet").exists()
        request = pb.GetSavedDatasetRequest(name=name, project=PROJECT)
        assert refused(calls, "GetSavedDataset", request)[0] == "NOT_FOUND"


def test_nothing_is_written_over_unless_that_is_asked_for(pair: Pair) -> None:
    assert {job.status for job in pair.run(name="again", **TRIPS)} == {"completed"}
    for job, (where, _) in zip(pair.run(name="again", **TRIPS), pair, strict=True):
        path = pair.data / where / "again.parquet"
        assert (job.status, job.error) == ("failed", f"Saved dataset location {path} already exists.")
    over = TRIPS | {"entity_values": "2", "allow_overwrite": True}
    assert {job.status for job in pair.run(name="again", **over)} == {"completed"}
    for where, calls in pair:
        assert written(pair.data / where / "again.parquet")["driver_id"].tolist() == [2]
        assert [row["driver_id"] for row in as_json(preview(calls, "again"))] == [2]


def test_jobs_are_listed_the_latest_first(pair: Pair) -> None:
    for n in range(3):
        pair.run(name=f"listed_{n}", **TRIPS)
    pair.run(name="listed_not", **(TRIPS | {"features": ["nobody:x"]}))
    lists = []
    for _, calls in pair:
        found = {}
        for word in ("", "pending", "running", "completed", "failed"):
            for project in ("", PROJECT, "nobody"):
                jobs = calls.ListDatasetJobs(pb.ListDatasetJobsRequest(project=project, status_filter=word)).jobs
                found[word, project] = [job.dataset_name for job in jobs if job.dataset_name.startswith("listed_")]
        lists.append(found)
    assert lists[0] == lists[1]
    assert lists[0]["", PROJECT] == ["listed_not", "listed_2", "listed_1", "listed_0"]
    # a word that is none lists everything at Feast's; here it is told
    assert pair.feasts.ListDatasetJobs(pb.ListDatasetJobsRequest(status_filter="odd")).jobs
    code, message = refused(pair.ours, "ListDatasetJobs", pb.ListDatasetJobsRequest(status_filter="odd"))
    assert code == "INVALID_ARGUMENT"
    assert "pending, running, completed, failed" in message


def test_what_is_not_there_is_refused_as_feast_does(pair: Pair) -> None:
    for call, request in (
        ("GetDatasetJobStatus", pb.GetDatasetJobStatusRequest(job_id="x")),
        ("GetDatasetData", pb.GetDatasetDataRequest(name="nothing", project=PROJECT)),
        ("GetDatasetData", pb.GetDatasetDataRequest(name="nothing", project="nobody")),
    ):
        ours, feasts = (refused(calls, call, request) for _, calls in pair)
        assert ours == feasts
        assert ours[0] == "NOT_FOUND"


REFUSED: dict[str, tuple[dict[str, object], str, str]] = {
    # Feast's REST face says these; its gRPC face starts a job that can only fail, or a dataset without a name
    "no name": ({"name": " "}, "INVALID_ARGUMENT", "Dataset name is required."),
    "no project": ({"project": ""}, "INVALID_ARGUMENT", "Project is required."),
    "no path": ({"storage_path": ""}, "INVALID_ARGUMENT", "Storage path (output destination) is required."),
    "no features": ({"features": []}, "INVALID_ARGUMENT", "Either feature_service_name or features list is required."),
    "no keys": (
        {"entity_keys": []},
        "INVALID_ARGUMENT",
        "entity_keys is required when entity_source_type is 'inline'.",
    ),
    "no values": (
        {"entity_values": " "},
        "INVALID_ARGUMENT",
        "entity_values is required when entity_source_type is 'inline'.",
    ),
    "no source": (
        {"entity_source_type": "reference"},
        "INVALID_ARGUMENT",
        "entity_source_path is required when entity_source_type is 'reference'.",
    ),
    "a key twice": ({"entity_keys": ["driver_id", "driver_id"]}, "INVALID_ARGUMENT", "'driver_id'"),
    "nobody's project": ({"project": "nobody"}, "NOT_FOUND", "Project nobody does not exist"),
    # Feast writes a file where it does not know the word, and asks a warehouse that is not configured where it does
    "a warehouse": ({"storage_type": "bigquery"}, "UNIMPLEMENTED", "'bigquery'"),
    "no storage at all": ({"storage_type": "floppy"}, "UNIMPLEMENTED", "'floppy'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_only_fail_is_refused_at_once(pair: Pair, what: str) -> None:
    fields, code, message = REFUSED[what]
    before = len(pair.ours.ListDatasetJobs(pb.ListDatasetJobsRequest()).jobs)
    request = pb.CreateDatasetFromRetrievalRequest(**asked(pair.data, "ours", **(TRIPS | fields)))  # type: ignore[arg-type]
    got = refused(pair.ours, "CreateDatasetFromRetrieval", request)
    assert got[0] == code
    assert message in got[1]
    assert len(pair.ours.ListDatasetJobs(pb.ListDatasetJobsRequest()).jobs) == before


# so many take longer than it takes to ask whether the job runs, in whatever build
ROWS = 100_000


@dataclass
class Busy:
    """A server with jobs that take their time."""

    larder: Larder
    calls: RegistryServerStub
    data: Path

    def submit(self, count: int) -> list[str]:
        """Jobs with a great many entity rows each."""
        fields = {"entity_source_type": "reference", "entity_source_path": str(self.data / "great.parquet")}
        names = [f"great_{n}" for n in range(count)]
        usual = [asked(self.data, "ours", name=name, features=FEATURES, **fields) for name in names]
        return [submit(self.calls, **each) for each in usual]

    def statuses(self, jobs: list[str]) -> list[str]:
        """How the jobs go."""
        return [status(self.calls, job).status for job in jobs]

    def wait_running(self, jobs: list[str]) -> None:
        """Until one runs, and the last still waits."""
        wait_until(lambda: "running" in self.statuses(jobs), "a job to run", 30, 0.01)


@pytest.fixture(params=["embedded", "file"])
def busy(request: pytest.FixtureRequest, larder: StartLarder, tmp_path: Path) -> Busy:
    """With the embedded registry, and with a registry file."""
    data = tmp_path / "data"
    tables(data)
    (data / "ours").mkdir()
    rows = ROWS
    drivers = pd.Series(range(rows)) % 7
    times = pd.Series(pd.to_datetime([DAY + timedelta(days=1)] * 7)).sample(rows, replace=True, random_state=1)
    great = pd.DataFrame({"driver_id": drivers, "event_timestamp": times.reset_index(drop=True)})
    great.to_parquet(data / "great.parquet")
    repo, ports = tmp_path / "repo", Ports.free()
    write_config(repo, PROJECT, ports)
    if request.param == "file":
        text = (repo / "larder.yaml").read_text() + f"registry: {{type: file, path: {tmp_path / 'registry.db'}}}\n"
        (repo / "larder.yaml").write_text(text)
    server = larder(repo, ports=ports)
    store(repo).apply(objects(data))  # type: ignore[arg-type]
    return Busy(server, rpc(ports), data)


def test_what_a_crash_interrupts_has_failed_and_what_waited_is_done(busy: Busy) -> None:
    jobs = busy.submit(4)
    busy.wait_running(jobs)
    busy.larder.kill()
    busy.larder.start()
    ends = [ended(busy.calls, job) for job in jobs]
    failed = [job for job in ends if job.status == "failed"]
    assert 1 <= len(failed) <= 2, ends
    assert {job.error for job in failed} == {"The server went down while the job ran: submit it again."}
    assert all(job.completed_at for job in ends)
    for job in ends:
        # what is registered is whole, and what failed left nothing behind that is
        request = pb.GetSavedDatasetRequest(name=job.dataset_name, project=PROJECT)
        if job.status == "completed":
            assert len(pd.read_parquet(busy.data / "ours" / f"{job.dataset_name}.parquet")) == ROWS
            assert busy.calls.GetSavedDataset(request).spec.name == job.dataset_name
        else:
            assert refused(busy.calls, "GetSavedDataset", request)[0] == "NOT_FOUND"


def test_what_a_crash_leaves_of_a_job_goes_with_the_next_start(busy: Busy) -> None:
    def left() -> list[Path]:
        return list((busy.data / "ours").iterdir())

    (job,) = busy.submit(1)
    wait_until(left, "a part of the file", 30, 0.001)
    busy.larder.kill()
    assert [file.suffix for file in left()] == [".part"]
    busy.larder.start()
    assert ended(busy.calls, job).status == "failed"
    assert left() == []


def test_what_a_stop_interrupts_goes_on_after_it(busy: Busy) -> None:
    jobs = busy.submit(3)
    busy.wait_running(jobs)
    assert busy.larder.stop() == 0
    assert not list((busy.data / "ours").glob(".*")), "a part of a file stayed behind"
    busy.larder.start()
    ends = [ended(busy.calls, job) for job in jobs]
    assert [(job.status, job.error) for job in ends] == [("completed", "")] * 3
    for job in ends:
        assert len(pd.read_parquet(busy.data / "ours" / f"{job.dataset_name}.parquet")) == ROWS


def test_a_projects_delete_takes_its_jobs_along(busy: Busy) -> None:
    jobs = busy.submit(3)
    busy.wait_running(jobs)
    busy.calls.DeleteProject(pb.DeleteProjectRequest(name=PROJECT))
    for job in jobs:
        request = pb.GetDatasetJobStatusRequest(job_id=job)
        assert refused(busy.calls, "GetDatasetJobStatus", request)[0] == "NOT_FOUND"
    # at the stop everything has come to its end: the project must not have come back with a dataset
    busy.larder.restart()
    assert not busy.calls.ListProjects(pb.ListProjectsRequest()).projects
    assert not busy.calls.ListDatasetJobs(pb.ListDatasetJobsRequest()).jobs


def test_a_job_that_waits_or_runs_can_be_cancelled_and_leaves_nothing(busy: Busy) -> None:
    jobs = busy.submit(3)
    busy.wait_running(jobs)
    running = jobs[busy.statuses(jobs).index("running")]
    for job in {running, jobs[-1]}:
        answered = requests.delete(f"{busy.larder.online_url}/jobs/{job}", timeout=30)
        assert answered.status_code == 200, answered.text
        # Feast knows no other word for it
        assert [told["status"] for told in answered.json()["jobs"]] == ["failed"]
    ends = {job: ended(busy.calls, job) for job in jobs}
    for job, end in ends.items():
        cancelled = job in {running, jobs[-1]}
        assert (end.status, end.error) == (("failed", "The job was cancelled.") if cancelled else ("completed", ""))
        file = busy.data / "ours" / f"{end.dataset_name}.parquet"
        assert file.exists() != cancelled
    assert requests.delete(f"{busy.larder.online_url}/jobs/{running}", timeout=30).status_code == 409
    wait_until(lambda: not list((busy.data / "ours").glob(".*")), "the part of a file to go", 30)

"""Steps on Slurm, Ray and Hugging Face Jobs: stand-ins run what datatrove hands them, and no key is written."""

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from captioning.executors import ExecutorOptions, launch
from tests.captioning.cluster import (
    KEY,
    LOGS,
    PROGRAMS,
    ROOT,
    TOKEN,
    USER,
    JobsService,
    SlurmCluster,
    WriteRank,
    attempts,
    everything_in,
    outputs,
    run_quietly,
)
from tests.captioning.fault_server import Reply


CANARY = "sk-canary-5f1c9a"
SLURM = {"executor": "slurm", "partition": "cpu", "time": "0:10:00"}
VOLUME = "hf://buckets/tester/captions/job:/mnt/job:rw"
JOBS = {
    "executor": "hf-jobs",
    "logging_dir": f"hf://datasets/{LOGS}/runs",
    "dependencies": ["sharegpt4v @ https://files.example/sharegpt4v.whl"],
    "poll_seconds": 0.1,
}
LAUNCH = """
import json, sys
from pathlib import Path
from captioning.executors import ExecutorOptions, launch
from tests.captioning.cluster import WriteRank
step, options, folder = json.loads(sys.argv[1])
print(launch(WriteRank(*step), ExecutorOptions(**options), Path(folder), "captions"))
"""


@pytest.fixture
def work(tmp_path) -> Path:
    """Folder in which tasks write."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> SlurmCluster:
    """A cluster whose login node this process is on, with a key in the environment."""
    cluster = SlurmCluster(tmp_path)
    for name, value in {**cluster.environment, KEY: CANARY}.items():
        monkeypatch.setenv(name, value)
    for name in ("LOGURU_DIAGNOSE", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return cluster


def markers(folder: Path) -> list[str]:
    """Tasks that are marked as complete."""
    return sorted(path.name for path in folder.glob("completions/*"))


def test_slurm_runs_every_task_and_merges_their_statistics(slurm, work, tmp_path):
    options = ExecutorOptions(**SLURM, tasks=2, workers=1, cpus_per_task=4, sbatch={"account": "captions"})
    said = launch(WriteRank(str(work)), options, tmp_path / "logs", "captions")
    assert said == f"Slurm job 1 with up to 2 tasks, logs in {tmp_path / 'logs'}"
    assert markers(tmp_path / "logs") == ["00000", "00001"]
    expected = {
        "tasks": 2, "has_key": True, "DATATROVE_EXECUTOR": "SLURM", "DATATROVE_NODE_IPS": "node1",
        "LOGURU_DIAGNOSE": "NO", "SLURM_CPUS_PER_TASK": "4",
    }  # fmt: skip
    assert outputs(work) == {0: expected, 1: expected}
    tasks, merging = slurm.jobs()
    assert tasks["codes"] == {"0": 0, "1": 0} and merging["codes"] == {"0": 0}
    chosen = {name: tasks["options"][name] for name in ("array", "partition", "time", "account", "job-name")}
    assert chosen == {
        "array": "0-1%1", "partition": "cpu", "time": "0:10:00", "account": "captions", "job-name": "captions",
    }  # fmt: skip
    assert (tmp_path / "logs" / "stats.json").is_file()
    assert CANARY.encode() not in everything_in(tmp_path)


def test_slurm_runs_only_what_failed_when_started_again(slurm, work, tmp_path):
    step, options = WriteRank(str(work), failing=(1,)), ExecutorOptions(**SLURM, tasks=2)
    launch(step, options, tmp_path / "logs", "captions")
    assert markers(tmp_path / "logs") == ["00000"]
    tasks, merging = slurm.jobs()
    assert tasks["codes"]["1"] != 0 and merging["codes"] == {}
    (work / "mended").touch()
    launch(step, options, tmp_path / "logs", "captions")
    assert attempts(work) == [0, 1, 1] and sorted(outputs(work)) == [0, 1]
    assert "Nothing to start" in launch(step, options, tmp_path / "logs", "captions")
    assert attempts(work) == [0, 1, 1]


def test_slurm_runs_every_task_again_with_another_folder_of_logs(slurm, work, tmp_path):
    options = ExecutorOptions(**SLURM, tasks=1)
    for run in ("first", "second"):
        launch(WriteRank(str(work)), options, tmp_path / run, "captions")
    assert attempts(work) == [0, 0]


def test_a_task_that_fails_under_slurm_writes_no_key(slurm, work, tmp_path):
    launch(WriteRank(str(work), failing=(0,)), ExecutorOptions(**SLURM, tasks=1), tmp_path / "logs", "captions")
    written = everything_in(tmp_path)
    assert written.count(b"task 0 has no luck") >= 2  # in the log of the task and in that of Slurm
    assert CANARY.encode() not in written
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    environment = {**os.environ, "LOGURU_DIAGNOSE": "YES", "SLURM_ARRAY_TASK_ID": "0", "SLURM_NODELIST": "node[1-1]"}
    program = str(PROGRAMS / "launch_pickled_pipeline")
    shown = run_quietly(code, environment, program, str(tmp_path / "logs" / "executor.pik")).stdout
    assert CANARY in shown  # so this test would see it


def test_a_refusal_of_sbatch_is_told(slurm, work, tmp_path):
    slurm.refuse()
    with pytest.raises(RuntimeError, match="refused .*launch_script.slurm .*Nothing was started"):
        launch(WriteRank(str(work)), ExecutorOptions(**SLURM, tasks=1), tmp_path / "logs", "captions")
    assert slurm.jobs() == [] and not outputs(work)


def test_a_job_that_runs_is_named_when_sbatch_refuses_what_follows(slurm, work, tmp_path):
    slurm.refuse(all_jobs=False)
    with pytest.raises(RuntimeError, match="took Slurm job 1.*`scancel 1`"):
        launch(WriteRank(str(work)), ExecutorOptions(**SLURM, tasks=1), tmp_path / "logs", "captions")
    assert sorted(outputs(work)) == [0]


def test_slurm_is_not_started_where_it_cannot_work(slurm, work, tmp_path, monkeypatch):
    step, options = WriteRank(str(work)), ExecutorOptions(**SLURM, tasks=1)
    with pytest.raises(ValueError, match="has a blank"):
        launch(step, options, tmp_path / "my logs", "captions")
    with pytest.raises(ValueError, match="`name` must be"):
        launch(step, options, tmp_path / "logs", 'a"; rm')
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    with pytest.raises(RuntimeError, match="inside a task"):
        launch(step, options, tmp_path / "logs", "captions")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no `sbatch`"):
        launch(step, options, tmp_path / "logs", "captions")
    assert slurm.jobs() == []


@pytest.fixture
def ray_logs(monkeypatch):
    """Folder of a Ray instance on this machine, whose tasks have a key in their environment."""
    ray = pytest.importorskip("ray", reason="Ray is not installed; `pip install ray` makes this test run")
    for name, value in {KEY: CANARY, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # its sockets want short paths
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder)
        yield Path(folder)
        ray.shutdown()


def test_ray_runs_every_task_and_writes_no_key(ray_logs, work, tmp_path):
    options = ExecutorOptions("ray", tasks=3, workers=2, mem_per_cpu_gb=1)
    said = launch(WriteRank(str(work), failing=(1,)), options, tmp_path / "logs", "captions")
    assert said == f"Ray ran captions: 2 of 3 tasks completed, failed: 1; logs in {tmp_path / 'logs'}"
    seen = [(one["DATATROVE_EXECUTOR"], one["has_key"], one["LOGURU_DIAGNOSE"]) for one in outputs(work).values()]
    assert seen == [("RAY", True, "NO")] * 2 and markers(tmp_path / "logs") == ["00000", "00002"]
    written = everything_in(tmp_path) + everything_in(ray_logs / "session_latest" / "logs")
    assert written.count(b"task 1 has no luck") >= 2 and CANARY.encode() not in written


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_says_how_to_get_it(work, tmp_path):
    with pytest.raises(ImportError, match="`pip install ray`"):
        launch(WriteRank(str(work)), ExecutorOptions("ray", tasks=1), tmp_path / "logs", "captions")


def launch_jobs(service: JobsService, step: list[Any], run: str = "run-1", token: str = TOKEN, **options: Any):
    """Launch in a process that takes the stand-in for the Hub; the outcome."""
    home = service.folder / "laptop"
    environment = {
        **service.settings(token), "HF_HUB_OFFLINE": "0", "HOME": str(home), KEY: CANARY,
        "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"],
    }  # fmt: skip
    return run_quietly(LAUNCH, environment, json.dumps([step, {**JOBS, **options}, run]))


def names_in(service: JobsService, folder: str) -> list[str]:
    """Files of a folder of the dataset with logs, sorted."""
    start = f"runs/captions/{folder}/"
    return sorted(name.removeprefix(start) for name in service.files if name.startswith(start))


def shown_by(service: JobsService) -> bytes:
    """All that is stored or was written to a terminal."""
    return b"".join(service.files.values()) + everything_in(service.folder)


def test_jobs_run_every_task_with_volumes_and_secrets(work, tmp_path):
    with JobsService(tmp_path / "hub", lost=(0,)) as service:
        service.faults = {
            f"POST /api/jobs/{USER}": [
                Reply(status=429, headers={"retry-after": "0"}),
                Reply(status=503, headers={"retry-after": "0"}),
            ],
            f"GET /api/jobs/{USER}/job-1": [Reply(status=502, headers={"retry-after": "0"})],
        }
        done = launch_jobs(service, [str(work)], tasks=3, workers=2, volumes=[VOLUME], secrets=[KEY], timeout="2h")
    where = f"hf://datasets/{LOGS}/runs/captions/run-1"
    assert done.stdout.splitlines()[-1] == (f"Hugging Face Jobs ran captions: 3 of 3 tasks completed; logs in {where}")
    assert [(one["DATATROVE_EXECUTOR"], one["has_key"], one["LOGURU_DIAGNOSE"]) for one in outputs(work).values()] == [
        ("JOBS", True, "NO")
    ] * 3
    assert attempts(work) == [0, 1, 2]
    assert {f"completions/{rank:05d}" for rank in range(3)} | {"stats.json"} <= set(names_in(service, "run-1"))
    assert [spec["environment"]["DATATROVE_JOB_ARRAY_INDEX"] for spec in service.specs] == ["0", "1", "2", "0"]
    assert service.most_at_once <= 2 and service.asked("GET /api/whoami-v2") <= 2 + 2 * len(service.specs)
    for spec in service.specs:
        assert spec["secrets"] == {"HF_TOKEN": TOKEN, KEY: CANARY} and spec["timeoutSeconds"] == 7200
        assert CANARY not in json.dumps(spec["environment"]) + " ".join(spec["command"])
        assert spec["volumes"] == [
            {"type": "bucket", "source": "tester/captions", "mountPath": "/mnt/job", "readOnly": False, "path": "job"}
        ]
        assert spec["command"][:2] == ["uv", "run"] and JOBS["dependencies"][0] in spec["command"]
        assert spec["command"][-2:] == ["launch_pickled_pipeline", f"{where}/executor.pik"]
    stored = shown_by(service) + done.stdout.encode()
    assert KEY.encode() in stored  # the name is kept
    assert CANARY.encode() not in stored and TOKEN.encode() not in stored


def test_a_task_that_fails_in_a_job_is_tried_twice_and_then_when_started_again(work, tmp_path):
    with JobsService(tmp_path / "hub") as service:
        done = launch_jobs(service, [str(work), [1]], tasks=2, secrets=[KEY])
        assert "1 of 2 tasks completed, failed: 1" in done.stdout.splitlines()[-1]
        assert attempts(work) == [0, 1, 1] and "stats.json" not in names_in(service, "run-1")
        shown = shown_by(service) + done.stdout.encode()
        assert b"task 1 has no luck" in shown
        assert CANARY.encode() not in shown and TOKEN.encode() not in shown
        (work / "mended").touch()
        done = launch_jobs(service, [str(work), [1]], tasks=2, secrets=[KEY])
    assert "2 of 2 tasks completed" in done.stdout.splitlines()[-1]
    assert attempts(work) == [0, 1, 1, 1]


def test_jobs_that_never_ran_are_an_error(work, tmp_path):
    with JobsService(tmp_path / "hub", lost=(0, 1)) as service:
        done = launch_jobs(service, [str(work)], tasks=1)
    assert done.returncode == 1 and len(service.specs) == 2
    assert "RuntimeError: Hugging Face Jobs ran captions, and none of 1 tasks was completed." in done.stdout


def test_jobs_that_go_on_are_named_when_no_more_are_taken(work, tmp_path):
    with JobsService(tmp_path / "hub") as service:
        service.faults = {f"POST /api/jobs/{USER}": [None, Reply(b'{"error": "No credits left."}', 402)]}
        done = launch_jobs(service, [str(work)], tasks=2)
    assert "go on: job-0. `hf jobs cancel ID` stops one." in done.stdout
    assert "RuntimeError: The Hub answered 402: No credits left." in done.stdout.splitlines()[-1]


def test_a_refused_token_is_told_and_not_shown(work, tmp_path):
    with JobsService(tmp_path / "hub") as service:
        done = launch_jobs(service, [str(work)], token="hf_wrongwrong", tasks=1)
    last = done.stdout.splitlines()[-1]
    assert "RuntimeError: The Hub answered 401" in last and "`hf auth login`" in last
    assert "hf_wrongwrong" not in done.stdout and service.specs == []


def test_a_secret_that_the_environment_lacks_is_named(work, tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="`secrets` names SOME_KEY"):
        launch(WriteRank(str(work)), ExecutorOptions(**JOBS, tasks=1, secrets=("SOME_KEY",)), tmp_path, "captions")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "pbs", "tasks": 1}, "`executor` must be one of slurm, ray, hf-jobs"),
        ({**SLURM, "tasks": 0}, "`tasks` must be at least 1"),
        ({**SLURM, "tasks": 1, "workers": 0}, "`workers` must be at least 1, or -1"),
        ({**SLURM, "tasks": 1, "partition": ""}, "`partition` is required"),
        ({**SLURM, "tasks": 1, "flavor": "a10g-small"}, "`flavor` is an option of hf-jobs"),
        ({"executor": "ray", "tasks": 1, "sbatch": {"account": "a"}}, "`sbatch` is an option of slurm"),
        ({**SLURM, "tasks": 1, "sbatch": {"array": "0-9"}}, "must not hold array"),
        ({**SLURM, "tasks": 1, "sbatch": {"--account": "a"}}, "without dashes"),
        ({**SLURM, "tasks": 1, "sbatch": {"account": "a\nrm"}}, "line break"),
        ({**JOBS, "tasks": 1, "logging_dir": "/tmp/logs"}, "`logging_dir` must begin with hf://"),
        ({**JOBS, "tasks": 1, "dependencies": ()}, "`dependencies` is required"),
        ({**JOBS, "tasks": 1, "volumes": ("tester/captions:/mnt",)}, "`volumes` has 'tester/captions:/mnt'"),
        ({**JOBS, "tasks": 1, "timeout": "soon"}, "`timeout` must be a number"),
        ({**JOBS, "tasks": 1, "poll_seconds": 0}, "`poll_seconds` must be above 0"),
    ],
)
def test_bad_options_are_refused_with_a_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        ExecutorOptions(**options)


def test_a_key_in_place_of_its_name_is_not_repeated():
    with pytest.raises(ValueError, match="names of environment variables") as caught:
        ExecutorOptions(**JOBS, tasks=1, secrets=(CANARY,))
    assert CANARY not in str(caught.value)

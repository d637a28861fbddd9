"""A captioning job on a cluster: `launch` of the command line, by a stand-in of Slurm that runs what it is given."""

import pytest

from captioning.pipeline import job_status
from tests.captioning.cluster import SlurmCluster
from tests.captioning.fault_server import FaultServer
from tests.captioning.jobs import JobWorld
from tests.commands import run_command


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    cluster = SlurmCluster(tmp_path)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOGURU_DIAGNOSE", raising=False)
    return cluster


def test_slurm_tasks_share_a_job_and_a_second_launch_asks_nothing(slurm, tmp_path, capsys):
    with FaultServer() as server:
        world = JobWorld(tmp_path, server, count=12)
        world.plan()
        words = ("annotate", "launch", str(world.out), "--executor", "slurm", "--tasks", "2", "--partition", "cpu")
        started = run_command(capsys, *words, "--time", "0:10:00", "--json")
        assert started.code == 0, started.output
        tasks, _ = slurm.jobs()
        assert tasks["codes"] == {"0": 0, "1": 0}
        assert set(world.asked.values()) == {1} and len(world.asked) == 12
        assert job_status(world.out)["states"] == {"ok": 12}
        again = run_command(capsys, *words, "--time", "0:10:00")
        assert (again.code, len(slurm.jobs())) == (0, 2) and "Nothing is left to do" in again.output

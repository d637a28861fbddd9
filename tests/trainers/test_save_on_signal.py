"""Runs that SIGTERM or SIGUSR1 ends: a complete checkpoint, a code of its own, and the same bits after resumption."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.trainers.checkpoint_child import At, names, outcome, result, run_child, trainer
from trainers.checkpoint_folders import newest_complete
from trainers.save_on_signal import EXIT_TERMINATED, SIGNALS


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run ends with."""
    run = trainer(tmp_path_factory.mktemp("whole"))
    run.train()
    return outcome(run)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_step_it_arrives_in_and_the_resumed_run_ends_as_if_uninterrupted(whole, tmp_path, number):
    assert run_child(tmp_path, plan={"signal": (number, 3, "begin")}) == [EXIT_TERMINATED]
    assert result(tmp_path)["step"] == 3
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3"}
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-3", [])
    assert run_child(tmp_path, resume=True) == [0]
    assert {name: result(tmp_path)[name] for name in whole} == whole


def test_the_code_of_a_stopped_run_is_no_other():
    assert EXIT_TERMINATED not in {0, 1, 2, 128 + signal.SIGTERM, 128 + signal.SIGUSR1, 128 + signal.SIGKILL}


def test_a_signal_while_a_checkpoint_is_written_saves_no_second_one(tmp_path):
    assert run_child(tmp_path, plan={"signal": (signal.SIGTERM, 4, "save")}) == [EXIT_TERMINATED]
    assert result(tmp_path)["step"] == 4
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_stopped_run_saves_once_and_does_not_evaluate(tmp_path, strategy):
    options = {"save_strategy": "epoch", "eval_strategy": strategy, "eval_steps": 3}
    assert run_child(tmp_path, plan={"signal": (signal.SIGTERM, 3, "begin")}, **options) == [EXIT_TERMINATED]
    assert names(tmp_path) == {"checkpoint-3"}
    assert result(tmp_path)["evaluations"] == 0 and result(tmp_path)["saves"] == 1


def test_a_signal_saves_also_in_a_run_that_saves_nothing_else(tmp_path):
    plan = {"signal": (signal.SIGTERM, 3, "begin")}
    assert run_child(tmp_path, plan=plan, save_strategy="no") == [EXIT_TERMINATED]
    assert names(tmp_path) == {"checkpoint-3"}


def test_the_loss_up_to_the_signal_is_logged(tmp_path):
    run_child(tmp_path, plan={"signal": (signal.SIGTERM, 3, "begin")}, logging_steps=50)
    assert list(result(tmp_path)["losses"]) == [3]


def test_two_processes_agree_on_the_step_when_one_gets_the_signal(tmp_path):
    assert run_child(tmp_path / "whole", processes=2) == [0, 0]
    run = tmp_path / "run"
    plan = {"signal": (signal.SIGTERM, 3, "begin")}
    assert run_child(run, plan=plan, processes=2, guilty=1) == [EXIT_TERMINATED] * 2
    assert [result(run, rank)["step"] for rank in (0, 1)] == [3, 3]
    assert names(run) == {"checkpoint-2", "checkpoint-3"}
    assert run_child(run, resume=True, processes=2) == [0, 0]
    for rank in (0, 1):
        for name in ("losses", "weights"):
            assert result(run, rank)[name] == result(tmp_path / "whole", rank)[name]


def test_handlers_are_ours_in_training_only_also_when_it_fails(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    during: list = []

    def note():
        during.extend(signal.getsignal(number) for number in SIGNALS)

    trainer(tmp_path, callbacks=(At(1, note),), max_steps=1).train()
    assert not set(during) & set(before) and [signal.getsignal(number) for number in SIGNALS] == before

    def fail():
        raise OSError("a failing callback")

    with pytest.raises(OSError, match="a failing callback"):
        trainer(tmp_path, callbacks=(At(1, fail),)).train()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_handlers_of_the_caller_are_put_back(tmp_path):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        trainer(tmp_path, max_steps=1).train()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_run_that_came_to_its_end_was_stopped_by_nothing(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.train()
    assert run.stopped_by is None


def test_training_outside_of_the_main_thread_works_and_says_what_is_missing(whole, tmp_path, caplog):
    run = trainer(tmp_path)
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert outcome(run) == whole
    assert "SIGTERM and SIGUSR1 save no checkpoint" in caplog.text


def test_the_other_way_of_transformers_to_save_at_sigterm_is_refused(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="`enable_jit_checkpoint` must be False, got True"):
        trainer(tmp_path, enable_jit_checkpoint=True)
    assert signal.getsignal(signal.SIGTERM) == before


def torchrun(folder: Path, resume: str, steps: int) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    program = ["-m", "tests.trainers.checkpoint_child", str(folder), resume, str(steps)]
    return subprocess.Popen([*launcher, *program], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_torchrun_that_gets_a_signal_lets_its_processes_save(tmp_path):
    steps = 3000
    process = torchrun(tmp_path, "false", steps)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint-20").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) not in (0, EXIT_TERMINATED)  # a code of its own
    stopped = result(tmp_path)["step"]
    assert 20 <= stopped < steps and result(tmp_path, 1)["step"] == stopped
    assert newest_complete(tmp_path) == (tmp_path / f"checkpoint-{stopped}", [])
    assert torchrun(tmp_path, "true", stopped + 3).wait(120) == 0
    assert result(tmp_path)["step"] == result(tmp_path, 1)["step"] == stopped + 3

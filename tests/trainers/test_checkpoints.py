"""Complete checkpoints while a run is killed, short of disk space, limited in number, evaluated or pushed."""

import os
import random
import shutil
import signal
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState

from tests.trainers.checkpoint_child import At, names, outcome, result, run_child, trainer
from trainers.checkpoint_folders import INCOMPLETE, MARKER, list_checkpoints, newest_complete, verify_checkpoint
from trainers.checkpoints import CompleteCheckpoints


RANDOM_KILLS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 3 else []) for seed in range(20)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run in a process of its own reports; it has 8 steps, 6 an epoch, and saves every other."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_child(folder) == [0]
    return result(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    assert run_child(folder, processes=2) == [0, 0]
    return folder


def same(one: dict, other: dict) -> bool:
    return one["losses"] == other["losses"] and one["weights"] == other["weights"]


def assert_whole_checkpoints(folder: Path) -> None:
    assert names(folder) <= {INCOMPLETE, *(f"checkpoint-{step}" for step in range(1, 9))}
    assert {path.name: verify_checkpoint(path) for path in list_checkpoints(folder)} == {
        path.name: [] for path in list_checkpoints(folder)
    }


def test_the_training_is_that_of_transformers(whole, tmp_path):
    run = trainer(tmp_path, Trainer)
    run.train()
    assert same(outcome(run), whole)


@pytest.mark.parametrize("seed", RANDOM_KILLS)
def test_a_run_killed_at_any_file_leaves_whole_checkpoints_and_resumes_as_if_it_had_not_been(whole, tmp_path, seed):
    draw = random.Random(seed)
    killed_at = draw.randrange(2, whole["events"])
    assert run_child(tmp_path, plan={"killed_at": killed_at}, save_total_limit=1) == [-signal.SIGKILL]
    assert_whole_checkpoints(tmp_path)
    assert run_child(tmp_path, resume=True, save_total_limit=1) == [0]
    assert same(result(tmp_path), whole)
    assert names(tmp_path) == {"checkpoint-8"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_any_time_leaves_whole_checkpoints_and_resumes_as_if_it_had_not_been(whole, tmp_path, seed):
    seconds = random.Random(seed).uniform(0.001, 0.3)
    assert run_child(tmp_path, plan={"killed_after": seconds}) in ([0], [-signal.SIGALRM])
    assert_whole_checkpoints(tmp_path)
    assert run_child(tmp_path, resume=True) == [0]
    assert same(result(tmp_path), whole)


def test_a_run_killed_while_it_deletes_leaves_no_half_of_a_checkpoint(tmp_path):
    """The first deletion follows the second save; every file event from there on is tried, one in two."""
    assert run_child(tmp_path / "two", max_steps=4) == [0]
    assert run_child(tmp_path / "one", max_steps=4, save_total_limit=1) == [0]
    kept, deleted = result(tmp_path / "two")["events"], result(tmp_path / "one")["events"]
    assert deleted > kept + 7  # more than a file of a checkpoint each
    for killed_at in range(kept - 1, deleted, 2):
        folder = tmp_path / str(killed_at)
        assert run_child(folder, plan={"killed_at": killed_at}, max_steps=4, save_total_limit=1) == [-signal.SIGKILL]
        assert_whole_checkpoints(folder)
        assert newest_complete(folder)[0] == folder / "checkpoint-4"


@pytest.mark.parametrize("largest", [500, 3000])  # too little for the weights, and for the optimizer
def test_a_full_disk_ends_the_run_with_a_clear_error_and_harms_no_checkpoint(whole, tmp_path, largest):
    assert run_child(tmp_path, plan={"largest_file": (largest, 5)}) == [1]
    message = (tmp_path / "error-0.txt").read_text()
    assert f"Checkpoint {tmp_path / 'checkpoint-6'} could not be written: " in message
    assert "Check that the disk has room, and go on with `resume_from_checkpoint=True`." in message
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4", INCOMPLETE}
    assert_whole_checkpoints(tmp_path)
    assert run_child(tmp_path, resume=True) == [0]
    assert same(result(tmp_path), whole)


def test_two_processes_one_killed_while_it_saves_resume_as_if_uninterrupted(pair, tmp_path):
    assert run_child(tmp_path, plan={"killed_at": result(pair)["events"] // 2}, processes=2)[0] == -signal.SIGKILL
    assert_whole_checkpoints(tmp_path)
    assert len(list_checkpoints(tmp_path)) in (1, 2)
    assert run_child(tmp_path, resume=True, processes=2) == [0, 0]
    assert all(same(result(tmp_path, rank), result(pair, rank)) for rank in (0, 1))
    files = {path.name for path in (tmp_path / "checkpoint-8").iterdir()}
    assert files >= {"rng_state_0.pth", "rng_state_1.pth"}
    assert names(tmp_path) == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}


@pytest.mark.parametrize("slow", [0, 1])
def test_two_processes_wait_for_each_other_when_they_save(pair, tmp_path, slow):
    assert run_child(tmp_path, plan={"slow": True}, processes=2, guilty=slow, max_steps=2) == [0, 0]
    assert verify_checkpoint(tmp_path / "checkpoint-2") == []
    assert (tmp_path / "checkpoint-2" / "rng_state_1.pth").is_file()
    assert [result(tmp_path, rank)["saves"] for rank in (0, 1)] == [1, 1]


def test_all_processes_hear_of_a_damaged_checkpoint_from_the_first(pair, tmp_path):
    checkpoint = shutil.copytree(pair / "checkpoint-4", tmp_path / "checkpoint-4")
    (checkpoint / "rng_state_1.pth").unlink()
    assert run_child(tmp_path, resume=True, processes=2) == [1, 1]
    for rank in (0, 1):
        assert "checkpoint-4: rng_state_1.pth is missing" in (tmp_path / f"error-{rank}.txt").read_text()


def test_all_of_a_checkpoint_is_on_the_disk_before_it_is_in_its_place(tmp_path, monkeypatch):
    done: list[str] = []
    flush, rename = os.fsync, os.replace

    def note_flush(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    def note_rename(source, target):
        done.append(f"{source} -> {target}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "replace", note_rename)
    trainer(tmp_path, max_steps=2).train()
    written, final = tmp_path / INCOMPLETE / "checkpoint-2", tmp_path / "checkpoint-2"
    place = done.index(f"{written} -> {final}")
    flushed = {Path(path) for path in done[:place]}
    assert flushed == {written, *(written / path.name for path in final.iterdir())}
    assert done.index(str(written / MARKER)) > max(done.index(str(written / name)) for name in names(final) - {MARKER})
    assert done[place + 1 :] == [str(tmp_path)]


def test_what_a_killed_run_has_left_is_deleted_at_the_start(tmp_path):
    (tmp_path / INCOMPLETE / "checkpoint-6").mkdir(parents=True)
    trainer(tmp_path, max_steps=1, save_strategy="no").train()
    assert names(tmp_path) == set()


def test_leftovers_do_not_get_into_a_checkpoint(tmp_path):
    leftover = tmp_path / INCOMPLETE / "checkpoint-2" / "rng_state_7.pth"
    run = trainer(tmp_path, max_steps=2, callbacks=(Leave(leftover),))
    run.train()
    assert names(tmp_path) == {"checkpoint-2"}
    assert not (tmp_path / "checkpoint-2" / leftover.name).exists()


class Leave(TrainerCallback):
    """Leaves a file aside when training has begun, like another run in the same folder."""

    def __init__(self, path: Path):
        self.path = path

    def on_step_begin(self, args, state, control, **kwargs):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")


def test_a_checkpoint_that_was_about_to_be_replaced_is_put_back(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    (tmp_path / INCOMPLETE / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoint-2").rename(tmp_path / INCOMPLETE / "checkpoint-2.older")
    begun: list[int] = []
    trainer(tmp_path, callbacks=(At(1, lambda: begun.append(1)),)).train(True)
    assert begun == []  # the first step is in the checkpoint
    assert names(tmp_path) == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}


def test_a_second_run_in_the_same_folder_replaces_checkpoints(tmp_path):
    trainer(tmp_path, max_steps=4).train()
    trainer(tmp_path, max_steps=4, learning_rate=0.5).train()
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}
    assert_whole_checkpoints(tmp_path)
    state = TrainerState.load_from_json(str(tmp_path / "checkpoint-2" / "trainer_state.json"))
    assert state.log_history[0]["learning_rate"] == 0.5


def test_only_the_newest_complete_checkpoints_are_kept(tmp_path):
    for name in ("checkpoint-1", "checkpoint-3.refused"):  # neither is known to be complete
        (tmp_path / name).mkdir()
    before_the_end: set[str] = set()
    note = At(7, lambda: before_the_end.update(names(tmp_path)))
    trainer(tmp_path, save_total_limit=2, callbacks=(note,)).train()
    assert before_the_end == {"checkpoint-1", "checkpoint-3.refused", "checkpoint-4", "checkpoint-6"}
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-3.refused", "checkpoint-6", "checkpoint-8"}
    assert verify_checkpoint(tmp_path / "checkpoint-6") == verify_checkpoint(tmp_path / "checkpoint-8") == []


def test_checkpoints_of_an_earlier_longer_run_go_first(tmp_path):
    trainer(tmp_path).train()
    trainer(tmp_path, max_steps=3, save_steps=1, save_total_limit=2).train()
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3"}


class Scripted(CompleteCheckpoints):
    """Evaluates to given losses, one a step."""

    losses = (3.0, 1.0, 2.0, 2.0)

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_loss": self.losses[self.state.global_step - 1]}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def test_the_best_checkpoint_and_the_newest_are_kept_and_the_best_is_named_by_its_place(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    run = trainer(
        tmp_path, Scripted, max_steps=4, save_steps=1, save_total_limit=1, load_best_model_at_end=True, **options
    )
    run.train()
    best = tmp_path / "checkpoint-2"
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}  # transformers deletes the newest at the end
    for folder in list_checkpoints(tmp_path):
        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        assert state.best_model_checkpoint == str(best) and verify_checkpoint(folder) == []
    stored = load_file(best / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in run.model.state_dict().items())


class Pushes(CompleteCheckpoints):
    """A run that pushes, without asking the Hub for a repository first."""

    def init_hf_repo(self, token=None):
        self.hub_model_id, self.push_in_progress = "user/run", None


class Uploads:
    """Takes uploads as the Hub's client does, ends them when training does, and notes what it was given."""

    def __init__(self):
        self.seen: list[tuple[str | None, list[str], set[str]]] = []
        self.jobs: list[Future] = []

    def upload_folder(self, folder_path, path_in_repo=None, **kwargs):
        self.seen.append((path_in_repo, verify_checkpoint(folder_path), names(Path(folder_path))))
        self.jobs.append(Future())
        return self.jobs[-1]


class EndUploads(TrainerCallback):
    """Ends all uploads when training has ended."""

    def __init__(self, uploads: Uploads):
        self.uploads, self.there = uploads, set()

    def on_train_end(self, args, state, control, **kwargs):
        self.there = names(Path(args.output_dir))
        for job in self.uploads.jobs:
            job.set_result(None)


def test_pushes_take_complete_folders_and_nothing_is_deleted_before_they_end(tmp_path, monkeypatch):
    uploads = Uploads()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: uploads)
    ends = EndUploads(uploads)
    options = {"push_to_hub": True, "hub_strategy": "all_checkpoints", "hub_always_push": True, "save_total_limit": 1}
    trainer(tmp_path, Pushes, callbacks=(ends,), **options).train()
    pushed = [(name, problems) for name, problems, _ in uploads.seen if name is not None]
    assert pushed == [(f"checkpoint-{step}", []) for step in (2, 4, 6, 8)]
    assert all(INCOMPLETE not in there for name, _, there in uploads.seen if name is None)
    assert {f"checkpoint-{step}" for step in (2, 4, 6, 8)} <= ends.there
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-8"]

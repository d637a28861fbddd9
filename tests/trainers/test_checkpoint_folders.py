"""Checkpoints on the disk: what is found wrong with them, and from which one a run resumes."""

import logging
import random
import shutil
from pathlib import Path

import pytest
from transformers import Trainer

from tests.trainers.checkpoint_child import STEPS, names, outcome, trainer
from trainers.checkpoint_folders import INCOMPLETE, MARKER, newest_complete, resolve_resume, verify_checkpoint
from trainers.checkpoints import CompleteCheckpoints


class Sharded(CompleteCheckpoints):
    """Writes a folder into its checkpoints, as sharded training does."""

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        (Path(output_dir) / "shards").mkdir()
        (Path(output_dir) / "shards" / "part-0.bin").write_bytes(bytes(100))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and outcome of an uninterrupted run with checkpoints of steps 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = trainer(folder, Sharded)
    run.train()
    return folder, outcome(run)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder of a run of transformers alone with one checkpoint of step 6."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    trainer(folder, Trainer, save_steps=6).train()
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the run to do harm to."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def flip(path: Path, bit: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    bit = random.Random(0).randrange(8 * len(content)) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_checkpoints_of_a_run_are_complete(whole):
    assert names(whole[0]) == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}
    assert [verify_checkpoint(folder) for folder in whole[0].iterdir()] == [[]] * 4
    assert newest_complete(whole[0]) == (whole[0] / "checkpoint-8", [])


@pytest.mark.parametrize("harm", [truncate, empty, flip, Path.unlink])
def test_harm_to_any_file_is_found_by_its_name_and_the_next_older_checkpoint_is_used(copy, whole, harm, caplog):
    newest = copy / "checkpoint-8"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert {str(file) for file in files} >= {MARKER, "model.safetensors", "rng_state.pth", "shards/part-0.bin"}
    for file in files:
        harm(newest / file)
        caplog.clear()
        found, refused = newest_complete(copy)
        ((folder, problems),) = refused
        assert found == copy / "checkpoint-6" and folder == newest
        assert len(problems) == 1 and problems[0].startswith(f"{file} ")
        assert f"{newest} is not used: {problems[0]}." in caplog.text
        shutil.copy(whole[0] / "checkpoint-8" / file, newest / file)
        assert verify_checkpoint(newest) == []


def test_a_file_that_has_grown_is_named_with_both_sizes(copy):
    state = copy / "checkpoint-8" / "trainer_state.json"
    size = state.stat().st_size
    grow(state)
    assert verify_checkpoint(copy / "checkpoint-8") == [f"trainer_state.json has {size + 1} bytes instead of {size}"]


def test_every_bit_of_the_list_counts(copy):
    marker = copy / "checkpoint-8" / MARKER
    content = marker.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 200):
        flip(marker, bit)
        assert verify_checkpoint(copy / "checkpoint-8")[0].startswith(MARKER), bit
        marker.write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"{}", b'{"sha256": 1}', b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_list_is_refused(copy, content):
    (copy / "checkpoint-8" / MARKER).write_bytes(content)
    assert verify_checkpoint(copy / "checkpoint-8")[0].startswith(f"{MARKER} ")


def test_a_file_that_was_added_is_named(copy):
    (copy / "checkpoint-8" / "shards" / "part-1.bin").write_bytes(b"")
    assert verify_checkpoint(copy / "checkpoint-8") == ["shards/part-1.bin does not belong to it"]


def test_the_step_counts_as_a_number_and_other_folders_do_not(tmp_path, copy):
    shutil.copytree(copy / "checkpoint-8", copy / "checkpoint-10")
    shutil.copytree(copy / "checkpoint-8", copy / "checkpoint-99.refused")
    (copy / "checkpoint-11").write_text("no folder")
    assert newest_complete(copy) == (copy / "checkpoint-10", [])
    assert newest_complete(tmp_path / "absent") == (None, [])


@pytest.mark.parametrize("nothing", [None, False, "false", "False"])
def test_a_run_starts_anew_unless_it_is_told_to_resume(whole, nothing):
    assert resolve_resume(whole[0], nothing) is None


@pytest.mark.parametrize("newest", [True, "true", "True"])
def test_true_takes_the_newest(whole, newest):
    assert resolve_resume(whole[0], newest) == whole[0] / "checkpoint-8"


def test_true_starts_anew_where_there_is_no_checkpoint_and_says_so(tmp_path, caplog):
    assert resolve_resume(tmp_path, True) is None
    assert f"There is no checkpoint in {tmp_path} yet" in caplog.text


def test_a_path_is_taken_when_it_is_complete(whole):
    assert resolve_resume("elsewhere", str(whole[0] / "checkpoint-2")) == whole[0] / "checkpoint-2"


def test_a_damaged_path_is_refused_and_named_with_its_files(copy):
    flip(copy / "checkpoint-4" / "optimizer.pt")
    (copy / "checkpoint-4" / "trainer_state.json").unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint-4 is damaged: trainer_state.json is missing; optimizer.pt is ch"
    ):
        resolve_resume(copy, copy / "checkpoint-4")
    assert (copy / "checkpoint-4").is_dir()


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_path_that_is_no_checkpoint_is_refused(whole, name):
    with pytest.raises(FileNotFoundError, match="is no checkpoint: it has neither complete.json nor trainer_state"):
        resolve_resume(whole[0], whole[0] / name)


def test_an_unfinished_folder_is_refused_also_by_its_path(whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0] / "checkpoint-8", tmp_path / INCOMPLETE / "checkpoint-8")
    with pytest.raises(ValueError, match="was not finished"):
        resolve_resume(tmp_path, tmp_path / INCOMPLETE / "checkpoint-8")
    monkeypatch.chdir(tmp_path / INCOMPLETE)
    with pytest.raises(ValueError, match="was not finished"):
        resolve_resume(tmp_path, "checkpoint-8")


def test_damaged_newer_checkpoints_are_renamed_and_the_run_ends_as_if_uninterrupted(copy, whole, caplog):
    shutil.copytree(copy / "checkpoint-8", copy / "checkpoint-8.refused")
    truncate(copy / "checkpoint-8" / "model.safetensors")
    (copy / "checkpoint-6" / MARKER).unlink()
    run = trainer(copy)
    run.train(True)
    kept = {"checkpoint-6.refused", "checkpoint-8.refused", "checkpoint-8.refused.refused"}
    assert names(copy) == {f"checkpoint-{step}" for step in (2, 4, 6, 8)} | kept
    assert outcome(run) == whole[1] and newest_complete(copy) == (copy / "checkpoint-8", [])
    assert "checkpoint-8 is renamed to checkpoint-8.refused.refused." in caplog.text


def test_nothing_is_renamed_when_no_checkpoint_is_complete_and_all_are_named(copy):
    for step in (2, 4, 6, 8):
        truncate(copy / f"checkpoint-{step}" / "scheduler.pt")
    with pytest.raises(ValueError, match=r"No checkpoint in .* is complete") as refusal:
        trainer(copy).train(True)
    for step in (2, 4, 6, 8):
        assert f"- {copy / f'checkpoint-{step}'}: scheduler.pt has " in str(refusal.value)
    assert names(copy) == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}


def test_a_checkpoint_of_transformers_alone_is_accepted_by_its_path_with_a_warning(plain, whole, tmp_path, caplog):
    run = trainer(tmp_path)
    run.train(plain / "checkpoint-6")
    assert outcome(run) == whole[1]
    assert f"{plain / 'checkpoint-6'} has no {MARKER}: nothing tells" in caplog.text


def test_a_checkpoint_of_transformers_alone_is_not_taken_for_the_newest(plain, caplog):
    with pytest.raises(ValueError, match=r"checkpoint-6: complete.json is missing\n.* is its path"):
        resolve_resume(plain, True)


def test_a_checkpoint_without_optimizer_is_refused(tmp_path):
    trainer(tmp_path, save_only_model=True, max_steps=2).train()
    for wanted in (True, tmp_path / "checkpoint-2"):
        with pytest.raises(ValueError, match="checkpoint-2 has no random states, as with `save_only_model`"):
            resolve_resume(tmp_path, wanted)


def test_another_number_of_processes_is_accepted_with_a_warning(whole, plain, caplog):
    newest = whole[0] / "checkpoint-8"
    with caplog.at_level(logging.WARNING):
        assert resolve_resume(whole[0], True, 1) == resolve_resume(whole[0], newest) == newest
        assert caplog.text == ""
        assert resolve_resume(whole[0], True, 3) == resolve_resume(whole[0], newest, 3) == newest
        assert caplog.text.count("was written by 1 processes and is resumed by 3") == 2
        assert resolve_resume(plain, plain / "checkpoint-6", 3) == plain / "checkpoint-6"  # nothing to compare with


@pytest.mark.parametrize("step", [2, 6, STEPS])
def test_a_resumed_run_ends_where_the_whole_run_does(whole, tmp_path, step):
    run = trainer(tmp_path)
    run.train(str(whole[0] / f"checkpoint-{step}"))
    assert run.state.global_step == STEPS
    assert outcome(run) == whole[1]

"""Answers of a model to benchmarks: the same file by one process or two, killed, resumed, in other batches."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from evaluation.catalogue import benchmark, module
from evaluation.judge import JudgeConfig
from evaluation.model import LocalModel
from evaluation.predictions import MERGED, PARTS
from evaluation.rows import load_rows
from evaluation.runner import RUN, EvaluationOptions, Process, run_benchmark, score_benchmark
from sharegpt4v.demo.miniatures import write_miniatures
from tests.commands import run_command
from tests.families import family


NAMES = ("mme", "scienceqa", "pope")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A saved tiny model and the miniatures."""
    folder = tmp_path_factory.mktemp("evaluation")
    for part in family("llava", scale=10.0):
        part.save_pretrained(folder / "model")
    write_miniatures(folder / "data")
    return folder


@pytest.fixture(scope="module")
def model(world):
    return LocalModel(str(world / "model"))


@pytest.fixture(scope="module")
def alone(world, model):
    """Folder of an evaluation by one process."""
    for name in NAMES:
        answer(world, model, world / "alone", name)
    return world / "alone"


def answer(world, model, out, name, process=None, **options):
    rows = load_rows(benchmark(name), world / "data")
    how = EvaluationOptions(**{"batch_size": 4, **options})
    run_benchmark(model, module(name), benchmark(name), rows, out, how, process or Process())
    return (out / name / MERGED).read_bytes()


def rescore(world, out, name, **options):
    rows = load_rows(benchmark(name), world / "data")
    return score_benchmark(module(name), benchmark(name), rows, out, **options)


def launch(world, out, processes, kill_after=None):
    """`sharegpt4v evaluate` in so many processes; killed when so many answers are there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--no-python", sys.executable, "-m", "sharegpt4v.cli", "evaluate", str(world / "model")]
    command += ["--benchmarks", ",".join(NAMES), "--data", str(world / "data"), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen([*command, "--batch-size", "4"], stderr=subprocess.PIPE)
    try:
        if kill_after is not None:
            deadline = time.monotonic() + 120
            while sum(len(path.read_bytes().splitlines()) for path in out.glob(f"*/{PARTS}/*")) < kill_after:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            kill_tree(process.pid)
        errors = process.communicate(timeout=180)[1].decode()
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL), errors[-2000:]
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.communicate()


def kill_tree(pid):
    """The launcher first, so that it starts nobody again, then its workers, which are sessions of their own."""
    workers = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers, timeout=20)


@pytest.mark.slow
def test_two_processes_write_the_file_of_one_also_when_killed_and_resumed_with_another_count(world, alone):
    out = world / "together"
    launch(world, out, 2, kill_after=10)
    assert not (out / NAMES[-1] / MERGED).is_file()
    launch(world, out, 2)
    for name in NAMES:
        rescore(world, alone, name)
        assert (out / name / MERGED).read_bytes() == (alone / name / MERGED).read_bytes()
        facts = json.loads((out / name / RUN).read_text())
        assert facts["world"] == 2
    ranks = {path.name for path in (out / NAMES[-1] / PARTS).iterdir()}
    assert ranks == {"0.jsonl", "1.jsonl"}


def test_a_run_resumes_at_the_question_with_another_number_of_processes(world, model, alone, tmp_path):
    whole = answer(world, model, tmp_path / "whole", "mme")
    parts = [json.loads(line) for line in (tmp_path / "whole" / "mme" / PARTS / "0.jsonl").read_text().splitlines()]
    for kept in (1, 7, len(parts) - 1):
        out = tmp_path / str(kept)
        folder = out / "mme" / PARTS
        folder.mkdir(parents=True)
        lines = [json.dumps(row, sort_keys=True) + "\n" for row in parts]
        (folder / "3.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])  # of process 3, which was killed
        assert answer(world, model, out, "mme") == whole
        added = (folder / "0.jsonl").read_text().splitlines()
        assert len(added) == len(parts) - kept


def test_another_batch_size_changes_nothing(world, model, tmp_path):
    files = {answer(world, model, tmp_path / str(size), "pope", batch_size=size) for size in (1, 5, 32)}
    assert len(files) == 1


def test_what_is_answered_is_not_asked_again(world, model, tmp_path):
    first = answer(world, model, tmp_path, "scienceqa")

    class Silent:
        """The same model, of which nothing may be asked."""

        image_mode, facts = model.image_mode, model.facts

        def answer(self, questions):
            raise AssertionError("the model was asked")

    assert answer(world, Silent(), tmp_path, "scienceqa") == first


def test_answers_of_other_settings_do_not_count(world, model, tmp_path):
    official = answer(world, model, tmp_path, "pope")
    cropped = answer(world, model, tmp_path, "pope", images="crop")
    assert cropped != official
    assert json.loads((tmp_path / "pope" / RUN).read_text())["images"] == "crop"
    assert answer(world, model, tmp_path, "pope") == official


def test_scoring_again_changes_neither_figures_nor_file(world, alone):
    first = rescore(world, alone, "mme")
    kept = (alone / "mme" / MERGED).read_bytes()
    again = rescore(world, alone, "mme")
    assert (again.to_json(), (alone / "mme" / MERGED).read_bytes()) == (first.to_json(), kept)
    rows = [json.loads(line) for line in kept.splitlines()]
    assert {"id", "index", "prompt", "raw", "parsed", "score", "judge", "provenance"} <= set(rows[0])


def test_questions_without_an_image_are_asked_without_one(world, alone):
    rows = load_rows(benchmark("scienceqa"), world / "data")
    without = [index for index in range(len(rows)) if not rows.has_image(index)]
    assert without and all(rows.image(index) is None for index in without)
    assert len((alone / "scienceqa" / MERGED).read_text().splitlines()) == len(rows)


def test_a_limit_is_told(world, model, tmp_path):
    answer(world, model, tmp_path, "pope", limit=3)
    facts = json.loads((tmp_path / "pope" / RUN).read_text())
    assert (facts["questions"], facts["of"]) == (3, len(load_rows(benchmark("pope"), world / "data")))


def test_predictions_of_other_questions_are_refused(world, alone, tmp_path):
    rows = load_rows(benchmark("mme"), world / "data")
    folder = tmp_path / "pope"
    folder.mkdir()
    (folder / MERGED).write_bytes((alone / "mme" / MERGED).read_bytes())
    with pytest.raises(ValueError, match="is of question"):
        score_benchmark(module("pope"), benchmark("pope"), load_rows(benchmark("pope"), world / "data"), tmp_path)
    assert len(rows) > 0


def test_a_headline_is_withheld_while_answers_are_unjudged(world, model, tmp_path):
    answer(world, model, tmp_path, "mmvet")
    nobody = JudgeConfig("nobody", base_url="http://127.0.0.1:9/v1", api_key_env="", attempts=1)
    result = rescore(world, tmp_path, "mmvet", judging=nobody)
    assert set(result.headline.values()) == {None}
    assert result.breakdown["judge"]["judged"] == f"0 of {result.counts['questions']}"


def test_a_process_answers_its_own_batches_and_the_first_merges_all(world, model, alone, tmp_path):
    answer_of_second = {"rank": 1, "world": 2}
    run_benchmark(
        model, module("pope"), benchmark("pope"), load_rows(benchmark("pope"), world / "data"), tmp_path,
        EvaluationOptions(batch_size=4), Process(**answer_of_second),
    )  # fmt: skip
    mine = (tmp_path / "pope" / PARTS / "1.jsonl").read_text().splitlines()
    assert 0 < len(mine) < len(load_rows(benchmark("pope"), world / "data"))
    assert not (tmp_path / "pope" / MERGED).exists()
    merged = answer(world, model, tmp_path, "pope")
    rescore(world, alone, "pope")
    fresh = answer(world, model, tmp_path / "fresh", "pope")
    assert merged == fresh


def test_the_command_compares_two_evaluations_in_pairs(world, model, tmp_path, capsys):
    for out, images in ((tmp_path / "one", "pad"), (tmp_path / "other", "crop")):
        words = ["evaluate", str(world / "model"), "--benchmarks", "pope", "--data", str(world / "data")]
        words += [
            "--out",
            str(out),
            "--images",
            images,
            *(["--compare", str(tmp_path / "one")] if images == "crop" else []),
        ]
        assert run_command(capsys, *words).code == 0
    assert "McNemar" in (tmp_path / "other" / "report.md").read_text(encoding="utf-8")

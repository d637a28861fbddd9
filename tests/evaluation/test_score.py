"""The scoring command: every official sample, packed and in folders, and what it says of wrong files and words."""

import gzip
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evaluation.catalogue import NAMES, benchmark
from evaluation.score import main
from tests.evaluation.samples import SAMPLES, needs_samples, read_lines, read_sample, write_lines


@dataclass
class Files:
    """What the command is given, and the figures that must come out, in headline or breakdown."""

    name: str
    predictions: Path
    references: Path | None
    figures: dict[str, Any]
    rule: str = "official"

    def words(self) -> list[str]:
        words = ["--benchmark", self.name, "--predictions", str(self.predictions), "--rule", self.rule]
        return words + (["--references", str(self.references)] if self.references else [])


def mme(folder):
    expected = read_sample("mme/lavin/expected.json")
    return Files("mme", SAMPLES / "mme/lavin", None, {key: value for key, value in expected.items() if key != "note"})


def seed(rule, script):
    figures = read_sample("seed/messy_synthetic/expected.json")[script]
    return lambda folder: Files("seed", SAMPLES / "seed/messy_synthetic", SAMPLES / "seed", figures, rule)


def scienceqa(folder):
    expected = read_sample("scienceqa/gpt3_qcm_ale/expected.json")
    figures = {name: expected[name] for name in ("accuracy", "img_accuracy", "acc_full")}
    return Files("scienceqa", SAMPLES / "scienceqa/gpt3_qcm_ale", SAMPLES / "scienceqa", figures)


def pope(folder):
    figures = {"categories": read_sample("pope/messy_synthetic/expected.json")["categories"]}
    return Files("pope", SAMPLES / "pope/messy_synthetic", SAMPLES / "pope", figures)


def qbench(folder):
    expected = read_sample("qbench/clean_letters_synthetic/expected.json")
    figures = {name: expected[name] for name in ("accuracy", "breakdown_correct_total")}
    return Files("qbench", SAMPLES / "qbench/clean_letters_synthetic", SAMPLES / "qbench", figures)


def mmvet(folder):
    expected = read_sample("mmvet/llava15_7b_thirdparty_gpt4_0613/expected.json")
    figures = {"total": 30.7, "capability": expected["capability"]}
    figures["capability_integration"] = expected["capability_integration_sorted_names"]
    return Files("mmvet", SAMPLES / "mmvet/llava15_7b_thirdparty_gpt4_0613", SAMPLES / "mmvet", figures)


def llava_bench(folder):
    summary = read_sample("llava_bench/visualcot_7b/expected.json")["summary"]
    return Files("llava_bench", SAMPLES / "llava_bench/visualcot_7b", None, {"summary": summary, **summary["all"]})


def vqav2(rule, variant):
    expected = read_sample("vqav2/synthetic_val/expected.json")
    figures = {"overall": expected["overall_by_variant"][variant]}
    if rule == "official":
        figures |= {name: expected[name] for name in ("perQuestionType", "perAnswerType")}
    files = SAMPLES / "vqav2/synthetic_val"
    return lambda folder: Files("vqav2", files / "results.json", files / "annotations.json", figures, rule)


def vizwiz(folder):
    """The constant answer `unanswerable`, of which the sample has the figures."""
    expected = read_sample("vizwiz/real_val_all_unanswerable/expected.json")
    rows = read_sample("vizwiz/real_val/annotations.json")
    results = [{"image": row["image"], "answer": "unanswerable"} for row in rows]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    figures = {name: expected[name] for name in ("overall", "perAnswerType", "unanswerability")}
    return Files("vizwiz", folder / "results.json", SAMPLES / "vizwiz/real_val", figures)


def mmbench(name, rule, column):
    """Choices that harnesses read, each as a group of its own, whose answer is the choice that must be read."""

    def make(folder):
        table = read_sample("mmbench/choice_extraction_table.json")["rows"]
        rows = [
            {"index": place, "question": "?", **row["choices"], "prediction": row["prediction"]}
            | {"answer": row[column] if row[column] in row["choices"] else "A"}
            for place, row in enumerate(table)
        ]
        write_lines(folder / "predictions.jsonl", rows)
        read = sum(row[column] in row["choices"] for row in table)
        return Files(name, folder / "predictions.jsonl", None, {"Overall": read / len(table)}, rule)

    return make


def gqa(folder):
    questions = {"1": {"question": "Red?", "answer": "yes"}, "2": {"question": "What?", "answer": "cup"}}
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    answers = [{"question_id": "1", "text": "Yes."}, {"question_id": "2", "text": "a cup"}]
    write_lines(folder / "predictions.jsonl", answers)
    return Files("gqa", folder / "predictions.jsonl", folder, {"accuracy": 50.0})


def textvqa(folder):
    answers = ["stop"] * 3 + ["go"] * 7
    data = [{"image_id": "a", "question": "What does it say?", "answers": answers}]
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}), encoding="utf-8")
    asked = "What does it say?\nReference OCR token: STOP\nAnswer the question using a single word or phrase."
    write_lines(folder / "predictions.jsonl", [{"question_id": "a", "prompt": asked, "text": "Stop"}])
    return Files("textvqa", folder / "predictions.jsonl", folder, {"accuracy": 90.0})


OFFICIAL_2021, OFFICIAL_2016 = "a013f00_2021_HEAD", "458a8b2_2016"
ALWAYS = "always_normalise_both_sides (lmms-eval, VLMEvalKit)"
SAMPLED: dict[str, Callable[[], Callable[[Path], Files]]] = {
    "mme": lambda: mme,
    "seed": lambda: seed("official", "llava_script"),
    "seed-tolerant": lambda: seed("tolerant", "share4v_script_tolerant"),
    "scienceqa": lambda: scienceqa,
    "pope": lambda: pope,
    "qbench": lambda: qbench,
    "mmvet": lambda: mmvet,
    "llava_bench": lambda: llava_bench,
    "vqav2": lambda: vqav2("official", OFFICIAL_2021),
    "vqav2-2016": lambda: vqav2("vqa_2016", OFFICIAL_2016),
    "vqav2-always": lambda: vqav2("always_normalise", ALWAYS),
    "vizwiz": lambda: vizwiz,
    "mmbench": lambda: mmbench("mmbench", "official", "vlmevalkit_head"),
    "mmbench-2023": lambda: mmbench("mmbench", "vlmevalkit_2023_11", "vlmevalkit_2023_11"),
    "mmbench_cn": lambda: mmbench("mmbench_cn", "official", "vlmevalkit_head"),
}
OWN = {"gqa": lambda: gqa, "textvqa": lambda: textvqa}
ALL = [pytest.param(make, id=name, marks=needs_samples) for name, make in SAMPLED.items()]
ALL += [pytest.param(make, id=name) for name, make in OWN.items()]


def run(capsys, words):
    """Exit code, standard output and standard error of the command in this process."""
    capsys.readouterr()
    try:
        code = main([*words])
    except SystemExit as stop:
        code = stop.code
    written = capsys.readouterr()
    return code, written.out, written.err


def scored(capsys, files):
    code, output, errors = run(capsys, [*files.words(), "--json"])
    assert (code, errors) == (0, "")
    return json.loads(output)


def test_every_benchmark_is_run_here():
    assert {name.split("-")[0] for name in [*SAMPLED, *OWN]} == set(NAMES)


@pytest.mark.parametrize("make", ALL)
def test_samples_score_what_official_tools_print(make, tmp_path, capsys):
    files = make()(tmp_path)
    result = scored(capsys, files)
    figures = result["breakdown"] | result["headline"]
    assert {name: figures[name] for name in files.figures} == files.figures
    assert (result["benchmark"], result["rule"]) == (files.name, files.rule)
    assert {"questions", "answered", "missing", "unparsed", "duplicates"} <= set(result["counts"])


def pack(source, folder):
    """Copy a file or folder, with every file packed, and name the copy."""
    target = folder / source.name
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file():
            data = path.read_bytes() if path.suffix == ".gz" else gzip.compress(path.read_bytes(), compresslevel=1)
            copy = target / path.relative_to(source) if source.is_dir() else target
            copy = copy if path.suffix == ".gz" else copy.with_name(f"{copy.name}.gz")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
    return target if source.is_dir() else target.with_name(f"{target.name}.gz")


@pytest.mark.parametrize("make", ALL)
def test_packed_files_score_the_same(make, tmp_path, capsys):
    files = make()(tmp_path)
    expected = scored(capsys, files)
    files.predictions = pack(files.predictions, tmp_path / "packed" / "predictions")
    files.references = files.references and pack(files.references, tmp_path / "packed" / "references")
    assert scored(capsys, files) == expected


@pytest.mark.parametrize("make", ALL)
def test_scoring_again_gives_the_same_bytes(make, tmp_path, capsys):
    files = make()(tmp_path)
    assert run(capsys, [*files.words(), "--json"]) == run(capsys, [*files.words(), "--json"])


@needs_samples
@pytest.mark.parametrize("name", ["scienceqa", "pope", "llava_bench", "vqav2", "vizwiz", "mmbench"])
def test_the_order_of_predictions_does_not_matter(name, tmp_path, capsys):
    files = SAMPLED[name]()(tmp_path)
    expected = scored(capsys, files)
    path = files.predictions
    path = next(path.glob("*.jsonl*")) if path.is_dir() else path
    rows = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_lines(path)
    random.Random(1).shuffle(rows)
    files.predictions = tmp_path / f"shuffled{path.suffix.replace('.gz', '.jsonl')}"
    if path.suffix == ".json":
        files.predictions.write_text(json.dumps(rows), encoding="utf-8")
    else:
        write_lines(files.predictions, rows)
    result = scored(capsys, files)
    assert (result["headline"], result["counts"]) == (expected["headline"], expected["counts"])
    assert result["breakdown"] == expected["breakdown"]


@needs_samples
def test_references_are_looked_for_beside_the_predictions(tmp_path, capsys):
    for path in (SAMPLES / "pope").glob("*.gz"):
        shutil.copy(path, tmp_path)
    shutil.copy(SAMPLES / "pope/messy_synthetic/answers.jsonl.gz", tmp_path)
    beside = Files("pope", tmp_path, None, {})
    assert scored(capsys, beside) == scored(capsys, pope(tmp_path))


def test_without_json_there_is_a_table(tmp_path, capsys):
    code, output, _ = run(capsys, gqa(tmp_path).words())
    assert code == 0
    rows = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert (rows["benchmark"], rows["accuracy"], rows["questions"]) == ("gqa", "50", "2")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["{broken", "[1, 2]", '{"a": 1}', "null", "", '"text"'])
def test_damaged_predictions_are_named_and_nothing_is_printed(name, content, tmp_path, capsys):
    (tmp_path / "predictions").mkdir()
    path = tmp_path / "predictions" / "predictions.jsonl"
    path.write_text(content, encoding="utf-8")
    code, output, errors = run(capsys, ["--benchmark", name, "--predictions", str(path), "--json"])
    assert (code, output) == (1, "")
    assert errors.startswith("Error: ") and str(tmp_path) in errors


ANSWERED = {
    "seed": '{"question_id": "1", "text": "A"}',
    "mmvet": '{"v1_0": "a"}',
    "qbench": '["B"]',
    "scienceqa": '{"question_id": "1", "text": "A"}',
    "vqav2": '[{"question_id": 1, "answer": "a"}]',
    "vizwiz": '[{"image": "a.jpg", "answer": "a"}]',
    "gqa": '[{"questionId": "1", "prediction": "a"}]',
    "textvqa": '{"question_id": "a", "prompt": "What?\\nAnswer the question using a single word.", "text": "a"}',
    "pope": '{"question_id": 1, "text": "yes"}',
}
DAMAGED = ["{broken", "[1, 2]", "[[]]", "[{}]", "{}", '{"1": 1}', '{"1": {}}', "null", ""]
DAMAGED += ['{"questions": [1]}', '{"annotations": [1]}', '{"data": [1]}', '{"data": [{}]}']


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_references_are_named(name, content, tmp_path, capsys):
    (tmp_path / "pid_splits.json").write_text('{"test": ["1"]}', encoding="utf-8")
    lines = name in ("seed", "scienceqa", "textvqa", "pope")
    predictions, references = tmp_path / f"given.json{'l' if lines else ''}", tmp_path / "references.json"
    predictions.write_text(ANSWERED[name], encoding="utf-8")
    references.write_text(content, encoding="utf-8")
    words = ["--benchmark", name, "--predictions", str(predictions), "--references", str(references)]
    code, output, errors = run(capsys, [*words, "--json"])
    assert (code, output) == (1, "")
    assert str(tmp_path) in errors


def test_an_absent_path_is_named(tmp_path, capsys):
    words = ["--benchmark", "mme", "--predictions", str(tmp_path / "nowhere"), "--json"]
    code, output, errors = run(capsys, words)
    assert (code, output) == (1, "") and "nowhere" in errors


def test_absent_references_are_asked_for_with_their_layout(tmp_path, capsys):
    write_lines(tmp_path / "answers.jsonl", [{"question_id": "1", "text": "A"}])
    code, _, errors = run(capsys, ["--benchmark", "seed", "--predictions", str(tmp_path), "--json"])
    assert code == 1 and "--references" in errors and "SEED-Bench.json" in errors


@pytest.mark.parametrize("value", [1, {"types": 1}, []])
def test_a_value_of_another_kind_is_refused_with_the_layout(value, tmp_path, capsys):
    files = gqa(tmp_path)
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(json.dumps({"1": {"question": value, "answer": "yes", "types": value}}), encoding="utf-8")
    code, output, errors = run(capsys, [*files.words(), "--json"])
    assert (code, output) == (1, "") and "predictions.jsonl" in errors and "gqa" in errors


def test_names_from_files_do_nothing_to_a_terminal(tmp_path, capsys):
    review = {"question_id": 1, "category": "\x1b[2J\ud800", "tuple": [8, 4]}
    words = ["--benchmark", "llava_bench", "--predictions", str(write_lines(tmp_path / "reviews.jsonl", [review]))]
    code, output, _ = run(capsys, words)
    assert code == 0 and "summary / " in output
    assert "\x1b" not in output and "\ud800" not in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--benchmark"),
        (["--benchmark", "mmmu", "--predictions", "x"], "'textvqa', 'pope'"),
        (["--benchmark", "mme", "--predictions", "x", "--rule", "lenient"], "mme has no rule 'lenient'"),
        (["--benchmark", "mme"], "--predictions"),
    ],
)
def test_wrong_words_end_with_two(words, said, capsys):
    code, output, errors = run(capsys, words)
    assert (code, output) == (2, "") and said in errors


def test_the_help_states_a_layout_for_every_benchmark(capsys):
    code, output, _ = run(capsys, ["--help"])
    assert code == 0
    for name in NAMES:
        layout = output.split(f"\n  {name}\n      ")[1].split("\n")[0]
        rules = benchmark("mmbench" if layout == "as mmbench" else name).rules
        assert layout == "as mmbench" or "predictions: " in layout
        assert layout == "as mmbench" or len(rules) == 1 or layout.endswith(f"rules: {', '.join(rules)}")


def test_the_module_runs_as_a_command_without_heavy_packages(tmp_path):
    words = ["-X", "importtime", "-m", "evaluation.score", *gqa(tmp_path).words(), "--json"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["headline"] == {"accuracy": 50.0}
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "transformers", "datasets"} & imported

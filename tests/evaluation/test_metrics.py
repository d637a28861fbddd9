"""The scorers as metrics of `evaluate`, loaded where this repository is not there."""

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from evaluation.catalogue import NAMES, module
from evaluation.metrics import example, main, write_metric
from sharegpt4v.demo.miniatures import read_miniature
from tests.fresh_process import run_fresh


pytest.importorskip("evaluate", reason="`evaluate` is not installed")

# All in one process, because importing `evaluate` takes most of the time. `evaluate` does not heed `HF_HUB_OFFLINE`.
SNIPPET = """
import doctest, importlib.util, json, os, sys
from pathlib import Path

os.environ["HF_ENDPOINT"], os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = sys.argv[2], "0"
assert importlib.util.find_spec("evaluation") is None
import evaluate

inputs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
found = {}
for name, (predictions, references) in inputs["cases"].items():
    metric = evaluate.load(str(Path("metrics") / name))
    both = metric.compute(predictions=predictions, references=references)
    for prediction, reference in zip(predictions, references):
        metric.add(prediction=prediction, reference=json.dumps(reference))
    found[name] = {"score": both, "one_by_one": metric.compute()}
    found[name] |= {"description": metric.description, "citation": metric.citation, "docstring": type(metric).__doc__}
    found[name] |= {"inputs": metric.inputs_description, "features": list(metric.features)}
metric, said = evaluate.load("metrics/pope"), []
for predictions, references in inputs["faults"]:
    try:
        metric.compute(predictions=predictions, references=references)
    except ValueError as error:
        said.append(str(error))
metric = evaluate.load("somebody/mmbench_cn", module_type="metric")
space = {"score": metric.compute(**inputs["space"]), "module": type(metric).__module__}
os.chdir("metrics")
for name in inputs["cases"]:
    test = doctest.DocTestParser().get_doctest(found[name]["inputs"], {}, name, None, 0)
    failed, tried = doctest.DocTestRunner(verbose=False).run(test, out=lambda line: sys.stderr.write(line))
    found[name]["examples"] = [tried, failed]
print(json.dumps({"metrics": found, "said": said, "space": space}))
"""
ROW = {"question_id": 1, "category": "random", "answer": "yes"}
FAULTS = [
    (([], []), "nothing to score"),
    ((["yes"], []), "1 predictions and 0 references"),
    ((["yes", "no"], [ROW]), "2 predictions and 1 references"),
    ((["yes"], [3]), "got int"),
    ((["yes"], ["{"]), "Reference 1 is no JSON"),
    ((["yes"], ["[]"]), "got list"),
]


def cases_of(name: str) -> tuple[list, list]:
    """Answers of all kinds to rows of the miniature: right, wrong, empty and missing; with verdicts of a judge."""
    rows = [{key: value for key, value in row.items() if key != "image"} for row in read_miniature(name)]
    for place, (row, read) in enumerate(zip(rows, read_miniature(name), strict=True)):
        row["has_image"] = read["image"] is not None
        row |= {"mmvet": {"grades": [place % 3 / 2]}, "llava_bench": {"tuple": [8, place + 1]}}.get(name, {})
    answers = ["A", "yes", "no", None, "", "The answer is B.", "cup", "24"]
    return [answers[place % len(answers)] for place in range(len(rows))], rows


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """Folder of the folder of all metrics."""
    folder = tmp_path_factory.mktemp("work")
    assert main(["all", "--output", str(folder / "metrics")]) == 0
    return folder


@pytest.fixture(scope="module")
def found(metrics, tmp_path_factory):
    """What a process without this repository finds, and which paths it asked a stand-in of the Hub for."""
    hub, asked = tmp_path_factory.mktemp("hub"), []
    space = hub / "spaces/somebody/mmbench_cn/resolve"
    space.mkdir(parents=True)
    (space / "main").symlink_to(metrics / "metrics/mmbench_cn")

    class Hub(SimpleHTTPRequestHandler):
        def log_message(self, form: str, *args: object) -> None:
            asked.append(self.path)

    inputs = {"cases": {name: cases_of(name) for name in NAMES}, "faults": [fault for fault, _ in FAULTS]}
    (metrics / "inputs.json").write_text(json.dumps(inputs | {"space": example("mmbench_cn")}), encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(hub)))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        return run_fresh(SNIPPET, metrics / "inputs.json", address, cwd=metrics) | {"asked": asked}
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def loaded(found):
    """What it finds of each metric."""
    return found["metrics"]


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_computes_what_the_scorer_does(loaded, name):
    """By `compute` alone and by `add`."""
    predictions, rows = cases_of(name)
    items = [{**row, "response": answer} for row, answer in zip(rows, predictions, strict=True)]
    expected = json.loads(json.dumps(module(name).score(items).to_json()))
    assert loaded[name]["score"] == loaded[name]["one_by_one"] == expected
    assert module(name).BENCHMARK.judge or expected["counts"]["missing"] > 0  # a verdict stands for an answer


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_describes_itself(loaded, name):
    """Description, citation, inputs and features; all of it in its docstring."""
    found = loaded[name]
    assert module(name).__doc__.strip() in found["description"]
    assert found["citation"].startswith("@misc{" + name) and "arXiv" in found["citation"]
    assert found["features"] == ["predictions", "references"]
    assert found["description"] in found["docstring"] and found["inputs"] in found["docstring"]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_metric_runs(loaded, name):
    """As it stands in the docstring."""
    tried, failed = loaded[name]["examples"]
    assert tried >= 6 and failed == 0


def test_sources_are_copied_unchanged(metrics):
    """A metric scores with the very text of the scorer."""
    package = Path(module("vqav2").__file__).parent
    for copied, source in (("vqav2_scorer", "vqav2"), ("vqa_text", "vqa_text"), ("base", "base")):
        assert (metrics / "metrics/vqav2" / f"{copied}.py").read_bytes() == (package / f"{source}.py").read_bytes()


def test_requirements_name_what_is_imported(metrics):
    """NumPy only where a scorer needs it."""
    lines = {name: (metrics / "metrics" / name / "requirements.txt").read_text().split() for name in ("mmvet", "mme")}
    assert lines["mmvet"] == ["datasets>=5.2", "evaluate>=0.4.6", "numpy>=2.0"]
    assert lines["mme"] == ["datasets>=5.2", "evaluate>=0.4.6"]


def test_the_card_has_the_front_matter_of_a_space(metrics):
    """A static Space needs no program to run."""
    from huggingface_hub import RepoCard

    data = RepoCard.load(metrics / "metrics/llava_bench/README.md").data
    assert data.sdk == "static" and data.title == "LLaVA-Bench (in the Wild)" and "metric" in data.tags
    assert len(data.short_description) <= 60


def test_a_metric_is_written_the_same_again(metrics, tmp_path):
    """Byte by byte."""
    again = write_metric("seed", tmp_path)
    for path in again.iterdir():
        assert path.read_bytes() == (metrics / "metrics/seed" / path.name).read_bytes()


def test_a_metric_loads_from_a_space(found):
    """Over HTTP, from a server that has files as the Hub does."""
    assert found["space"]["module"].startswith("evaluate_modules.metrics.somebody--mmbench_cn.")
    assert found["space"]["score"]["headline"] == {"Overall": 1.0}


def test_a_metric_in_a_folder_needs_no_hub(found):
    """All that was asked for is of the Space."""
    assert found["asked"] and all(path.startswith("/spaces/somebody/mmbench_cn/") for path in found["asked"])


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_input_that_cannot_be_scored_is_refused(found, number):
    """Nothing, unequal lengths, and references that are no rows."""
    assert len(found["said"]) == len(FAULTS) and FAULTS[number][1] in found["said"][number]


def test_an_unknown_benchmark_is_refused(tmp_path, capsys):
    """By its command and by its function."""
    with pytest.raises(ValueError, match="no benchmark 'mm'"):
        write_metric("mm", tmp_path)
    with pytest.raises(SystemExit):
        main(["mm", "--output", str(tmp_path)])
    assert "invalid choice" in capsys.readouterr().err

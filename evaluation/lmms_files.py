"""
The files of lmms-eval: `<date>_samples_<task>.jsonl`, a line an answer, and `<date>_results.json` beside it.

A sample has `doc_id` (the place of the row in the data set), `input` (the prompt), `target`, `filtered_resps` (the
answer as it was scored), `resps` where the answer itself was another, and what the task's metrics are of
(lmms-eval 0.7.3, `loggers/evaluation_tracker.py`). The rows themselves are not in the file; where a metric names the
id of its row, it is held against ours. What our predictions know beyond that stands in a field of its own.
"""

import hashlib
import json
import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .base import Benchmark
from .files import field_of, read_json, read_json_lines
from .outcomes import write_whole
from .rows import IDS, Row, Rows


logger = logging.getLogger(__name__)
OWN = "sharegpt4v"
TASKS = {
    "llava_bench": "llava_in_the_wild",
    "mme": "mme",
    "mmbench": "mmbench_en_dev",
    "mmbench_cn": "mmbench_cn_dev",
    "seed": "seedbench",
    "mmvet": "mmvet",
    "qbench": "qbench_dev",
    "scienceqa": "scienceqa_img",
    "vqav2": "vqav2_val",
    "vizwiz": "vizwiz_vqa_val",
    "gqa": "gqa",
    "textvqa": "textvqa_val",
    "pope": "pope",
}
TARGETS = ("answer", "correct_choice", "gpt_answer", "multiple_choice_answer", "answers")
SAMPLES, RESULTS = "_samples_", "_results.json"


def write_samples(folder: Path, name: str, model: str, rows: Rows, predictions: list[dict[str, Any]]) -> Path:
    """
    Write answers as lmms-eval logs them.

    Args:
        folder (`Path`): Output path of lmms-eval; the file goes into a folder of the model's name.
        name (`str`): Name of the benchmark.
        model (`str`): Name of the model.
        rows (`Rows`): The questions.
        predictions (`list[dict]`): Our answers.

    Returns:
        `Path`: The file; its date is now.
    """
    date = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
    directory = re.sub(r'["<>:/\\|?*\[\]]+', "__", model)  # as lmms-eval names it
    path = folder / directory / f"{date}{SAMPLES}{TASKS[name]}.jsonl"
    lines = [json.dumps(_sample(rows[one["index"]], one), ensure_ascii=False) + "\n" for one in predictions]
    write_whole(path, "".join(lines))
    return path


def write_results(samples: Path, benchmark: Benchmark, run: dict[str, Any], entry: dict[str, Any]) -> Path | None:
    """
    Write figures as lmms-eval does, beside the samples.

    Args:
        samples (`Path`): File of the samples.
        benchmark (`Benchmark`): Which one.
        run (`dict`): How it was run.
        entry (`dict`): Its part of our `results.json`.

    Returns:
        `Path`, *optional*: The file; `None` where figures are withheld or of the demo's judge.
    """
    task = TASKS[benchmark.name]
    figures = {figure: value for figure, value in entry["headline"].items() if value is not None}
    if not figures or (entry["judge"] or {}).get("demo"):
        reason = "are by the demo judge" if figures else f"are withheld: {entry['withheld']}"
        logger.warning("%s: its figures %s. Only answers are written.", benchmark.title, reason)
        return None
    shown: dict[str, Any] = {"alias": task}
    for figure, value in figures.items():
        shown |= {f"{figure},none": value, f"{figure}_stderr,none": "N/A"}
    counts = {"original": run["of"], "effective": run["questions"]}
    results = {
        "results": {task: shown},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task, "dataset_path": benchmark.dataset, "test_split": benchmark.split}},
        "versions": {task: "Yaml"},
        "n-shot": {task: 0},
        "higher_is_better": {task: dict.fromkeys(figures, True)},
        "n-samples": {task: counts},
        "config": {"model": OWN, "model_args": f"pretrained={run['model']}"},
        "model_source": OWN,
        "model_name": run["model"],
        "model_name_sanitized": samples.parent.name,
        OWN: {"run": run, "rule": entry["rule"], "counts": entry["counts"], "judge": entry["judge"]},
    }
    path = samples.with_name(samples.name.split(SAMPLES)[0] + RESULTS)
    write_whole(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return path


def find_samples(path: Path, name: str) -> Path:
    """
    The samples that are meant by a path.

    Args:
        path (`Path`): The file, or an output path of lmms-eval.
        name (`str`): Name of the benchmark.

    Returns:
        `Path`: The file.

    Raises:
        `FileNotFoundError`: There is none.
        `ValueError`: There are several.
    """
    if path.is_file():
        return path
    names = [TASKS[name], f"{OWN}_{name}"]
    found = sorted(one for task in names for one in path.rglob(f"*{SAMPLES}{task}.jsonl"))
    if not found:
        raise FileNotFoundError(f"{path} holds no file *{SAMPLES}{names[0]}.jsonl. Was --log_samples given?")
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} runs of {name}: name one, such as {found[-1]}.")
    return found[0]


def read_samples(path: Path, rows: Rows) -> list[dict[str, Any]]:
    """
    Read answers that lmms-eval logged.

    Args:
        path (`Path`): File of the samples.
        rows (`Rows`): The questions, in the order of lmms-eval's data set.

    Returns:
        `list[dict]`: `index`, `prompt`, `raw` of each, as they stand in the file.

    Raises:
        `ValueError`: A sample is damaged, of another row than ours, or has several answers.
    """
    found = []
    for number, sample in enumerate(read_json_lines(path), start=1):
        where = f"{path}, sample {number}"
        index = field_of(sample, "doc_id", path, number)
        if type(index) is not int or not 0 <= index < len(rows):  # `True` is no place
            raise ValueError(f"{where}: there is no row {index!r} among the {len(rows)} of the data. Take the same.")
        prompt = field_of(sample, "input", path, number)
        if not isinstance(prompt, str):
            raise ValueError(f"{where}: `input` must be the prompt, got {type(prompt).__name__}.")
        _check_row(sample, rows[index], where)
        found.append({"index": index, "prompt": prompt, "raw": _answer(sample, where)})
    return found


def read_facts(path: Path) -> dict[str, Any]:
    """
    What lmms-eval says of a run.

    Args:
        path (`Path`): File of the samples.

    Returns:
        `dict`: `model`, `task`, and of the results beside the samples, where they are: `figures`, `settings`.
    """
    date, _, task = path.name.removesuffix(".gz").removesuffix(".jsonl").partition(SAMPLES)
    facts: dict[str, Any] = {"model": path.parent.name, "task": task, "date": date}
    beside = path.with_name(date + RESULTS)
    if beside.is_file():
        results = read_json(beside)
        facts["model"] = results.get("model_name") or facts["model"]
        facts["figures"] = results.get("results", {}).get(task)
        facts["model_args"] = results.get("config", {}).get("model_args")
        facts["settings"] = results.get("configs", {}).get(task, {}).get("generation_kwargs")
    return facts


def _sample(row: Row, prediction: dict[str, Any]) -> dict[str, Any]:
    target = next((row[name] for name in TARGETS if name in row), "")
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    beyond = {name: value for name, value in prediction.items() if name not in ("index", "prompt", "raw")}
    return {
        "doc_id": prediction["index"],
        "target": str(target),
        "filtered_resps": prediction["raw"],
        "token_counts": [None],
        "doc_hash": hashlib.sha256(text.encode()).hexdigest(),
        OWN: beyond,
        "input": prediction["prompt"],
    }


def _answer(sample: dict[str, Any], where: str) -> str:
    answer = sample.get("resps", sample.get("filtered_resps"))  # `resps` is what was said before any filter
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str):
        what = f"{len(answer)} answers" if isinstance(answer, list) else f"{type(answer).__name__} for an answer"
        raise ValueError(f"{where} has {what}: one text is needed. Run the task with `repeats: 1` and generation.")
    return answer


def _check_row(sample: dict[str, Any], row: Row, where: str) -> None:
    """A sample does not hold its row; several tasks name its id beside a metric, and so do we."""
    for value in sample.values():
        if not isinstance(value, dict):
            continue
        for name in IDS:
            if name in value and name in row and str(value[name]) != str(row[name]):
                raise ValueError(
                    f"{where}: row {sample['doc_id']} there has the {name} {value[name]!r}, here {row[name]!r}. "
                    "Take the data in the order that lmms-eval had."
                )

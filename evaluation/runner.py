"""
A model's answers to benchmarks, by one process or many, resumable to the question.

Questions are put into batches once, by kind and length, and whole batches are dealt to processes. So a batch is the
same whichever process runs it and however often a run was killed, and so are its answers: the merged file of two
processes is that of one. Scores are computed from that file, any number of times, without the model.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from .base import OFFICIAL, Benchmark, Item, ScoreResult
from .images import ImageMode, Question
from .judge import JudgeConfig, judge
from .judge_prompts import FIELDS
from .predictions import Answers, answered, merge, read_predictions
from .rows import Row, Rows, id_of


logger = logging.getLogger(__name__)
RUN, JUDGEMENTS = "run.json", "judge.jsonl"
LIBRARIES = ("accelerate", "datasets", "pillow", "sharegpt4v", "torch", "transformers")


@dataclass(frozen=True)
class EvaluationOptions:
    """
    How benchmarks are run.

    Args:
        images (`str`, defaults to `"official"`): How an image becomes a square: as each benchmark's script does,
            always `pad` or `crop`, or `native` for what the model's processor does by itself.
        batch_size (`int`, defaults to 8): Questions at a time and process.
        limit (`int`, *optional*): Only so many first questions of each benchmark; the report says so.
    """

    images: ImageMode = "official"
    batch_size: int = 8
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` must be at least 1, got {self.limit}.")


@dataclass(frozen=True)
class Process:
    """
    Which of several processes this is.

    Args:
        rank (`int`, defaults to 0): Its number.
        world (`int`, defaults to 1): How many there are.
        wait (`Callable[[], None]`): Returns when all have called it.
    """

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = lambda: None


def run_benchmark(
    model: Any,
    module: ModuleType,
    benchmark: Benchmark,
    rows: Rows,
    out: Path,
    options: EvaluationOptions,
    process: Process,
) -> None:
    """
    Ask a model every question of a benchmark that it has not answered yet, and merge the answers.

    Args:
        model (`LocalModel` or `EndpointModel`): Whom to ask.
        module (`ModuleType`): Of the benchmark, for its prompts.
        benchmark (`Benchmark`): Which one.
        rows (`Rows`): Its questions.
        out (`Path`): Folder of the evaluation.
        options (`EvaluationOptions`): How.
        process (`Process`): Which of several processes this is.
    """
    folder = out / benchmark.name
    count = len(rows) if options.limit is None else min(len(rows), options.limit)
    prompts = [module.prompt(rows[index]) for index in range(count)]
    mode = model.image_mode(benchmark, options.images)
    facts = _provenance(model, benchmark, rows, prompts, mode)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    done = answered(folder, name)
    batches = [batch for batch in _batches(rows, prompts, options.batch_size) if any(one not in done for one in batch)]
    process.wait()  # until all have read what is there
    mine = batches[process.rank :: process.world]
    bar = tqdm(total=sum(map(len, mine)), desc=benchmark.title, unit="question", disable=process.rank > 0 or None)
    with Answers(folder, process.rank) as answers, bar:
        for batch in mine:
            bound = benchmark.max_new_tokens
            questions = [Question(prompts[one], rows.image(one), mode, bound) for one in batch]
            for index, text in zip(batch, model.answer(questions), strict=True):
                if index not in done:
                    answers.add({"index": index, "raw": text, "provenance": name})
            bar.update(len(batch))
    process.wait()
    if process.rank == 0:
        found = answered(folder, name)
        facts |= {"provenance": name, "questions": count, "of": len(rows), "world": process.world}
        facts |= {"options": asdict(options), "versions": {library: version(library) for library in LIBRARIES}}
        (folder / RUN).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        merge(folder, [_merged(rows[index], index, prompts[index], found[index]) for index in range(count)])
    process.wait()


def score_benchmark(
    module: ModuleType,
    benchmark: Benchmark,
    rows: Rows,
    out: Path,
    judging: JudgeConfig | None = None,
    allow_partial: bool = False,
    rule: str = OFFICIAL,
) -> ScoreResult:
    """
    Score the predictions of a benchmark, and write into each what it was taken for and what it scores.

    Args:
        module (`ModuleType`): Of the benchmark.
        benchmark (`Benchmark`): Which one.
        rows (`Rows`): Its questions.
        out (`Path`): Folder of the evaluation.
        judging (`JudgeConfig`, *optional*): Who judges where a judge is needed; its replies are kept beside the
            predictions, and only missing ones are asked for.
        allow_partial (`bool`, defaults to `False`): Give figures although not all is judged.
        rule (`str`, defaults to `"official"`): Scoring rule.

    Returns:
        `ScoreResult`: The figures; the headline is withheld while an answer is unjudged.

    Raises:
        `FileNotFoundError`: The benchmark was not run to its end.
        `ValueError`: The predictions are of other questions.
    """
    folder = out / benchmark.name
    predictions = read_predictions(folder)
    items = items_of(rows, predictions)
    if judging is not None and benchmark.name in FIELDS:
        verdicts = judge(benchmark.name, items, judging, folder / JUDGEMENTS, rule)
        result, items = verdicts.score(module, items, rule, allow_partial), verdicts.apply(items)
    else:
        partial = {"allow_partial": allow_partial} if benchmark.judge else {}
        result = module.score(items, rule, **partial)
    for item, prediction, score in zip(items, predictions, result.scores or [None] * len(items), strict=True):
        prediction["parsed"] = module.parse(prediction["raw"], item)
        prediction["score"] = score
        prediction["judge"] = item.get(FIELDS.get(benchmark.name, ""))
    merge(folder, predictions)
    return result


def write_submission(module: ModuleType, benchmark: Benchmark, rows: Rows, out: Path) -> Path | None:
    """
    Write the file that a benchmark's server takes.

    Args:
        module (`ModuleType`): Of the benchmark.
        benchmark (`Benchmark`): Which one.
        rows (`Rows`): Its questions.
        out (`Path`): Folder of the evaluation.

    Returns:
        `Path`, *optional*: The file; `None` where no server takes any.
    """
    if not benchmark.submission:
        return None
    path = out / benchmark.name / benchmark.submission
    module.write_submission(items_of(rows, read_predictions(path.parent)), path)
    return path


def items_of(rows: Rows, predictions: list[dict[str, Any]]) -> list[Item]:
    """
    Items to score: questions with their answers.

    Args:
        rows (`Rows`): The questions.
        predictions (`list[dict]`): The answers.

    Returns:
        `list[dict]`: In the order of the predictions.

    Raises:
        `ValueError`: They do not belong together.
    """
    items = []
    for prediction in predictions:
        index = prediction["index"]
        if index >= len(rows) or id_of(rows[index], index) != prediction["id"]:
            raise ValueError(f"Prediction {index} is of question {prediction['id']!r}, which is another one here.")
        items.append({**rows[index], "prompt": prediction["prompt"], "response": prediction["raw"]})
    return items


def _provenance(model: Any, benchmark: Benchmark, rows: Rows, prompts: list[str], mode: str) -> dict[str, Any]:
    prompt_hash = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:12]
    facts = {"benchmark": benchmark.name, "rows": rows.digest(), "prompts": prompt_hash, "images": mode}
    return {**facts, **model.facts(), "max_new_tokens": benchmark.max_new_tokens}


def _batches(rows: Rows, prompts: list[str], size: int) -> Iterator[list[int]]:
    """Places of the questions, batch by batch: with image or without, and near in length, which wastes least."""
    for has_image in (True, False):
        chosen = [index for index in range(len(prompts)) if rows.has_image(index) == has_image]
        chosen.sort(key=lambda index: (-len(prompts[index]), index))  # longest first: no memory is lacking later
        for start in range(0, len(chosen), size):
            yield chosen[start : start + size]


def _merged(row: Row, index: int, prompt: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "id": id_of(row, index), "prompt": prompt, **answer}

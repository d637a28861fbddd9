"""
MME: yes or no, perception and cognition.

Rule of BradyFU/Awesome-Multimodal-Large-Language-Models@dd295090, `eval_tool/calculation.py`: the first four
characters of an answer decide; a task scores 100 for all answers right plus 100 for all images with both answers
right; the totals are plain sums of tasks. The same tool takes two consecutive lines for one image. Here rows of an
image are brought together by its name when each name of a task has just two rows, which is the same for a file in
order and right for a shuffled one; otherwise consecutive rows count, as officially. What is not answered is wrong.

Items: `question_id` (task and image), `category` (the task), `question`, `answer`, `response`.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .base import OFFICIAL, SHORT_ANSWER, Benchmark, Figures, Item, ScoreResult
from .files import find_file, read_text
from .join import count_answers, is_answered


PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    column="MME^P, MME^C",
    dataset="lmms-lab-encoder/MME",
    split="test",
    fields={
        "question_id": "task and image file; the two rows of an image share it",
        "question": "ends in `Please answer yes or no.`",
        "answer": "`Yes` or `No`",
        "category": "the task",
        "image": "the image",
    },
    questions=2374,
    note="perception is at most 2000, cognition at most 800",
)
PREFIX = 4  # characters of an answer that are looked at
Pair = tuple[Item, ...]


def prompt(row: dict[str, Any]) -> str:
    """
    What ShareGPT4V asks after the image.

    Args:
        row (`dict`): A row of the benchmark.

    Returns:
        `str`: The question without MME's own request for yes or no, and LLaVA's request for a short answer.
    """
    return row["question"].replace(" Please answer yes or no.", "").strip() + SHORT_ANSWER


def parse(response: str, row: dict[str, Any] | None = None) -> str:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`, *optional*): Not needed.

    Returns:
        `str`: `yes`, `no` or `other`, which is wrong. Nothing is stripped, and `know` or `not` begin with a no.
    """
    start = response.lower()[:PREFIX]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`; a task that is absent adds nothing to its total.
        rule (`str`, defaults to `"official"`): The only one.

    Returns:
        `ScoreResult`: `perception_total`, `cognition_total`, and the `tasks`.
    """
    BENCHMARK.check_rule(rule)
    by_task: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_task[item["category"]].append(item)
    order = [task for task in PERCEPTION + COGNITION if task in by_task]
    order += sorted(set(by_task) - set(order))
    tasks: Figures = {}
    images = unpaired = 0
    for task in order:
        pairs = _pairs(by_task[task])
        images, unpaired = images + len(pairs), unpaired + sum(len(pair) != 2 for pair in pairs)
        tasks[task] = _task_score(pairs)
    headline = {
        "perception_total": sum(tasks.get(task, 0.0) for task in PERCEPTION),
        "cognition_total": sum(tasks.get(task, 0.0) for task in COGNITION),
    }
    unparsed = sum(is_answered(item) and parse(item["response"]) == "other" for item in items)
    counts = count_answers(items, [(item["question_id"], item["question"]) for item in items], unparsed)
    counts |= {"images": images, "unpaired": unpaired, "tasks": len(tasks)}
    return ScoreResult(BENCHMARK.name, headline, {"tasks": tasks}, counts, rule)


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read what the official tool reads: a text of tab-separated lines for each of the 14 tasks.

    Args:
        predictions (`Path`): Folder that holds the texts, or one with such a folder `results` in it.
        references (`Path`, *optional*): Not needed, as every line has its answer.

    Returns:
        `list[dict]`: Items, task by task.

    Raises:
        `FileNotFoundError`: A task is absent.
        `ValueError`: A line is damaged, or a task has an odd number of them.
    """
    if predictions.is_file():
        raise ValueError(f"{predictions} is one file: MME is scored from the folder of its 14 texts, one a task.")
    names = [f"{task}.txt" for task in PERCEPTION + COGNITION]
    within = predictions / "results"
    folder = within if within.is_dir() and not _holds(predictions, names[0]) else predictions
    absent = [name for name in names if not _holds(folder, name)]
    if absent:
        raise FileNotFoundError(f"{folder} lacks {', '.join(absent)} of the {len(names)} texts of MME.")
    return [item for name in names for item in _read_task(find_file(folder, name), name.removesuffix(".txt"))]


def _holds(folder: Path, name: str) -> bool:
    return any((folder / candidate).is_file() for candidate in (name, f"{name}.gz"))


def _read_task(path: Path, task: str) -> list[Item]:
    items = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line:
            continue
        parts = line.split("\t", 3)  # a tabulator within the answer stays there
        if len(parts) != 4:
            raise ValueError(
                f"{path}, line {number}, has {len(parts)} columns instead of image, question, answer, response. "
                "A response must be one line."
            )
        image, question, answer, response = parts
        if answer.lower() not in ("yes", "no"):
            raise ValueError(f"{path}, line {number}: the answer must be yes or no, got {answer!r}.")
        row = {"question_id": f"{task}/{image}", "category": task, "question": question, "answer": answer}
        items.append({**row, "response": response})
    if len(items) % 2:
        lone = next(name for name, count in Counter(item["question_id"] for item in items).items() if count % 2)
        raise ValueError(
            f"{path} has {len(items)} rows, and every image has two: {lone} lacks one or has one too many."
        )
    if not items:
        raise ValueError(f"{path} is empty.")
    return items


def _pairs(items: list[Item]) -> list[Pair]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item["question_id"]].append(item)
    if all(len(group) == 2 for group in groups.values()):
        return [tuple(group) for group in groups.values()]
    return [tuple(items[start : start + 2]) for start in range(0, len(items), 2)]


def _task_score(pairs: list[Pair]) -> float:
    hits = [[_is_right(item) for item in pair] for pair in pairs]
    accuracy = sum(map(sum, hits)) / sum(map(len, hits))
    accuracy_plus = sum(pair == [True, True] for pair in hits) / len(hits)
    return accuracy * 100 + accuracy_plus * 100


def _is_right(item: Item) -> bool:
    return is_answered(item) and parse(item["response"]) == item["answer"].lower()

"""
LLaVA-Bench (in the Wild): a language model rates a reference answer and the model's answer from 1 to 10.

Source: haotian-liu/LLaVA@c121f043 (`llava/eval/eval_gpt_review_bench.py`, `llava/eval/summarize_gpt_review.py`).

Items have `question_id`, `question`, `gpt_answer` (the reference, from text-only GPT-4), `caption` (what the judge
knows of the image; a text or a list), `category` (`conv`, `detail` or `complex`, with `llava_bench_` before it in
files of reviews), `response`, and `tuple`: the ratings of the reference and of the model, `[-1, -1]` where the judge's
reply was none. Those stay in the averages, as officially. Reviews that are there twice count twice, as officially. An
item without ratings is not judged, and while there is one, figures are withheld.

The official judge, gpt-4-0314, is no longer served: published figures cannot be judged again exactly, and the judge's
name belongs beside each figure.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from .base import OFFICIAL, Benchmark, Figures, Item, ScoreResult
from .files import field_of, find_file, read_json_lines


FILES = ("reviews.jsonl", "review.jsonl", "llava_bench.jsonl")
PREFIX = "llava_bench_"
UNREAD = [-1.0, -1.0]
BENCHMARK = Benchmark(
    name="llava_bench",
    title="LLaVA-Bench (in the Wild)",
    column="LLaVA^W",
    dataset="lmms-lab-encoder/llava-bench-in-the-wild",
    split="train",
    fields={
        "question_id": "whole number",
        "question": "text",
        "gpt_answer": "reference answer",
        "caption": "description of the image, a text or a list of them",
        "category": "`conv`, `detail` or `complex`",
        "image": "image",
    },
    questions=60,
    images="crop",
    max_new_tokens=1024,
    judge=True,
    note="The official judge, gpt-4-0314, is no longer served; another one moves figures by several points.",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What is asked about an image.

    Args:
        row (`dict`): The question.

    Returns:
        `str`: The question as it is.
    """
    return str(row["question"])


def parse(response: str, row: dict[str, Any]) -> str:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`): Its question.

    Returns:
        `str`: The answer; only a judge reads it.
    """
    return response


def category(row: dict[str, Any]) -> str | None:
    """
    Official name of a question's category.

    Args:
        row (`dict`): The question or its review.

    Returns:
        `str`, *optional*: Such as `llava_bench_conv`; `None` if it has none.
    """
    name = row.get("category")
    return None if name is None else PREFIX + str(name).removeprefix(PREFIX)


def score(items: list[Item], rule: str = OFFICIAL, allow_partial: bool = False) -> ScoreResult:
    """
    Relate the ratings of the model to those of the reference: a ratio of means.

    Args:
        items (`list[dict]`): Questions with their ratings, in any order.
        rule (`str`, defaults to `"official"`): There is no other.
        allow_partial (`bool`, defaults to `False`): Average what is judged, although not everything is.

    Returns:
        `ScoreResult`: `relative` (in percent), `gpt4` and `model` (mean ratings times ten), each with one decimal,
        over all questions; `summary` has them by category too. `None` while something is unjudged.
    """
    BENCHMARK.check_rule(rule)
    pairs: dict[str, list[list[float]]] = defaultdict(list)
    unread = unjudged = 0
    for item in sorted(items, key=_place):
        if item.get("tuple") is None:
            unjudged += 1
            continue
        pair = [float(rating) for rating in item["tuple"]]
        unread += pair == UNREAD
        pairs["all"].append(pair)
        if (name := category(item)) is not None:
            pairs[name].append(pair)
    missing = sum(item.get("tuple") is None and item.get("response") is None for item in items)
    counts = {
        "questions": len(items),
        "answered": len(items) - missing,
        "missing": missing,
        "unparsed": unread,
        "duplicates": len(items) - len({str(item["question_id"]) for item in items}),
        "judged": len(items) - unjudged,
        "unjudged": unjudged,
    }
    if not pairs or (unjudged and not allow_partial):
        return ScoreResult(BENCHMARK.name, dict.fromkeys(("relative", "gpt4", "model")), {}, counts, rule)
    summary = {name: _summary(found) for name, found in sorted(pairs.items())}
    return ScoreResult(BENCHMARK.name, summary["all"], {"summary": summary}, counts, rule)


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read reviews.

    Args:
        predictions (`Path`): Lines of JSON as the official script writes them, or a folder with `reviews.jsonl`:
            `question_id`, `category`, `content`, `tuple`.
        references (`Path`, *optional*): Not needed.

    Returns:
        `list[dict]`: In the order of the file.

    Raises:
        `ValueError`: A review has no pair of ratings; the message names the row.
    """
    path = find_file(predictions, *FILES)
    items = []
    for number, row in enumerate(read_json_lines(path), start=1):
        name = "score" if "tuple" not in row and "score" in row and "category" not in row else "tuple"
        pair = field_of(row, name, path, number)
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_number(rating) for rating in pair):
            raise ValueError(f"{path}, row {number}: `{name}` must be two ratings, got {pair!r}.")
        items.append({**row, "question_id": row.get("question_id", number - 1), "tuple": pair})
    return items


def _summary(pairs: list[list[float]]) -> Figures:
    reference, model = (round(mean, 3) for mean in np.asarray(pairs).mean(0).tolist())
    relative = round(model / reference * 100, 1) if reference else None
    return {"relative": relative, "gpt4": round(reference * 10, 1), "model": round(model * 10, 1)}


def _place(item: Item) -> tuple[int, str]:
    number = item["question_id"]
    return (number, "") if isinstance(number, int) else (0, str(number))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""A few answers that scored less than they could, drawn with a seed, for a reader to look at."""

from typing import Any

import numpy as np

from .base import Item, ScoreResult
from .catalogue import module
from .rows import id_of


SAMPLES = 5
SHARES = ("qbench",)  # an item scores in the unit of the headline: 0 to 1 here, else in percent
LETTERS = "ABCDE"


def wrong_answers(
    name: str, items: list[Item], result: ScoreResult, count: int = SAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """
    Draw wrong answers.

    Args:
        name (`str`): The benchmark.
        items (`list[dict]`): What was scored.
        result (`ScoreResult`): Its figures.
        count (`int`, defaults to 5): How many at most.
        seed (`int`, defaults to 0): Of the draw.

    Returns:
        `list[dict]`: In the order of the benchmark: `index`, `id`, `prompt`, `response`, `parsed`, `expected`.
    """
    parse = module(name).parse
    parsed = [None if item.get("response") is None else parse(item["response"], item) for item in items]
    places = [place for place in range(len(items)) if _is_wrong(name, items[place], parsed[place], result, place)]
    if len(places) > count:
        drawn = np.random.default_rng(seed).choice(len(places), count, replace=False)
        places = [places[one] for one in sorted(drawn.tolist())]
    return [
        {
            "index": place,
            "id": id_of(items[place], place),
            "prompt": items[place].get("prompt"),
            "response": items[place].get("response"),
            "parsed": parsed[place],
            "expected": _expected(items[place]),
        }
        for place in places
    ]


def _is_wrong(name: str, item: Item, parsed: Any, result: ScoreResult, place: int) -> bool:
    if name == "mme":
        return parsed != item["answer"].lower()
    if name == "pope":
        return parsed != ("no" if item["answer"] == "no" else "yes")
    if name in ("mmbench", "mmbench_cn"):
        return (item.get("judge_choice") if parsed is None else parsed) != item["answer"]
    if name == "llava_bench":
        return item.get("tuple") is not None and item["tuple"][1] < item["tuple"][0]
    score = result.scores[place] if result.scores else None
    return score is not None and score < (1.0 if name in SHARES else 100.0)


def _expected(item: Item) -> str:
    answers = item.get("answers")
    if answers:
        texts = [answer["answer"] if isinstance(answer, dict) else str(answer) for answer in answers]
        return ", ".join(dict.fromkeys(texts))
    for name in ("answer", "correct_choice", "gpt_answer"):
        if name in item:
            value = item[name]
            return LETTERS[value] if "choices" in item and isinstance(value, int) else str(value)
    return ""

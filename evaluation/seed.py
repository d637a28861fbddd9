"""
SEED-Bench: four choices, by ability, images and videos.

The benchmark's own evaluation ranks the choices by likelihood (AILab-CVC/SEED-Bench@991e849b); LLaVA and ShareGPT4V
generate a letter instead. Rule `official` is LLaVA's: an answer is right if it is the letter and nothing else
(haotian-liu/LLaVA@c121f043, `scripts/convert_seed_for_submission.py`). Rule `tolerant` is ShareGPT4V's with `-t`: the
first character is enough (ShareGPT4Omni/ShareGPT4V@b6f70e9a). A question without an answer is wrong. The file has the
id 49914 twice, and answers are kept by id, so the last one given to it counts for both questions.

Items: `question_id`, `question_type_id`, `data_type`, `answer` (a letter), `response`; a prompt needs `question` and
`choice_a` to `choice_d` as well.
"""

import json
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from .base import OFFICIAL, OPTION_LETTER, Benchmark, Item, ScoreResult
from .files import field_of, find_file, read_json
from .join import ANSWER_FILES, count_answers, find_references, is_answered, read_answers


TOLERANT = "tolerant"
LETTERS = ("A", "B", "C", "D")
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
TYPES = {
    1: "Scene Understanding",
    2: "Instance Identity",
    3: "Instance Attributes",
    4: "Instance Location",
    5: "Instances Counting",
    6: "Spatial Relation",
    7: "Instance Interaction",
    8: "Visual Reasoning",
    9: "Text Understanding",
    10: "Action Recognition",
    11: "Action Prediction",
    12: "Procedure Understanding",
}
KINDS = ("image", "video")
BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench",
    column="SEED^I",
    dataset="lmms-lab-encoder/SEED-Bench",
    split="test",
    fields={
        "question_id": "number, or text that begins with v for a video; 49914 is there twice",
        "question": "the question",
        **dict.fromkeys(CHOICES, "text of a choice"),
        "answer": "letter of the right choice",
        "data_type": "`image` or `video`",
        "question_type_id": "1 to 9 are of images, 10 to 12 of videos",
        "image": "the image, or frames of a video",
    },
    questions=17990,
    rules=(OFFICIAL, TOLERANT),
    submission="submission.jsonl",
    note="the paper's figure is `image accuracy`",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What ShareGPT4V asks after the image.

    Args:
        row (`dict`): A row of the benchmark.

    Returns:
        `str`: The question, four choices, and the request for a letter.
    """
    choices = [f"\n{letter}. {row[name]}" for letter, name in zip(LETTERS, CHOICES, strict=True)]
    return row["question"] + "".join(choices) + OPTION_LETTER


def parse(response: str, row: dict[str, Any] | None = None, rule: str = OFFICIAL) -> str | None:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`, *optional*): Not needed.
        rule (`str`, defaults to `"official"`): `official`, or `tolerant`.

    Returns:
        `str`, *optional*: A letter.
    """
    text = response[:1] if rule == TOLERANT else response
    return text if text in LETTERS else None


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`.
        rule (`str`, defaults to `"official"`): `official`, or `tolerant`.

    Returns:
        `ScoreResult`: `Total accuracy`, `image accuracy`, `video accuracy` (where there is such a row) and that of
        each type, all in percent with two decimals.
    """
    BENCHMARK.check_rule(rule)
    keys: list[Hashable] = [str(item["question_id"]) for item in items]
    last = {key: item["response"] for key, item in zip(keys, items, strict=True) if is_answered(item)}
    parsed = {key: parse(response, rule=rule) for key, response in last.items()}
    hits = [float(parsed.get(key) == item["answer"]) for key, item in zip(keys, items, strict=True)]
    by_type: dict[int, list[float]] = defaultdict(list)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for item, hit in zip(items, hits, strict=True):
        by_type[int(item["question_type_id"])].append(hit)
        by_kind[item["data_type"]].append(hit)
    headline = {"Total accuracy": _percent(hits)}
    headline |= {f"{kind} accuracy": _percent(by_kind[kind]) for kind in KINDS if kind in by_kind}
    breakdown = {TYPES[number]: _percent(by_type[number]) for number in sorted(by_type)}
    unparsed = sum(is_answered(item) and parsed[key] is None for key, item in zip(keys, items, strict=True))
    counts = count_answers(items, keys, unparsed)
    counts["correct"] = int(sum(hits))
    for kind in KINDS:
        counts |= {f"{kind}_total": len(by_kind[kind]), f"{kind}_correct": int(sum(by_kind[kind]))}
    return ScoreResult(BENCHMARK.name, headline, breakdown, counts, rule, [100 * hit for hit in hits])


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read LLaVA's answers and the questions of the benchmark.

    Args:
        predictions (`Path`): JSON lines of `question_id` and `text`, or a folder that holds them.
        references (`Path`, *optional*): `SEED-Bench.json`, or a folder that holds it; the folder of the predictions
            by default.

    Returns:
        `list[dict]`: Items in the order of the questions.

    Raises:
        `FileNotFoundError`: A file is absent.
        `ValueError`: A row is damaged; the message names it.
    """
    source = find_references(predictions, references, "SEED-Bench.json", "annotations.json")
    content = read_json(source)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise ValueError(f"{source} must be an object with a list `questions`.")
    answers = read_answers(find_file(predictions, *ANSWER_FILES))
    items = []
    for number, row in enumerate(content["questions"], start=1):
        field_of(row, "answer", source, number)
        for name, values in (("question_type_id", list(TYPES)), ("data_type", list(KINDS))):
            if field_of(row, name, source, number) not in values:
                raise ValueError(f"{source}, row {number}: `{name}` must be one of {values}, got {row[name]!r}.")
        items.append({**row, **answers.answer_of(str(field_of(row, "question_id", source, number)))})
    answers.tell_strangers(str(item["question_id"]) for item in items)
    return items


def write_submission(items: list[Item], path: Path) -> None:
    """
    Write what the leaderboard of the benchmark takes: a line of `question_id` and `prediction` for each question.

    Args:
        items (`list[dict]`): Rows with `response`.
        path (`Path`): The file.

    Raises:
        `ValueError`: A question has no answer.
    """
    missing = [item["question_id"] for item in items if not is_answered(item)]
    if missing:
        raise ValueError(f"{len(missing)} of {len(items)} questions have no answer, first: {missing[0]}. Answer them.")
    lines = [{"question_id": item["question_id"], "prediction": item["response"]} for item in items]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _percent(hits: list[float]) -> float:
    return round(sum(hits) / len(hits) * 100, 2) if hits else 0.0

"""
TextVQA: questions about the text in photographs, ten answers each.

Items have the fields of the Hub's copy and `response`; `image_id`, `question` and `answers` (ten texts) are read, and
`ocr_tokens` go into the prompt as ShareGPT4V's script has them. Files are those of LLaVA's scorer
(haotian-liu/LLaVA@c121f043, `eval_textvqa.py`):

- predictions, `predictions.jsonl`: JSON lines of `{"question_id": id of the image, "prompt": str, "text": str}`;
- references, `TextVQA_0.5.1_val.json`: `{"data": [{image_id, question, answers}]}`.

The id in the predictions is that of the image, so the two are joined by it and by the question, in small letters,
which is cut out of the prompt: a prompt of two lines, one of three with the OCR tokens in the second or in the first
line, or the older form in one line. The official figure is a mean over the predictions, not over the questions: what
is missing is left out of it and counted in `missing`, and a line that comes twice counts twice. A prediction of an
unknown question and a prompt of another form are refused, as there.
"""

import re
from pathlib import Path
from typing import Any

from .base import OFFICIAL, SHORT_ANSWER, Benchmark, Item, ScoreResult
from .files import field_of, find_file, read_json, read_json_lines
from .join import find_references
from .vqa_accuracy import PERCENT_DIGITS, answer_accuracy, count_answers, percent_of_mean, references_of
from .vqa_text import normalise_m4c


REFERENCES = 10
OCR_LINE = "Reference OCR token: "
_ONE_LINE = re.compile("Question: (.*?) Short answer:", re.DOTALL)
BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    column=None,
    dataset="lmms-lab-encoder/textvqa",
    split="validation",
    fields={
        "question_id": "number",
        "image_id": "text",
        "question": "text",
        "answers": "ten texts",
        "ocr_tokens": "words found in the image, optional",
        "image": "image",
    },
    questions=5000,
)


def prompt(row: dict[str, Any]) -> str:
    """
    What a model is asked after the image.

    Args:
        row (`dict`): With `question` and, where there are any, `ocr_tokens`.

    Returns:
        `str`: The question, a line of the tokens (an empty one for an empty list), and that the answer be short.
    """
    tokens = row.get("ocr_tokens")
    line = "" if tokens is None else f"\n{OCR_LINE}{', '.join(tokens)}"
    return row["question"] + line + SHORT_ANSWER


def parse(response: str, row: dict[str, Any]) -> str:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`): Its question.

    Returns:
        `str`: Its normal form.
    """
    return normalise_m4c(response)


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`; those without an answer are left out.
        rule (`str`, defaults to `"official"`): Scoring rule; there is no other.

    Returns:
        `ScoreResult`: `accuracy` in percent.

    Raises:
        `ValueError`: The rule is unknown, there are no items, or one has not ten references.
    """
    BENCHMARK.check_rule(rule)
    counts = count_answers(items, normalise_m4c)
    counts["questions"] -= counts["duplicates"]  # each of them is an item of its own
    scores = [_accuracy(item) for item in items]
    return ScoreResult(
        benchmark=BENCHMARK.name,
        headline={"accuracy": percent_of_mean([value for value in scores if value is not None])},
        breakdown={},
        counts=counts,
        rule=rule,
        scores=[None if value is None else round(100 * value, PERCENT_DIGITS) for value in scores],
    )


def _accuracy(item: Item) -> float | None:
    name = f"The question {item['question']!r} about {item['image_id']}"
    references = references_of(item, name)
    if len(references) != REFERENCES:
        raise ValueError(f"{name} has {len(references)} answers, and the rule is made for {REFERENCES}.")
    if item["response"] is None:
        return None
    return answer_accuracy(normalise_m4c(item["response"]), [normalise_m4c(answer) for answer in references])


def question_of(asked: str) -> str | None:
    """
    Cut the question out of a prompt.

    Args:
        asked (`str`): The prompt of a prediction.

    Returns:
        `str`, *optional*: In small letters; `None` if the prompt has none of the known forms.
    """
    lines = asked.split("\n")
    if asked.startswith("OCR tokens: "):
        found = _ONE_LINE.search(asked)
        return found.group(1).lower() if found else None
    if OCR_LINE in asked and len(lines) == 3:
        return lines[1 if asked.startswith(OCR_LINE.rstrip()) else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None


def read_items(predictions: Path, references: Path | None) -> list[Item]:
    """
    Read the files of LLaVA's scorer.

    Args:
        predictions (`Path`): The predictions, or a folder that holds them.
        references (`Path`, *optional*): The references, or a folder that holds them; the folder of the predictions by
            default.

    Returns:
        `list[dict]`: In the order of the references; one for each prediction, or one without a response.

    Raises:
        `FileNotFoundError`: A file is not there.
        `ValueError`: A file is damaged, or a prediction cannot be joined; the message names it.
    """
    path = find_file(predictions, "predictions.jsonl", "answers.jsonl")
    labels = find_references(predictions, references, "TextVQA_0.5.1_val.json", "annotations.json")
    questions = _questions(labels)
    answers: dict[tuple[str, str], list[str]] = {key: [] for key in questions}
    for number, row in enumerate(read_json_lines(path), start=1):
        image, asked, text = (_text_of(row, name, path, number) for name in ("question_id", "prompt", "text"))
        question = question_of(asked)
        if question is None:
            raise ValueError(f"{path}, row {number}: the prompt {asked!r} has none of the forms of LLaVA's scripts.")
        if (image, question) not in answers:
            raise ValueError(f"{path}, row {number}: {labels} has no question {question!r} about the image {image!r}.")
        answers[image, question].append(text)
    items: list[Item] = []
    for key, row in questions.items():
        texts: list[str | None] = [*answers[key]] or [None]
        items += [row | {"response": text} for text in texts]
        items[-1] |= {"duplicates": len(texts) - 1} if len(texts) > 1 else {}
    return items


def _questions(path: Path) -> dict[tuple[str, str], Item]:
    """References by image and question in small letters; of two with the same, the last counts, as officially."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ValueError(f"{path} must be a JSON object with a list `data`, such as TextVQA_0.5.1_val.json.")
    found = {}
    for number, row in enumerate(content["data"], start=1):
        image, question = (_text_of(row, name, path, number) for name in ("image_id", "question"))
        field_of(row, "answers", path, number)
        found[image, question.lower()] = row
    return found


def _text_of(row: dict[str, Any], name: str, path: Path, number: int) -> str:
    if not isinstance(value := field_of(row, name, path, number), str):
        raise ValueError(f"{path}, row {number}: {name!r} must be a JSON string, got {value!r}.")
    return value

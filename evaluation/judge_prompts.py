"""
What judges are asked, and what their replies are taken for: the official prompts, character by character.

The texts are in `data/judge_prompts.json` with the file and commit they were read from:

- MM-Vet: yuweihao/MM-Vet, `mm-vet_evaluator.py`. One user message of at most 3 tokens at temperature 0. A reply whose
  first word is no number from 0 to 1 is asked for again with a sentence appended, at temperatures 0, 0.5, 1, 1.5 and
  2; the fifth of these is not read any more, and the grade is 0.
- LLaVA-Bench: haotian-liu/LLaVA, `llava/eval/eval_gpt_review_bench.py` and `table/rule.json`. A system and a user
  message, temperature 0.2, 1024 tokens. The first line of the reply must be two numbers with one blank or comma
  between them; what is not becomes `[-1, -1]` and is not asked for again.
- MMBench: open-compass/VLMEvalKit, `vlmeval/dataset/utils/multiple_choice.py`. One user message in the language of the
  question, at most three times; a reply is read by the rule that answers are read by. The answer for "no option" is
  `Z`, and `E` under the rules of 2023. The official tool takes a random option after three unreadable replies; here
  there is no choice then, so the row is a miss.

MM-Vet's text was read at c7ff270d, LLaVA's at 181a2f81 and the matcher of today at 028a6e77, which are stored versions
near the commits that the protocols cite (acde843e, c121f043, e8e78f05). The matcher's temperature 0 and 1024 tokens
are the defaults of VLMEvalKit's client in early 2024 (02f29e2e, `vlmeval/chat_api/gpt.py`), not verified at e8e78f05.

Numbers that are not finite are no grades here, where the official tools would take the word "nan" for one.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from .base import OFFICIAL, Item
from .llava_bench import UNREAD, category
from .mmbench import leftovers, options
from .mmbench import parse as parse_choice


Message = dict[str, str]

MMVET_TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)  # after a reply that is no grade
MMBENCH_TRIES = 3
CHINESE = re.compile("[\u4e00-\u9fff]")
FIELDS = {"mmvet": "grades", "llava_bench": "tuple", "mmbench": "judge_choice", "mmbench_cn": "judge_choice"}


@dataclass(frozen=True)
class Ask:
    """
    One request to a judge.

    Args:
        messages (`list[dict]`): As chat endpoints take them.
        temperature (`float`): Of sampling.
        max_tokens (`int`): Bound of the reply.
    """

    messages: list[Message]
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Ruling:
    """
    What a judge decided.

    Args:
        value (`float`, `list[float]`, `str` or `None`): Grade, ratings or letter.
        parsed (`bool`): Whether it was read from a reply; else it is what the official tool puts there instead.
    """

    value: Any
    parsed: bool


@dataclass(frozen=True)
class Case:
    """
    One answer that a judge is to read.

    Args:
        benchmark (`str`): Name of the benchmark.
        id (`str`): Of the question.
        place (`int`): Of the item.
        run (`int`): Number of the run, from 0.
        response (`str`): The answer.
        messages (`list[dict]`): The prompt.
        item (`dict`): The item.
        rule (`str`): How MMBench's choices are read.
    """

    benchmark: str
    id: str
    place: int
    run: int
    response: str
    messages: list[Message]
    item: Item = field(repr=False)
    rule: str = OFFICIAL

    @cached_property
    def prompt_sha256(self) -> str:
        """Of the messages (`str`): of their JSON, in hexadecimal digits."""
        return sha256(json.dumps(self.messages, sort_keys=True))

    @cached_property
    def key(self) -> tuple[str, str, int, str, str]:
        """What a stored verdict must agree in (`tuple`): benchmark, question, run, answer and prompt."""
        return (self.benchmark, self.id, self.run, sha256(self.response), self.prompt_sha256)


def sha256(text: str) -> str:
    """
    The digest of a text.

    Args:
        text (`str`): The text; lone surrogates are allowed.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def texts() -> dict[str, dict[str, str]]:
    """
    The official prompts.

    Returns:
        `dict[str, dict[str, str]]`: Texts of each benchmark, with their `source`.
    """
    return json.loads((files(__package__) / "data" / "judge_prompts.json").read_text(encoding="utf-8"))


def template_sha256(benchmark: str) -> str:
    """
    What tells the prompts of a benchmark from others.

    Args:
        benchmark (`str`): Name of the benchmark.

    Returns:
        `str`: Digest of its texts, without their source.
    """
    found = texts()[benchmark.removesuffix("_cn")]
    return sha256(json.dumps({name: text for name, text in found.items() if name != "source"}, sort_keys=True))


def cases(benchmark: str, items: Sequence[Item], runs: int = 1, rule: str = OFFICIAL) -> list[Case]:
    """
    What a judge is to read.

    Args:
        benchmark (`str`): `mmvet`, `llava_bench`, `mmbench` or `mmbench_cn`.
        items (`Sequence[dict]`): Questions with their responses.
        runs (`int`, defaults to 1): How often MM-Vet's answers are graded; 5 in its paper.
        rule (`str`, defaults to `"official"`): How MMBench's choices are read.

    Returns:
        `list[Case]`: One for each answer and run; of MMBench only what the rule cannot read.

    Raises:
        `ValueError`: The benchmark has no judge, or runs are asked for that it does not have.
    """
    if benchmark not in FIELDS:
        raise ValueError(f"{benchmark} has no judge. Those that have one are {', '.join(FIELDS)}.")
    if runs < 1 or (runs > 1 and benchmark != "mmvet"):
        raise ValueError(f"`runs` must be 1, or more for mmvet alone, got {runs} for {benchmark}.")
    if benchmark in ("mmbench", "mmbench_cn"):
        unread = [{**item, "judge_choice": None} for item in items]
        places = leftovers(unread, rule)
    else:
        places = [place for place, item in enumerate(items) if item.get("response") is not None]
    return [
        Case(benchmark, _id(items[place]), place, run, str(items[place]["response"]), messages, items[place], rule)
        for place in places
        for messages in [_messages(benchmark, items[place], rule)]
        for run in range(runs)
    ]


def next_step(case: Case, replies: Sequence[str]) -> Ask | Ruling:
    """
    What follows on the replies so far.

    Args:
        case (`Case`): What the judge reads.
        replies (`Sequence[str]`): All its replies in their order.

    Returns:
        `Ask` or `Ruling`: The next request, or the end.
    """
    if case.benchmark == "mmvet":
        return _mmvet_step(case, replies)
    if case.benchmark == "llava_bench":
        if not replies:
            return Ask(case.messages, 0.2, 1024)
        ratings = read_ratings(replies[0])
        return Ruling(UNREAD if ratings is None else ratings, ratings is not None)
    for reply in replies:
        if (choice := parse_choice(reply.strip(), case.item, case.rule)) is not None:
            return Ruling(choice, True)
    return Ask(case.messages, 0.0, 1024) if len(replies) < MMBENCH_TRIES else Ruling(None, False)


def read_grade(reply: str) -> float | None:
    """
    MM-Vet's grade in a reply.

    Args:
        reply (`str`): The reply.

    Returns:
        `float`, *optional*: Its first word as a number from 0 to 1.
    """
    try:
        grade = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def read_ratings(reply: str) -> list[float] | None:
    """
    LLaVA-Bench's two ratings in a reply.

    Args:
        reply (`str`): The reply.

    Returns:
        `list[float]`, *optional*: Those of its first line, of the reference first.
    """
    words = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        ratings = [float(word) for word in words]
    except ValueError:
        return None
    return ratings if len(ratings) == 2 and all(map(math.isfinite, ratings)) else None


def _mmvet_step(case: Case, replies: Sequence[str]) -> Ask | Ruling:
    for reply in replies[: len(MMVET_TEMPERATURES)]:
        if (grade := read_grade(reply)) is not None:
            return Ruling(grade, True)
    if not replies:
        return Ask(case.messages, 0.0, 3)
    if len(replies) > len(MMVET_TEMPERATURES):
        return Ruling(0.0, False)
    again = case.messages[0]["content"] + texts()["mmvet"]["again"]
    return Ask([{"role": "user", "content": again}], MMVET_TEMPERATURES[len(replies) - 1], 3)


def _messages(benchmark: str, item: Item, rule: str) -> list[Message]:
    response, question = str(item["response"]), str(_needed(item, "question"))
    if benchmark == "mmvet":
        truth = str(_needed(item, "answer")).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        return [_user(texts()["mmvet"]["prompt"] + "\n" + " | ".join((question, truth, response, "")))]
    if benchmark == "llava_bench":
        system = {"role": "system", "content": texts()["llava_bench"]["system"]}
        return [system, _user(_comparison(item, question, response))]
    found = texts()["mmbench"]
    template = found["cn" if CHINESE.search(question) else "en"]
    if rule != OFFICIAL:
        template = template.replace("Z", "E")  # its only use is as the answer that fits no option
    listed = found["options"] + "".join(f"{letter}. {text}\n" for letter, text in options(item).items())
    return [_user(template.format(question, listed, response.strip() if rule == OFFICIAL else response))]


def _comparison(item: Item, question: str, response: str) -> str:
    caption = _needed(item, "caption")
    context = caption if isinstance(caption, str) else "\n".join(caption)
    if category(item) not in ("llava_bench_conv", "llava_bench_detail", "llava_bench_complex"):
        raise ValueError(f"Question {item['question_id']}: LLaVA-Bench has no category {item.get('category')!r}.")
    parts = [f"[Context]\n{context}", f"[Question]\n{question}"]
    for number, answer in enumerate((_needed(item, "gpt_answer"), response), start=1):
        parts += [f"[Assistant {number}]\n{answer}", f"[End of Assistant {number}]"]
    parts.append(f"[System]\n{texts()['llava_bench']['rule']}")
    return "".join(f"{part}\n\n" for part in parts)


def _needed(item: Item, name: str) -> Any:
    if item.get(name) is None:
        raise ValueError(f"Question {_id(item)} has no `{name}`, which its judge must see. Give the references.")
    return item[name]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _id(item: Item) -> str:
    return str(item["index"] if "index" in item and "question_id" not in item else item["question_id"])

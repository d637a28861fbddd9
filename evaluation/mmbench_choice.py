"""
Which option an answer to MMBench chooses, by the rules of the harnesses; none of them guesses.

| rule | source |
|---|---|
| `official` | open-compass/VLMEvalKit@e8e78f05, `vlmeval/utils/matching_util.py`, `can_infer` |
| `vlmevalkit_2023_11` | the same at 9ac258c1, of the time of the paper |
| `lmms_eval` | lmms-eval 0.7.3, `tasks/mmbench/mmbench_evals.py`, `can_infer` |
| `lmms_eval_static` | that, then `tasks/_task_utils/mcq_extract.py`, as its task `mmbench_en_dev_static` does |

Each rule looks for a letter first and for the text of one option then. What it does not find is `None`; VLMEvalKit
hands it to a language model, and counts a miss under exact matching.
"""

import re
from collections.abc import Callable, Mapping


Choices = Mapping[str, str]
Rule = Callable[[str, Choices], str | None]

NO_ANSWER = "Failed to obtain answer via API"  # what the harnesses store instead of an answer
REFUSALS_2023 = ("Sorry, I can't help with images of people yet.", "I can't process this file.")
REFUSALS = (*REFUSALS_2023, "I'm sorry, but without the image provided", "Cannot determine the answer")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
LAST_WORDS = 5  # VLMEvalKit: a letter must be followed by fewer than four words
FIVE = "ABCDE"
# Around a letter, in the order in which lmms-eval tries them.
AROUND = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"),
    ("(", ")."), (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip
ANNOUNCED = (
    "the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is", "best answer is",
    "the correct option is", "correct option is", "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
STARTS, ENDS, AFTER_PHRASE, ANYWHERE = 10, 9, 7, 0
MARKED = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))


def official(answer: str, choices: Choices) -> str | None:
    """
    The current rule of VLMEvalKit.

    Args:
        answer (`str`): What the model said.
        choices (`Mapping[str, str]`): Text of each option, by its letter.

    Returns:
        `str`, *optional*: A letter of `choices`, or `Z` for a refusal; `None` if the answer chooses no single one.
    """
    if NO_ANSWER not in answer:
        if any(refusal in answer for refusal in REFUSALS):
            return "Z"
        words = answer.translate(MARKS).split()
        present = [letter for letter in choices if letter in words]
        if len(present) == 1 and words.index(present[0]) > len(words) - LAST_WORDS:
            return present[0]
        if not present and "Z" in words:
            return "Z"
        stated = ANSWER_IS.search(answer)
        if stated is not None and stated[1].upper() in choices:
            return stated[1].upper()
    if len(answer.lower()) > 2 * sum(map(len, choices.values())):
        return None
    return _by_text(answer, choices)


def vlmevalkit_2023_11(answer: str, choices: Choices) -> str | None:
    """
    The rule of VLMEvalKit at the time of the paper: letters A to E, whatever the options.

    Args:
        answer (`str`): What the model said.
        choices (`Mapping[str, str]`): Text of each option, by its letter.

    Returns:
        `str`, *optional*: A letter, `E` for a refusal; `None` if the answer chooses no single one.
    """
    if NO_ANSWER not in answer:
        if any(refusal in answer for refusal in REFUSALS_2023):
            return "E"
        words = answer.translate(MARKS).split()
        present = [letter for letter in FIVE if letter in words]
        if len(present) == 1:
            return present[0]
    return _by_text(answer, choices)


def lmms_eval(answer: str, choices: Choices) -> str | None:
    """
    The rule of lmms-eval: a word that is a letter, or a letter with marks around it, A to E.

    Args:
        answer (`str`): What the model said.
        choices (`Mapping[str, str]`): Text of each option, by its letter.

    Returns:
        `str`, *optional*: A letter; `None` if the answer chooses no single one.
    """
    if NO_ANSWER not in answer:
        words = answer.split()
        present = [letter for letter in FIVE if letter in words]
        if len(present) == 1 and not ("A" in words and len(words) > 3):  # there, "A" may be an article
            return present[0]
        for before, after in AROUND:
            present = [letter for letter in FIVE if f"{before}{letter}{after}" in words]
            if len(present) == 1:
                return present[0]
    return _by_text(answer, choices)


def lmms_eval_static(answer: str, choices: Choices) -> str | None:
    """
    The rule of lmms-eval where no language model is asked: [`lmms_eval`], then [`ranked`].

    Args:
        answer (`str`): What the model said.
        choices (`Mapping[str, str]`): Text of each option, by its letter.

    Returns:
        `str`, *optional*: A letter; `None` if the answer has none.
    """
    return lmms_eval(answer, choices) or ranked(answer, choices)


def ranked(answer: str, choices: Choices) -> str | None:
    """
    The letter in the place that says most, of equal places the last: lmms-eval's `extract_mcq_answer`.

    Args:
        answer (`str`): What the model said.
        choices (`Mapping[str, str]`): Options, by their letters.

    Returns:
        `str`, *optional*: A letter of `choices`; `None` if none occurs.
    """
    bare = answer.strip()
    for mark in ",.!?;:'\"":
        bare = bare.strip(mark)
    text, bare, letters = f" {bare} ", bare.strip(), sorted(choices)
    found = [
        (rank, text.rfind(form.format(letter)), letter)
        for rank, form in MARKED
        for letter in letters
        if form.format(letter) in text
    ]
    lower = text.lower()
    for phrase in ANNOUNCED:
        if (start := lower.find(phrase)) >= 0:
            places = ((text.find(letter, start + len(phrase)), letter) for letter in letters)
            found += [(AFTER_PHRASE, place, letter) for place, letter in places if place >= 0]
    found += [(STARTS, 0, one) for one in letters if bare.startswith(one) and not bare[1:2].isalpha()]
    found += [(ENDS, len(text) - 1, one) for one in letters if bare.endswith(one) and not bare[-2:-1].isalpha()]
    if not found:
        found = [(ANYWHERE, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda one: one[:2])[2] if found else None


RULES: dict[str, Rule] = {
    "official": official,
    "vlmevalkit_2023_11": vlmevalkit_2023_11,
    "lmms_eval": lmms_eval,
    "lmms_eval_static": lmms_eval_static,
}


def _by_text(answer: str, choices: Choices) -> str | None:
    """The option whose text, alone of all, is part of the answer."""
    lower = answer.lower()
    present = [letter for letter, text in choices.items() if text.lower() in lower]
    return present[0] if len(present) == 1 else None

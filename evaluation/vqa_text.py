"""
The three normalisers of short answers, and the steps that they share.

| normaliser | applied to | source |
|---|---|---|
| [`normalise_vqa_v2`] | VQA v2, both sides, unless all references are the same | GT-Vision-Lab/VQA@a013f004 |
| [`normalise_m4c`] | TextVQA, both sides; uploads of VQA v2 and VizWiz | haotian-liu/LLaVA@c121f043 |
| [`normalise_vizwiz`] | VizWiz, the prediction only | the evaluator of Qing Li that vizwiz.org hands out |

Quirks are kept, for the published figures have them: what becomes of a mark is judged on the text as it came, one
comma between two digits anywhere deletes all marks, and no more than 32 full stops are taken out, because the flag
`re.UNICODE` (32) stands where a count belongs. Results are remembered: answers repeat themselves.
"""

import re
from functools import lru_cache

from .vqa_contractions import CONTRACTIONS, VIZWIZ_CONTRACTIONS


MEMORY = 1 << 16  # texts that each normaliser remembers
_MARK = re.compile(r"""[;/\[\]"{}()=+\\_\-><@`,?!]""")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")  # the official look-behind is misspelt and never holds back: "5." loses its stop
_MOST_FULL_STOPS = int(re.UNICODE)
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = frozenset({"a", "an", "the"})
# No number is a contraction, so one look-up does for both.
_WORDS, _VIZWIZ_WORDS = CONTRACTIONS | _NUMBERS, VIZWIZ_CONTRACTIONS | _NUMBERS


@lru_cache(MEMORY)
def flatten(text: str) -> str:
    """
    Bring an answer to one line.

    Args:
        text (`str`): The answer.

    Returns:
        `str`: With spaces for newlines and tabs, and none at its ends.
    """
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """
    Take out punctuation: the first step of all normalisers.

    Args:
        text (`str`): The answer.

    Returns:
        `str`: Marks beside a space are gone, others are spaces; full stops before no digit are gone.
    """
    marks = set(_MARK.findall(text))
    if marks:
        delete_all = _COMMA_IN_NUMBER.search(text) is not None
        gone = {mark: delete_all or f"{mark} " in text or f" {mark}" in text for mark in marks}
        text = text.translate({ord(mark): "" if gone[mark] else " " for mark in marks})
    return _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS) if "." in text else text


def _replace_words(text: str, table: dict[str, str]) -> str:
    return " ".join([table.get(word, word) for word in text.lower().split() if word not in _ARTICLES])


@lru_cache(MEMORY)
def normalise_vqa_v2(text: str) -> str:
    """
    Normal form of an answer by the rule of VQA v2.

    Args:
        text (`str`): The answer.

    Returns:
        `str`: In small letters, without punctuation and articles, number words as digits, contractions repaired.
    """
    return _replace_words(strip_punctuation(flatten(text)), _WORDS)


@lru_cache(MEMORY)
def normalise_m4c(text: str) -> str:
    """
    Normal form of an answer by the rule of M4C's evaluator, which uploads to EvalAI have as well.

    Args:
        text (`str`): The answer.

    Returns:
        `str`: As of VQA v2, but commas and question marks are gone beforehand, and `'s` is a word of its own.
    """
    separated = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _replace_words(strip_punctuation(flatten(separated)), _WORDS)


@lru_cache(MEMORY)
def normalise_vizwiz(text: str) -> str:
    """
    Normal form of an answer by the rule of VizWiz.

    Args:
        text (`str`): The answer.

    Returns:
        `str`: As of VQA v2, but most contractions get a typographic apostrophe, which references seldom have.
    """
    return _replace_words(strip_punctuation(flatten(text)), _VIZWIZ_WORDS)

"""
Checks of captions: each finding is a state with its reason, and nothing is ever deleted.

What goes wrong with captions at scale, and is looked for here: no text, a refusal, a text that was cut off, a loop,
one text on many images, marks of a chat or an image placeholder, another language, a few words only, and the prompt
repeated back.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

from dataset_scripts.near_duplicates import NearDuplicates

from .answers import is_refusal
from .job_config import CheckConfig


# Phrases with which a model declines anywhere in a text; how refusals begin is data of `captioning.answers`.
REFUSALS = (
    r"\bas an ai (?:language |text-based )?(?:model|assistant)\b",
    r"\b(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|content policy)\b",
    r"\bno image (?:was |has been |is )?(?:provided|attached|visible|uploaded)\b",
)
MARKERS = (
    r"<\|[^|>]{1,40}\|>",
    r"</?s>|<pad>|<unk>",
    r"</?image>|<img>|\[image\]|\[IMG\]",
    r"^\s*(?:USER|ASSISTANT|HUMAN|SYSTEM):",
    r"\[/?INST\]|<<SYS>>",
    r"<start_of_turn>|<end_of_turn>|<end_of_utterance>",
)
LANGUAGE_CHARACTERS = 400  # of a caption, enough to tell its language
SHOWN_CHARACTERS = 120  # of a reason
WORD = re.compile(r"\w+(?:['’]\w+)?")
END = re.compile(r"[.!?…。！？\"”’)\]][\"'”’)\]*_]*\s*$")
LANGUAGE_LEAST = 100  # bytes in UTF-8: a title or a name has no sure language


class Finding(NamedTuple):
    """Which check found something, and what."""

    check: str
    reason: str


def check_caption(
    caption: str, config: CheckConfig, prompt: str = "", finish_reason: str | None = None
) -> list[Finding]:
    """
    Look at one caption alone.

    Args:
        caption (`str`): The text.
        config (`CheckConfig`): Thresholds.
        prompt (`str`, *optional*): What it answers.
        finish_reason (`str`, *optional*): Why the model stopped; `length` is a cut-off text.

    Returns:
        `list[Finding]`: In the order of the checks; an empty caption has no other finding.
    """
    text = caption.strip()
    if not text:
        return [Finding("empty", "There is no text.")]
    found = [
        _refusal(text),
        _truncated(text, finish_reason),
        _loop(text, config),
        _markers(text),
        _too_short(text, config),
        _leak(text, prompt, config),
        _language(text, config),
    ]
    return [finding for finding in found if finding is not None]


class CaptionChecks:
    """
    Checks of all captions of a job, one after another, with what only shows over many.

    Memory grows by some 100 bytes a different caption and by what [`NearDuplicates`] needs a picture.

    Args:
        config (`CheckConfig`, *optional*): Thresholds.
        samples (`int`, defaults to 20): Captions that the report shows, drawn at random.
        seed (`int`, defaults to 0): Of that draw.
    """

    def __init__(self, config: CheckConfig | None = None, samples: int = 20, seed: int = 0):
        self.config = config or CheckConfig()
        self.rows = 0
        self.by_check: Counter[str] = Counter()
        self.by_source: dict[str, Counter[str]] = {}
        self.lengths: Counter[int] = Counter()
        self.samples: list[dict[str, str]] = []
        self._wanted, self._random = samples, random.Random(seed)
        self._texts: Counter[bytes] = Counter()
        self._images = NearDuplicates(self.config.distance)

    def check(self, row: dict[str, Any]) -> list[Finding]:
        """
        Check the next caption and count it.

        Args:
            row (`dict`): With `id`, `source` and `caption`, and, where they are known, `prompt`, `finish_reason` and
                `phash` (16 hexadecimal digits) of its image.

        Returns:
            `list[Finding]`: Of a text on many images, those after the first `max_images` are found.
        """
        caption = row["caption"] or ""
        findings = check_caption(caption, self.config, row.get("prompt") or "", row.get("finish_reason"))
        if caption.strip():
            key = blake2b(" ".join(WORD.findall(caption.lower())).encode(), digest_size=8).digest()
            self._texts[key] += 1
            if self._texts[key] > self.config.max_images:
                findings.append(Finding("repeated_caption", f"The same text on {self._texts[key]} images so far."))
        if phash := row.get("phash"):
            if (other := self._images.find(phash)) is not None:
                findings.append(Finding("similar_image", f"Its image looks like that of {other}."))
            self._images.add(phash, str(row["id"]))
        self._count(row, caption, findings)
        return findings

    def check_all(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[Finding]]]:
        """
        Check many captions.

        Args:
            rows (`Iterable[dict]`): As for [`check`].

        Yields:
            `tuple[dict, list[Finding]]`: Each row as it came, none is left out, and its findings.
        """
        for row in rows:
            yield row, self.check(row)

    def report(self) -> dict[str, Any]:
        """
        What was found so far.

        Returns:
            `dict`: `rows`, `clean` ones, counts `by_check` and `by_source`, `lengths` (captions by hundreds of
                characters), `repeated_texts`, and `samples`.
        """
        return {
            "rows": self.rows,
            "clean": self.rows - sum(of["rows"] - of["clean"] for of in self.by_source.values()),
            "by_check": dict(sorted(self.by_check.items())),
            "by_source": {source: dict(sorted(of.items())) for source, of in sorted(self.by_source.items())},
            "lengths": {str(length): self.lengths[length] for length in sorted(self.lengths)},
            "repeated_texts": sum(count > self.config.max_images for count in self._texts.values()),
            "samples": self.samples,
        }

    def _count(self, row: dict[str, Any], caption: str, findings: list[Finding]) -> None:
        of_source = self.by_source.setdefault(str(row["source"]), Counter())
        of_source["rows"] += 1
        of_source["clean"] += not findings
        for check in {finding.check for finding in findings}:
            self.by_check[check] += 1
            of_source[check] += 1
        self.lengths[len(caption) // 100 * 100] += 1
        self.rows += 1
        sample = {"id": str(row["id"]), "source": str(row["source"]), "caption": caption}
        if len(self.samples) < self._wanted:
            self.samples.append(sample)
        elif (place := self._random.randrange(self.rows)) < self._wanted:  # Vitter's algorithm R
            self.samples[place] = sample


def _refusal(text: str) -> Finding | None:
    if is_refusal(text):
        return Finding("refusal", _quote(text))
    found = _any(REFUSALS, re.IGNORECASE).search(text)
    return Finding("refusal", _quote(found[0])) if found else None


def _truncated(text: str, finish_reason: str | None) -> Finding | None:
    if finish_reason == "length":
        return Finding("truncated", "The model stopped at its length limit.")
    if finish_reason is None and not END.search(text):  # a model that has stopped by itself may end in a list
        return Finding("truncated", f"It does not end with a sentence: {_quote(text[-40:])}")
    return None


def _loop(text: str, config: CheckConfig) -> Finding | None:
    words = WORD.findall(text.lower())
    phrases = Counter(tuple(words[at : at + config.ngram]) for at in range(len(words) - config.ngram + 1))
    if not phrases:
        return None
    phrase, count = phrases.most_common(1)[0]
    return Finding("loop", f"{count} times: {_quote(' '.join(phrase))}") if count > config.max_repeats else None


def _markers(text: str) -> Finding | None:
    found = _any(MARKERS, re.MULTILINE).search(text)
    return Finding("marker", _quote(found[0])) if found else None


def _too_short(text: str, config: CheckConfig) -> Finding | None:
    if len(text) >= config.min_characters:
        return None
    return Finding("too_short", f"{len(text)} characters, at least {config.min_characters} are expected.")


def _leak(text: str, prompt: str, config: CheckConfig) -> Finding | None:
    asked, said = WORD.findall(prompt.lower()), WORD.findall(text.lower())
    size = config.leak_words
    phrases = {tuple(asked[at : at + size]) for at in range(len(asked) - size + 1)}
    for at in range(len(said) - size + 1):
        if tuple(said[at : at + size]) in phrases:
            return Finding("prompt_leak", _quote(" ".join(said[at : at + size])))
    return None


def _language(text: str, config: CheckConfig) -> Finding | None:
    if config.language is None or len(text.encode(errors="replace")) < LANGUAGE_LEAST:
        return None
    import py3langid  # a quarter of a second, which only this check needs

    language, _ = py3langid.classify(text[:LANGUAGE_CHARACTERS])
    return None if language == config.language else Finding("language", f"{language}, not {config.language}.")


@cache
def _any(patterns: tuple[str, ...], flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), flags)


def _quote(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")

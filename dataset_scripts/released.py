"""
Readers of the three released ShareGPT4V files, streaming, tolerant where the format varies and strict where it lies.

Each file is one JSON array of records in LLaVA's conversation format, up to 1.5 GB (Hugging Face dataset
`Lin-Chen/ShareGPT4V`): `{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}], "model"?}`. What
a record may look like is in LLaVA's own loader (haotian-liu/LLaVA@c121f04, `llava/train/train.py`).
"""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from .image_paths import check_image_path
from .layouts import source_of
from .schema import IMAGE_TOKEN, ROLES, check_encodable


LLAVA_ROLES = {"human": "user", "gpt": "assistant"}
KNOWN_KEYS = {"id", "image", "conversations", "model"}
CHUNK = 2**18  # characters read at once
MAX_RECORD = 2**26  # characters of a record; real ones have fewer than 100,000
MERGE_IDS = 65_536
VISIBLE = re.compile(r"[^ \t\r\n]")  # anything but JSON's white space


@dataclass
class ReleasedRecord:
    """One record, repaired: messages alternate from user to assistant and hold no `<image>`."""

    number: int
    id: str
    image: str | None
    source: str
    messages: list[dict[str, str]]


@dataclass
class ReadReport:
    """What a reading met: records by source, repairs by kind, and every record that was refused."""

    records: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    duplicate_ids: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)


def read_released(
    path: Path, report: ReadReport, on_bad: Literal["error", "skip"] = "error", image_prefix: str = ""
) -> Iterator[ReleasedRecord]:
    """
    Read a released file record by record; memory stays flat but for 8 bytes an id.

    Args:
        path (`Path`): JSON array of records.
        report (`ReadReport`): Filled while the records are read.
        on_bad (`str`, defaults to `"error"`): What a record does that cannot be used: `error` stops, `skip` puts it
            into the report and goes on.
        image_prefix (`str`, defaults to `""`): Put in front of every image path: LLaVA-Pretrain's
            `blip_laion_cc_sbu_558k.json` calls `00453/004539375.jpg` what the released files call
            `llava/llava_pretrain/images/00453/004539375.jpg`.

    Yields:
        `ReleasedRecord`: Records in the order of the file, numbered from 0.

    Raises:
        `ValueError`: The file is no JSON array or is cut off, or a record cannot be used; the message names file,
            record number and reason.
    """
    if on_bad not in ("error", "skip"):
        raise ValueError(f"`on_bad` must be 'error' or 'skip', got {on_bad!r}.")
    seen = SeenTexts()
    for number, raw in enumerate(_stream_items(path)):
        report.records += 1
        repairs: list[str] = []
        try:
            record = _repair(raw, number, image_prefix, repairs)
        except ValueError as error:
            if on_bad == "error":
                raise ValueError(f"{path}, record {number}: {error}") from error
            name = raw.get("id") if isinstance(raw, dict) else None
            shown = str(name).encode("utf-8", "backslashreplace").decode() if isinstance(name, (str, int)) else None
            report.refused.append({"file": path.name, "record": number, "id": shown, "reason": str(error)})
            continue
        report.repairs.update(repairs)
        report.by_source[record.source] += 1
        report.duplicate_ids += seen.add(record.id)
        yield record


class SeenTexts:
    """Texts met so far, 8 bytes each: their 64-bit hashes, of which 1.25 million collide once in ten million sets."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, np.int64)

    def add(self, text: str) -> bool:
        """
        Enter a text.

        Args:
            text (`str`): Any text.

        Returns:
            `bool`: True when it was there.
        """
        key = hash(text)
        place = np.searchsorted(self._sorted, key)
        if key in self._recent or (place < len(self._sorted) and self._sorted[place] == key):
            return True
        self._recent.add(key)
        if len(self._recent) == MERGE_IDS:
            self._sorted = np.sort(np.concatenate([self._sorted, np.fromiter(self._recent, np.int64)]))
            self._recent.clear()
        return False


class _Buffer:
    """The part of a JSON text that is being parsed, and a place in it."""

    def __init__(self, stream: TextIO):
        self._stream, self._text, self._place = stream, "", 0
        self._parse = json.JSONDecoder().raw_decode

    def take_mark(self, among: str) -> str:
        """Next character that is no white space, passed when it is among those given; empty at the end."""
        while (found := VISIBLE.search(self._text, self._place)) is None:
            self._place = len(self._text)
            if not self._read():
                return ""
        self._place = found.end() if found[0] in among else found.start()
        return found[0]

    def take_value(self) -> Any:
        """Next value; one that does not parse may only have been read in part."""
        self.take_mark("")
        while True:
            try:
                value, end = self._parse(self._text, self._place)
            except ValueError:
                if len(self._text) - self._place > MAX_RECORD or not self._read():
                    raise
                continue
            if len(self._text) - end > 2 or not self._read():  # a number may go on, as `1` does in `1e+5`
                self._place = end
                return value

    def _read(self) -> bool:
        rest = len(self._text) - self._place
        chunk = self._stream.read(max(CHUNK, rest))
        if chunk:
            self._text, self._place = self._text[self._place :] + chunk, 0
        return bool(chunk)


def _stream_items(path: Path) -> Iterator[Any]:
    # Not by ijson: 3.6 turns half a surrogate pair into "?", ends at a number of 65 bits, and takes gigabytes for a
    # few thousand brackets in each other. Bytes that are no UTF-8 become lone surrogates, which the record is refused
    # for.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        buffer = _Buffer(stream)
        mark, count = buffer.take_mark("["), 0
        if mark != "[":
            raise ValueError(f"{path} must hold one JSON array, it begins with {mark!r}.")
        mark = "]" if buffer.take_mark("]") == "]" else ","
        while mark == ",":
            try:
                value = buffer.take_value()
                mark = buffer.take_mark(",]")
            except RecursionError as error:
                raise ValueError(f"{path}, record {count}: it is nested too deeply to be read.") from error
            except ValueError as error:
                raise _damaged(path, count, error.msg if isinstance(error, json.JSONDecodeError) else error) from error
            if not mark or mark not in ",]":
                raise _damaged(path, count, f"{mark!r} follows it" if mark else "nothing follows it")
            yield value
            count += 1
        if rest := buffer.take_mark(""):
            raise _damaged(path, count, f"{rest!r} follows the end of the array")


def _damaged(path: Path, record: int, problem: object) -> ValueError:
    return ValueError(f"{path} is damaged or cut off at record {record}: {problem}. Download it again.")


def _repair(raw: Any, number: int, image_prefix: str, repairs: list[str]) -> ReleasedRecord:
    if not isinstance(raw, dict):
        raise ValueError(f"a record must be an object, got {type(raw).__name__}.")
    name, image = raw.get("id"), raw.get("image")
    if isinstance(name, int) and not isinstance(name, bool):
        repairs.append("id was a number")
        name = str(name)
    if not isinstance(name, str) or not name:
        raise ValueError(f"`id` must be a text or a number, got {reprlib.repr(name)}.")
    check_encodable("id", name)
    if image == "":
        repairs.append("image was empty")
        image = None
    if image is not None and not isinstance(image, str):
        raise ValueError(f"`image` must be a path, got {reprlib.repr(image)}.")
    if image is not None:
        image = check_image_path(image_prefix + image)
    if "model" in raw:
        repairs.append("model key ignored")
    if set(raw) - KNOWN_KEYS:
        repairs.append("unknown keys ignored")
    turns = _read_turns(raw.get("conversations"))
    first = int(turns[0]["role"] == "assistant")  # LLaVA's loader drops a leading answer too
    messages = _alternate(turns[first:], first, repairs)
    _take_placeholder(messages, first, image, repairs)
    for index, message in enumerate(messages, first):
        if not message["content"].strip():
            raise ValueError(f"turn {index} ({message['role']}) is empty.")
        check_encodable(f"text of turn {index}", message["content"])
    return ReleasedRecord(number, name, image, source_of(image), messages)


def _read_turns(turns: Any) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"`conversations` must be a list that is not empty, got {type(turns).__name__}.")
    messages = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError(f"turn {index} must be an object with `from` and the text `value`.")
        role = turn.get("from")
        if not isinstance(role, str) or role not in LLAVA_ROLES:
            raise ValueError(f"turn {index} has the unknown role {reprlib.repr(role)}.")
        messages.append({"role": LLAVA_ROLES[role], "content": turn["value"]})
    return messages


def _alternate(messages: list[dict[str, str]], first: int, repairs: list[str]) -> list[dict[str, str]]:
    if first:
        repairs.append("leading answer dropped")
    if messages and messages[-1]["role"] == "user":
        repairs.append("unanswered last question dropped")
        messages = messages[:-1]
    if not messages:
        raise ValueError("no question with an answer is left.")
    for index, message in enumerate(messages):
        if message["role"] != ROLES[index % 2]:
            raise ValueError(
                f"turn {first + index} is of {message['role']} again; questions and answers must alternate."
            )
    return messages


def _take_placeholder(messages: list[dict[str, str]], first: int, image: str | None, repairs: list[str]) -> None:
    places = [index for index, message in enumerate(messages) for _ in range(message["content"].count(IMAGE_TOKEN))]
    if len(places) > (image is not None):
        raise ValueError(f"{len(places)} {IMAGE_TOKEN!r} for {int(image is not None)} images.")
    if image is None:
        return
    if not places:
        repairs.append("placeholder was missing")
        return
    text = messages[0]["content"].strip()
    if places != [0] or not (text.startswith(IMAGE_TOKEN) or text.endswith(IMAGE_TOKEN)):
        raise ValueError(
            f"{IMAGE_TOKEN!r} must stand first or last in the first question, it is in turn {first + places[0]}."
        )
    if not text.startswith(IMAGE_TOKEN):
        repairs.append("placeholder was last")
    messages[0]["content"] = text.removeprefix(IMAGE_TOKEN).removesuffix(IMAGE_TOKEN).strip()

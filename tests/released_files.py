"""
Files in the format of the three released ShareGPT4V files, of any size, with a ledger of everything planted in them.

The real files cannot be fetched here. Shapes and counts are the documented ones (card of `Lin-Chen/ShareGPT4V`,
docs/Data.md and the loader of ShareGPT4Omni/ShareGPT4V@b6f70e9); how COCO and LCS share 80,045 of the 100K, and the
sources of the mix beside its total, are not documented and round here.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


FOLDERS = {
    "coco": "coco/train2017/{:012d}.jpg",
    "lcs": "llava/llava_pretrain/images/{0:05d}/{1:09d}.jpg",
    "sam": "sam/images/sa_{}.jpg",
    "textcaps": "share_textvqa/images/{:016d}.jpg",
    "web-celebrity": "web-celebrity/images/Person_{}.jpg",
    "web-landmark": "web-landmark/images/Place_{}.jpg",
    "wikiart": "wikiart/images/painting_{}.jpg",
    "gqa": "gqa/images/{}.jpg",
    "ocr_vqa": "ocr_vqa/images/{}.jpg",
    "textvqa": "textvqa/train_images/{:016d}.jpg",
    "vg": "vg/VG_100K/{}.jpg",
}
DIVERSE = {"textcaps": 500, "web-celebrity": 498, "web-landmark": 500, "wikiart": 500}
COUNTS = {
    "cap100k": {"coco": 50_045, "lcs": 30_000, "sam": 19_982, **DIVERSE},
    "pt": {"sam": 570_486, "coco": 118_287, "lcs": 558_128},
    "mix": {
        **{"coco": 350_362, "lcs": 3_000, "sam": 9_000, **DIVERSE},
        **{"gqa": 72_140, "ocr_vqa": 80_000, "textvqa": 21_953, "vg": 86_417, "text": 40_188},
    },
}
PROMPTS = (
    "What do you see happening in this image?",
    "What is this photo about'?",
    "Analyze the image in a comprehensive and detailed manner.",
)
WORDS = "a the red small wooden table under window with two people holding bright sign near calm lake and".split()


@dataclass
class Ledger:
    """What was written: good records by source, planted repairs by kind, planted bad records by number."""

    records: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    duplicate_ids: int = 0
    refused: dict[int, str] = field(default_factory=dict)


def _human(record: dict) -> dict:
    return next(turn for turn in record["conversations"] if turn["from"] == "human")


def _placeholder_last(record: dict) -> None:
    turn = _human(record)
    turn["value"] = turn["value"].removeprefix("<image>\n") + "\n<image>"


def _placeholder_missing(record: dict) -> None:
    turn = _human(record)
    turn["value"] = turn["value"].removeprefix("<image>\n")


def _numeric_id(record: dict) -> None:
    record["id"] = int("".join(filter(str.isdigit, record["id"])) or "7")


# Repairs of records with an image, by the name the reader gives them.
REPAIRS = {
    "placeholder was last": _placeholder_last,
    "placeholder was missing": _placeholder_missing,
    "id was a number": _numeric_id,
    "model key ignored": lambda record: record.update(model=""),
    "unknown keys ignored": lambda record: record.update(split="train"),
    "leading answer dropped": lambda record: record["conversations"].insert(0, {"from": "gpt", "value": "Hello."}),
    "unanswered last question dropped": lambda record: record["conversations"].append(
        {"from": "human", "value": "And then?"}
    ),
}
# Records that cannot be used, by a part of the reason.
BAD: dict[str, Any] = {
    "a record must be an object": lambda record: "text",
    "`id` must be a text or a number": lambda record: {**record, "id": None},
    "`image` must be a path": lambda record: {**record, "image": ["a.jpg"]},
    "`conversations` must be a list": lambda record: {**record, "conversations": []},
    "has the unknown role 'system'": lambda record: {**record, "conversations": [{"from": "system", "value": "a"}]},
    "must be an object with `from`": lambda record: {**record, "conversations": [{"from": "human", "value": None}]},
    "questions and answers must alternate": lambda record: {
        **record,
        "conversations": [*record["conversations"][:1], *record["conversations"]],
    },
    "no question with an answer": lambda record: {**record, "conversations": record["conversations"][:1]},
    "2 '<image>' for 1 images": lambda record: _with_answer(record, "See <image>."),
    "1 '<image>' for 0 images": lambda record: {name: value for name, value in record.items() if name != "image"},
    "must stand first or last": lambda record: _with_question(record, "Look at <image> please."),
    "turn 1 (assistant) is empty": lambda record: _with_answer(record, " \n"),
    "turn 0 (user) is empty": lambda record: _with_question(record, "<image>\n"),
}


def _with_question(record: dict, text: str) -> dict:
    return {**record, "conversations": [{"from": "human", "value": text}, *record["conversations"][1:]]}


def _with_answer(record: dict, text: str) -> dict:
    first, _, *rest = record["conversations"]
    return {**record, "conversations": [first, {"from": "gpt", "value": text}, *rest]}


def write_released(
    path: Path, kind: str, records: int | None = None, repairs_each: int = 0, bad_each: int = 0, duplicates: int = 0
) -> Ledger:
    """
    Write a file and say what is in it.

    Args:
        path: Where it goes.
        kind: `cap100k`, `pt` or `mix`.
        records: Good records; the documented number by default, fewer keep the shares of the sources.
        repairs_each: Records with each kind of repair.
        bad_each: Records of each bad kind, beside the good ones.
        duplicates: Good records that repeat the id of an earlier one.
    """
    ledger, random = Ledger(), np.random.default_rng(7)
    sources = _sources(COUNTS[kind], records, random)
    with_image = [index for index, source in enumerate(sources) if source != "text"]
    picked = random.choice(with_image[1:], len(REPAIRS) * repairs_each + duplicates, replace=False).tolist()
    repair_at = {picked.pop(): name for name in REPAIRS for _ in range(repairs_each)}
    duplicate_at = set(picked)
    bad = [name for name in BAD for _ in range(bad_each)]
    bad_after = Counter(random.integers(0, len(sources), len(bad)).tolist())
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for index, source in enumerate(sources):
            record = _record(kind, source, index)
            if index in repair_at:
                REPAIRS[repair_at[index]](record)
                ledger.repairs[repair_at[index]] += 1
            if index in duplicate_at:
                record["id"] = _record(kind, sources[with_image[0]], with_image[0])["id"]
                ledger.duplicate_ids += 1
            if source == "text":
                ledger.repairs["model key ignored"] += 1
            ledger.by_source[source] += 1
            _append(stream, record, ledger)
            for _ in range(bad_after[index]):
                name = bad.pop()
                ledger.refused[ledger.records] = name
                _append(stream, BAD[name](_record("pt", "sam", 10_000_000 + len(bad))), ledger)
        stream.write("]")
    return ledger


def _append(stream, record: Any, ledger: Ledger) -> None:
    stream.write((", " if ledger.records else "") + json.dumps(record, ensure_ascii=False))
    ledger.records += 1


def _sources(counts: dict[str, int], records: int | None, random: np.random.Generator) -> list[str]:
    names, numbers = list(counts), np.array(list(counts.values()))
    if records is not None:
        shares = numbers * records / numbers.sum()
        numbers = np.floor(shares).astype(int)
        numbers[np.argsort(shares - numbers)[::-1][: records - numbers.sum()]] += 1
    return [names[index] for index in random.permutation(np.repeat(np.arange(len(names)), numbers))]


def _record(kind: str, source: str, index: int) -> dict[str, Any]:
    turns = list(_turns(kind, source, index))
    if source == "text":
        return {"id": f"chat{index}_0", "conversations": turns, "model": ""}
    image = FOLDERS[source].format(*((index // 1000, index) if source == "lcs" else (index,)))
    name = Path(image).stem
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {"id": name, "image": image, "conversations": turns}


def _turns(kind: str, source: str, index: int) -> Iterator[dict[str, str]]:
    count = 1 if kind != "mix" else 1 + index % 4
    for turn in range(count):
        yield {"from": "human", "value": PROMPTS[(index + turn) % len(PROMPTS)]}
        length = 150 if kind != "mix" else 30
        words = [WORDS[(index * 31 + step * 7 + turn) % len(WORDS)] for step in range(length + index % 23)]
        yield {"from": "gpt", "value": " ".join(words).capitalize() + f", número {index}.\n\nSecond paragraph."}

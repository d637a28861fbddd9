"""
Open a repository as large as the released files, read its first batch, and stream rows, against what LLaVA's loader
and plain `datasets` do.

- `open_*`: number of rows, by `open_rows` from the footers against `json.load` of the released file. The first use of
  `datasets` in a process takes longer, because it imports more: see `fresh_process` in the details.
- `first_batch_1250k`: the same, and the first eight images decoded to RGB (the peer opens eight files with PIL).
- `memory_1250k`: growth of peak memory of a fresh process in the course of that, the peer's over ours.
- `iterator`: rows a second of 336-pixel photographs by the safe reader over those of a plain stream of `datasets`.

Real images of 1.25 million rows are 68 GB, so there every row carries one of eight small JPEG files, on both sides.

```sh
python benchmarks/loader.py
```
"""

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import best_of, finish
from datasets import load_dataset
from PIL import Image

from dataset_scripts.build import write_repo
from dataset_scripts.reading import open_rows
from dataset_scripts.repo import describe_repo
from dataset_scripts.rows import Origin, RowSource
from dataset_scripts.schema import CAPTION_FEATURES, validate_caption
from dataset_scripts.shards import ConfigBuild, Table


TARGETS = {"open_100k": 20, "open_1250k": 20, "first_batch_1250k": 20, "memory_1250k": 5, "iterator": 0.9}
FILES = {"100k": "cap100k", "1250k": "pt"}
BATCH, PHOTOS, ROUNDS, PASSES = 8, 3000, 3, 5
SMALL, SIDE = 64, 336
CONFIG = "captions"
# A child prints by how many MiB its memory grew behind its imports, and the seconds.
CHILD = """
import re, sys, time
from loader import {side}

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 1024

before, start = status("VmRSS"), time.perf_counter()
{side}(sys.argv[1])
print(status("VmHWM") - before, time.perf_counter() - start)
"""


def log(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def peer_open(folder: str) -> list[dict[str, Any]]:
    """All records of the released file."""
    with open(f"{folder}/released.json", encoding="utf-8") as stream:
        return json.load(stream)


def peer_first_batch(folder: str) -> list[tuple[str, Image.Image]]:
    """Caption and picture of the first records."""
    batch = []
    for record in peer_open(folder)[:BATCH]:
        image = Image.open(f"{folder}/data/{record['image']}").convert("RGB")
        batch.append((record["conversations"][1]["value"], image))
    return batch


def our_open(folder: str) -> int:
    """Number of rows of the repository."""
    return open_rows(f"{folder}/repo", CONFIG).num_rows


def our_first_batch(folder: str) -> list[tuple[str, Image.Image]]:
    """Caption and picture of the first rows."""
    return [(row["caption"], row["image"]) for row in islice(open_rows(f"{folder}/repo", CONFIG), BATCH)]


def picture(number: int, side: int) -> bytes:
    """A JPEG file about as busy as a photograph."""
    noise = np.random.default_rng(number).integers(0, 256, (side // 14, side // 14, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def prepare(folder: Path, kind: str) -> int:
    """Write a released file, the first images beside it, and the repository of the same rows."""
    from tests.released_files import write_released

    start = time.perf_counter()
    (folder / "data").mkdir(parents=True)
    records = write_released(folder / "released.json", kind).records
    pictures = [picture(number, SMALL) for number in range(BATCH)]
    source = RowSource(folder / "released.json", origin=Origin("benchmark", "none"))
    for row, data in zip(source.captions(), pictures, strict=False):
        path = folder / "data" / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def rows(begin: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, row in islice(enumerate(source.captions()), begin, None):
            yield number, {**row, "image": {"bytes": pictures[number % BATCH], "path": row["image"]}}

    build = ConfigBuild(folder / "repo", CONFIG, {"kind": kind})
    build.write_split("train", rows, Table(CAPTION_FEATURES, validate_caption))
    build.publish({"rows": CONFIG, "images": "original"}, lambda: describe_repo(folder / "repo"))
    log(f"{kind}: {records} records in {time.perf_counter() - start:.0f} s")
    return records


def compare_opening(folder: Path, name: str, details: dict[str, Any]) -> tuple[dict[str, float], bool]:
    """Ratios of one size, and whether both sides found the same rows and pictures."""
    records = prepare(folder / name, FILES[name])
    place = str(folder / name)
    equal = our_open(place) == records == len(peer_open(place))
    pairs: dict[str, tuple[Callable, Callable]] = {f"open_{name}": (our_open, peer_open)}
    if name == "1250k":
        pairs[f"first_batch_{name}"] = (our_first_batch, peer_first_batch)
        ours, theirs = our_first_batch(place), peer_first_batch(place)
        equal &= len(ours) == BATCH and [caption for caption, _ in ours] == [caption for caption, _ in theirs]
        equal &= all(a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(ours, theirs, strict=True))
    ratios = {}
    for key, (our_side, peer_side) in pairs.items():
        seconds = best_of(ROUNDS, ours=lambda side=our_side: side(place), peer=lambda side=peer_side: side(place))
        ratios[key] = seconds["peer"] / seconds["ours"]
        details[key] = {side: round(value, 4) for side, value in seconds.items()}
        log(f"{key}: {details[key]}")
    return ratios, equal


def fresh_process(place: str, side: str, details: dict[str, Any]) -> float:
    """MiB by which a process grows that does this and nothing else."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(side=side), place],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    growth, seconds = map(float, child.stdout.split())
    name = f"{side}_{Path(place).name}"
    details.setdefault("fresh_process", {})[name] = {"growth_mib": round(growth, 1), "seconds": round(seconds, 3)}
    log(f"fresh process, {name}: {details['fresh_process'][name]}")
    return growth


def compare_iterators(folder: Path, details: dict[str, Any]) -> tuple[float, bool]:
    """Speed of the safe reader over that of a plain stream, and whether their rows are the same."""
    same = {"source": "none", "captioner": "benchmark", "prompt_id": "none", "license": "none", "sha256": "0"}
    captions = [
        {**same, "id": str(number), "caption": f"Picture {number}.", "image": {"bytes": data, "path": f"{number}.jpg"}}
        for number, data in enumerate([picture(number, SIDE) for number in range(PHOTOS)])
    ]
    repo = str(write_repo(folder / "photos", {"train": captions}, {}))

    def plain() -> Iterator[dict[str, Any]]:
        return iter(load_dataset(repo, CONFIG, split="train", streaming=True))

    def content(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "image": (row["image"].mode, row["image"].size, row["image"].tobytes())}

    def consume(rows: Iterator[dict[str, Any]]) -> int:
        return sum(1 for _ in rows)

    pairs = zip(open_rows(repo, CONFIG), plain(), strict=True)
    equal = all(content(ours) == content(theirs) for ours, theirs in pairs)
    seconds = best_of(PASSES, ours=lambda: consume(iter(open_rows(repo, CONFIG))), peer=lambda: consume(plain()))
    details["iterator"] = {f"{side}_rows_per_second": round(PHOTOS / value) for side, value in seconds.items()}
    log(str(details["iterator"]))
    return seconds["peer"] / seconds["ours"], equal


def main() -> None:
    """Make the inputs, compare, and report."""
    pa.set_cpu_count(1)
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        small, equal_small = compare_opening(Path(folder), "100k", details)
        large, equal_large = compare_opening(Path(folder), "1250k", details)
        for side in ("our_open", "peer_open"):
            fresh_process(f"{folder}/100k", side, details)
        ours = fresh_process(f"{folder}/1250k", "our_first_batch", details)
        theirs = fresh_process(f"{folder}/1250k", "peer_first_batch", details)
        iterator, equal_rows = compare_iterators(Path(folder), details)
    ratios = {**small, **large, "memory_1250k": theirs / ours, "iterator": iterator}
    finish("loader", ratios, TARGETS, details, equal_small and equal_large and equal_rows)


if __name__ == "__main__":
    main()

"""
The whole captioning pipeline against a bare client, and its memory over many rows.

Both caption the same photographs by the same instant endpoint over HTTP, in one process with the same concurrency,
from the start of that process to its end. The peer reads, resizes and encodes the files by the same function, asks
`AsyncOpenAI` and keeps the answers in memory. Ours also plans, hashes, keeps limits and a budget, stores every answer
before the next thing happens, notes what is under way and reports progress. The endpoint's answers tell the hashes of
the requests, so equal captions mean that both sent the same bytes.

Memory is that of the worker process while it captions 50,000 small pictures: after the first fifth against the end.

```sh
python benchmarks/pipeline.py
```
"""

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from common import best_of, finish
from images import PHOTOS, find_photo
from PIL import Image

from captioning.plan import read_facts, read_plan
from captioning.store import read_rows


HERE = Path(__file__).resolve().parent
TARGETS = {"bare_client": 0.7}
IMAGES, ROUNDS, CONCURRENCY = 1200, 3, 16
SIZES = [(640, 480), (640, 427), (480, 640), (1280, 960), (2250, 1500)]  # COCO's, a larger one, SA-1B's: in turns
SHARE = (6, 6, 6, 1, 1)  # of 20 images
ROWS, SMALL = 50_000, (64, 48)
FIRST_PART = 0.2  # of the rows, after which memory is looked at first
FLAT = 1.15  # most memory at the end, as a multiple of that


def write_photos(folder: Path, count: int) -> None:
    """Crops of real photographs in the sizes of the sources, every one different."""
    folder.mkdir()
    random = np.random.default_rng(7)
    photos = [Image.open(find_photo(name)).convert("RGB") for name in PHOTOS]
    sizes = [size for size, share in zip(SIZES, SHARE, strict=True) for _ in range(share)]
    for number in range(count):
        photo = photos[number % len(photos)]
        left, top = (int(random.integers(0, side // 4)) for side in photo.size)
        image = photo.crop((left, top, *photo.size)).resize(sizes[number % len(sizes)])
        image.save(folder / f"{number:06d}.jpg", quality=90)


def write_small(folder: Path, count: int) -> None:
    """Small pictures, every one different."""
    folder.mkdir()
    random = np.random.default_rng(9)
    for number in range(count):
        pixels = np.full((SMALL[1], SMALL[0], 3), random.integers(0, 256, 3), np.uint8)
        pixels[:8, :8] = random.integers(0, 256, (8, 8, 3))
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", comment=str(number).encode())
        (folder / f"{number:06d}.jpg").write_bytes(stream.getvalue())


@contextmanager
def endpoint() -> Iterator[str]:
    """Address of an endpoint in a process of its own."""
    command = [sys.executable, str(HERE / "instant_endpoint.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=10)


def run_ours(folder: Path, url: str, out: Path) -> None:
    """The command as a user types it."""
    command = [sys.executable, "-m", "sharegpt4v.cli", "annotate", str(folder), "--endpoint", url, "--model", "m"]
    command += ["--api-key-env", "", "--concurrency", str(CONCURRENCY), "--out", str(out), "--json"]
    subprocess.run(command, check=True, capture_output=True)


def run_peer(folder: Path, url: str, output: Path) -> None:
    """The bare loop."""
    command = [sys.executable, str(HERE / "bare_client.py"), str(folder), url, str(CONCURRENCY), str(output)]
    subprocess.run(command, check=True)


def captions_of(out: Path) -> dict[str, str]:
    """Captions of a job by file name."""
    shards = read_facts(out)["shards"]
    texts = {row.image_sha256: row.caption for number in range(shards) for row in read_rows(out, number)}
    return {planned.image: texts[planned.sha256] for planned in read_plan(out)}


def speed(folder: Path, url: str, scratch: Path) -> tuple[dict[str, float], bool]:
    """Seconds of both sides, and whether they got the same captions."""
    outs = iter(scratch / f"ours-{number}" for number in range(ROUNDS + 1))
    first = next(outs)
    run_ours(folder, url, first)
    run_peer(folder, url, scratch / "peer.json")
    equal = captions_of(first) == json.loads((scratch / "peer.json").read_text(encoding="utf-8"))
    sides = {
        "ours": lambda: run_ours(folder, url, next(outs)),
        "bare_client": lambda: run_peer(folder, url, scratch / "peer.json"),
    }
    return best_of(ROUNDS, **sides), equal


def memory(folder: Path, url: str, out: Path) -> dict[str, float]:
    """Memory of the worker over many rows, in MiB, by the share of rows that were stored."""
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            size = sum(path.stat().st_size for path in (out / "rows").glob("*.jsonl"))
            for process in psutil.Process().children(recursive=True):
                try:
                    if "captioning.worker" in process.cmdline():
                        samples.append((size, process.memory_info().rss / 2**20))
                except psutil.Error:
                    continue  # it has just ended

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        run_ours(folder, url, out)
    finally:
        over.set()
        thread.join()
    total = sum(path.stat().st_size for path in (out / "rows").glob("*.jsonl"))
    early = [used for size, used in samples if size <= FIRST_PART * total]
    rows = sum(1 for number in range(read_facts(out)["shards"]) for _ in read_rows(out, number))
    return {
        **{"rows": rows, "seconds": time.perf_counter() - start, "samples": len(samples)},
        **{"after_first_part": max(early), "most": max(used for _, used in samples)},
    }


def main() -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as scratch, endpoint() as url:
        write_photos(Path(scratch, "photos"), IMAGES)
        times, equal = speed(Path(scratch, "photos"), url, Path(scratch))
        write_small(Path(scratch, "small"), ROWS)
        used = memory(Path(scratch, "small"), url, Path(scratch, "many"))
    flat = used["most"] <= FLAT * used["after_first_part"] and used["rows"] == ROWS
    details = {
        "images": IMAGES,
        "concurrency": CONCURRENCY,
        "images_per_second": {name: round(IMAGES / seconds, 1) for name, seconds in times.items()},
        "memory": {name: round(value, 1) for name, value in used.items()},
        "memory_flat": flat,
    }
    finish("pipeline", {"bare_client": times["bare_client"] / times["ours"]}, TARGETS, details, equal and flat)


if __name__ == "__main__":
    main()

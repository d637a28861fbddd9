"""
Captioning jobs on small images against a fault server, each picture with a width that tells it in a request.

As a program, `python -m tests.captioning.jobs run OUT TASKS` runs a job in a process that a test may kill.
"""

import base64
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from captioning.endpoint_config import EndpointConfig
from captioning.feed import Feed, Work
from captioning.job import CaptionJob
from captioning.pipeline import RunOptions, job_status, plan_job, run_job, start_run
from captioning.plan import read_facts, read_plan
from captioning.store import CaptionRow, read_rows
from captioning.supervisor import Snapshot
from captioning.work import work
from dataset_scripts.images import ImageRoots
from tests.captioning.fault_server import FaultServer, Seen
from tests.image_files import encoded, put


ROOT = Path(__file__).resolve().parents[2]
NARROWEST = 32  # width of picture 0, in pixels
COCO = "coco/train2017"


def picture_file(number: int) -> bytes:
    """The file of a picture that tells its number by its width."""
    return encoded(number, (NARROWEST + number, 32))


def put_pictures(root: Path, numbers: Iterable[int], folder: str = COCO) -> Path:
    """Write pictures into the folder of a source."""
    return put(root, {f"{folder}/{number:012d}.jpg": picture_file(number) for number in numbers})


def number_of(seen: Seen) -> int:
    """Which picture a request shows."""
    parts = [part for message in seen.body["messages"] for part in message["content"] if isinstance(part, dict)]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return picture.width - NARROWEST


def endpoint_job(url: str = "http://127.0.0.1:9/v1", concurrency: int = 8, **options: Any) -> CaptionJob:
    """A job of an endpoint that wants no key."""
    facts = {"model": "m", "base_url": url, "api_key_env": "", "backoff": 0.01, **options}
    return CaptionJob(endpoint=EndpointConfig(**facts), concurrency=concurrency)


def all_rows(out: Path) -> list[CaptionRow]:
    """Every row of a job."""
    facts = read_facts(out)
    return [row for number in range(facts["shards"] if facts else 0) for row in read_rows(out, number)]


def states_of(out: Path) -> dict[str, str]:
    """State of every image by its hash: that of its last row."""
    return {row.image_sha256: row.state for row in all_rows(out)}


def done_by(feed: Feed, works: Iterator[Work]) -> list[str]:
    """Answer the rest of what a feed has, one by one, and close it; gives the keys."""
    keys = []
    for one in works:
        feed.answer(one.key, "ok", caption="A red square.")
        keys.append(one.key)
    feed.close()
    return keys


class JobWorld:
    """
    A folder of pictures, a job on them, and what the server was asked.

    Options other than these are those of the endpoint.
    """

    def __init__(self, folder: Path, server: FaultServer, count: int = 12, concurrency: int = 4, **options: Any):
        self.images, self.out, self.server = folder / "images", folder / "job", server
        self.concurrency, self.options = concurrency, options
        put_pictures(self.images, range(count))

    def plan(self, **options: Any) -> dict[str, Any]:
        """Plan the job, anew with other options of the endpoint."""
        job = endpoint_job(self.server.url, self.concurrency, **{**self.options, **options})
        return plan_job(self.out, job, ImageRoots([self.images]))

    def run(self, tasks: int = 1, again: tuple[str, ...] = ()) -> Snapshot:
        """Run it in this process."""
        return run_job(self.out, RunOptions(tasks=tasks, again=again))

    def run_here(self, again: tuple[str, ...] = ()) -> None:
        """Run it as the only worker, without the start of a process."""
        spent = job_status(self.out)["spent"]["cost"]
        work(self.out, start_run(self.out, RunOptions(again=again), spent), 0, 1)

    def start(self, tasks: int = 1, **environment: str) -> subprocess.Popen:
        """Run it in a process group of its own; what it says is kept."""
        command = [sys.executable, "-m", "tests.captioning.jobs", "run", str(self.out), str(tasks)]
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def asked(self) -> Counter[int]:
        """How often each picture was asked about."""
        return Counter(number_of(seen) for seen in list(self.server.seen))

    @property
    def numbers(self) -> dict[str, int]:
        """Number of each picture by its hash."""
        stems = ((one.sha256, one.image.rpartition("/")[2]) for one in read_plan(self.out))
        return {sha256: int(stem.removesuffix(".jpg")) for sha256, stem in stems}

    @property
    def states(self) -> dict[int, str]:
        """State of each picture that has a row."""
        numbers = self.numbers
        return {numbers[sha256]: state for sha256, state in states_of(self.out).items()}

    def kill_worker_with(self, number: int) -> bool:
        """Kill the worker that has a picture under way; whether there was one."""
        key = next(sha256 for sha256, known in self.numbers.items() if known == number)
        for rank, process in workers(self.out).items():
            (journal,) = sorted(self.out.glob(f"runs/*/asked-{rank}.txt"))[-1:]
            if f"+{key}" in journal.read_text(encoding="utf-8"):
                process.kill()
                return True
        return False


def workers(out: Path) -> dict[int, psutil.Process]:
    """Processes that work on a job, by rank; not those that datatrove forks from them."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or []
        if "captioning.worker" in words and str(out) in words:
            found.append((int(words[-3]), process))
    own = {process.pid for _, process in found}
    return {rank: process for rank, process in found if process.info["ppid"] not in own}


def kill_group(process: subprocess.Popen) -> str:
    """Kill a process with all that it started; gives what it said."""
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    return output


def main(verb: str, *words: str) -> None:
    """Run a job to its end, or one worker's feed of it until it is killed."""
    logging.basicConfig(level=logging.DEBUG)
    if verb == "run":
        end = run_job(Path(words[0]), RunOptions(tasks=int(words[1])))
        sys.stdout.write(json.dumps(end.to_json()) + "\n")
        return
    out, rank, world = Path(words[0]), int(words[1]), int(words[2])
    feed = Feed(out, endpoint_job(), rank, world, run=words[3])
    for number, one in enumerate(feed):
        sys.stdout.write(f"{one.key}\n")
        sys.stdout.flush()
        if number == int(words[4]):  # the request is made and its answer never stored
            os.kill(os.getpid(), signal.SIGKILL)
        feed.answer(one.key, "ok", caption="A red square.")
    feed.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""
Captions of a job as rows of a dataset: those that are fit for it, one a picture, in the order of the plan.

What is left out is counted by its reason and stays where it is. A caption in which `<image>` occurs is never a row:
there it would be taken for a place of an image.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from dataset_scripts.archives import Located
from dataset_scripts.image_store import CheckedImages
from dataset_scripts.near_duplicates import NearDuplicates
from dataset_scripts.rows import Row, RowSet
from dataset_scripts.schema import IMAGE_TOKEN
from dataset_scripts.verify import check_all

from .checks import CaptionChecks, CheckConfig
from .job import CaptionJob
from .pipeline import PROMPTS, RUNS, key_of
from .plan import PlannedImage, read_facts, read_plan
from .store import ROWS, STATES, CaptionRow, RowKey, read_rows
from .work import read_job


CAPTIONED = ("ok", "truncated", "looped")  # states in which there is a caption
CHECKS = (
    "empty", "refusal", "truncated", "loop", "marker", "too_short", "prompt_leak", "language", "repeated_caption",
    "similar_image",
)  # fmt: skip
DEFAULT_LEFT_OUT = ("empty", "refusal", "truncated", "loop", "marker", "prompt_leak")
# What a check calls that which the state of a row has said already.
CHECK_OF_STATE = {"truncated": "truncated", "looped": "loop", "refused": "refusal", "empty": "empty"}
IMAGES, HASHED_TOGETHER = "images.sqlite", 50_000


def export_rows(
    out: Path,
    captioner: str | None,
    license: str,
    leave_out: tuple[str, ...] = DEFAULT_LEFT_OUT,
    states: tuple[str, ...] = ("ok",),
    config: CheckConfig | None = None,
    workers: int | None = None,
) -> RowSet:
    """
    The captions of a job as input of a build; also of a job that is not complete or is running, of which it is
    what was there at the time of the call.

    Args:
        out (`Path`): Folder of the job.
        captioner (`str`, *optional*): Name of who captioned, in the rows; the name of the model by default.
        license (`str`): Of the captions, which whoever ran the model has to know.
        leave_out (`tuple[str, ...]`, defaults to `DEFAULT_LEFT_OUT`): Checks whose findings keep a caption out. Empty
            captions and those with `<image>` are kept out always.
        states (`tuple[str, ...]`, defaults to `("ok",)`): States whose captions are wanted. Of one that is named, the
            check that says the same does not keep captions out.
        config (`CheckConfig`, *optional*): Thresholds of the checks.
        workers (`int`, *optional*): Processes that look at images where `similar_image` is left out; all cores by
            default.

    Returns:
        `RowSet`: Caption rows with paths as `image`; always the same in the same order.

    Raises:
        `FileNotFoundError`: The folder has no job or no plan.
        `ValueError`: There is no caption to export, or an option names what there is not.
    """
    if not license.strip():
        raise ValueError("`license` is empty. Say under which terms the captions of this model may be used.")
    if unknown := sorted(set(leave_out) - set(CHECKS)):
        raise ValueError(f"There are no checks {unknown}. Choose among {', '.join(CHECKS)}.")
    if not states or set(states) - set(CAPTIONED):
        raise ValueError(f"`states` must name some of {', '.join(CAPTIONED)}, which have captions, got {states}.")
    export = _Export(out, captioner, license, leave_out, states, config or CheckConfig())
    if "similar_image" in leave_out:
        export.find_look_alikes(workers)
    if next(export.read(), None) is None:
        raise ValueError(
            f"There is no caption to export in {out}: {_reasons(export.facts()['caption_job'])}. "
            "Run the job further, or choose other states and checks."
        )
    return RowSet(export.read, "captions", export.identity(), export.facts)


def planned_keys(out: Path, job: CaptionJob, number: int) -> list[tuple[PlannedImage, RowKey]]:
    """
    The images of a shard, with what their captions are stored under.

    Args:
        out (`Path`): Folder of the job.
        job (`CaptionJob`): The job.
        number (`int`): Of the shard.

    Returns:
        `list[tuple[PlannedImage, RowKey]]`: In the order of the plan; names of one picture can share a key.
    """
    return [(planned, key_of(job, planned.source, planned.sha256)) for planned in read_plan(out, number)]


def hash_captioned(out: Path, job: CaptionJob, shards: int, store: CheckedImages, workers: int | None) -> None:
    """
    Look at every image that has a caption and no perceptual hash in the plan; what is known is not looked at again.

    Args:
        out (`Path`): Folder of the job.
        job (`CaptionJob`): The job.
        shards (`int`): Number of shards.
        store (`CheckedImages`): Gets the hashes.
        workers (`int`, *optional*): Processes, all cores by default.
    """
    waiting: dict[str, Located] = {}
    for number in range(shards):
        planned = [(one, key) for one, key in planned_keys(out, job, number) if not one.phash]
        if planned:
            captioned = {row.key: row.state in CAPTIONED for row in read_rows(out, number)}
            waiting.update((one.image, one.located) for one, key in planned if captioned.get(key))
        if len(waiting) >= HASHED_TOGETHER or number == shards - 1:
            check_all(waiting, store, workers)
            waiting.clear()


def look_of(planned: PlannedImage, store: CheckedImages) -> str:
    """
    Perceptual hash of an image.

    Args:
        planned (`PlannedImage`): The image.
        store (`CheckedImages`): Filled by [`hash_captioned`].

    Returns:
        `str`: 16 hexadecimal digits; empty for an image that cannot be read or is another than was planned.
    """
    if planned.phash:
        return planned.phash
    check = store.get(planned.image, planned.located)
    return check.phash if check is not None and check.sha256 == planned.sha256 else ""


def read_prompts(out: Path) -> dict[str, dict[str, str]]:
    """
    Every prompt that rows of a job name.

    Args:
        out (`Path`): Folder of the job.

    Returns:
        `dict[str, dict]`: `id` and `text` by the hash of the text.
    """
    path = out / PROMPTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class _Export:
    """Rows that can be read any number of times, and what the last reading has left out."""

    def __init__(
        self,
        out: Path,
        captioner: str | None,
        license: str,
        leave_out: tuple[str, ...],
        states: tuple[str, ...],
        config: CheckConfig,
    ):
        self._out, self._job, facts = out, read_job(out), read_facts(out)
        if facts is None:
            raise FileNotFoundError(f"{out} has no plan. Plan the job first.")
        self._plan = facts
        self._captioner = captioner or self._job.model.removesuffix(f"@{self._job.revision}")
        self._license, self._states, self._texts = license, states, read_prompts(out)
        self._leave_out = {*leave_out, "empty"}
        # To tell a language takes four fifths of the time of all checks together.
        self._config = config if "language" in leave_out else replace(config, language=None)
        self._options = {"leave_out": sorted(leave_out), "states": sorted(states), "checks": vars(self._config)}
        # Rows that come later belong to a later export: a build reads more than once.
        self._ends = [_count_lines(out / ROWS / f"{number:05d}.jsonl") for number in range(facts["shards"])]
        self._look_alikes: set[str] = set()
        self._forget()

    def read(self) -> Iterator[Row]:
        """The rows, in the order of the plan."""
        self._forget()
        checks = CaptionChecks(self._config, samples=0)
        for number in range(self._plan["shards"]):
            pictures: set[str] = set()
            for planned, row in self._captions(number):
                if row.image_sha256 in pictures:
                    self._other_names += 1
                elif found := self._problems(planned, row, checks):
                    self._kept_out += 1
                    self._by_check.update(found)
                else:
                    pictures.add(row.image_sha256)
                    self._prompts[row.prompt_sha256] += 1
                    yield self._row(planned, row)

    def find_look_alikes(self, workers: int | None) -> None:
        """Note pictures that look like one before them; those that are left out anyway are no reason."""
        found, looks = set(), NearDuplicates(self._config.distance)
        with CheckedImages(self._out / IMAGES) as store:
            hash_captioned(self._out, self._job, self._plan["shards"], store, workers)
            checks = CaptionChecks(self._config, samples=0)
            for number in range(self._plan["shards"]):
                pictures: set[str] = set()
                for planned, row in self._captions(number):
                    if row.image_sha256 in pictures or self._problems(planned, row, checks):
                        continue
                    pictures.add(row.image_sha256)
                    if not (look := look_of(planned, store)):
                        continue
                    if looks.find(look) is not None:
                        found.add(row.image_sha256)
                    else:
                        looks.add(look, planned.image)
        self._look_alikes = found

    def identity(self) -> dict[str, Any]:
        """What the rows depend on."""
        ends = hashlib.sha256(json.dumps(self._ends).encode()).hexdigest()[:16]
        return {
            **{"variant": self._job.variant, "plan": self._plan["digest"], "rows": ends, **self._options},
            **{"captioner": self._captioner, "license": self._license},
            "look_alikes": hashlib.sha256("".join(sorted(self._look_alikes)).encode()).hexdigest()[:16],
        }

    def facts(self) -> dict[str, Any]:
        """What is known after reading; for the card of a dataset, so without any place on this machine."""
        job = self._job
        left_out = {"rows": self._kept_out, "by_check": dict(sorted(self._by_check.items()))}
        names = {state: self._by_state[state] for state in STATES if self._by_state[state]}
        told = {
            **{"kind": job.kind, "model": job.model, "sampling": job.sampling, "variant": job.variant},
            **{"prompts": self._prompt_facts(), "mixed": self._mixed},
            **{"planned": self._plan["images"], "unreadable": self._plan["unreadable"], "remaining": self._remaining},
            **{"states_left_out": names, "left_out": left_out, "other_names_left_out": self._other_names},
            **{"options": self._options, **_runs(self._out)},
        }
        return {"license": self._license, "caption_job": told}

    def _forget(self) -> None:
        self._by_state: Counter[str] = Counter()
        self._by_check: Counter[str] = Counter()
        self._prompts: Counter[str] = Counter()
        self._kept_out = self._other_names = self._remaining = self._mixed = 0

    def _captions(self, number: int) -> Iterator[tuple[PlannedImage, CaptionRow]]:
        """Captions of a shard in a state that is wanted, each of them once; the rest is counted."""
        named = planned_keys(self._out, self._job, number)
        keys = {key for _, key in named}
        latest: dict[RowKey, CaptionRow] = {}
        others: set[RowKey] = set()
        for row in islice(read_rows(self._out, number), self._ends[number][0]):
            if row.key in keys:
                latest[row.key] = row
            else:
                others.add(row.key)
        self._mixed += len(others)
        told: set[RowKey] = set()
        for planned, key in named:
            answer = latest.get(key)
            if key in told:
                self._other_names += 1
            elif answer is None or answer.state == "pending":
                self._remaining += 1
            elif answer.state not in self._states:
                self._by_state[answer.state] += 1
            else:
                yield planned, answer
            told.add(key)

    def _problems(self, planned: PlannedImage, row: CaptionRow, checks: CaptionChecks) -> set[str]:
        prompt = self._texts.get(row.prompt_sha256, {}).get("text", "")
        told = {"id": planned.id, "source": planned.source, "caption": row.caption, "prompt": prompt}
        found = {finding.check for finding in checks.check({**told, "finish_reason": row.finish_reason})}
        found &= self._leave_out - {CHECK_OF_STATE.get(row.state, "")}
        if IMAGE_TOKEN in row.caption:  # also where markers are let pass
            found.add("marker")
        if row.image_sha256 in self._look_alikes:
            found.add("similar_image")
        return found

    def _row(self, planned: PlannedImage, row: CaptionRow) -> Row:
        return {
            **{"id": planned.id, "image": planned.image, "source": planned.source, "caption": row.caption},
            **{"captioner": self._captioner, "prompt_id": row.prompt_id, "license": self._license},
            "sha256": planned.sha256,
        }

    def _prompt_facts(self) -> list[dict[str, Any]]:
        return [
            {**self._texts.get(digest, {}), "sha256": digest, "captions": count}
            for digest, count in sorted(self._prompts.items())
        ]


def _count_lines(path: Path) -> tuple[int, int]:
    """Lines that are finished, and their bytes."""
    if not path.is_file():
        return 0, 0
    lines = size = read = 0
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            lines += block.count(b"\n")
            if (last := block.rfind(b"\n")) >= 0:
                size = read + last + 1
            read += len(block)
    return lines, size


def _runs(out: Path) -> dict[str, Any]:
    versions: dict[str, set[str]] = {}
    files = sorted((out / RUNS).glob("*/run.json"))
    for file in files:
        for name, version in json.loads(file.read_text(encoding="utf-8"))["versions"].items():
            versions.setdefault(name, set()).add(version)
    return {"runs": len(files), "versions": {name: sorted(found) for name, found in sorted(versions.items())}}


def _reasons(told: dict[str, Any]) -> str:
    checks = ", ".join(told["left_out"]["by_check"])
    counts = [
        (told["remaining"], "have no answer yet"),
        *((count, f"are {state}") for state, count in told["states_left_out"].items()),
        (told["left_out"]["rows"], f"are left out by checks ({checks})"),
        (told["other_names_left_out"], "are second names of a picture"),
    ]
    return f"of {told['planned']} images " + ", ".join(f"{count} {what}" for count, what in counts if count)

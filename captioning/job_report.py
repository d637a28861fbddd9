"""
Report on the captions of a job: what there is, what went wrong, and which captions to look at.

```
out/report.json      all figures
out/report.md        the same for people; texts of models and endpoints cannot become markup in it
out/findings.jsonl   what was found at which caption: nothing is deleted
```

It says what stands in the rows, also while the job runs. A job of a million images is read shard by shard.
"""

import json
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from errno import EDQUOT, EFBIG, ENOSPC, EROFS
from hashlib import blake2b
from os import chmod, fsync, replace, unlink
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from dataset_scripts.image_store import CheckedImages
from dataset_scripts.writing import WriteError, write_text

from .checks import WORD, CaptionChecks, CheckConfig, Finding
from .job import CaptionJob
from .job_export import (
    CAPTIONED,
    CHECK_OF_STATE,
    DEFAULT_LEFT_OUT,
    IMAGES,
    hash_captioned,
    look_of,
    planned_keys,
    read_prompts,
)
from .job_report_text import render_report
from .pipeline import VARIANTS
from .plan import PlannedImage, read_facts
from .store import STATES, CaptionRow, RowKey, Tally, read_rows
from .work import read_job


REPORT, PAGE, FINDINGS = "report.json", "report.md", "findings.jsonl"
ANSWERED = (*CAPTIONED, "refused", "empty", "filtered")  # the captioner has said something
UNUSABLE = (*DEFAULT_LEFT_OUT, "repeated_caption")  # checks that speak against the captioner
TOKENS = 50  # width of a step of the histogram
SHOWN, EXCERPT, KINDS = 10, 300, 1000
# Names of requests are among them; the code of a failure stays.
NUMBERS = re.compile(r"(?<!HTTP )\b\w*\d\w*(?:[.,:]\w*\d\w*)*\b")
NO_ROOM = (EDQUOT, EFBIG, ENOSPC, EROFS)


class QualityError(ValueError):
    """More captions cannot be used than is allowed."""


def report_job(
    out: Path,
    config: CheckConfig | None = None,
    similar: bool = True,
    workers: int | None = None,
    samples: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Look at every answer of a job, and write the report.

    Args:
        out (`Path`): Folder of the job.
        config (`CheckConfig`, *optional*): Thresholds of the checks.
        similar (`bool`, defaults to `True`): Whether images that look the same are searched for; those without a
            perceptual hash in the plan are decoded for it, once.
        workers (`int`, *optional*): Processes for that, all cores by default.
        samples (`int`, defaults to 20): Captions that the report shows.
        seed (`int`, defaults to 0): Of their choice.

    Returns:
        `dict`: What was written to `report.json`. Counts are of distinct pictures and prompts: a picture under two
            names is asked about once.

    Raises:
        `FileNotFoundError`: The folder has no job or no plan.
        `ValueError`: A row or the plan is damaged.
        `WriteError`: The folder has no room.
    """
    job, plan = read_job(out), read_facts(out)
    if plan is None:
        raise FileNotFoundError(f"{out} has no plan. Plan the job first.")
    report = _Report(out, job, CaptionChecks(config, samples, seed))
    try:
        with ExitStack() as opened:
            store = opened.enter_context(CheckedImages(out / IMAGES)) if similar else None
            if store is not None:
                hash_captioned(out, job, plan["shards"], store, workers)
            write = opened.enter_context(_whole_lines(out / FINDINGS))
            for number in tqdm(range(plan["shards"]), desc="reporting", unit="shard", disable=None):
                report.add_shard(number, store, write)
        facts = {"out": str(out), "planned": plan["images"], "unreadable": plan["unreadable"], **report.to_json()}
        write_text(out / REPORT, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_text(out / PAGE, render_report(facts))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise WriteError(f"{out} cannot be written: {error.strerror}. Captions are kept; make room.") from error
    return facts


def require_quality(report: dict[str, Any], max_findings: float) -> None:
    """
    Refuse captions of which too many cannot be used.

    Args:
        report (`dict`): What [`report_job`] returned.
        max_findings (`float`): Allowed share, 0 to 1, of answers that are no usable caption, by their state or by a
            finding of `UNUSABLE`. What failed is no answer and does not count.

    Raises:
        `QualityError`: There are more, or no answers at all.
        `ValueError`: `max_findings` is no share.
    """
    if not 0 <= max_findings <= 1:
        raise ValueError(f"`max_findings` must be from 0 to 1, got {max_findings}.")
    quality, where = report["quality"], Path(report["out"])
    if not quality["answers"]:
        raise QualityError(f"There are no answers whose quality could be told, see {where / PAGE}.")
    if quality["share"] > max_findings:
        raise QualityError(
            f"{quality['share']:.2%} of {quality['answers']} answers cannot be used, {max_findings:.2%} are allowed; "
            f"see {where / FINDINGS}. Ask again with another prompt or model, or allow more."
        )


@dataclass
class _Group:
    """Rows of one model, setting and prompt."""

    keys: int = 0
    attempts: int = 0
    sums: Tally = field(default_factory=Tally)


class _Report:
    """Figures that grow shard by shard."""

    def __init__(self, out: Path, job: CaptionJob, checks: CaptionChecks):
        self._out, self._job, self._checks, self._prompts = out, job, checks, read_prompts(out)
        self._images: Counter[str] = Counter()
        self._sources: dict[str, Counter[str]] = {}
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[int] = Counter()
        self._seconds = array("f")
        self._repeated: dict[bytes, list[Any]] = {}
        self._groups: dict[tuple[str, str, str, str, bool], _Group] = {}
        self._quality: Counter[str] = Counter()
        self._looks: Counter[str] = Counter()
        self._findings = 0

    def add_shard(self, number: int, store: CheckedImages | None, write: Callable[[dict[str, Any]], None]) -> None:
        """Read the answers of a shard, and write what is found."""
        named = planned_keys(self._out, self._job, number)
        latest = self._read(number, {key for _, key in named}, {key.image for _, key in named})
        told: set[RowKey] = set()
        for planned, key in named:
            if key in told:
                self._images["other_names"] += 1
                continue
            told.add(key)
            row = latest.get(key)
            of_source = self._sources.setdefault(planned.source, Counter())
            of_source["images"] += 1
            if row is not None:
                of_source[row.state] += 1
                for finding in self._look_at(planned, row, store):
                    self._findings += 1
                    write(_entry(planned, row, finding))

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        job, quality, total = self._job, self._quality, Counter[str]()
        for of_source in self._sources.values():
            total.update(of_source)
        states = {state: total[state] for state in STATES if total[state]}
        share = quality["unusable"] / quality["answers"] if quality["answers"] else None
        repeated = sorted(self._repeated.values(), key=lambda one: -one[0])[:SHOWN]
        reasons = [{"state": state, "reason": reason, "count": count}
                   for (state, reason), count in self._reasons.most_common(SHOWN)]  # fmt: skip
        return {
            "job": {"kind": job.kind, "model": job.model, "variant": job.variant, "sampling": job.sampling},
            **{"images": total["images"], "other_names": self._images["other_names"], "states": states},
            "remaining": total["images"] - sum(states.values()) + total["pending"],
            "sources": {name: _ordered(of) for name, of in sorted(self._sources.items())},
            "reasons": reasons,
            "captions": self._checks.report(),
            "tokens": {str(length): self._tokens[length] for length in sorted(self._tokens)},
            "repeated": [{"images": count, "caption": text} for count, text in repeated],
            "similar": {name: self._looks[name] for name in ("hashed", "unreadable")} if self._looks else None,
            "quality": {
                **{"answers": quality["answers"], "unusable": quality["unusable"], "share": share},
                **{"checks": list(UNUSABLE), "findings": self._findings},
            },
            "totals": self._totals(),
            "mixed": self._mixed(),
        }

    def _read(self, number: int, keys: set[RowKey], pictures: set[str]) -> dict[RowKey, CaptionRow]:
        latest, met = {}, set()
        for row in read_rows(self._out, number):
            if row.key in keys:
                latest[row.key] = row
            elif row.image_sha256 not in pictures:
                self._images["unplanned_rows"] += 1
                continue
            name = (row.model, row.sampling, row.prompt_id, row.prompt_sha256)
            group = self._groups.setdefault((*name, row.key in keys), _Group())
            group.sums.add(row)
            group.attempts += row.attempts
            if row.key not in met:
                met.add(row.key)
                group.keys += 1
        return latest

    def _look_at(self, planned: PlannedImage, row: CaptionRow, store: CheckedImages | None) -> list[Finding]:
        found = []
        if row.state != "ok":
            kind = (row.state, _kind_of(row.error))
            self._reasons[kind if kind in self._reasons or len(self._reasons) < KINDS else (row.state, "others")] += 1
            if row.state != "pending":
                found.append(Finding(CHECK_OF_STATE.get(row.state, row.state), row.error or "Its row says so."))
        if row.state in ANSWERED:
            self._seconds.append(row.seconds)
        if row.state in CAPTIONED:
            if row.completion_tokens is not None:
                self._tokens[row.completion_tokens // TOKENS * TOKENS] += 1
            known = {finding.check for finding in found}
            found += [finding for finding in self._check(planned, row, store) if finding.check not in known]
        if row.state in ANSWERED:
            self._quality["answers"] += 1
            self._quality["unusable"] += row.state != "ok" or any(finding.check in UNUSABLE for finding in found)
        return found

    def _check(self, planned: PlannedImage, row: CaptionRow, store: CheckedImages | None) -> list[Finding]:
        look = ""
        if store is not None:
            look = look_of(planned, store)
            self._looks["hashed" if look else "unreadable"] += 1
        prompt = self._prompts.get(row.prompt_sha256, {}).get("text", "")
        told = {"id": planned.id, "source": planned.source, "caption": row.caption, "prompt": prompt, "phash": look}
        findings = self._checks.check({**told, "finish_reason": row.finish_reason})
        if any(finding.check == "repeated_caption" for finding in findings):
            text = " ".join(WORD.findall(row.caption.lower()))
            name = blake2b(text.encode(), digest_size=8).digest()
            if name in self._repeated:
                self._repeated[name][0] += 1
            elif len(self._repeated) < KINDS:
                self._repeated[name] = [self._checks.config.max_images + 1, row.caption[:EXCERPT]]
        return findings

    def _totals(self) -> dict[str, Any]:
        attempts, sums = 0, Tally()
        for (*_, current), group in self._groups.items():
            if current:
                attempts += group.attempts
                sums.merge(group.sums.to_json())
        of_all = sums.to_json()
        seconds = np.quantile(self._seconds, [0.5, 0.9]).tolist() if self._seconds else [None, None]
        return {
            **{"rows": sum(of_all.pop("states").values()), "attempts": attempts, **of_all},
            "seconds": {"median": seconds[0] and round(seconds[0], 3), "ninety": seconds[1] and round(seconds[1], 3)},
            "unplanned_rows": self._images["unplanned_rows"],
        }

    def _mixed(self) -> dict[str, Any] | None:
        others = sum(group.keys for (*_, current), group in self._groups.items() if not current)
        if not others:
            return None
        path = self._out / VARIANTS
        variants = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        known = {(of["model"], of["sampled"]): of for of in variants.values()}
        groups = []
        for (model, sampled, prompt, digest, current), group in sorted(self._groups.items()):
            of = known.get((model, sampled), {})
            captioner = {"model": model, "kind": of.get("kind"), "sampling": of.get("sampling"), "sampled": sampled}
            asked = {"prompt_id": prompt, "prompt_sha256": digest, "current": current, "answers": group.keys}
            groups.append({**captioner, **asked, "attempts": group.attempts, **group.sums.to_json()})
        return {
            "sentence": f"{others} answers to other prompts, or of another model or with other settings, are in this "
            "folder, too. They are kept, and neither counted in this report nor exported.",
            "groups": groups,
        }


def _kind_of(error: str) -> str:
    return NUMBERS.sub("#", error)[:EXCERPT] or "no reason is stored"


def _ordered(of_source: Counter[str]) -> dict[str, int]:
    return {name: of_source[name] for name in ("images", *STATES) if of_source[name]}


def _entry(planned: PlannedImage, row: CaptionRow, finding: Finding) -> dict[str, Any]:
    return {
        **{"id": planned.id, "image": planned.image, "image_sha256": row.image_sha256},
        **{"prompt_id": row.prompt_id, "prompt_sha256": row.prompt_sha256},
        **{"model": row.model, "sampling": row.sampling, "state": row.state, **finding._asdict()},
    }


@contextmanager
def _whole_lines(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A JSON Lines file that appears when all is written: its entries are too many for memory."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False, encoding="utf-8", errors="backslashreplace"
    ) as stream:
        try:
            yield lambda entry: _write_line(stream, entry)
            stream.flush()
            fsync(stream.fileno())
            chmod(stream.name, 0o644)
            replace(stream.name, path)
        except BaseException:
            unlink(stream.name)
            raise


def _write_line(stream: IO[str], entry: dict[str, Any]) -> None:
    stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

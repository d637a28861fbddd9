"""
Captions of millions of images: plan, run, look, try again what failed.

```
out/job.json      who captions, on which prompts
out/plan.parquet  the images (`plan.py`)
out/rows/         the captions, append-only (`store.py`)
out/prompts.json  every prompt that rows name by its hash
out/variants.json every captioner with its settings that has rows here
out/runs/0001/    log, progress and outcome of each worker; datatrove's own in `datatrove/`
```

A caption is stored the moment it is there and is asked for once: the same command continues whatever was interrupted,
with any number of tasks, and costs nothing when all is done.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dataset_scripts.images import ImageRoots
from dataset_scripts.writing import BusyError, write_text

from .answers import BudgetReached, EndpointDown
from .executors import ExecutorOptions, launch
from .feed import SUSPECTS
from .job import CaptionJob, weights_of
from .plan import make_plan, read_facts, read_plan
from .store import ROWS, STATES, RowKey, Tally, finished, read_rows
from .supervisor import Show, Snapshot, Supervisor
from .work import JOB, RUNS, read_job, run_folder


PROMPTS, VARIANTS, LOCK = "prompts.json", "variants.json", "job.lock"
LIBRARIES = ("datatrove", "openai", "pillow", "sharegpt4v", "torch", "transformers")


@dataclass(frozen=True)
class RunOptions:
    """
    How a job is run.

    Args:
        tasks (`int`, defaults to 1): Processes; limits and budget of an endpoint are divided among them.
        again (`tuple[str, ...]`, *optional*): States whose images are asked about once more.
        own_only (`bool`, defaults to `False`): Whether a task keeps to the shards of its number, which is what to do
            where locks do not hold between tasks; the shards of one that dies then wait for the next run.
    """

    tasks: int = 1
    again: tuple[str, ...] = ()
    own_only: bool = False

    @property
    def asked(self) -> tuple[str, ...]:
        """States whose images are asked about (`tuple[str, ...]`)."""
        return ("pending", *self.again)

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ValueError(f"`tasks` must be at least 1, got {self.tasks}.")
        if unknown := sorted(set(self.again) - set(STATES)):
            raise ValueError(f"There are no states {unknown}. Choose among {', '.join(STATES)}.")
        if "ok" in self.again:
            raise ValueError(
                "Captions that are `ok` are not asked for again; change the prompt, or take a new folder."
            )


def plan_job(
    out: Path, job: CaptionJob, images: ImageRoots, selection: Path | None = None, shards: int | None = None
) -> dict[str, Any]:
    """
    Find the images of a job and write down what it is; nothing is asked.

    Args:
        out (`Path`): Folder of the job; an existing one keeps its captions.
        job (`CaptionJob`): Who captions, on which prompts.
        images (`ImageRoots`): Where the images are.
        selection (`Path`, *optional*): Folder of a selection; every image below the roots by default.
        shards (`int`, *optional*): Number of shards of a new job.

    Returns:
        `dict`: What is known about the plan.

    Raises:
        `BusyError`: Another process works on the folder.
        `ValueError`: There are no images.
    """
    with _locked(out):
        facts = make_plan(out, images, selection, shards)
        _write_job(out, identified(job), facts["sources"])
    return facts


def run_job(out: Path, options: RunOptions, show: Show | None = None) -> Snapshot:
    """
    Ask for every caption that is not there yet, by processes of this machine.

    Args:
        out (`Path`): Folder of a planned job.
        options (`RunOptions`): How.
        show (`Callable[[Snapshot], None]`, *optional*): Told where the run stands.

    Returns:
        `Snapshot`: At the end; images may have failed, and then their rows say why.

    Raises:
        `BudgetReached`, `KeyRejected`, `EndpointDown`, `Interrupted`, `WriteError`: Why it ended early; what is done
            is stored and the same call continues.
        `WorkerFailed`: A process cannot be kept alive.
        `BusyError`: Another process works on the folder.
    """
    with _locked(out):
        status = job_status(out)
        while True:
            start = Snapshot(status["images"], Counter(status["states"]))
            for state in options.asked:
                start.done.pop(state, None)
            if sum(start.done.values()) == start.total:
                return start
            try:
                return _run_once(out, options, start, status["spent"]["cost"], show)
            except BudgetReached as error:
                spent, status = status["spent"]["cost"], job_status(out)
                if options.tasks == 1 or status["spent"]["cost"] == spent:
                    raise error from None
            # The part of one process is used up, that of another may not be: one process takes what is left.
            options = RunOptions()


def _run_once(out: Path, options: RunOptions, start: Snapshot, spent: float, show: Show | None) -> Snapshot:
    run = start_run(out, options, spent)
    supervisor = Supervisor(out, run, list(range(options.tasks)), options.tasks, start, show)
    error: Exception | None = None
    try:
        return _complete(out, supervisor.run())
    except Exception as problem:
        if isinstance(problem, BudgetReached):
            if not job_status(out)["remaining"]:  # the part of one process was too small, that of others did
                return _complete(out, supervisor.snapshot())
            error = _budget_reached(out)
            raise error from None
        error = problem
        raise
    finally:
        outcome = {"error": type(error).__name__ if error else "", "message": str(error or "")}
        facts = {**supervisor.snapshot().to_json(), **outcome, "ended": time.time()}
        write_text(run_folder(out, run) / "outcome.json", json.dumps(facts, indent=2) + "\n")


def launch_job(out: Path, options: ExecutorOptions) -> str:
    """
    Run a planned job on other machines, which must see its folder and the images at the same paths.

    Args:
        out (`Path`): Folder of the job.
        options (`ExecutorOptions`): Where and how.

    Returns:
        `str`: What was started.

    Raises:
        `BusyError`: Another process works on the folder.
        `ValueError`, `RuntimeError`: See [`~captioning.executors.launch`].
    """
    from .step import CaptionStep  # with datatrove, which takes a second

    with _locked(out):
        status = job_status(out)
        if not status["remaining"]:
            return "Nothing is left to do."
        # No lock is known to hold between jobs that mount the same bucket.
        run = start_run(
            out, RunOptions(options.tasks, own_only=options.executor == "hf-jobs"), status["spent"]["cost"]
        )
        step = CaptionStep(str(out.resolve()), run)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"captions-{out.resolve().name}-{run}")
        return launch(step, options, run_folder(out.resolve(), run) / "datatrove", name)


def devices(out: Path) -> int:
    """
    Processes that a job is worth on this machine.

    Args:
        out (`Path`): Folder of the job.

    Returns:
        `int`: One for each GPU of a model of our own, else 1.
    """
    job = read_job(out)
    if job.engine is None or job.engine.device not in ("auto", "cuda"):
        return 1
    import torch  # two seconds, which an endpoint does not need

    return max(1, torch.cuda.device_count())


def start_run(out: Path, options: RunOptions, spent: float) -> str:
    """
    Make the folder of a run, in which its workers find what they need.

    Args:
        out (`Path`): Folder of the job.
        options (`RunOptions`): How it is run.
        spent (`float`): Cost of all rows so far.

    Returns:
        `str`: Name of the run.
    """
    if options.again:
        (out / SUSPECTS).unlink(missing_ok=True)  # who asks again wants to know, whatever an image is suspected of
    runs = out / RUNS
    runs.mkdir(parents=True, exist_ok=True)
    run = f"{1 + max((int(folder.name) for folder in runs.iterdir()), default=0):04d}"
    facts = {
        **asdict(options),
        **{"spent": spent, "started": time.time(), "job": read_job(out).to_json()},
        **{"versions": {name: version(name) for name in LIBRARIES}},
    }
    write_text(run_folder(out, run) / "run.json", json.dumps(facts, indent=2) + "\n")
    return run


def job_status(out: Path) -> dict[str, Any]:
    """
    Where a job stands, from its rows; works while it runs.

    Args:
        out (`Path`): Folder of the job.

    Returns:
        `dict`: `images` (distinct ones), `states`, `remaining`, `spent` (tokens and cost of all rows ever), and
            `variants` when rows of other prompts, models or settings are there, too.

    Raises:
        `FileNotFoundError`: The folder has no job.
    """
    job, facts = read_job(out), read_facts(out)
    if facts is None:
        raise FileNotFoundError(f"{out} has no plan. Plan the job first.")
    states: Counter[str] = Counter()
    spent, images = Tally(), 0
    for number in range(facts["shards"]):
        if known := finished(out, number, job, facts["digest"]):
            states.update(known["tally"]["states"])
            images += sum(known["tally"]["states"].values())
            spent.merge(known["spent"])
            continue
        latest: dict[RowKey, str] = {}
        for row in read_rows(out, number):
            latest[row.key] = row.state
            spent.add(row)
        keys = {key_of(job, planned.source, planned.sha256) for planned in read_plan(out, number)}
        images += len(keys)
        states.update(latest[key] for key in keys & set(latest))
    done = {state: states[state] for state in STATES if states[state]}
    return {
        **{"kind": job.kind, "model": job.model, "variant": job.variant, "images": images, "states": done},
        **{"remaining": images - sum(done.values()) + done.get("pending", 0), "spent": spent.to_json()},
        **{"variants": sorted(json.loads((out / VARIANTS).read_text(encoding="utf-8")))},
        **{"unreadable": facts["unreadable"], "running": _is_locked(out / LOCK)},
    }


def key_of(job: CaptionJob, source: str, sha256: str) -> RowKey:
    """
    What the caption of an image is stored under.

    Args:
        job (`CaptionJob`): The job.
        source (`str`): Of the image.
        sha256 (`str`): Of its bytes.

    Returns:
        `RowKey`: Image, prompt, model and settings.
    """
    return RowKey(sha256, job.prompt_for(source, sha256).sha256, job.model, job.sampling_hash)


def identified(job: CaptionJob) -> CaptionJob:
    """
    A job that does not change with what it was made from: it holds its prompts, and knows the weights of its model.

    Args:
        job (`CaptionJob`): Any.

    Returns:
        `CaptionJob`: With `texts`, and the `revision` of a model of our own.

    Raises:
        `OSError`: There is no such model, or no such prompt file.
    """
    texts = None if job.prompts.unified else asdict(job.prompt_set)
    if job.engine is None:
        return replace(job, texts=texts)
    return replace(job, texts=texts, revision=weights_of(job.engine.model, job.engine.trust_remote_code))


def _write_job(out: Path, job: CaptionJob, sources: dict[str, int]) -> None:
    write_text(out / JOB, json.dumps(job.to_json(), indent=2) + "\n")
    known, path = {}, out / PROMPTS
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
    for prompt in (prompt for source in sources for prompt in job.prompts_for(source)):
        known[prompt.sha256] = {"id": prompt.id, "text": prompt.text}
    write_text(path, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
    variants, path = {}, out / VARIANTS
    if path.is_file():
        variants = json.loads(path.read_text(encoding="utf-8"))
    variants[job.variant] = {
        "kind": job.kind,
        "model": job.model,
        "sampling": job.sampling,
        "sampled": job.sampling_hash,
    }
    write_text(path, json.dumps(variants, indent=2) + "\n")


def _complete(out: Path, snapshot: Snapshot) -> Snapshot:
    status = job_status(out)
    # The workers of this run are gone: whoever has a shard now is of another one.
    if status["remaining"] and snapshot.busy and any(map(_is_locked, (out / ROWS).glob("*.lock"))):
        raise BusyError(f"Another process works on {status['remaining']} images of {out}. Wait for it, or stop it.")
    if status["remaining"]:
        raise EndpointDown(
            f"{status['remaining']} of {status['images']} images have no answer yet "
            f"({snapshot.note or 'their rows say why'}). Run the same command again."
        )
    return replace(snapshot, done=Counter(status["states"]))  # of a worker that was killed not all was told


def _budget_reached(out: Path) -> BudgetReached:
    job, status = read_job(out), job_status(out)
    limit = job.endpoint.max_cost if job.endpoint else None
    return BudgetReached(
        f"The budget of {limit} does for no further request: {status['spent']['cost']:.4f} is spent, "
        f"{status['remaining']} of {status['images']} images remain. Raise `--max-cost` to go on."
    )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"Another process works on {out}. Wait for it, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


def _is_locked(path: Path) -> bool:
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False

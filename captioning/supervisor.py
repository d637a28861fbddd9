"""
Workers of a job as processes, watched: one that dies is started again, and what it looked at becomes suspect.

A decoder that crashes or a machine without memory takes down one process, not the job. Why a worker ended by itself
is in `outcome-<rank>.json`; one that wrote none was killed.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from dataset_scripts.writing import WriteError

from .answers import BudgetReached, EndpointDown, KeyRejected
from .feed import read_journal, suspect
from .store import STATES, Tally
from .work import Interrupted, run_folder


POLL = 0.1  # seconds
DEATHS = 12  # of a worker in a row without a new row in between; isolating one image takes fewer
# Which error is told when several workers ended with one: the first of these.
ERRORS: tuple[type[Exception], ...] = (
    KeyRejected, Interrupted, WriteError, FileNotFoundError, ValueError, OSError, EndpointDown, BudgetReached,
)  # fmt: skip
SUPERVISED = "SHAREGPT4V_SUPERVISED"


class WorkerFailed(RuntimeError):
    """A worker died again and again, or failed in a way that trying again does not mend."""


@dataclass
class Snapshot:
    """
    Where a run stands.

    Args:
        total (`int`): Images of the job.
        done (`Counter[str]`): Images by state, those of earlier runs included.
        written (`Tally`): Sums over what this run wrote.
        seconds (`float`): Since its start.
        note (`str`): Newest warning of a worker.
        deaths (`int`): Of workers.
        busy (`bool`): Whether another process had a part of the job.
    """

    total: int
    done: Counter[str] = field(default_factory=Counter)
    written: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    note: str = ""
    deaths: int = 0
    busy: bool = False

    def to_json(self) -> dict[str, Any]:
        """
        The snapshot.

        Returns:
            `dict`: Ready for JSON.
        """
        done = {state: self.done[state] for state in STATES if self.done[state]}
        facts = {"images": self.total, "done": done, "written": self.written.to_json()}
        return {**facts, "seconds": round(self.seconds, 3), "note": self.note, "deaths": self.deaths}


Show = Callable[[Snapshot], None]


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen
    log: IO[bytes]
    paid: float = 0.0  # by its dead predecessors
    past: Tally = field(default_factory=Tally)  # written by them, as far as they told
    deaths: int = 0
    outcome: dict[str, str] | None = None

    @property
    def over(self) -> bool:
        return self.process.poll() is not None


class Supervisor:
    """
    Runs the workers of a run to their end.

    Args:
        out (`Path`): Folder of the job.
        run (`str`): Name of the run.
        ranks (`list[int]`): Workers of this machine.
        world (`int`): Workers altogether.
        start (`Snapshot`, *optional*): Where the job stands before.
        show (`Callable[[Snapshot], None]`, *optional*): Told where the run stands, a few times a second.
        datatrove (`bool`, defaults to `True`): Whether a worker is a task of datatrove's local executor.
    """

    def __init__(
        self,
        out: Path,
        run: str,
        ranks: list[int],
        world: int,
        start: Snapshot | None = None,
        show: Show | None = None,
        datatrove: bool = True,
    ):
        self._out, self._run, self._world, self._show = out, run, world, show
        self._start_of_run = start or Snapshot(0)
        self._folder = run_folder(out, run)
        self._mode = "local" if datatrove else "plain"
        self._ranks, self._started, self._deaths = ranks, time.monotonic(), 0
        self._ending = False
        self._workers: list[_Worker] = []

    def run(self) -> Snapshot:
        """
        Start the workers and wait for them.

        Returns:
            `Snapshot`: At the end.

        Raises:
            `JobStopped`: A subclass says why an endpoint cannot be asked any more.
            `Interrupted`: SIGINT or SIGTERM came; what was under way is stored.
            `WriteError`: The disk is full or read-only.
            `WorkerFailed`: A worker cannot be kept alive.
            `ValueError`: The captioner cannot be used.
        """
        with self._signals():
            try:
                self._workers = [self._start(rank) for rank in self._ranks]
                while not all(worker.over for worker in self._workers) or self._restart():
                    time.sleep(POLL)
                    if any(worker.over for worker in self._workers):
                        self._restart()
                    if self._show is not None:
                        self._show(self.snapshot())
            finally:
                for worker in self._workers:
                    if not worker.over:
                        worker.process.kill()
                    worker.process.wait()
                    worker.log.close()
        self._raise()
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """
        Where the run stands.

        Returns:
            `Snapshot`: Sums over the workers of this machine.
        """
        start = self._start_of_run
        found = Snapshot(start.total, seconds=time.monotonic() - self._started, deaths=self._deaths)
        for worker in self._workers:
            facts = self._progress(worker.rank)
            found.written.merge(worker.past.to_json())
            if facts is not None:
                found.written.merge(facts["written"])
                found.note = facts["note"] or found.note
                found.busy = found.busy or facts["busy"]
        found.done = start.done + found.written.states
        return found

    def _start(self, rank: int, paid: float = 0.0) -> _Worker:
        for name in (f"outcome-{rank}.json", f"asked-{rank}.txt", f"progress-{rank}.json"):
            (self._folder / name).unlink(missing_ok=True)
        log = (self._folder / f"worker-{rank}.log").open("ab")
        command = [sys.executable, "-m", "captioning.worker", str(self._out), self._run, self._mode]
        command += [str(rank), str(self._world), str(paid)]
        # loguru would log the values of variables; workers share the cores of the machine.
        threads = str(max(1, (os.cpu_count() or 1) // len(self._ranks)))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, SUPERVISED: "1", "LOGURU_DIAGNOSE": "NO"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        return _Worker(rank, process, log, paid)

    def _restart(self) -> bool:
        """Replace workers that died; whether there was one."""
        died = False
        for index, worker in enumerate(self._workers):
            if worker.outcome is not None or not worker.over:
                continue
            worker.outcome = self._outcome(worker)
            if worker.outcome["error"] == KeyRejected.__name__:
                self._end()  # no worker may spend on a key that is refused
            if not worker.outcome["died"] or self._ending:
                continue
            keys, paid = read_journal(self._folder / f"asked-{worker.rank}.txt")
            suspect(self._out, keys)
            self._deaths += 1
            facts = self._progress(worker.rank)
            rows = sum(facts["written"]["states"].values()) if facts is not None else 0
            deaths = worker.deaths + 1 if rows == 0 else 0
            if deaths >= DEATHS:
                continue
            died = True
            worker.log.close()
            if facts is not None:
                worker.past.merge(facts["written"])
            paid += worker.paid
            self._workers[index] = replace(self._start(worker.rank, paid), past=worker.past, deaths=deaths)
        return died

    def _outcome(self, worker: _Worker) -> dict[str, Any]:
        path = self._folder / f"outcome-{worker.rank}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        code = worker.process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"error": WorkerFailed.__name__, "message": f"it ended by {how}", "died": True}

    def _progress(self, rank: int) -> dict[str, Any] | None:
        path = self._folder / f"progress-{rank}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _raise(self) -> None:
        outcomes = [worker.outcome for worker in self._workers if worker.outcome and worker.outcome["error"]]
        failed = [one for one in outcomes if one["died"] or one["error"] not in {kind.__name__ for kind in ERRORS}]
        if self._ending and not any(one["error"] == KeyRejected.__name__ for one in outcomes):
            raise Interrupted("The run was interrupted; what is done is stored.")
        if failed:
            raise WorkerFailed(f"A worker failed: {failed[0]['message']}. Its log is in {self._folder}.")
        for kind in ERRORS:
            for one in outcomes:
                if one["error"] == kind.__name__:
                    raise kind(one["message"])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: Any) -> None:
        if self._ending and number == signal.SIGINT:  # once more: now, at the cost of what is under way
            raise KeyboardInterrupt
        self._end()

    def _end(self) -> None:
        self._ending = True
        for worker in self._workers:
            if not worker.over:
                worker.process.send_signal(signal.SIGTERM)

"""A tiny training run with dropout, in this process or in children that are killed, stopped or short of disk space."""

import gc
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from trainers.checkpoints import CompleteCheckpoints
from trainers.save_on_signal import EXIT_TERMINATED


WIDTH, SAMPLES = 16, 12
STEPS = 8
TIMEOUT_S = 120
SLOW_S = 0.3
gc.freeze()  # accelerate collects garbage when training starts, which is a second for all that torch has made


class Net(torch.nn.Module):
    """Two layers with dropout between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH), torch.nn.Dropout(0.5), torch.nn.Linear(WIDTH, 1)
        )

    def forward(self, x, labels=None):
        scores = self.layers(x).squeeze(1)
        return {"loss": torch.nn.functional.mse_loss(scores, labels), "logits": scores}


def samples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(SAMPLES, WIDTH, generator=generator)
    return [{"x": row, "labels": row.sum()} for row in rows]


def trainer(output: Path, kind: type = CompleteCheckpoints, callbacks: tuple = (), **options: Any):
    """A trainer of 8 steps, 6 an epoch, that saves every other step."""
    options = {
        "max_steps": STEPS,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    args = TrainingArguments(output_dir=str(output), **options)
    return kind(model=Net(), args=args, train_dataset=samples(), eval_dataset=samples(), callbacks=list(callbacks))


def outcome(run) -> dict[str, Any]:
    """The losses of all steps, those before a resumption included, and a hash of the weights."""
    weights = b"".join(tensor.numpy().tobytes() for tensor in run.model.state_dict().values())
    return {
        "losses": {entry["step"]: entry["loss"] for entry in run.state.log_history if "loss" in entry},
        "weights": hashlib.sha256(weights).hexdigest(),
    }


class At(TrainerCallback):
    """Does something when a step begins, or when its checkpoint is saved; counts those that are in place then."""

    def __init__(self, step: int = 0, action: Callable[[], Any] | None = None, event: str = "begin"):
        self.step, self.action, self.event, self.saves = step, action, event, 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._act("begin", state.global_step + 1)

    def on_save(self, args, state, control, **kwargs):
        self.saves += (Path(args.output_dir) / f"checkpoint-{state.global_step}").is_dir()
        self._act("save", state.global_step)

    def _act(self, event: str, step: int) -> None:
        if self.action is not None and (event, step) == (self.event, self.step):
            self.action()


class FileEvents:
    """Counts what is done to files below a folder; kills the process at one of these events, or slows renames down."""

    def __init__(self, folder: Path, last: int | None, seconds: float):
        self.folder, self.last, self.seconds, self.count = str(folder), last, seconds, 0

    def __call__(self, event: str, args: tuple) -> None:
        # Folders are emptied by names alone.
        if (
            event in ("os.remove", "os.rmdir")
            or event in ("open", "os.mkdir", "os.rename")
            and self.folder in str(args)
        ):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            if event == "os.rename":
                time.sleep(self.seconds)


class Slow(CompleteCheckpoints):
    """Takes its time before it writes random states."""

    def _save_rng_state(self, output_dir):
        time.sleep(SLOW_S)
        super()._save_rng_state(output_dir)


def child(output: Path, rank: dict[str, str], resume: Any, plan: dict[str, Any], options: dict[str, Any]) -> None:
    """
    Train in a process of its own; the result, or the error, is written beside the checkpoints.

    `plan` is `{"killed_at": file event}`, `{"killed_after": seconds from the first step on}`, `{"slow": True}`,
    `{"signal": (number, step, event)}` or `{"largest_file": (bytes, step)}`.
    """
    os.environ.update(rank)
    index = rank.get("RANK", "0")
    sys.stdout = open(os.devnull, "w")  # a file that pytest captures into must not be the one that is too large
    at = At()
    if "signal" in plan:
        number, step, event = plan["signal"]
        at = At(step, lambda: os.kill(os.getpid(), number), event)
    if "killed_after" in plan:
        at = At(1, lambda: signal.setitimer(signal.ITIMER_REAL, plan["killed_after"]))  # SIGALRM, which nobody handles
    if "largest_file" in plan:
        largest, step = plan["largest_file"]
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        at = At(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard)))
    slow = plan.get("slow", False)
    events = FileEvents(output, plan.get("killed_at"), SLOW_S if slow else 0)
    sys.addaudithook(events)
    run = trainer(output, Slow if slow else CompleteCheckpoints, callbacks=(at,), **options)
    try:
        run.train(resume)
    except (RuntimeError, ValueError) as error:
        (output / f"error-{index}.txt").write_text(str(error))
        sys.exit(1)
    evaluations = sum("eval_loss" in entry for entry in run.state.log_history)
    facts = {"events": events.count, "step": run.state.global_step, "saves": at.saves, "evaluations": evaluations}
    (output / f"result-{index}.json").write_text(json.dumps({**outcome(run), **facts}))
    if run.stopped_by is not None:
        sys.exit(EXIT_TERMINATED)


def names(folder: Path) -> set[str]:
    """What lies in a folder of a run, but for what a child reports."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(("result-", "error-"))}


def fork_server():
    """Children come from a process that has imported this file: each starts in no time, and none has run autograd."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.trainers.stage_child"])
    return context


def ranks(processes: int) -> list[dict[str, str]]:
    """Environment of each of some processes that train together."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    return [
        {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        for rank in range(processes)
    ]


def run_together(target: Callable[..., None], arguments: list[tuple]) -> list[int]:
    """Exit codes of children, one for each tuple of arguments; none outlives the time limit."""
    children = [fork_server().Process(target=target, args=given) for given in arguments]
    for process in children:
        process.start()
    for process in children:
        process.join(TIMEOUT_S)
    if late := [process for process in children if process.is_alive()]:
        for process in late:
            process.kill()
        raise AssertionError(f"{len(late)} children did not end within {TIMEOUT_S} s.")
    return [process.exitcode for process in children]


def run_child(
    output: Path, resume: Any = None, plan: dict | None = None, processes: int = 1, guilty: int = 0, **options: Any
) -> list[int]:
    """Exit codes of one or more children that train together; the plan is that of the guilty one."""
    output.mkdir(exist_ok=True)
    plans = [(plan or {}) if at == guilty else {} for at in range(processes)]
    return run_together(
        child,
        [(output, rank, resume, own, options) for rank, own in zip(ranks(processes), plans, strict=True)],
    )


def result(output: Path, rank: int = 0) -> dict[str, Any]:
    """What a child has left."""
    found = json.loads((output / f"result-{rank}.json").read_text())
    found["losses"] = {int(step): loss for step, loss in found["losses"].items()}
    return found


if __name__ == "__main__":  # by torchrun: folder, and "true" to resume
    child(Path(sys.argv[1]), dict(os.environ), sys.argv[2], {}, {"max_steps": int(sys.argv[3])})

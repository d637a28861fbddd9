"""Runs that a signal ends in good order: Slurm, Kubernetes and spot machines send one some time before they kill."""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# "Try again later" in sysexits.h. Not 143: that is also how a shell reports a process that SIGTERM killed unsaved.
EXIT_TERMINATED = os.EX_TEMPFAIL


class SaveOnSignal(TrainerCallback):
    """
    End a run in good order at SIGTERM or SIGUSR1: finish the optimizer step, save a complete checkpoint, stop.

    The signal may reach any of the processes; all of them agree on the step. An evaluation that is due at the same
    step is left out, because whoever sends the signal may kill the run soon. Signals are handled inside of `with`.
    (`enable_jit_checkpoint` of transformers saves between backward pass and optimizer step, where no run can be
    continued bit for bit, and each process decides alone.)
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SaveOnSignal":
        self.stopped_by, self._received = None, 0
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        else:
            logger.warning("Training runs outside of the main thread: SIGTERM and SIGUSR1 save no checkpoint.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not installed by Python
        self._previous = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if a signal has arrived, and log the loss up to here."""
        if self._must_stop(args, state):
            control.should_training_stop = control.should_save = control.should_log = True
            control.should_evaluate = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop if a signal has arrived while this checkpoint was written: it is the one to go on from."""
        if self._must_stop(args, state):
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep a stopped run, for which transformers ends the epoch early, from saving and evaluating once more."""
        if self.stopped_by is not None:
            control.should_save = control.should_evaluate = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def _must_stop(self, args: TrainingArguments, state: TrainerState) -> bool:
        if self.stopped_by is None:
            received = self._received
            if args.world_size > 1:
                largest = torch.tensor(received, device=args.device)
                torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
                received = int(largest)
            if received:
                self.stopped_by = signal.Signals(received)
                if args.process_index == 0:
                    logger.warning(
                        "%s: the run is saved at step %d and ends.", self.stopped_by.name, state.global_step
                    )
        return self.stopped_by is not None

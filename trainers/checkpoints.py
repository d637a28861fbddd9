"""
A trainer that writes complete checkpoints or none, resumes from such only, and ends in good order at a signal.

transformers writes a checkpoint where a later run looks for it, file by file, and resumes from the one with the
largest number, whatever is in it. Here a run that is killed at any moment leaves the whole folder or none.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from .checkpoint_folders import (
    INCOMPLETE,
    MARKER,
    clear_incomplete,
    list_checkpoints,
    publish_checkpoint,
    remove_checkpoint,
    resolve_resume,
    step_of,
)
from .save_on_signal import SaveOnSignal


class CompleteCheckpoints(Trainer):
    """
    A [`~transformers.Trainer`], or the first base of a class with another one, that writes only complete checkpoints.

    - A checkpoint is written to `output_dir/_incomplete` by all processes, and put in its place by the first one.
    - `save_total_limit` counts complete checkpoints and keeps the newest and the best one, also at the end of a run.
      Nothing is deleted while a push to the Hub is under way. Pushes take complete folders only.
    - `train(resume_from_checkpoint=...)` follows [`resolve_resume`].
    - SIGTERM and SIGUSR1 save and end the run, see [`SaveOnSignal`]; `stopped_by` then names the signal, and a script
      should exit with `EXIT_TERMINATED` and leave the model of the unfinished run unsaved. A launcher between may
      report a code of its own; `torchrun` hands SIGUSR1 on only with `--signals_to_handle`, and grants 30 seconds
      unless `--shutdown_timeout` says more.

    A resumed run ends with the bits of an uninterrupted one if its number of processes, arguments and data are the
    same. A loss is then logged over the steps since the last log or start.

    Args:
        model (`torch.nn.Module`, *optional*): As in the parent class.
        args (`TrainingArguments`, *optional*): As in the parent class, without `enable_jit_checkpoint`.
        kwargs: Further arguments of the parent class.

    Raises:
        `ValueError`: `enable_jit_checkpoint` is set.
    """

    _writes_aside = False

    def __init__(self, model: Any = None, args: TrainingArguments | None = None, **kwargs: Any):
        if args is not None and args.enable_jit_checkpoint:
            raise ValueError(
                "`enable_jit_checkpoint` must be False, got True: it saves where no run can go on bit for bit. Here "
                "SIGTERM and SIGUSR1 save a complete checkpoint without it."
            )
        super().__init__(model=model, args=args, **kwargs)
        self._save_on_signal = SaveOnSignal()
        self.add_callback(self._save_on_signal)

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that ended the last run before its time; `None` if it came to its end."""
        return self._save_on_signal.stopped_by

    def train(
        self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """
        Train, from the beginning or from a checkpoint that is proven to be complete.

        Args:
            resume_from_checkpoint (`str`, `os.PathLike` or `bool`, *optional*): See [`resolve_resume`].
            args: Further arguments of the parent class.
            kwargs: Further arguments of the parent class.

        Returns:
            `TrainOutput`: As in the parent class.

        Raises:
            `FileNotFoundError`: The path is no checkpoint.
            `ValueError`: The checkpoint, or every one there is, cannot be resumed from; the message names the files.
        """
        if self.args.should_save:
            clear_incomplete(Path(self.args.output_dir))
        outcome: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                outcome[0] = resolve_resume(self.args.output_dir, resume_from_checkpoint, self.args.world_size)
            except (OSError, ValueError) as error:  # the other processes wait to hear of it
                outcome[1] = error
        broadcast_object_list(outcome)
        found, problem = outcome
        if problem is not None:
            raise problem
        with self._save_on_signal:
            return super().train(None if found is None else str(found), *args, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *args: Any
    ) -> tuple[int, int]:
        begun = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args)
        # transformers 5.23 takes one more step when the checkpoint is of the last step, within an epoch.
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else begun

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, INCOMPLETE) if self._writes_aside else folder

    @contextmanager
    def _aside(self) -> Iterator[None]:
        self._writes_aside = True
        try:
            yield
        finally:
            self._writes_aside = False

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final, written = run_dir / name, run_dir / INCOMPLETE / name
        try:
            if self.args.should_save:
                clear_incomplete(run_dir)
            self.accelerator.wait_for_everyone()
            with self._aside():
                super()._save_checkpoint(model, trial)
            self._name_best(run_dir, written)
            self.accelerator.wait_for_everyone()  # each process has written its random state
            if self.args.should_save:
                publish_checkpoint(written, final, self.state.global_step, self.args.world_size)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise RuntimeError(
                f"Checkpoint {final} could not be written: {error}. Earlier checkpoints are as they were. Check that "
                "the disk has room, and go on with `resume_from_checkpoint=True`."
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        self._rotate(run_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writes_aside:  # else it is not complete yet, and pushed later
            super()._push_from_checkpoint(checkpoint_folder)

    def _finalize_training(self, trial: Any, *args: Any) -> TrainOutput:
        with self._aside():  # with a limit of 1, transformers would now delete all but the best checkpoint
            output = super()._finalize_training(trial, *args)
        self._rotate(Path(self._get_output_dir(trial)))
        return output

    def _name_best(self, run_dir: Path, written: Path) -> None:
        # transformers has looked for the best checkpoint beside this one, where none but itself can be.
        step = self.state.best_global_step
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if step and (step == self.state.global_step or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _rotate(self, run_dir: Path) -> None:
        limit, step = self.args.save_total_limit, self.state.global_step
        pushing = self.args.push_to_hub and self.push_in_progress is not None and not self.push_in_progress.is_done()
        complete = [folder for folder in list_checkpoints(run_dir) if (folder / MARKER).is_file()]
        if not self.args.should_save or pushing or not complete or limit is None or limit <= 0:
            return
        # Larger steps than the run has come to are of an earlier run.
        complete.sort(key=lambda folder: step_of(folder) <= step)
        best = {f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"}
        best |= {Path(self.state.best_model_checkpoint).name} if self.state.best_model_checkpoint else set()
        free = [folder for folder in complete[:-1] if folder.name not in best]
        excess = len(complete) - max(limit, len(complete) - len(free))
        for folder in free[: max(excess, 0)]:
            remove_checkpoint(folder)

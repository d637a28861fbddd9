"""
The pipeline as datatrove runs it: one step, whose tasks share the shards of a job.

Of datatrove 0.10 the executors, their task logs, statistics and completion markers are used. Its `InferenceRunner` is
not, because of what a paid answer needs:

- one document that fails raises in its task, and every request under way is cancelled, answers and all;
- a resume counts documents (`documents_to_skip`), so another number of tasks mixes captions up;
- the replay cache is deleted at the end of a task and is keyed by the payload, not by image, prompt, model and
  settings; an entry that cannot be written is logged and forgotten;
- a retry knows no Retry-After, no rate limit, no budget and no breaker, and its API key is a field of the
  configuration that executors write to `executor.json`.

With it fall its request cache and checkpoints, and what only they need: aiosqlite, aiofiles, xxhash and httpx. orjson
writes the rows. The local executor's pool of processes is not used either: a worker of `multiprocessing.Pool` that is
killed leaves `imap` waiting forever. Each local task is a process of its own under a supervisor instead, and runs the
executor for its one rank.
"""

import os
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from .supervisor import SUPERVISED, Supervisor
from .work import run_folder, work


class CaptionStep(PipelineStep):
    """
    Captions of one task's share of a job; without a supervisor it becomes one, for a process of its own.

    Args:
        out (`str`): Folder of the job.
        run (`str`): Name of the run.
        paid (`float`, defaults to 0): See [`~captioning.work.work`].
    """

    name = "Captions"
    type = "Captioner"

    def __init__(self, out: str, run: str, paid: float = 0.0):
        super().__init__()
        self.out, self.run_name, self.paid = out, run, paid

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """
        Do the share of a task.

        Args:
            data (`Iterable`, *optional*): Passed on; the images are those of the plan.
            rank (`int`, defaults to 0): Number of the task.
            world_size (`int`, defaults to 1): Number of tasks.

        Returns:
            `data` as it came.

        Raises:
            See [`~captioning.work.work`] and [`~captioning.supervisor.Supervisor.run`].
        """
        out = Path(self.out)
        if os.environ.get(SUPERVISED):
            states = work(out, self.run_name, rank, world_size, self.paid)["written"]["states"]
        else:
            supervisor = Supervisor(out, self.run_name, [rank], world_size, datatrove=False)
            states = supervisor.run().written.states
        for state, count in states.items():
            self.stat_update(state, value=count, unit="task")
        return data


class _OneTask(LocalPipelineExecutor):
    """
    Runs its task in this process and starts none beside it: the queue that the executor shares among tasks has a
    process of its own, which a worker that is killed would leave behind.
    """

    def run(self) -> Any:
        """
        Run the task.

        Returns:
            `PipelineStats`: Its statistics.
        """
        self.save_executor_as_json()
        return self._run_for_rank(self.local_rank_offset)


def run_task(out: Path, run: str, rank: int, world: int, paid: float = 0.0) -> None:
    """
    Run one task by datatrove's local executor, in this process.

    Args:
        out (`Path`): Folder of the job.
        run (`str`): Name of the run.
        rank (`int`): Number of the task.
        world (`int`): Number of tasks.
        paid (`float`, defaults to 0): See [`~captioning.work.work`].
    """
    _OneTask(
        pipeline=[CaptionStep(str(out), run, paid)],
        tasks=world,
        workers=1,
        local_tasks=1,
        local_rank_offset=rank,
        logging_dir=str(run_folder(out, run) / "datatrove"),
    ).run()

"""datatrove's executor for Hugging Face Jobs, with mounted volumes, secrets by name, patience with a busy service."""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import httpx2
from datatrove.executor.jobs import ARRAY_INDEX_ENV_VAR, JobsPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from huggingface_hub import JobStage, Volume, inspect_job, run_uv_job, whoami
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import parse_hf_mount
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from .limits import seconds_to_wait


logger = logging.getLogger(__name__)

ENDED = (JobStage.COMPLETED, JobStage.ERROR, JobStage.CANCELED, JobStage.DELETED)
NOT_TAKEN = (429, 503)  # by these the service says that it started nothing, so asking again starts nothing twice
PASSING = (429, 500, 502, 503, 504)  # enough to ask again where asking changes nothing
ATTEMPTS = 10
LONGEST_WAIT_S = 60.0
Result = TypeVar("Result")


class MountedJobsExecutor(JobsPipelineExecutor):
    """
    Runs a step in Hugging Face Jobs that have the same folders mounted.

    Four pieces of datatrove 0.10.1 (`executor/jobs.py`) do not fit, and are replaced here:

    - `_submit_array_index` hands no volumes to `run_uv_job`, so that a job would see neither images nor the folder of
      the captions.
    - It uploads datatrove's start script into a bucket that it mounts at `/data`, a path volumes may want. The same
      script is a command of the installed package, and needs no upload.
    - Secrets are values in the executor there, which has to blank them wherever it is stored. Names are kept here.
    - `_launch_and_wait` ends at the first 429 or 503, and nothing then looks after the jobs that are running. It also
      asks who the user is for each look at each job, which the Hub limits strictly.

    Args:
        pipeline (`list[PipelineStep]`): What each task runs.
        tasks (`int`): Number of tasks.
        volumes (`Sequence[str]`): What to mount where, as in `hf://buckets/me/captions:/mnt/captions:rw`.
        secret_names (`Sequence[str]`): Environment variables that every job gets as secrets.
        options: Of [`~datatrove.executor.jobs.JobsPipelineExecutor`].
    """

    def __init__(
        self,
        pipeline: list[PipelineStep],
        tasks: int,
        volumes: Sequence[str] = (),
        secret_names: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(pipeline, tasks, **options)
        self.namespace: str | None = self.namespace
        self.volumes = tuple(volumes)
        self.secret_names = tuple(secret_names)

    def _submit_array_index(self, array_index: int, pik_path: str, token: str) -> str:
        job = _patiently(
            lambda: run_uv_job(
                "launch_pickled_pipeline",
                script_args=[pik_path],
                dependencies=self.dependencies,
                python=self.python,
                image=self.image,
                env={**(self.env or {}), "PYTHONUNBUFFERED": "1", ARRAY_INDEX_ENV_VAR: str(array_index)},
                secrets={"HF_TOKEN": token, **{name: os.environ[name] for name in self.secret_names}},
                flavor=self.flavor,
                timeout=self.timeout,
                labels={"datatrove_job_name": self.job_name, "datatrove_array_index": str(array_index)},
                volumes=[read_volume(mount) for mount in self.volumes],
                namespace=self.namespace,
                token=token,
            ),
            _was_not_taken,
        )
        logger.info("Task group %d of %s is job %s (%s).", array_index, self.job_name, job.id, job.url)
        return job.id

    def _launch_and_wait(self, nb_jobs: int, pik_path: str, max_concurrent: int, token: str) -> list[int]:
        self.namespace = self.namespace or whoami(token=token)["name"]
        waiting = deque(range(nb_jobs))
        running: dict[str, int] = {}
        failures: Counter[int] = Counter()
        try:
            while waiting or running:
                while waiting and len(running) < max_concurrent:
                    running[self._submit_array_index(waiting[0], pik_path, token)] = waiting[0]
                    waiting.popleft()
                time.sleep(self.poll_interval)
                for job in list(running):
                    stage = self._look(job, token)
                    if stage not in ENDED:
                        continue
                    index = running.pop(job)
                    if stage == JobStage.COMPLETED:
                        continue
                    failures[index] += 1
                    again = failures[index] <= self.max_retries
                    logger.warning(
                        "Job %s ended as %s; %s.", job, stage, "it runs again" if again else "it is given up"
                    )
                    if again:
                        waiting.append(index)
        except BaseException:
            if running:
                logger.error(
                    "Nothing looks after these jobs any longer, but they go on: %s. `hf jobs cancel ID` stops one.",
                    ", ".join(running),
                )
            raise
        return sorted(index for index, count in failures.items() if count > self.max_retries)

    def _look(self, job: str, token: str) -> str:
        return _patiently(
            lambda: inspect_job(job_id=job, namespace=self.namespace, token=token), _may_pass
        ).status.stage


def read_volume(mount: str) -> Volume:
    """
    Read what to mount where.

    Args:
        mount (`str`): `hf://` address, mount path and perhaps `ro` or `rw`, with colons between.

    Returns:
        `Volume`: As `huggingface_hub` takes it.

    Raises:
        `ValueError`: It is none.
    """
    found = parse_hf_mount(mount)
    return Volume(
        type=found.source.type,
        source=found.source.id,
        mount_path=found.mount_path,
        revision=found.source.revision,
        read_only=found.read_only,
        path=found.source.path_in_repo or None,
    )


def _was_not_taken(error: BaseException) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code in NOT_TAKEN


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return isinstance(error, httpx2.TransportError)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = seconds_to_wait(error.response.headers.get("retry-after")) if isinstance(error, HfHubHTTPError) else None
    return asked if asked is not None else wait_random_exponential(max=LONGEST_WAIT_S)(state)


def _patiently(ask: Callable[[], Result], passing: Callable[[BaseException], bool]) -> Result:
    retrying = Retrying(retry=retry_if_exception(passing), wait=_wait, stop=stop_after_attempt(ATTEMPTS), reraise=True)
    return retrying(ask)

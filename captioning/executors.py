"""
A pipeline step on many machines: through datatrove's executors for Slurm, Ray and Hugging Face Jobs.

datatrove logs with loguru, which writes the values of variables into tracebacks unless `LOGURU_DIAGNOSE` is off before
it is imported (loguru 0.7.3, `_defaults.py`). One of them may be a key, so every process started here has it off.
"""

import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal


if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor
    from datatrove.pipeline.base import PipelineStep

logger = logging.getLogger(__name__)

QUIET = {"LOGURU_DIAGNOSE": "NO"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DURATION = re.compile(r"\d+(\.\d+)?[smhd]?")
REMOTE = ("hf://buckets/", "hf://datasets/")
# What datatrove writes into the script itself: a second line of the same name would win or lose silently.
OWN_SBATCH = (
    "array", "cpus-per-task", "error", "export", "gpus", "job-name", "mem-per-cpu", "nodes", "output", "partition",
    "qos", "requeue", "time",
)  # fmt: skip
INSIDE = {"slurm": "SLURM_ARRAY_TASK_ID", "hf-jobs": "DATATROVE_JOB_ARRAY_INDEX"}  # set where a task runs


def _only(executors: str, default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": f"{text} ({executors})", "executors": executors.split(", ")})


@dataclass(frozen=True)
class ExecutorOptions:
    """Arguments of [`launch`]: which machines run a step, and how many at a time."""

    executor: Literal["slurm", "ray", "hf-jobs"] = field(
        metadata={
            "help": "What starts the tasks: slurm (tested with a stand-in of sbatch, srun and scontrol, untested on a "
            "cluster), ray (tested on one machine where Ray is installed, untested on a cluster) or hf-jobs (tested "
            "with a stand-in of the Jobs API, untested on the service)."
        }
    )
    tasks: int = field(metadata={"help": "Number of tasks; each takes work until none is left."})
    workers: int = field(default=-1, metadata={"help": "Tasks that run at a time; all of them with -1."})
    cpus_per_task: int = _only("slurm, ray", 1, "Processor cores of a task")
    mem_per_cpu_gb: int = _only("slurm, ray", 2, "Memory for each of them, in GB")
    gpus_per_task: int = _only("slurm, ray", 0, "GPUs of a task")
    partition: str = _only("slurm", "", "Partition, required")
    time: str = _only("slurm", "", "Time limit of a task as sbatch takes it, such as 12:00:00, required")
    qos: str = _only("slurm", "", "Quality of service; the cluster's default if empty")
    sbatch: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Further options of sbatch by their long names, such as account; an empty value for one without "
            "any (slurm)",
            "executors": ["slurm"],
        },
    )
    setup: str = _only(
        "slurm",
        "",
        "Shell command that activates the environment in a task; the programs of this one if empty. It is stored, so "
        "put no key in it: tasks get the variables of the shell that calls sbatch",
    )
    flavor: str = _only("hf-jobs", "cpu-basic", "Hardware of a job (untested on the service)")
    logging_dir: str = _only(
        "hf-jobs",
        "",
        "Where launcher and jobs both keep logs and markers, required: hf://buckets/OWNER/NAME/... (untested) or "
        "hf://datasets/OWNER/NAME/..., which gets a commit for each of these files",
    )
    volumes: tuple[str, ...] = _only(
        "hf-jobs",
        (),
        "What to mount where in every job, such as hf://buckets/OWNER/NAME:/mnt/job:rw; images and the folder of the "
        "job have to be in there (untested on the service, as are locks between jobs on files of a mounted bucket)",
    )
    image: str = _only("hf-jobs", "", "Docker image with uv; that of huggingface_hub if empty (untested)")
    dependencies: tuple[str, ...] = _only(
        "hf-jobs",
        (),
        "What installs this package in a job, required: a requirement such as sharegpt4v @ git+https://ADDRESS, or "
        "the path of a wheel in a volume (untested)",
    )
    secrets: tuple[str, ...] = _only(
        "hf-jobs", (), "Names of environment variables that jobs get as secrets, such as OPENAI_API_KEY"
    )
    timeout: str = _only("hf-jobs", "", "Longest time of a job, such as 6h; the service's default if empty (untested)")
    poll_seconds: float = _only("hf-jobs", 15.0, "Seconds between looks at the running jobs")

    def __post_init__(self) -> None:
        if self.executor not in _LAUNCHERS:
            raise ValueError(f"`executor` must be one of {', '.join(_LAUNCHERS)}, got {self.executor!r}.")
        for name, least in (("tasks", 1), ("cpus_per_task", 1), ("mem_per_cpu_gb", 1), ("gpus_per_task", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.workers != -1 and self.workers < 1:
            raise ValueError(f"`workers` must be at least 1, or -1 for all tasks at once, got {self.workers}.")
        if not self.poll_seconds > 0:
            raise ValueError(f"`poll_seconds` must be above 0, got {self.poll_seconds}.")
        self._check_foreign()
        if self.executor == "slurm":
            self._check_slurm()
        if self.executor == "hf-jobs":
            self._check_jobs()

    def _check_foreign(self) -> None:
        empty = ExecutorOptions.__dataclass_fields__
        for one in fields(self):
            executors = one.metadata.get("executors", [self.executor])
            default = {} if one.name == "sbatch" else empty[one.name].default
            if self.executor not in executors and getattr(self, one.name) != default:
                raise ValueError(
                    f"`{one.name}` is an option of {' and '.join(executors)}, and the executor is {self.executor}. "
                    "Leave it out."
                )

    def _check_slurm(self) -> None:
        for name in ("partition", "time"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is required by slurm. `sinfo` lists the partitions and their time limits.")
        texts = {"partition": self.partition, "time": self.time, "qos": self.qos, **self.sbatch}
        for name, value in texts.items():
            if "\n" in f"{name}{value}":
                raise ValueError(f"`{name}` of sbatch has a line break, which would end its line in the script.")
        own = sorted(name for name in self.sbatch if name.lstrip("-") in OWN_SBATCH)
        if own:
            raise ValueError(
                f"`sbatch` must not hold {', '.join(own)}: `partition`, `time`, `qos`, `workers`, `cpus_per_task`, "
                "`mem_per_cpu_gb` and `gpus_per_task` are options of their own, the rest is set for the tasks."
            )
        dashed = [name for name in self.sbatch if not NAME.fullmatch(name)]
        if dashed:
            raise ValueError(f"`sbatch` takes long names without dashes before them, got {dashed[0]!r}.")

    def _check_jobs(self) -> None:
        from .hub_jobs import read_volume

        if not self.logging_dir.startswith(REMOTE):
            raise ValueError(
                f"`logging_dir` must begin with {' or '.join(REMOTE)}, got {self.logging_dir!r}: jobs share no disk "
                "with this machine."
            )
        if not self.dependencies:
            raise ValueError(
                "`dependencies` is required by hf-jobs: name what installs this package in a job, such as "
                "`sharegpt4v @ git+https://ADDRESS`."
            )
        for mount in self.volumes:
            try:
                read_volume(mount)
            except ValueError as error:
                raise ValueError(
                    f"`volumes` has {mount!r}, which is none ({error}). Write hf://buckets/OWNER/NAME:/mnt/job:rw or "
                    "hf://datasets/OWNER/NAME:/mnt/images:ro."
                ) from error
        for name in self.secrets:
            if not VARIABLE.fullmatch(name):  # not shown: it may be the key itself
                raise ValueError("`secrets` takes names of environment variables, such as OPENAI_API_KEY, not values.")
        if self.timeout and not DURATION.fullmatch(self.timeout):
            raise ValueError(f"`timeout` must be a number with s, m, h or d behind it, got {self.timeout!r}.")


def launch(step: "PipelineStep", options: ExecutorOptions, logging_dir: Path, name: str) -> str:
    """
    Start the tasks of a step.

    Slurm takes the tasks and this returns; with Ray and Hugging Face Jobs it returns when they have ended. A task that
    is marked as complete in the logging folder is not run again.

    Args:
        step (`PipelineStep`): What each task runs; its module has to be importable where tasks run.
        options (`ExecutorOptions`): Which machines, and how many.
        logging_dir (`Path`): Folder for logs and markers that all machines see. With Hugging Face Jobs only its last
            part counts: they are in `options.logging_dir`, in a folder NAME/THAT PART.
        name (`str`): What the tasks are called; letters, digits, `.`, `_` and `-`.

    Returns:
        `str`: One line about what was started, and what failed.

    Raises:
        `ValueError`: A name or folder that the executor cannot take, or a secret that the environment does not have.
        `ImportError`: Ray is missing.
        `RuntimeError`: It was refused, or no task was completed.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"`name` must be of letters, digits, `.`, `_` and `-`, got {name!r}.")
    variable = INSIDE.get(options.executor, "")
    if variable in os.environ:
        raise RuntimeError(
            f"{variable} is set: this runs inside a task, where datatrove would run a task instead of starting some. "
            "Start it from a login node or your own machine."
        )
    return _LAUNCHERS[options.executor](step, options, logging_dir.resolve(), name)


def _launch_slurm(step: "PipelineStep", options: ExecutorOptions, logging_dir: Path, name: str) -> str:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    if shutil.which("sbatch") is None:
        raise RuntimeError("There is no `sbatch` on this machine. Start it from a login node of the cluster.")
    if shlex.quote(str(logging_dir)) != str(logging_dir) or "%" in str(logging_dir):
        raise ValueError(
            f"The folder {logging_dir} has a blank or another character that means something to a shell or Slurm, and "
            "datatrove writes it into the script as it is. Use another folder."
        )
    setup = options.setup or f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    executor = SlurmPipelineExecutor(
        pipeline=[step],
        tasks=options.tasks,
        workers=options.workers,
        time=options.time,
        partition=options.partition,
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
        gpus_per_task=options.gpus_per_task,
        qos=options.qos,  # datatrove's own default, `normal`, is not on every cluster
        sbatch_args=dict(options.sbatch),
        env_command="\n".join([setup, *(f"export {variable}={value}" for variable, value in QUIET.items())]),
        job_name=name,
        logging_dir=str(logging_dir),
    )
    try:
        executor.run()
    except subprocess.CalledProcessError as error:
        script = logging_dir / "launch_script.slurm"
        if executor.job_id is None:
            raise RuntimeError(
                f"`sbatch` refused {script} (exit code {error.returncode}) and says why above. Nothing was started."
            ) from error
        raise RuntimeError(
            f"`sbatch` took Slurm job {executor.job_id}, which will run, and refused what follows it (exit code "
            f"{error.returncode}; the reason is above). `scancel {executor.job_id}` stops it."
        ) from error
    if executor.job_id == -1:
        return f"Nothing to start: all {options.tasks} tasks of {logging_dir} are complete."
    return f"Slurm job {executor.job_id} with up to {options.tasks} tasks, logs in {logging_dir}"


def _launch_ray(step: "PipelineStep", options: ExecutorOptions, logging_dir: Path, name: str) -> str:
    if importlib.util.find_spec("ray") is None:
        raise ImportError("The executor ray needs the package ray. Install it: `pip install ray`.")
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        ray.init()  # the cluster of RAY_ADDRESS, else this machine
    executor = RayPipelineExecutor(
        pipeline=[step],
        tasks=options.tasks,
        workers=options.workers,
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
        gpus_per_task=options.gpus_per_task,
        ray_remote_kwargs={"runtime_env": {"env_vars": QUIET}},  # no keys: Ray shows this in its dashboard and logs
        logging_dir=str(logging_dir),
    )
    executor.run()
    return _outcome(executor, f"Ray ran {name}", str(logging_dir))


def _launch_jobs(step: "PipelineStep", options: ExecutorOptions, logging_dir: Path, name: str) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    from .hub_jobs import MountedJobsExecutor

    missing = [variable for variable in options.secrets if not os.environ.get(variable)]
    if missing:
        raise ValueError(f"`secrets` names {', '.join(missing)}, and the environment does not have it. Set it.")
    if get_token() is None:
        raise ValueError("There is no Hugging Face token. `hf auth login`, or set HF_TOKEN; it has to allow jobs.")
    folder = f"{options.logging_dir.rstrip('/')}/{name}/{logging_dir.name}"
    executor = MountedJobsExecutor(
        pipeline=[step],
        tasks=options.tasks,
        workers=options.workers,
        volumes=options.volumes,
        secret_names=options.secrets,
        # Its default is datatrove[io], whose packages no step of ours needs. The pickled executor wants this version.
        dependencies=[f"datatrove=={version('datatrove')}", *options.dependencies],
        flavor=options.flavor,
        image=options.image or None,
        timeout=options.timeout or None,
        env={**QUIET, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        poll_interval=options.poll_seconds,
        job_name=name,
        logging_dir=folder,
    )
    try:
        executor.run()
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "`hf auth login` with a token that may write and start jobs" if status in (401, 403) else "Try again"
        reason = (error.server_message or error.response.reason_phrase).rstrip(".")
        raise RuntimeError(f"The Hub answered {status}: {reason}. {advice}.") from error
    return _outcome(executor, f"Hugging Face Jobs ran {name}", folder)


def _outcome(executor: "PipelineExecutor", started: str, folder: str) -> str:
    # Neither executor says by an error or a value that tasks failed; the markers do.
    executor.logging_dir.fs.invalidate_cache()
    failed = executor.get_incomplete_ranks(skip_completed=True)
    tasks = executor.world_size
    if len(failed) == tasks:
        raise RuntimeError(f"{started}, and none of {tasks} tasks was completed. See {folder}/logs.")
    if failed:
        ranks = ", ".join(map(str, failed))
        logger.warning("%d of %d tasks failed: %s. See %s/logs.", len(failed), tasks, ranks, folder)
        return f"{started}: {tasks - len(failed)} of {tasks} tasks completed, failed: {ranks}; logs in {folder}"
    return f"{started}: {tasks} of {tasks} tasks completed; logs in {folder}"


_LAUNCHERS = {"slurm": _launch_slurm, "ray": _launch_ray, "hf-jobs": _launch_jobs}

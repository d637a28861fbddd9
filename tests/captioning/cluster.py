"""Stand-ins of a Slurm cluster and of Hugging Face Jobs that really run what they are given, and a step for them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from tests.captioning.fault_server import Reply
from tests.hub_stand_in.access import Account
from tests.hub_stand_in.wire import Answer, Request, json_answer
from tests.hub_stand_in.world import HubStandIn


ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
TOKEN, USER, LOGS = "hf_rightrightright", "tester", "tester/logs"
KEY = "OPENAI_API_KEY"


class WriteRank(PipelineStep):
    """
    Writes a file a task with what it was given, and notes each attempt.

    The tasks in `failing` raise until the folder has a file `mended`, with the key in a local variable of the line.
    """

    name, type = "write rank", "test"

    def __init__(self, folder: str, failing: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.folder, self.failing = folder, failing

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Do the work of a task."""
        folder, key = Path(self.folder), os.environ.get(KEY, "")
        with open(folder / "attempts", "a", encoding="utf-8") as file:
            file.write(f"{rank}\n")
        if rank in self.failing and not (folder / "mended").exists():
            self.refuse(rank, key)
        names = ("DATATROVE_EXECUTOR", "DATATROVE_NODE_IPS", "LOGURU_DIAGNOSE", "SLURM_CPUS_PER_TASK")
        seen = {name: os.environ.get(name) for name in names}
        text = json.dumps({"tasks": world_size, "has_key": bool(key), **seen})
        (folder / f"rank-{rank}").write_text(text, encoding="utf-8")

    def refuse(self, rank: int, key: str) -> None:
        """Fail while a variable holds the key."""
        raise RuntimeError(f"task {rank} has no luck" + key[:0])


def attempts(folder: Path) -> list[int]:
    """Tasks that were tried, sorted."""
    return sorted(map(int, (folder / "attempts").read_text(encoding="utf-8").split()))


def outputs(folder: Path) -> dict[int, dict[str, Any]]:
    """What tasks wrote, by task."""
    return {int(path.name[5:]): json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("rank-*")}


# Takes the options that the real one has and a script needs, refuses others, and returns when the tasks have ended.
SBATCH = """
import json, os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
state = Path(os.environ["SLURM_STATE"])
if (state / "refuse").exists():
    sys.exit("sbatch: error: invalid partition")
known = ("partition time cpus-per-task mem-per-cpu nodes job-name output error array requeue qos gpus dependency "
         "export account").split()
script = sys.argv[-1]
words = [line.split(None, 1)[1] for line in open(script) if line.startswith("#SBATCH ")] + sys.argv[1:-1]
options = {}
for word in words:
    name, _, value = word.strip().removeprefix("--").partition("=")
    if name not in known or (name != "requeue" and not value):
        sys.exit(f"sbatch: error: unrecognized option {word.strip()!r}")
    options[name] = value
if "dependency" in options and (state / "refuse-next").exists():
    sys.exit("sbatch: error: no more jobs")
number = len(list(state.glob("job-*"))) + 1
record = {"options": options, "codes": {}}
spooled = state / f"script-{number}"
spooled.write_bytes(Path(script).read_bytes())
def run(index):
    environment = {"SLURM_JOB_ID": str(100 * number + index), "SLURM_ARRAY_JOB_ID": str(number),
                   "SLURM_ARRAY_TASK_ID": str(index), "SLURM_NODELIST": "node[1-1]",
                   "SLURM_CPUS_PER_TASK": options["cpus-per-task"]}
    for pair in options["export"].split(",")[1:] if "export" in options else []:
        name, _, value = pair.partition("=")
        environment[name] = value
    log = options["output"].replace("%A", str(number)).replace("%a", str(index))
    with open(log, "w") as file:
        done = subprocess.run(["bash", str(spooled)], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                              env={**os.environ, **environment})
    record["codes"][index] = done.returncode
needed = options.get("dependency", "").partition("afterok:")[2]
codes = json.loads((state / f"job-{needed}").read_text())["codes"].values() if needed else []
if not any(codes):
    span, _, limit = options["array"].partition("%")
    first, last = map(int, span.split("-"))
    with ThreadPoolExecutor(int(limit or last + 1)) as pool:
        list(pool.map(run, range(first, last + 1)))
(state / f"job-{number}").write_text(json.dumps(record))
print(f"Submitted batch job {number}")
"""
SRUN = """
while [[ $1 == -* ]]; do if [[ $1 == -n ]]; then shift; fi; shift; done
"$@" 2>&1 | sed 's/^/0: /'
exit "${PIPESTATUS[0]}"
"""
SCONTROL = """
[[ "$1 $2" == "show hostnames" && $3 == "node[1-1]" ]] && echo node1
"""


class SlurmCluster:
    """Programs of Slurm in a folder, what their jobs came to, and the environment of a login node."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "slurm"
        programs = folder / "slurm-programs"
        for path in (self.state, programs):
            path.mkdir()
        shell = "#!/bin/bash\n"
        for name, text in (("sbatch", f"#!{sys.executable} -I\n{SBATCH}"), ("srun", shell + SRUN)):
            (programs / name).write_text(text, encoding="utf-8")
        (programs / "scontrol").write_text(shell + SCONTROL, encoding="utf-8")
        for path in programs.iterdir():
            path.chmod(0o755)
        # Not the folder of this Python: the script itself has to find the programs of datatrove.
        path = f"{programs}:/usr/local/bin:/usr/bin:/bin"
        self.environment = {"PATH": path, "SLURM_STATE": str(self.state), "PYTHONPATH": str(ROOT)}

    def refuse(self, all_jobs: bool = True) -> None:
        """From now on `sbatch` takes nothing, or nothing that depends on another job."""
        (self.state / ("refuse" if all_jobs else "refuse-next")).touch()

    def jobs(self) -> list[dict[str, Any]]:
        """Options and exit codes of the jobs so far."""
        paths = sorted(self.state.glob("job-*"), key=lambda path: int(path.name[4:]))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


class JobsService(HubStandIn):
    """
    The Hub with Jobs; a job is a process that has only what was submitted.

    Routes of Jobs as of `huggingface_hub` 2.4 (`hf_api.py`). `lost` jobs end as ERROR without having run; `faults` are
    replies to come first for `METHOD /path`, `None` among them for a real one.
    """

    def __init__(self, folder: Path, lost: tuple[int, ...] = ()) -> None:
        super().__init__({TOKEN: Account(USER)}, folder=folder / "bytes")
        self.folder, self.lost = folder, lost
        self.faults: dict[str, list[Reply | None]] = {}
        self.specs: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._running: dict[int, subprocess.Popen | None] = {}

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        for process in self._running.values():
            if process is not None:
                process.kill()
                process.wait()

    @property
    def files(self) -> dict[str, bytes]:
        """What the dataset with logs holds."""
        logs = self.repos.find(LOGS, "dataset")
        return {name: logs.read(name) for name in logs.names} if logs else {}

    def asked(self, start: str) -> int:
        """Number of requests whose method and path begin so."""
        return sum(f"{one.method} {one.path}".startswith(start) for one in list(self.log))

    def output(self) -> str:
        """What jobs wrote to their terminals."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("job-*.log")))

    def other(self, request: Request) -> Answer | None:
        """Answer what is about jobs."""
        faults = self.faults.get(f"{request.method} {request.path}", [])
        if faults and (fault := faults.pop(0)) is not None:
            return Answer(fault.body, fault.status, fault.headers)
        if not request.path.startswith(f"/api/jobs/{USER}"):
            return None
        self.known(request)
        if request.path == f"/api/jobs/{USER}":
            self.specs.append(request.body)
            return self._job(len(self.specs) - 1)
        return self._job(int(request.path.rpartition("-")[2]), look=True)

    def _job(self, number: int, look: bool = False) -> Answer:
        spec, stage = self.specs[number], "SCHEDULING"
        if look and number not in self._running:
            self._running[number] = None if number in self.lost else self._start(number)
            stage = "RUNNING"
        elif look:
            process = self._running[number]
            code = 1 if process is None else process.poll()
            stage = "RUNNING" if code is None else "ERROR" if code else "COMPLETED"
        alive = [one for one in self._running.values() if one is not None and one.poll() is None]
        self.most_at_once = max(self.most_at_once, len(alive))
        owner = {"id": "1", "name": USER, "type": "user"}
        found = {"id": f"job-{number}", "owner": owner, "status": {"stage": stage}, "flavor": spec["flavor"]}
        return json_answer(found)

    def _start(self, number: int) -> subprocess.Popen:
        spec, home = self.specs[number], self.folder / f"home-{number}"
        home.mkdir(parents=True)
        command = spec["command"][2:]  # behind `uv run`
        while command[0] in ("--with", "--python"):
            command = command[2:]
        given = {name: str(value) for name, value in {**spec["environment"], **spec["secrets"]}.items()}
        machine = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT), **self.settings(token=None)}
        with open(self.folder / f"job-{number}.log", "w", encoding="utf-8") as file:
            words = [str(PROGRAMS / command[0]), *command[1:]]
            return subprocess.Popen(words, env={**machine, **given}, cwd=home, stdout=file, stderr=file)


def run_quietly(code: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    """Run Python code in a process with this environment and nothing else; both outputs are in `stdout`."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )


def everything_in(folder: Path) -> bytes:
    """Bytes of all files below a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())

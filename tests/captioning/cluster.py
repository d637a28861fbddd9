"""Stand-ins of a Slurm cluster and of Hugging Face Jobs that really run what they are given, and a step for them."""

import base64
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from tests.captioning.fault_server import FaultServer, Reply, Seen


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


class JobsService(FaultServer):
    """
    The Hub as far as Jobs and a dataset with logs need it; a job is a process that has only what was submitted.

    Routes as of `huggingface_hub` 2.4 (`hf_api.py`). `lost` jobs end as ERROR without having run; `faults` are replies
    to come first for `METHOD /path`, `None` among them for a real one.
    """

    def __init__(self, folder: Path, lost: tuple[int, ...] = ()) -> None:
        super().__init__(route=self.serve)
        self.folder, self.lost = folder, lost
        self.address = self.url.removesuffix("/v1")
        self.faults: dict[str, list[Reply | None]] = {}
        self.files: dict[str, bytes] = {}
        self.specs: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._running: dict[int, subprocess.Popen | None] = {}

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        for process in self._running.values():
            if process is not None:
                process.kill()
                process.wait()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        handler = super()._handler()
        handler.disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
        return handler

    def asked(self, start: str) -> int:
        """Number of requests whose method and path begin so."""
        return sum(f"{seen.method} {seen.path}".startswith(start) for seen in self.seen)

    def output(self) -> str:
        """What jobs wrote to their terminals."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("job-*.log")))

    def serve(self, seen: Seen) -> Reply:
        """Answer one request."""
        path = seen.path.partition("?")[0]
        faults = self.faults.get(f"{seen.method} {path}", [])
        if faults and (fault := faults.pop(0)) is not None:
            return fault
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return _json({"error": "Invalid username or password."}, 401)
        if path == "/api/whoami-v2":
            return _json({"name": USER, "type": "user"})
        if path == f"/api/jobs/{USER}":
            self.specs.append(seen.body)
            return self._job(len(self.specs) - 1)
        if path.startswith(f"/api/jobs/{USER}/"):
            return self._job(int(path.rpartition("-")[2]), look=True)
        return self._dataset(seen, path)

    def _job(self, number: int, look: bool = False) -> Reply:
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
        return _json({"id": f"job-{number}", "owner": owner, "status": {"stage": stage}, "flavor": spec["flavor"]})

    def _start(self, number: int) -> subprocess.Popen:
        spec, home = self.specs[number], self.folder / f"home-{number}"
        home.mkdir(parents=True)
        command = spec["command"][2:]  # behind `uv run`
        while command[0] in ("--with", "--python"):
            command = command[2:]
        given = {name: str(value) for name, value in {**spec["environment"], **spec["secrets"]}.items()}
        machine = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT), "HF_ENDPOINT": self.address}
        with open(self.folder / f"job-{number}.log", "w", encoding="utf-8") as file:
            words = [str(PROGRAMS / command[0]), *command[1:]]
            return subprocess.Popen(words, env={**machine, **given}, cwd=home, stdout=file, stderr=file)

    def _dataset(self, seen: Seen, path: str) -> Reply:
        api = f"/api/datasets/{LOGS}"
        if path == "/api/repos/create":
            return _json({"url": f"{self.address}/datasets/{LOGS}"})
        if path in (api, f"{api}/revision/main"):
            return _json({"id": LOGS, "sha": "0" * 40})
        if path == f"{api}/preupload/main":
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            return _json({"files": [{"path": one["path"], **kept} for one in seen.body["files"]]})
        if path == f"{api}/commit/main":
            for line in map(json.loads, seen.body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return _json({"commitUrl": f"{self.address}/datasets/{LOGS}/commit/{'0' * 40}", "commitOid": "0" * 40})
        if path.startswith(f"{api}/tree/main"):
            return self._tree(path.removeprefix(f"{api}/tree/main").strip("/").replace("%2F", "/"), seen.path)
        name = path.removeprefix(f"/datasets/{LOGS}/resolve/main/")
        return Reply(self.files[name], kind="application/octet-stream") if name in self.files else _missing()

    def _tree(self, folder: str, query: str) -> Reply:
        start = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, data in self.files.items():
            parts = name.removeprefix(start).split("/") if name.startswith(start) else []
            for depth in range(1, len(parts)):
                path = start + "/".join(parts[:depth])
                entries[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            if parts:
                entries[name] = {"type": "file", "path": name, "oid": "0" * 40, "size": len(data)}
        if "recursive=true" not in query.lower():
            entries = {path: one for path, one in entries.items() if "/" not in path.removeprefix(start)}
        return _json(list(entries.values())) if entries or not folder else _missing()


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(value).encode(), status)


def _missing() -> Reply:
    return Reply(b'{"error": "Entry not found"}', 404, {"X-Error-Code": "EntryNotFound"})


def run_quietly(code: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    """Run Python code in a process with this environment and nothing else; both outputs are in `stdout`."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )


def everything_in(folder: Path) -> bytes:
    """Bytes of all files below a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())

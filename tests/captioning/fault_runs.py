"""The `annotate` command on numbered pictures against a fault server, in this process or in one that gets signals."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from captioning.store import CaptionRow
from tests.captioning.fault_server import FaultServer, Reply, Seen, ok
from tests.captioning.jobs import JobWorld, all_rows, kill_group, number_of
from tests.commands import Outcome, exit_code_of


SPACES = "\n\t"


def command(*words: object) -> Outcome:
    """Call the entry point with these words; unlike `run_command` also outside of a test's own fixtures."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = exit_code_of(*words)
    return Outcome(code, output.getvalue(), errors.getvalue())


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen]:
    """Run a command as a shell does, in a process group of its own, which is gone in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sharegpt4v.cli", *map(str, words)], start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_group(process)


def scripted(replies: dict[int, list[Reply]], then: Reply | None = None) -> Callable[[Seen], Reply]:
    """A route that answers about each picture by its own script, the last reply again and again, else with `then`."""

    def route(seen: Seen) -> Reply:
        script = replies.get(number_of(seen), [])
        if not script:
            return then or ok()
        return script.pop(0) if len(script) > 1 else script[0]

    return route


def latest(out: Path) -> dict[str, CaptionRow]:
    """The row that counts of each image, by its hash."""
    return {row.image_sha256: row for row in all_rows(out)}


def raw_characters(*texts: str) -> list[str]:
    """Characters that a terminal obeys, or that change the order of what it shows."""
    odd = {character for text in texts for character in text if unicodedata.category(character) in ("Cc", "Cf")}
    return sorted(odd - set(SPACES))


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.05)


class Annotation(JobWorld):
    """
    A folder of pictures and the command that asks the server about them.

    Args:
        folder: Gets the pictures and the job.
        server: Is asked.
        count: Of the pictures.
        words: Further words of every command.
    """

    def __init__(self, folder: Path, server: FaultServer, count: int = 6, words: Iterable[object] = ()):
        super().__init__(folder, server, count)
        self.words = [*words]

    def command_of(self, *words: object) -> list[str]:
        """The words of a run; later ones count."""
        fixed = ["annotate", self.images, "--out", self.out, "--endpoint", self.server.url, "--model", "m"]
        quick = ["--api-key-env", "", "--backoff", "0.01", "--concurrency", "4"]
        return [*map(str, [*fixed, *quick, *self.words, *words])]

    def annotate(self, *words: object) -> Outcome:
        """Run it in this process."""
        return command(*self.command_of(*words))

    def retry(self, *words: object) -> Outcome:
        """Ask once more about what failed."""
        return command("annotate", "retry-failed", self.out, *words)

    def status(self) -> dict[str, Any]:
        """Where the job stands, as the command says it."""
        outcome = command("annotate", "status", self.out, "--json")
        return json.loads(outcome.output)

    @property
    def rows(self) -> dict[int, CaptionRow]:
        """The row that counts of each picture, by its number."""
        numbers = self.numbers
        return {numbers[sha256]: row for sha256, row in latest(self.out).items() if sha256 in numbers}

    @property
    def states(self) -> dict[int, str]:
        """State of each picture that has a row, and is still in the folder as it was."""
        return {number: row.state for number, row in self.rows.items()}

    @property
    def note(self) -> str:
        """Newest warning of the first worker."""
        for path in sorted(self.out.glob("runs/*/progress-0.json")):
            return str(json.loads(path.read_text(encoding="utf-8"))["note"])
        return ""


def interrupt(process: subprocess.Popen) -> tuple[int, str, str]:
    """Press Ctrl-C, which the workers get, too; gives exit code, output and errors."""
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors

"""Code in a process of its own that has the installed packages but not this repository, as a user of the Hub has."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


# Only folders of installed packages are handed on, and `-S` processes no `.pth` file in them: an editable install of
# this repository is such a file.
PREAMBLE = """\
import sys
sys.path += {folders!r}
import importlib.util
for name in ("modeling_sharegpt4v", "dataset_scripts", "trainers", "sharegpt4v"):
    assert importlib.util.find_spec(name) is None, name + " can be imported"
"""
TIMEOUT_S = 240


def run_fresh(code: str, *args: str | os.PathLike, cwd: str | os.PathLike) -> dict[str, Any]:
    """
    Run code in a new process that cannot import this repository.

    The process has its own empty Hugging Face caches, no network and no terminal (a question to the user is an error).

    Args:
        code (`str`): Python code; the last line that it prints is a JSON object.
        args (`str` or `os.PathLike`): Its `sys.argv[1:]`.
        cwd (`str` or `os.PathLike`): Folder to run in.

    Returns:
        `dict`: The printed JSON object.

    Raises:
        `AssertionError`: The process failed; the message holds the end of its error output.
    """
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch, "snippet.py")
        script.write_text(PREAMBLE.format(folders=folders) + code, encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        caches = {"HF_HOME": f"{scratch}/home", "HF_MODULES_CACHE": f"{scratch}/modules"}
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", script, *map(str, args)],
                cwd=cwd,
                env={**kept, **caches, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"The fresh process did not end within {TIMEOUT_S} s.") from error
    if done.returncode != 0:
        raise AssertionError(f"The fresh process ended with {done.returncode}:\n{done.stderr[-4000:]}")
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        raise AssertionError(f"The fresh process printed no JSON object last:\n{done.stdout[-2000:]}") from error

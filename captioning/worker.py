"""
The process of one worker: `python -m captioning.worker OUT RUN MODE RANK WORLD PAID`, started by the supervisor.

It ends when its standard input closes, which is when the supervisor is gone. Why it ended is left in a file, because
an exit code cannot say it.
"""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from dataset_scripts.writing import write_text

from .answers import JobStopped
from .work import Interrupted, run_folder, work


# What is worth another try in a new process: no memory, a broken GPU.
OF_THE_MACHINE = (RuntimeError, MemoryError)


def main(arguments: list[str]) -> int:
    """
    Do the work of one worker.

    Args:
        arguments (`list[str]`): Folder of the job, run, `local` or `plain`, rank, world, what was paid in its place.

    Returns:
        `int`: Exit code: 0 if it got to its end.
    """
    out, run, mode = Path(arguments[0]), arguments[1], arguments[2]
    rank, world, paid = int(arguments[3]), int(arguments[4]), float(arguments[5])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it has a line for every request
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    try:
        if mode == "local":
            from .step import run_task

            run_task(out, run, rank, world, paid)
        else:
            work(out, run, rank, world, paid)
    except BaseException as error:
        logging.getLogger(__name__).exception("The worker ends.")
        known = isinstance(error, (JobStopped, Interrupted, KeyboardInterrupt))
        died = isinstance(error, OF_THE_MACHINE) and not known
        name = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        facts = {"error": name, "message": str(error) or name, "died": died}
        write_text(run_folder(out, run) / f"outcome-{rank}.json", json.dumps(facts) + "\n")
        return 1
    write_text(run_folder(out, run) / f"outcome-{rank}.json", json.dumps({"error": "", "message": "", "died": False}))
    return 0


def _end_with_the_supervisor() -> None:
    while os.read(0, 1024):  # not `sys.stdin`, whose lock a forked process would wait for
        continue
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
Start of the command line: `sharegpt4v --help` against `trl sft --help`, each a process of its own, best of several.

Both are what a user types first. Interpreter and disk are the same, the difference is what is imported before anything
is known about the command. Usage: `python benchmarks/cli_start.py`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from common import best_of, finish


OURS = ("sharegpt4v", "--help")
THEIRS = ("trl", "sft", "--help")
MOST_SECONDS = 0.3


def run(*words: str) -> subprocess.CompletedProcess:
    """Run a command of this environment and keep what it prints."""
    program = Path(sys.executable).with_name(words[0])
    return subprocess.run([program, *words[1:]], capture_output=True, text=True)


def helps(*words: str) -> bool:
    """Whether a command ends well and prints how it is used."""
    done = run(*words)
    return done.returncode == 0 and "usage:" in done.stdout.lower() and "--help" in done.stdout


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="How often each command runs.")
    parser.add_argument("--no-write", action="store_true", help="Print only.")
    arguments = parser.parse_args()
    equal = helps(*OURS) and helps(*THEIRS)  # also warms the disk's cache
    best = best_of(arguments.rounds, ours=lambda: run(*OURS), theirs=lambda: run(*THEIRS))
    details = {
        "sharegpt4v_help_s": round(best["ours"], 3),
        "trl_sft_help_s": round(best["theirs"], 3),
        "most_seconds": MOST_SECONDS,
        "within_most_seconds": best["ours"] <= MOST_SECONDS,
        "rounds": arguments.rounds,
    }
    ratio = best["theirs"] / best["ours"]
    finish(
        "cli_start",
        {"trl_sft_help": ratio},
        {"trl_sft_help": 10},
        details,
        equal and best["ours"] <= MOST_SECONDS,
        write=not arguments.no_write,
    )


if __name__ == "__main__":
    main()

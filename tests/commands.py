"""Run the `sharegpt4v` command in this process, as a shell would."""

import sys
from dataclasses import dataclass

import pytest

from sharegpt4v.cli import main


@dataclass
class Outcome:
    """Exit code and what was written."""

    code: int
    output: str
    errors: str


def run_command(capsys: pytest.CaptureFixture, *words: object) -> Outcome:
    """Call the entry point with these words; the progress bars are dropped from the errors."""
    capsys.readouterr()
    kept = sys.argv
    sys.argv = ["sharegpt4v", *map(str, words)]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = kept
    written = capsys.readouterr()
    return Outcome(code, written.out, written.err)

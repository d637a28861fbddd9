"""Run the `sharegpt4v` command in this process, as a shell would, or parse what a page has it do."""

import sys
from dataclasses import dataclass

import pytest
from typer.main import get_command

from sharegpt4v.cli import app, main


@dataclass
class Outcome:
    """Exit code and what was written."""

    code: int
    output: str
    errors: str


def exit_code_of(*words: object) -> int:
    """Call the entry point with these words."""
    kept = sys.argv
    sys.argv = ["sharegpt4v", *map(str, words)]
    try:
        main()
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = kept


def run_command(capsys: pytest.CaptureFixture, *words: object) -> Outcome:
    """Call the entry point with these words; the progress bars are dropped from the errors."""
    capsys.readouterr()
    code = exit_code_of(*words)
    written = capsys.readouterr()
    return Outcome(code, written.out, written.err)


def parse_command(words: list[str]) -> None:
    """Parse without running; a bare command, as in a table, must at least exist."""
    command = get_command(app)
    while hasattr(command, "commands"):
        if words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        else:
            command = command.commands["run"]  # `caption FOLDER` is `caption run FOLDER`; other groups have no `run`
    if words:
        command.make_context("sharegpt4v", words)

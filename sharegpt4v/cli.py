"""The `sharegpt4v` command. Heavy packages are imported by the subcommand that needs them, when it runs."""

import sys

import typer

from . import data_commands, train_commands
from .exit_codes import ExitCode


app = typer.Typer(
    name="sharegpt4v",
    help="Better captions for multimodal models: datasets, training, evaluation, publishing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_commands.app, name="data")
app.add_typer(train_commands.app, name="train")


@app.callback()
def root() -> None:
    """Better captions for multimodal models: datasets, training, evaluation, publishing."""


def main() -> None:
    """
    Run the command line.

    Raises:
        `SystemExit`: With a code of [`ExitCode`].
    """
    try:
        app()
    except SystemExit as stop:
        if stop.code == ExitCode.INTERRUPTED:  # typer turns Ctrl-C into this
            typer.echo("Interrupted. Run the same command again to continue.", err=True)
        raise
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        typer.echo(f"Error: {error}", err=True)
        sys.exit(code)


def _code_of(error: Exception) -> ExitCode | None:
    # Their module takes a second to import; an error of theirs means it is imported already.
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"CoverageError", "OverlapError"}:
        return ExitCode.NOT_ENOUGH
    if "WriteError" in names:
        return ExitCode.CANNOT_WRITE
    if "BusyError" in names:
        return ExitCode.BUSY
    return ExitCode.BAD_INPUT if isinstance(error, (ValueError, OSError)) else None


if __name__ == "__main__":
    main()

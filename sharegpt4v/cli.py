"""The `sharegpt4v` command. Heavy packages are imported by the subcommand that needs them, when it runs."""

import sys

import typer

from . import caption_commands, data_commands, evaluate_commands, train_commands
from .exit_codes import ExitCode
from .options import visible


AGAIN = "Interrupted. Run the same command again to continue."
CODES = {
    "CoverageError": ExitCode.NOT_ENOUGH,
    "OverlapError": ExitCode.NOT_ENOUGH,
    "QualityError": ExitCode.NOT_ENOUGH,
    "WriteError": ExitCode.CANNOT_WRITE,
    "BusyError": ExitCode.BUSY,
    "BudgetReached": ExitCode.BUDGET,
    "KeyRejected": ExitCode.KEY_REJECTED,
    "AuthenticationError": ExitCode.KEY_REJECTED,  # of the openai client, whose other errors follow
    "PermissionDeniedError": ExitCode.KEY_REJECTED,
    "OpenAIError": ExitCode.ENDPOINT_DOWN,
    "EndpointDown": ExitCode.ENDPOINT_DOWN,
    "WorkerFailed": ExitCode.WORKER_FAILED,
    "Interrupted": ExitCode.INTERRUPTED,
}
app = typer.Typer(
    name="sharegpt4v",
    help="Better captions for multimodal models: datasets, training, evaluation, publishing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(caption_commands.annotate_app, name="annotate")
app.add_typer(caption_commands.caption_app, name="caption")
app.add_typer(data_commands.app, name="data")
app.add_typer(train_commands.app, name="train")
app.command(
    epilog="Example: sharegpt4v evaluate runs/demo/model --benchmarks mme,pope --data data --out runs/figures"
)(evaluate_commands.evaluate)
app.command(epilog="Example: sharegpt4v score --benchmark mme --predictions results/mme --json")(
    evaluate_commands.score
)


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
            typer.echo(AGAIN, err=True)
        raise
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        typer.echo(visible(f"Error: {error}"), err=True)
        if code == ExitCode.INTERRUPTED:
            typer.echo(AGAIN, err=True)
        sys.exit(code)


def _code_of(error: Exception) -> ExitCode | None:
    # Their module takes a second to import; an error of theirs means it is imported already.
    names = {kind.__name__ for kind in type(error).__mro__}
    for name, code in CODES.items():
        if name in names:
            return code
    return ExitCode.BAD_INPUT if isinstance(error, (ValueError, OSError)) else None


if __name__ == "__main__":
    main()

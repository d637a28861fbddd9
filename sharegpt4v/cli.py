"""The `sharegpt4v` command. Heavy packages are imported by the subcommand that needs them, when it runs."""

import sys

import typer

from .exit_codes import ExitCode
from .lazy import LazyGroup, Subcommand
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
    "ServerFailed": ExitCode.WORKER_FAILED,
    "NotInstalled": ExitCode.NOT_INSTALLED,
    "Interrupted": ExitCode.INTERRUPTED,
}
EVALUATE = "Example: sharegpt4v evaluate runs/demo/model --benchmarks mme,pope --data data --out runs/figures"
SCORE = "Example: sharegpt4v score --benchmark mme --predictions results/mme --json"
CHAT = "Example: sharegpt4v chat photo.jpg What is in this picture? --model runs/demo/model"
SERVE = "Example: sharegpt4v serve runs/demo/model --port 8000 --api-key-env SHAREGPT4V_KEY"
DOCTOR = "Example: sharegpt4v doctor --json"


class Root(LazyGroup):
    """All subcommands; their helps stand here again so that the list of them needs no import."""

    subcommands = {
        "annotate": Subcommand("caption_commands", "Captions by a chat endpoint.", "annotate_app"),
        "caption": Subcommand("caption_commands", "Captions by a model of one's own.", "caption_app"),
        "data": Subcommand("data_commands", "Verify, select, build, mix, join and measure datasets."),
        "train": Subcommand("train_commands", "Plan training."),
        "evaluate": Subcommand(
            "evaluate_commands",
            "Answer the paper's benchmarks and score the answers as officially; the same command continues.",
            "evaluate",
            EVALUATE,
        ),
        "score": Subcommand(
            "evaluate_commands",
            "Score predictions in a benchmark's official layout, as the official scorer does.",
            "score",
            SCORE,
        ),
        "card": Subcommand("card_commands", "Render and check the cards of repositories."),
        "publish": Subcommand("publish_commands", "Publish to the Hub, privately unless told otherwise."),
        "chat": Subcommand("chat_commands", "Talk about an image with a model, in the terminal.", "chat", CHAT),
        "serve": Subcommand("serve_commands", "Serve a model to OpenAI's clients, behind a guard.", "serve", SERVE),
        "doctor": Subcommand("doctor", "Check this machine and say what to install.", "doctor", DOCTOR),
    }


app = typer.Typer(
    name="sharegpt4v",
    cls=Root,
    help="Better captions for multimodal models: datasets, training, evaluation, publishing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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

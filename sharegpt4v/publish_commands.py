"""`sharegpt4v publish`: models, adapters, datasets and metrics on the Hub, complete or not at all."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .exit_codes import ExitCode
from .options import AsJson, options_of, show, take, visible


SIZES = ("bytes", "kB", "MB", "GB", "TB")
app = typer.Typer(help="Publish to the Hub, privately unless told otherwise.", no_args_is_help=True)


@dataclass
class PublishOptions:
    """What is the same for all that is published."""

    repo: str = field(metadata={"help": "Name on the Hub with its owner, as `me/my-model`."})
    public: bool = field(default=False, metadata={"help": "Let everyone see it, once it is complete."})
    dry_run: bool = field(default=False, metadata={"help": "Make and check the folder, and send nothing."})
    stage: Path | None = field(default=None, metadata={"help": "With --dry-run: new folder that gets the files."})
    tag: str = field(default="v1.0", metadata={"help": "Name of this version; the card's code loads it."})
    update: bool = field(default=False, metadata={"help": "Put it in the place of what the repository has."})
    allow: list[str] | None = field(default=None, metadata={"help": "Id of a finding that may go out; repeatable."})
    fact: list[str] | None = field(
        default=None, metadata={"help": "name=value for the card, before what `card.yaml` says; twice makes a list."}
    )
    evaluation: Path | None = field(
        default=None, metadata={"help": "Folder with the results.json of its evaluation, for the card."}
    )
    tries: int = field(default=6, metadata={"help": "How often a request is made at most."})
    longest_wait: float = field(default=300, metadata={"help": "Seconds to wait at most when the Hub asks for it."})

    def __post_init__(self) -> None:
        if self.repo.count("/") != 1:
            raise ValueError(f"`--repo` must be a name with its owner, as me/my-model, got {self.repo!r}.")
        if self.stage is not None and not self.dry_run:
            raise ValueError("`--stage` goes with --dry-run: what is sent is staged anew each time. Leave one out.")
        if self.tries < 1:
            raise ValueError(f"`--tries` must be at least 1, got {self.tries}.")


@app.callback()
def root() -> None:
    """Publish to the Hub, privately unless told otherwise."""


@app.command(epilog="Example: sharegpt4v publish model runs/demo/model --repo me/demo --dry-run --stage runs/staged")
@options_of(PublishOptions)
def model(
    path: Annotated[Path, typer.Argument(help="Output folder of training, or any folder with safetensors.")],
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Publish a model or a captioner; it loads with and without its own code."""
    _publish("model", path, values, as_json)


@app.command(
    epilog="Example: sharegpt4v publish adapter runs/lora --repo me/demo-lora --fact base_model=me/demo "
    "--fact base_model_revision=v1.0"
)
@options_of(PublishOptions)
def adapter(
    path: Annotated[Path, typer.Argument(help="Folder with adapter_config.json.")],
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Publish adapters, with their base model by its name on the Hub."""
    _publish("adapter", path, values, as_json)


@app.command(epilog="Example: sharegpt4v publish dataset runs/demo/dataset --repo me/captions --dry-run --json")
@options_of(PublishOptions)
def dataset(
    path: Annotated[Path, typer.Argument(help="Repository of `sharegpt4v data build`.")],
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Publish a dataset of Parquet shards."""
    _publish("dataset", path, values, as_json)


@app.command(epilog="Example: sharegpt4v publish metric metrics/pope --repo me/pope")
@options_of(PublishOptions)
def metric(
    path: Annotated[Path, typer.Argument(help="Folder of `python -m evaluation.metrics`.")],
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Publish a metric as a Space, private too; the repository is called as its script."""
    _publish("metric", path, values, as_json)


def _publish(kind: Any, path: Path, values: dict[str, Any], as_json: bool) -> None:
    from model_cards.check import check_folder
    from model_cards.leaks import check_leaks
    from model_cards.publish import publish
    from model_cards.staging import stage

    from .card_commands import parse_facts
    from .card_facts import evaluation_facts

    options: PublishOptions = take(PublishOptions, values)
    evaluation = options.evaluation or (path if path.is_dir() else None)
    given = evaluation_facts(evaluation, options.repo) if evaluation else {}
    given |= parse_facts(options.fact or [])
    with _folder(options.stage, path) as folder:
        staged = stage(kind, path, options.repo, folder, {**given, "revision": options.tag})
        cards = check_folder(folder, options.repo)
        report = check_leaks(folder, options.allow or [])
        errors = [one for one in cards if one.level == "error"]
        blocked = bool(report.leaks or errors)
        facts = _facts(staged, report, cards, blocked)
        if options.dry_run or blocked:
            facts["folder"] = str(options.stage) if options.stage else None
            show(facts, _describe(staged, report, cards, options), as_json)
            if blocked:
                raise typer.Exit(ExitCode.NOT_ENOUGH)
            return
        with _codes():
            done = publish(
                staged, options.tag, not options.public, options.update, options.tries, options.longest_wait
            )
    show({**facts, "published": asdict(done)}, _describe_published(done), as_json)


@contextlib.contextmanager
def _folder(chosen: Path | None, path: Path) -> Iterator[Path]:
    """Where files are staged: beside the source, for weights are linked and not copied where that is possible."""
    if chosen is not None:
        yield chosen
        return
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".publish-", dir=path.resolve().parent)
    except OSError:  # read-only
        scratch = tempfile.TemporaryDirectory(prefix="publish-")
    with scratch as name:
        yield Path(name)


@contextlib.contextmanager
def _codes() -> Iterator[None]:
    """Exit codes of what can go wrong at the Hub."""
    from model_cards.hub_calls import HubBusy, HubDown, PublishError, TokenRejected

    codes = {TokenRejected: ExitCode.KEY_REJECTED, HubBusy: ExitCode.BUSY, HubDown: ExitCode.ENDPOINT_DOWN}
    try:
        yield
    except PublishError as error:
        typer.echo(visible(f"Error: {error}"), err=True)
        raise typer.Exit(codes.get(type(error), ExitCode.BAD_INPUT)) from error


def _facts(staged: Any, report: Any, cards: list[Any], blocked: bool) -> dict[str, Any]:
    return {
        "repo": staged.repo_id,
        "kind": staged.kind,
        "repo_type": staged.repo_type,
        "licence": staged.licence,
        "files": staged.files,
        "bytes": staged.bytes,
        "changes": staged.changes,
        "left_out": staged.left_out,
        "findings": [asdict(leak) for leak in report.leaks],
        "allowed": [asdict(leak) for leak in report.allowed],
        "unknown_ids": report.unknown,
        "card": [asdict(one) for one in cards],
        "blocked": blocked,
    }


def _describe(staged: Any, report: Any, cards: list[Any], options: PublishOptions) -> list[str]:
    lines = [f"{staged.repo_id}, a {staged.repo_type} repository, {'public' if options.public else 'private'}:"]
    lines += [f"  {name}  {_size(size)}" for name, size in staged.files.items()]
    lines.append(f"{len(staged.files)} files, {_size(staged.bytes)}, licence {staged.licence}, version {options.tag}.")
    lines += [f"Changed: {change}." for change in staged.changes]
    if staged.left_out:
        lines.append(f"Left out: {', '.join(staged.left_out)}.")
    lines += [f"Card, {one.level}: {one.file}: {one.rule}: {one.message}" for one in cards]
    lines += [f"Allowed: {leak}" for leak in report.allowed]
    if report.unknown:
        lines.append(f"No finding has the ids {', '.join(report.unknown)}; take them from --allow.")
    if report.leaks:
        lines.append(f"Nothing is sent: {len(report.leaks)} findings must not be published.")
        lines += [f"  {leak}" for leak in report.leaks]
        lines.append("Remove them at their place, or let one go out by --allow and its id.")
    elif any(one.level == "error" for one in cards):
        lines.append("Nothing is sent: the card has errors.")
    else:
        lines.append("Nothing was sent; without --dry-run it would be.")
    if options.stage is not None:
        lines.append(f"The folder is {options.stage}.")
    return lines


def _describe_published(done: Any) -> list[str]:
    state = "private" if done.private else "public"
    return [
        f"{done.url} is complete, {state}{'' if done.changed else '; it had this content already'}.",
        f"Version {done.tag}, commit {done.commit}. Load exactly this:",
        done.load,
    ]


def _size(count: float) -> str:
    for unit in SIZES:
        if count < 1000 or unit == SIZES[-1]:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return ""

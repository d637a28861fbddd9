"""`sharegpt4v annotate` and `sharegpt4v caption`: captions by an endpoint, and by a captioner of one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from captioning.endpoint_config import EndpointConfig
from captioning.job_config import EngineConfig, PromptOptions

from .job_commands import add_job_commands, ask, plan_and_describe, preview_image
from .options import AsJson, options_of, show, take


class RunByDefault(TyperGroup):
    """A group whose first word may be left out: `sharegpt4v annotate FOLDER` is `sharegpt4v annotate run FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front of what is no subcommand."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


Folders = Annotated[list[Path], typer.Argument(help="Folders with images, packed or unpacked.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the job; an existing one is continued.")]
Selection = Annotated[Path | None, typer.Option(help="Folder of `data select`; every image without it.")]
Shards = Annotated[int | None, typer.Option(help="Parts of a new job; one for a thousand images.")]
Tasks = Annotated[int, typer.Option(help="Processes; an endpoint's limits are divided among them.")]
Devices = Annotated[int, typer.Option("--tasks", help="Processes; one for each GPU with 0.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan and estimate; nothing is asked.")]
Preview = Annotated[bool, typer.Option("--preview", help="Show the exact request of the first image, or of a file.")]
Concurrency = Annotated[int, typer.Option(help="Requests at a time, all processes together.")]
BySource = Annotated[bool, typer.Option("--by-source", help="Prompts by source instead of the captioner's one.")]
PROMPT_FLAGS = {"file": "--prompts", "seed": "--prompt-seed"}

annotate_app = typer.Typer(cls=RunByDefault, help="Captions by a chat endpoint.", no_args_is_help=True)
caption_app = typer.Typer(cls=RunByDefault, help="Captions by a model of one's own.", no_args_is_help=True)
_of_endpoint = options_of(EndpointConfig, {"base_url": "--endpoint"})
_of_engine = options_of(EngineConfig)
_of_prompts = options_of(PromptOptions, PROMPT_FLAGS)
_of_own_prompts = options_of(PromptOptions, PROMPT_FLAGS, ("unified",))


@annotate_app.command(epilog="Example: sharegpt4v annotate run photos --endpoint URL --model NAME --out runs/gpt")
@_of_prompts
@_of_endpoint
def run(
    folders: Folders,
    out: Out = None,
    selection: Selection = None,
    shards: Shards = None,
    concurrency: Concurrency = 8,
    tasks: Tasks = 1,
    dry_run: DryRun = False,
    preview: Preview = False,
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Caption every image that has no caption of this prompt and model yet; the same command continues."""
    _run(_endpoint_job(concurrency, values), folders, out, selection, shards, tasks, dry_run, preview, as_json)


@annotate_app.command(epilog="Example: sharegpt4v annotate plan photos --endpoint URL --model NAME --out runs/gpt")
@_of_prompts
@_of_endpoint
def plan(
    folders: Folders,
    out: Out = None,
    selection: Selection = None,
    shards: Shards = None,
    concurrency: Concurrency = 8,
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Find the images and estimate tokens, cost and time; nothing is asked."""
    _run(_endpoint_job(concurrency, values), folders, out, selection, shards, 1, True, False, as_json)


@caption_app.command("run", epilog="Example: sharegpt4v caption run photos --model runs/demo/model --out runs/own")
@_of_own_prompts
@_of_engine
def run_engine(
    folders: Folders,
    out: Out = None,
    selection: Selection = None,
    shards: Shards = None,
    tasks: Devices = 0,
    by_source: BySource = False,
    dry_run: DryRun = False,
    preview: Preview = False,
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Caption every image that has no caption of this model yet, one process a GPU; the same command continues."""
    _run(_engine_job(by_source, values), folders, out, selection, shards, tasks, dry_run, preview, as_json)


@caption_app.command("plan", epilog="Example: sharegpt4v caption plan photos --model runs/demo/model --out runs/own")
@_of_own_prompts
@_of_engine
def plan_engine(
    folders: Folders,
    out: Out = None,
    selection: Selection = None,
    shards: Shards = None,
    by_source: BySource = False,
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Find the images and write the job down; nothing is asked."""
    _run(_engine_job(by_source, values), folders, out, selection, shards, 1, True, False, as_json)


def _endpoint_job(concurrency: int, values: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        from captioning.job import CaptionJob

        endpoint, prompts = take(EndpointConfig, values), take(PromptOptions, values)
        return CaptionJob(endpoint=endpoint, prompts=prompts, concurrency=concurrency)

    return make


def _engine_job(by_source: bool, values: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        from captioning.job import CaptionJob

        if (values["promptoptions_file"] or values["promptoptions_aesthetic_share"]) and not by_source:
            raise ValueError("A captioner gets the one prompt it is trained on; other prompts need `--by-source`.")
        prompts = take(PromptOptions, values, unified=not by_source)
        return CaptionJob(engine=take(EngineConfig, values), prompts=prompts)

    return make


def _run(
    make: Callable[[], Any],
    folders: list[Path],
    out: Path | None,
    selection: Path | None,
    shards: int | None,
    tasks: int,
    dry_run: bool,
    preview: bool,
    as_json: bool,
) -> None:
    job = make()
    if preview:
        preview_image(job, folders, as_json)
        return
    if out is None:
        raise typer.BadParameter("Give the folder of the job.", param_hint="--out")
    lines, facts = plan_and_describe(out, job, folders, selection, shards, estimated=dry_run)
    if dry_run:
        show(facts, lines, as_json)
        return
    ask(out, tasks, (), as_json)


add_job_commands(annotate_app, "annotate")
add_job_commands(caption_app, "caption")

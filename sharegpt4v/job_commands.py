"""What `annotate` and `caption` share: a job's run, status, retries, report, export and launch on a cluster."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from captioning.executors import ExecutorOptions
from captioning.job_config import CheckConfig

from .options import AsJson, Repo, ShardSize, Split, Workers, build_rows, describe_build, options_of, show, take
from .panel import RunPanel


JobFolder = Annotated[Path, typer.Argument(help="Folder of a job, which `run` and `plan` make.")]
Tasks = Annotated[int, typer.Option(help="Processes; 0 for one a GPU, or one.")]
States = Annotated[list[str] | None, typer.Option("--state", help="State to ask about again; repeatable.")]
Similar = Annotated[bool, typer.Option(help="Look for pictures that look alike; it decodes every image once.")]
MaxFindings = Annotated[float | None, typer.Option(help="Fail when a larger share of captions is not usable.")]
Samples = Annotated[int, typer.Option(help="Captions shown in the report, by chance.")]
Captioner = Annotated[str | None, typer.Option(help="Who wrote the captions; the model's name by default.")]
Licence = Annotated[str, typer.Option("--license", help="Licence of the captions, such as cc-by-nc-4.0.")]
ImageRoot = Annotated[list[Path] | None, typer.Option("--images", help="With it rows carry their images.")]
LeaveOut = Annotated[str | None, typer.Option(help="Checks whose findings keep a caption out, with commas between.")]
Sbatch = Annotated[list[str] | None, typer.Option(help="Further option of sbatch, `account=x`; repeatable.")]
Volume = Annotated[list[str] | None, typer.Option(help="What every HF job mounts where; repeatable (untested there).")]
Dependency = Annotated[list[str] | None, typer.Option(help="What installs this package in an HF job; repeatable.")]
Secret = Annotated[list[str] | None, typer.Option(help="Name of a variable that HF jobs get as a secret; repeatable.")]
RETRIED = ("failed", "bad_image")
_of_checks = options_of(CheckConfig)
_of_executor = options_of(ExecutorOptions, leave_out=("sbatch", "volumes", "dependencies", "secrets"))


def add_job_commands(app: typer.Typer, name: str) -> None:
    """
    Add the subcommands that need a job's folder only.

    Args:
        app (`typer.Typer`): Group of `annotate` or `caption`.
        name (`str`): Its name, for the examples.
    """
    example = f"Example: sharegpt4v {name}"
    app.command("status", epilog=f"{example} status runs/captions")(status)
    app.command("retry-failed", epilog=f"{example} retry-failed runs/captions --state failed")(retry_failed)
    app.command("report", epilog=f"{example} report runs/captions --max-findings 0.05")(report)
    command = f"{example} export runs/captions --repo runs/own --config Own --license cc-by-4.0"
    app.command("export", epilog=command)(export)
    command = f"{example} launch runs/captions --executor slurm --tasks 8 --partition gpu --time 12:00:00"
    app.command("launch", epilog=command)(launch)


def status(job: JobFolder, as_json: AsJson = False) -> None:
    """Where a job stands: captions by state, what is left, what was spent; also while it runs."""
    from captioning.pipeline import job_status

    facts = job_status(job)
    show(facts, _describe(facts), as_json)


def retry_failed(job: JobFolder, state: States = None, tasks: Tasks = 0, as_json: AsJson = False) -> None:
    """Ask once more about images that failed; what is there stays, and the last answer counts."""
    ask(job, tasks, tuple(state or RETRIED), as_json)


@_of_checks
def report(
    job: JobFolder,
    max_findings: MaxFindings = None,
    similar: Similar = True,
    samples: Samples = 20,
    workers: Workers = None,
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Check every caption, count what was found, and show some by chance; nothing is deleted."""
    from captioning.job_report import report_job, require_quality

    facts = report_job(job, take(CheckConfig, values), similar=similar, workers=workers, samples=samples)
    found = ", ".join(f"{check} {count}" for check, count in facts["captions"]["by_check"].items()) or "nothing"
    lines = [f"{facts['captions']['rows']} captions checked, found: {found}.", f"See {job / 'report.md'}."]
    show(facts, lines, as_json)
    if max_findings is not None:
        require_quality(facts, max_findings)


def export(
    job: JobFolder,
    repo: Repo,
    config: Annotated[str, typer.Option(help="Name of the configuration.")],
    license: Licence,
    captioner: Captioner = None,
    images: ImageRoot = None,
    leave_out: LeaveOut = None,
    split: Split = "train",
    shard_mb: ShardSize = 100,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Build a dataset repository of the captions that can be used, with the paths of their images or with them."""
    from captioning.job_export import DEFAULT_LEFT_OUT, export_rows

    checks = DEFAULT_LEFT_OUT if leave_out is None else tuple(filter(None, leave_out.split(",")))
    rows = export_rows(job, captioner, license, checks, workers=workers)
    options = {"split": split, "shard_bytes": shard_mb * 2**20, "workers": workers}
    facts = build_rows(rows, repo, config, images, **options)
    show(facts, describe_build(facts, repo), as_json)


@_of_executor
def launch(
    job: JobFolder,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="Further option of sbatch, `account=x`; repeatable.")
    ] = None,
    volumes: Annotated[list[str] | None, typer.Option("--volume", help="What an HF job mounts; repeatable.")] = None,
    dependencies: Annotated[list[str] | None, typer.Option("--dependency", help="What installs this package.")] = None,
    secrets: Annotated[list[str] | None, typer.Option("--secret", help="Name of a variable a job gets.")] = None,
    as_json: AsJson = False,
    **values: Any,
) -> None:
    """Run a planned job by Slurm, Ray or HF Jobs; its folder must be at the same path everywhere."""
    from captioning.pipeline import launch_job

    lists = {
        "volumes": tuple(volumes or ()),
        "dependencies": tuple(dependencies or ()),
        "secrets": tuple(secrets or ()),
    }
    pairs = dict(pair.partition("=")[::2] for pair in sbatch or ())
    named = {f"executoroptions_{name}": value for name, value in {**lists, "sbatch": pairs}.items()}
    line = launch_job(job, take(ExecutorOptions, {**values, **named}))
    show({"launched": line}, [line, f"sharegpt4v annotate status {job} tells where it stands."], as_json)


def preview_image(job: Any, places: list[Path], as_json: bool) -> None:
    """
    Show the request of one image.

    Args:
        job (`CaptionJob`): The job.
        places (`list[Path]`): An image file, or folders whose first image is taken.
        as_json (`bool`): Whether the image's bytes are shown, too.

    Raises:
        `FileNotFoundError`: There is no image.
    """
    from captioning.preview import preview
    from dataset_scripts.archives import read_located
    from dataset_scripts.images import ImageRoots
    from dataset_scripts.layouts import source_of

    if places[0].is_file():
        name, data = str(places[0]), places[0].read_bytes()
    else:
        found = next(ImageRoots(places).scan(), None)
        if found is None:
            raise FileNotFoundError(f"There is no image in {', '.join(map(str, places))}.")
        name, data = found[0], read_located(found[1])
    facts = preview(job, data, source_of(name), whole=as_json)
    show(facts, [json.dumps(facts, indent=2, ensure_ascii=False)], as_json)


def plan_and_describe(
    out: Path, job: Any, folders: list[Path], selection: Path | None, shards: int | None, estimated: bool
) -> tuple[list[str], dict[str, Any]]:
    """
    Plan a job.

    Args:
        out (`Path`): Its folder.
        job (`CaptionJob`): The job.
        folders (`list[Path]`): Image folders.
        selection (`Path`, *optional*): Folder of a selection.
        shards (`int`, *optional*): Number of shards of a new job.
        estimated (`bool`): Whether tokens, cost and time are estimated.

    Returns:
        `tuple[list[str], dict]`: For people and for machines.
    """
    from captioning.pipeline import job_status, plan_job
    from captioning.preview import estimate
    from dataset_scripts.images import ImageRoots

    facts = plan_job(out, job, ImageRoots(folders), selection, shards)
    if not estimated:
        return [], facts
    left = job_status(out)
    sources = ", ".join(f"{source} {count}" for source, count in facts["sources"].items())
    lines = [f"{facts['images']} images ({sources}), {left['remaining']} of {left['images']} to be captioned."]
    if facts["unreadable"]:
        lines.append(f"{facts['unreadable']} files cannot be read, first: {facts['first_unreadable'][0]}")
    facts = {**facts, "remaining": left["remaining"]}
    if job.endpoint is not None:
        expected = estimate(out, job, left["remaining"])
        lines += expected.lines()
        facts["estimate"] = asdict(expected)
    return lines, facts


def ask(out: Path, tasks: int, again: tuple[str, ...], as_json: bool) -> None:
    """
    Run a planned job and show what came of it.

    Args:
        out (`Path`): Its folder.
        tasks (`int`): Processes; 0 for one a GPU, or one.
        again (`tuple[str, ...]`): States whose images are asked about once more.
        as_json (`bool`): Whether the result is one JSON object.
    """
    from captioning.pipeline import RunOptions, devices, job_status, run_job

    with RunPanel(f"Captioning into {out}") as panel:
        snapshot = run_job(out, RunOptions(tasks or devices(out), again), panel.show)
        panel.show(snapshot, last=True)
    facts = {**job_status(out), "run": snapshot.to_json()}
    show(facts, _describe(facts), as_json)


def _describe(facts: dict[str, Any]) -> list[str]:
    states = ", ".join(f"{count} {state}" for state, count in facts["states"].items()) or "nothing yet"
    lines = [f"{facts['images']} images for {facts['model']}: {states}; {facts['remaining']} to be asked."]
    spent = facts["spent"]
    lines.append(
        f"{spent['prompt_tokens']} tokens sent, {spent['completion_tokens']} answered, cost {spent['cost']:.4f}."
    )
    if again := sum(facts["states"].get(state, 0) for state in RETRIED):
        lines.append(f"{again} images failed: `retry-failed` asks again, `report` says why.")
    if facts["unreadable"]:
        lines.append(f"{facts['unreadable']} files could not be read when they were planned; plan.json names them.")
    if len(facts["variants"]) > 1:
        lines.append(
            f"Captions of {len(facts['variants'])} prompts, models or settings are in this folder; see variants.json."
        )
    if facts["running"]:
        lines.append("A run is under way.")
    return lines

"""`sharegpt4v data`: from released files and images to repositories that `load_dataset` reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import mix_commands
from .mix_commands import parse_quota
from .options import (
    AsJson,
    Images,
    Mode,
    OnBad,
    OnMissing,
    Prefix,
    Repo,
    Rows,
    Seed,
    ShardSize,
    Share,
    Side,
    Split,
    Workers,
    build_rows,
    describe_build,
    show,
)


RowKind = Literal["captions", "conversations"]
Kind = Annotated[RowKind | None, typer.Option("--rows", help="Type of rows written; training reads conversations.")]
Exclude = Annotated[list[Path] | None, typer.Option(help="Folder with benchmark images; repeatable.")]
Distance = Annotated[int, typer.Option(help="Bits in which images that look the same may differ.")]
app = typer.Typer(help="Verify, select, build, mix, join and measure datasets.", no_args_is_help=True)
app.add_typer(mix_commands.app, name="mix")


@app.command(epilog="Example: sharegpt4v data verify cap100k.json --images data --output runs/verify")
def verify(
    rows: Rows,
    images: Images,
    output: Annotated[Path, typer.Option(help="Folder of the report; an existing one is resumed.")],
    exclude: Exclude = None,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="Do not fail on excluded images.")] = False,
    distance: Distance = 4,
    min_coverage: Share = 0.0,
    image_prefix: Prefix = "",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Check every image of a dataset: present, safe, decodable, not twice, not in a benchmark."""
    from dataset_scripts.images import ImageRoots
    from dataset_scripts.rows import RowSource
    from dataset_scripts.verify import require_no_overlap, verify

    source = RowSource(rows, on_bad="skip", image_prefix=image_prefix)
    banned = ImageRoots(exclude) if exclude else None
    coverage, report = verify(source.conversations(), ImageRoots(images), output, banned, distance, workers)
    refused = source.report.refused
    lines = [coverage.table(), *(f"refused: record {entry['record']}: {entry['reason']}" for entry in refused[:5])]
    lines.append(f"{report['usable_rows']} of {report['rows']} rows can be used, {len(refused)} records were refused.")
    lines.append(f"{report['repeated_ids']} repeated ids, {report['duplicate_images']} images twice: see {output}.")
    show({**report, "refused": refused}, lines, as_json)
    coverage.require(min_coverage)
    if not allow_overlap:
        require_no_overlap(report, output)


@app.command(epilog="Example: sharegpt4v data select --images data --quota coco=500,sam=500 --output runs/selection")
def select(
    images: Images,
    output: Annotated[Path, typer.Option(help="Folder of the manifest; an interrupted selection is resumed.")],
    quota: Annotated[str, typer.Option(help="Images by source, `coco=500,sam=500`; the paper's are `100k`, `1200k`.")],
    seed: Seed = 0,
    exclude: Exclude = None,
    exclude_list: Annotated[Path | None, typer.Option(help="File with one image path a line.")] = None,
    distance: Distance = 4,
    allow_short: Annotated[bool, typer.Option("--allow-short", help="Take what is there.")] = False,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Choose images to caption: by source and seed, none that looks like another or like a benchmark's."""
    from dataset_scripts.images import ImageRoots
    from dataset_scripts.select_images import PAPER_QUOTA_100K, PAPER_QUOTA_1200K, select

    presets = {"100k": PAPER_QUOTA_100K, "1200k": PAPER_QUOTA_1200K}
    report = select(
        ImageRoots(images),
        output,
        presets.get(quota) or parse_quota(quota),
        seed,
        exclude=ImageRoots(exclude) if exclude else None,
        exclude_list=exclude_list,
        distance=distance,
        allow_short=allow_short,
        workers=workers,
    )
    lines = [f"{source}: {counts['chosen']} of {counts['quota']}" for source, counts in report["sources"].items()]
    show(report, [*lines, f"The manifest is in {output}."], as_json)


@app.command(epilog="Example: sharegpt4v data build cap100k.json --repo runs/sharegpt4v --config ShareGPT4V")
def build(
    rows: Rows,
    repo: Repo,
    config: Annotated[str, typer.Option(help="ShareGPT4V, ShareGPT4V-PT, ShareGPT4V-Mix665K, or a name of your own.")],
    kind: Kind = None,
    images: Annotated[list[Path] | None, typer.Option("--images", help="With it rows carry their images.")] = None,
    resize: Side = None,
    resize_mode: Mode = "pad",
    on_bad: OnBad = "error",
    on_missing: OnMissing = "error",
    min_coverage: Share = 0.0,
    image_prefix: Prefix = "",
    split: Split = "train",
    captioner: Annotated[str | None, typer.Option(help="Who wrote the captions; known for the released sets.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the captions; known for the released sets.")] = None,
    shard_mb: ShardSize = 100,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Build one configuration of a repository; a killed build continues with the same command."""
    from dataset_scripts.build import RELEASED
    from dataset_scripts.rows import Origin, RowSource

    known = next((released for released in RELEASED if released.config == config), None)
    origin = known.origin if known else Origin("unknown", "unknown", "unknown")
    origin = Origin(captioner or origin.captioner, origin.prompt_id, license or origin.license)
    source = RowSource(rows, on_bad, image_prefix, origin)
    kind = kind or (known.rows if known else "captions")
    facts = build_rows(
        source.as_set(kind),
        repo,
        config,
        images,
        resize=resize and (resize, resize_mode),
        on_missing=on_missing,
        **{"min_coverage": min_coverage, "split": split, "shard_bytes": shard_mb * 2**20, "workers": workers},
    )
    lines = describe_build(facts, repo)
    if known and facts["read"]["records"] != known.records:
        lines.append(f"The release documents {known.records} records, this file has {facts['read']['records']}.")
    show(facts, lines, as_json)


@app.command(epilog="Example: sharegpt4v data join repo/ShareGPT4V --images data --repo runs/joined --resize 336")
def join(
    rows: Rows,
    images: Images,
    repo: Repo,
    config: Annotated[str | None, typer.Option(help="Its name; that of the input by default.")] = None,
    kind: Kind = None,
    resize: Side = None,
    resize_mode: Mode = "pad",
    on_missing: OnMissing = "error",
    min_coverage: Share = 0.0,
    split: Split = "train",
    shard_mb: ShardSize = 100,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Put the images into a built configuration of paths."""
    from dataset_scripts.rows import RowSource

    source, name = RowSource(rows), config or rows.resolve().name
    facts = build_rows(
        source.as_set(kind or source.kind()),
        repo,
        name,
        images,
        resize=resize and (resize, resize_mode),
        on_missing=on_missing,
        **{"min_coverage": min_coverage, "split": split, "shard_bytes": shard_mb * 2**20, "workers": workers},
    )
    show(facts, describe_build(facts, repo), as_json)


@app.command(epilog="Example: sharegpt4v data stats runs/sharegpt4v/ShareGPT4V cap100k.json")
def stats(
    rows: Annotated[list[Path], typer.Argument(help="Released JSON files or folders of built configurations.")],
    as_json: AsJson = False,
) -> None:
    """Samples and average characters by source and captioner, the columns of the paper's Table 2."""
    from dataset_scripts.rows import RowSource
    from dataset_scripts.stats import measure, table

    measured = {}
    for path in rows:
        source = RowSource(path, on_bad="skip")
        measured[str(path)] = measure(source.captions() if source.kind() == "captions" else source.conversations())
    show(measured, [table(Path(name).name, figures) for name, figures in measured.items()], as_json)

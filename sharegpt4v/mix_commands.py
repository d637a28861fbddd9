"""`sharegpt4v data mix`: caption swaps, added captions and subsets, each a configuration with its manifest."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import AsJson, Prefix, Repo, Rows, Seed, ShardSize, Split, build_rows, describe_build, show


app = typer.Typer(help="Swap captions into a mix, add captions, take subsets.", no_args_is_help=True)

Config = Annotated[str, typer.Option(help="Name of the new configuration.")]
Quota = Annotated[str, typer.Option(help="Captions by source, `coco=9000,sam=9000`; `released` is the paper's.")]
OnShort = Annotated[Literal["fill", "error"], typer.Option(help="Too few captions of a source: fill from others?")]
Size = Annotated[int | None, typer.Option(help="Rows to choose by chance; smaller subsets lie in larger ones.")]
Captions = Annotated[Path, typer.Option(help="Captions to put in: a released JSON file or a configuration's folder.")]


@app.command(epilog="Example: sharegpt4v data mix swap llava_665k.json --captions cap100k.json --repo r --config mix")
def swap(
    base: Rows,
    captions: Captions,
    repo: Repo,
    config: Config = "ShareGPT4V-Mix665K",
    quota: Quota = "released",
    seed: Seed = 0,
    as_released: Annotated[
        bool, typer.Option("--as-released", help="Take out every match, even more than come in (665,298 to 665,058).")
    ] = False,
    replace: Annotated[Path | None, typer.Option(help="File that lists the records to take out.")] = None,
    on_short: OnShort = "fill",
    split: Split = "train",
    shard_mb: ShardSize = 100,
    as_json: AsJson = False,
) -> None:
    """Take detailed descriptions out of a mix and put captions of the same number in."""
    from dataset_scripts.rows import RowSource
    from dataset_scripts.sft_mix import RELEASED_QUOTA, is_detailed_description, listed_records
    from dataset_scripts.sft_mix import swap as swap_rows

    sources = {"base": RowSource(base), "captions": RowSource(captions)}
    if replace is not None:
        sources["replace"] = RowSource(replace)
    matches = listed_records(sources["replace"].conversations) if replace else is_detailed_description
    amounts = RELEASED_QUOTA if quota == "released" else parse_quota(quota)
    rows, manifest = swap_rows(
        sources["base"].conversations,
        sources["captions"].conversations,
        amounts,
        seed,
        keep_total=not as_released,
        is_replaced=matches,
        on_short=on_short,
    )
    options = {"quota": amounts, "seed": seed, "as_released": as_released, "on_short": on_short}
    _write(rows, manifest, sources, options, repo, config, split, shard_mb, as_json)


@app.command(
    epilog="Example: sharegpt4v data mix add llava.json --captions a.json --shared-with b.json --repo r --config a"
)
def add(
    base: Rows,
    captions: Captions,
    repo: Repo,
    config: Config,
    count: Annotated[int, typer.Option(help="Images to add, each with its caption.")] = 8000,
    shared_with: Annotated[list[Path] | None, typer.Option(help="Sets that must caption the images too.")] = None,
    seed: Seed = 0,
    split: Split = "train",
    shard_mb: ShardSize = 100,
    as_json: AsJson = False,
) -> None:
    """Add captions of images that several sets of captions share, one set at a time (Figure 5a)."""
    from dataset_scripts.rows import RowSource
    from dataset_scripts.subsets import add as add_rows

    sources = {"base": RowSource(base), "captions": RowSource(captions)}
    others = {f"shared_with_{number}": RowSource(path) for number, path in enumerate(shared_with or [])}
    rows, manifest = add_rows(
        sources["base"].conversations,
        sources["captions"].conversations,
        [other.conversations for other in others.values()],
        count,
        seed,
    )
    options = {"count": count, "seed": seed}
    _write(rows, manifest, sources | others, options, repo, config, split, shard_mb, as_json)


@app.command(epilog="Example: sharegpt4v data mix subset pt.json --size 100000 --repo runs/pt --config pt-100k")
def subset(
    rows: Rows,
    repo: Repo,
    config: Config,
    size: Size = None,
    source: Annotated[list[str] | None, typer.Option(help="Sources to choose from; repeatable.")] = None,
    same_images_as: Annotated[Path | None, typer.Option(help="Only rows whose images are in this set too.")] = None,
    image_prefix: Prefix = "",
    list_prefix: Annotated[str, typer.Option(help="The same for --same-images-as.")] = "",
    seed: Seed = 0,
    split: Split = "train",
    shard_mb: ShardSize = 100,
    as_json: AsJson = False,
) -> None:
    """Choose rows by number, source or images (Figure 5b, Table 7)."""
    from dataset_scripts.rows import RowSource
    from dataset_scripts.subsets import images_in
    from dataset_scripts.subsets import subset as choose

    sources = {"rows": RowSource(rows, image_prefix=image_prefix)}
    if same_images_as is not None:
        sources["images"] = RowSource(same_images_as, image_prefix=list_prefix)
    listed = images_in(sources["images"].conversations) if same_images_as else None
    kind = sources["rows"].kind()
    read = sources["rows"].conversations if kind == "conversations" else partial(_with_images, sources["rows"])
    chosen, manifest = choose(read, size, seed, source, listed)
    if kind == "captions":
        chosen = partial(_without_images, chosen)
    options = {"size": size, "seed": seed, "sources": source}
    _write(chosen, manifest, sources, options, repo, config, split, shard_mb, as_json, kind)


def parse_quota(text: str) -> dict[str, int]:
    """
    Read a quota from the command line.

    Args:
        text (`str`): `name=number` pairs with commas between.

    Returns:
        `dict[str, int]`: Number by name.

    Raises:
        `typer.BadParameter`: It cannot be read.
    """
    quota: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        if not name or not equals or not number.isdecimal() or name in quota:
            raise typer.BadParameter(f"A quota is `source=number`, with commas between and each once, got {text!r}.")
        quota[name] = int(number)
    return quota


def _with_images(source: Any) -> Iterator[dict[str, Any]]:
    # A choice among rows looks at `images`, which caption rows spell `image`.
    return ({**row, "images": [row["image"]]} for row in source.captions())


def _without_images(rows: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    return ({name: value for name, value in row.items() if name != "images"} for row in rows())


def _write(
    rows: Callable[[], Any],
    manifest: dict[str, Any],
    sources: dict[str, Any],
    options: dict[str, Any],
    repo: Path,
    config: str,
    split: str,
    shard_mb: int,
    as_json: bool,
    kind: Literal["captions", "conversations"] = "conversations",
) -> None:
    from dataset_scripts.rows import RowSet

    files = {name: source.fingerprint() for name, source in sources.items()}
    short = {name: value for name, value in manifest.items() if name not in ("removed", "inserted")}
    made = RowSet(rows, kind, {"files": files, **options}, lambda: {"mixed_from": files, "mix": manifest})
    facts = build_rows(made, repo, config, split=split, shard_bytes=shard_mb * 2**20)
    show(facts, [str(short), *describe_build(facts, repo)], as_json)

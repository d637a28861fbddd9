"""Options that several subcommands share, and how their results are shown."""

import inspect
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer


Images = Annotated[list[Path], typer.Option("--images", help="Folder with images, packed or unpacked; repeatable.")]
Rows = Annotated[Path, typer.Argument(help="A released JSON file, or the folder of one built configuration.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as one JSON object.")]
Workers = Annotated[int | None, typer.Option(help="Processes; all cores by default.")]
Share = Annotated[float, typer.Option("--min-coverage", help="Least share of usable images, 0 to 1.")]
Prefix = Annotated[str, typer.Option("--image-prefix", help="Put in front of every image path of a JSON file.")]
OnProblem = Literal["error", "skip"]
OnBad = Annotated[OnProblem, typer.Option("--on-bad", help="What a record does that cannot be used.")]
OnMissing = Annotated[OnProblem, typer.Option("--on-missing", help="What an image does that cannot be used.")]
Side = Annotated[int | None, typer.Option("--resize", help="Re-encode images once to this side, 336 for CLIP-L/336.")]
Mode = Annotated[Literal["pad", "crop"], typer.Option("--resize-mode", help="How training will fit images in.")]
ShardSize = Annotated[int, typer.Option("--shard-mb", help="Uncompressed size of a shard in MiB.")]
Repo = Annotated[Path, typer.Option(help="Repository that gets the configuration; its other ones stay.")]
Split = Annotated[str, typer.Option(help="Name of the split.")]
Seed = Annotated[int, typer.Option(help="Seed of every choice.")]


def build_rows(
    rows: Any, repo: Path, config: str, images: list[Path] | None = None, resize: Any = None, **options: Any
) -> dict[str, Any]:
    """
    Build a configuration from parsed options.

    Args:
        rows (`RowSet`): What it holds.
        repo (`Path`): The repository.
        config (`str`): The configuration.
        images (`list[Path]`, *optional*): Image roots.
        resize (`tuple[int, str]`, *optional*): Side in pixels and mode.
        options: Further fields of `BuildOptions`.

    Returns:
        `dict`: Its `build.json`.
    """
    from dataset_scripts.build import BuildOptions, build_config
    from dataset_scripts.images import ImageRoots
    from dataset_scripts.join import Resize

    roots = ImageRoots(images) if images else None
    return build_config(repo, config, rows, roots, BuildOptions(resize=Resize(*resize) if resize else None, **options))


def describe_build(facts: dict[str, Any], repo: Path) -> list[str]:
    """
    Lines that tell what a build made.

    Args:
        facts (`dict`): Its `build.json`.
        repo (`Path`): The repository.

    Returns:
        `list[str]`: With the call that loads it.
    """
    lines = []
    for split, shards in facts["splits"].items():
        rows, size = (sum(shard[name] for shard in shards) for name in ("rows", "bytes"))
        lines.append(f"{split}: {rows} rows in {len(shards)} shards, {size / 2**20:.1f} MiB.")
        lines.append(f'load_dataset("{repo}", "{facts["config"]}", split="{split}")')
    if "rows_left_out" in facts:
        total = facts["coverage"]["total"]
        lines.append(f"{total['found']} of {total['expected']} images; {facts['rows_left_out']} rows left out.")
    return lines


def show(result: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """
    Write the result of a subcommand to standard output.

    Args:
        result (`dict`): For machines.
        lines (`list[str]`): For people.
        as_json (`bool`): Which of them.
    """
    typer.echo(visible(json.dumps(result, ensure_ascii=False) if as_json else "\n".join(lines)))


def visible(text: str) -> str:
    """
    A text in which names, captions and messages of others do nothing to a terminal.

    Args:
        text (`str`): Lines, or JSON.

    Returns:
        `str`: Control characters and marks of direction are written as JSON writes them, so JSON stays what it is.
    """
    return "".join(json.dumps(one)[1:-1] if _is_obeyed(one) else one for one in text)


def _is_obeyed(character: str) -> bool:
    # Emoji and several scripts are held together by the two joiners, which turn nothing around.
    return unicodedata.category(character) in ("Cc", "Cf") and character not in "\n\t\u200c\u200d"


def options_of(kind: type, rename: Mapping[str, str] | None = None, leave_out: tuple[str, ...] = ()) -> Callable:
    """
    Let a command take every field of a dataclass as an option, with the help in its metadata.

    The command gets them as keyword arguments (`**values`), which [`take`] makes an object of.

    Args:
        kind (`type`): The dataclass.
        rename (`Mapping[str, str]`, *optional*): Flag of a field whose name does not do, such as `--endpoint`.
        leave_out (`tuple[str, ...]`, *optional*): Fields that are no options.

    Returns:
        `Callable`: A decorator; several can be stacked.
    """
    hints = get_type_hints(kind)
    added = []
    for one in fields(kind):
        if one.name in leave_out:
            continue
        flag = (rename or {}).get(one.name, f"--{one.name.replace('_', '-')}")
        if one.default is True:
            flag += f"/--no-{flag.removeprefix('--')}"
        option = typer.Option(flag, help=one.metadata["help"])
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        name = _name_of(kind, one.name)
        annotation: Any = Annotated.__class_getitem__((hints[one.name], option))  # type: ignore[attr-defined]
        added.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))

    def decorate(command: Callable) -> Callable:
        known = inspect.signature(command, eval_str=True)
        own = [one for one in known.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = known.replace(parameters=[*own, *added])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        return command

    return decorate


def take(kind: type, values: dict[str, Any], **given: Any) -> Any:
    """
    Make an object of the options that [`options_of`] added.

    Args:
        kind (`type`): The dataclass.
        values (`dict`): What the command got.
        given: Fields that were no such options.

    Returns:
        The object.
    """
    names = {one.name: _name_of(kind, one.name) for one in fields(kind)}
    return kind(**{field: values[name] for field, name in names.items() if name in values}, **given)


def _name_of(kind: type, field: str) -> str:
    return f"{kind.__name__.lower()}_{field}"  # two dataclasses may have fields of one name

"""
From released files and image roots to a repository that `load_dataset` reads without code.

```
repo/README.md                                    YAML `configs` and `dataset_info`
repo/croissant.json                               the same for other tools
repo/<config>/<split>-00000-of-00002.parquet      shards
repo/<config>/build.json                          what it was built from, what was left out, SHA-256 of every shard
```

A configuration has either the paths of its images (what may be redistributed) or the images themselves.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from .coverage import Coverage
from .images import ImageRoots
from .join import OnMissing, Resize, join_images, survey
from .repo import describe_repo
from .rows import SHOWN, Origin, Row, RowKind, RowSet
from .schema import CAPTION_FEATURES, CONVERSATION_FEATURES, validate_caption, validate_conversation, with_paths
from .shards import SHARD_BYTES, ConfigBuild, Item, Table


Rows = Iterable[Row]
FORMAT = 1  # raised when the same input would give other files
SPLIT_NAME = re.compile(r"\w+")
ABSOLUTE_PATH = re.compile(r"(?<![^\s'\"(])/.*", re.DOTALL)  # to the end of the text: names may have spaces


@dataclass(frozen=True)
class Released:
    """A released file: the configuration it becomes, its row type and what its captions share."""

    config: str
    rows: RowKind
    origin: Origin
    records: int


RELEASED = (
    Released("ShareGPT4V", "captions", Origin("GPT4-Vision", "unpublished"), 102_025),
    Released("ShareGPT4V-PT", "captions", Origin("Share-Captioner", "share-captioner"), 1_246_901),
    Released("ShareGPT4V-Mix665K", "conversations", Origin("mixed", "unpublished"), 665_058),
)


@dataclass
class BuildOptions:
    """How a configuration is built; the defaults write paths, and stop at the first row that cannot be used."""

    split: str = "train"
    resize: Resize | None = None
    on_missing: OnMissing = "error"
    min_coverage: float = 0.0
    workers: int | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.on_missing not in ("error", "skip"):
            raise ValueError(f"`on_missing` must be 'error' or 'skip', got {self.on_missing!r}.")
        if not 0 <= self.min_coverage <= 1:
            raise ValueError(f"`min_coverage` is a share from 0 to 1, got {self.min_coverage}.")
        if self.shard_bytes < 1:
            raise ValueError(f"`shard_bytes` must be positive, got {self.shard_bytes}.")


def build_config(
    repo: str | os.PathLike,
    config: str,
    rows: RowSet,
    images: ImageRoots | None = None,
    options: BuildOptions | None = None,
) -> dict[str, Any]:
    """
    Build one configuration of a repository; a build that was killed continues when called again.

    Args:
        repo (`str` or `os.PathLike`): Repository; other configurations in it stay.
        config (`str`): Name of the configuration.
        rows (`RowSet`): What it holds.
        images (`ImageRoots`, *optional*): With it the rows carry their images, without it their paths.
        options (`BuildOptions`, *optional*): The rest.

    Returns:
        `dict`: What was written to `build.json`.

    Raises:
        `ValueError`: A row cannot be used; the message names it and the reason.
        `CoverageError`: Too few images are there, or one is corrupt.
        `WriteError`: The disk is full or read-only; finished shards are kept.
        `BusyError`: Another process builds the same configuration.
    """
    options = options or BuildOptions()
    if options.resize is not None and images is None:
        raise ValueError("`resize` needs the images: give their roots.")
    repo = Path(repo).resolve()
    _check_names(config, options.split)
    coverage, images_digest = (None, "") if images is None else survey(rows.read, images, partial(_bar, "finding"))
    if coverage is not None:
        coverage.require(1.0 if options.on_missing == "error" else options.min_coverage)
    fingerprint = {
        **{"format": FORMAT, "rows": rows.identity, "kind": rows.kind, "images": images_digest},
        **{"split": options.split, "resize": options.resize and asdict(options.resize)},
        **{"shard_bytes": options.shard_bytes, "on_missing": options.on_missing},
    }
    finished = False

    def read() -> Iterator[Row]:
        nonlocal finished
        yield from rows.read()
        finished = True

    build = ConfigBuild(repo, config, fingerprint)
    try:
        items = partial(_items, read, images, options)
        build.write_split(options.split, items, _table(rows.kind, images), options.shard_bytes)
        if not finished:  # every shard was finished before a kill; the facts come from reading
            deque(rows.read(), maxlen=0)
        facts = {"rows": rows.kind, "images": "paths", **rows.facts()}
        if images is not None and coverage is not None:
            facts |= _coverage_facts(*build.lost(), coverage, images, options)
        return build.publish(facts, partial(describe_repo, repo))
    finally:
        build.close()


def write_repo(
    folder: str | os.PathLike, captions: Mapping[str, Rows], conversations: Mapping[str, Mapping[str, Rows]]
) -> Path:
    """
    Write rows in memory as a repository with a configuration `captions` and one for each set of conversations.

    Args:
        folder (`str` or `os.PathLike`): Where the repository appears, whole or not at all; an older one is replaced.
        captions (`dict[str, Iterable[dict]]`): Caption rows with images by split; may be empty.
        conversations (`dict[str, dict[str, Iterable[dict]]]`): Conversation rows by configuration and split.

    Returns:
        `Path`: The folder, ready for `load_dataset(folder, config)`.

    Raises:
        `ValueError`: A row breaks the schema; the message names configuration, split, row number and reason.
    """
    folder = Path(folder).resolve()
    sets: list[tuple[str, RowKind, Mapping[str, Rows]]] = [("captions", "captions", captions)] if captions else []
    sets += [(name, "conversations", splits) for name, splits in conversations.items()]
    if len({name for name, *_ in sets}) < len(sets):
        raise ValueError("Conversations cannot be called `captions` beside captions.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
        new = Path(scratch, folder.name)
        new.mkdir()
        for name, kind, splits in sets:
            _check_names(name, *splits)
            build = ConfigBuild(new, name, {"rows": kind})
            try:
                for split, rows in splits.items():
                    build.write_split(split, partial(_numbered, list(rows)), _table(kind, joined=True))
                build.publish({"rows": kind, "images": "original"}, partial(describe_repo, new))
            finally:
                build.close()
        if folder.exists():
            os.replace(folder, Path(scratch, "older"))
        os.replace(new, folder)
    return folder


def _check_names(config: str, *splits: str) -> None:
    if not config or not all(character.isalnum() or character in "-_" for character in config):
        raise ValueError(f"A configuration's name has letters, digits, '-' and '_' only, got {config!r}.")
    if not splits:
        raise ValueError(f"{config} has no split.")
    for split in splits:
        if not SPLIT_NAME.fullmatch(split) or split == "all":
            raise ValueError(f"A split's name has letters, digits and '_' only and is not 'all', got {split!r}.")


def _table(kind: RowKind, joined: object) -> Table:
    features, validate = (
        (CAPTION_FEATURES, validate_caption) if kind == "captions" else (CONVERSATION_FEATURES, validate_conversation)
    )
    return Table(features if joined else with_paths(features), validate)


def _bar(title: str, rows: Iterable[Row]) -> Iterable[Row]:
    return tqdm(rows, desc=title, unit="row", disable=None)


def _numbered(rows: list[Row], start: int) -> Iterator[Item]:
    return islice(enumerate(rows), start, None)


def _items(
    read: Callable[[], Iterator[Row]], images: ImageRoots | None, options: BuildOptions, start: int
) -> Iterator[Item]:
    rows = islice(enumerate(_bar("building", read())), start, None)
    if images is None:
        return rows
    return join_images(rows, images, options.resize, options.on_missing, options.workers)


def _coverage_facts(
    left_out: int, lost: list[dict[str, Any]], coverage: Coverage, images: ImageRoots, options: BuildOptions
) -> dict[str, Any]:
    corrupt: dict[str, dict[str, Any]] = {}
    for entry in lost:
        if entry["state"] == "corrupt":
            corrupt.setdefault(entry["image"], entry)
    for image, entry in corrupt.items():
        coverage.corrupt(entry["row"], image, entry["reason"])
    coverage.require(options.min_coverage)
    kind = asdict(options.resize) if options.resize else "original"
    first = [{**entry, "reason": _without_places(entry["reason"], images)} for entry in lost[:SHOWN]]
    return {
        **{"images": kind, "coverage": coverage.as_dict()},
        **{"rows_left_out": left_out, "first_left_out": first},
    }


def _without_places(reason: str, images: ImageRoots) -> str:
    # The repository is for others: where the images lie on this machine is none of their business.
    for root in images.roots:
        reason = reason.replace(f"{root}/", "")
    return ABSOLUTE_PATH.sub("another place", reason)

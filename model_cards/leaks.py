"""
The leak check: what is in a folder that must not be published, found before a byte of it leaves.

Every finding has an id that stays the same as long as the finding does, by which it alone can be allowed. The id comes
from the finding itself, not from what is shown of it, so an allowed secret does not allow another one of its kind.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .leak_files import (
    GPS,
    IMAGE_STARTS,
    IMAGE_SUFFIXES,
    OUTSIDE,
    PICKLE_SUFFIXES,
    TEXT_SUFFIXES,
    Found,
    scan_archive,
    scan_bytes,
    scan_image,
    scan_links,
    scan_pickle,
    scan_safetensors,
    scan_text_file,
)
from .leak_tables import scan_csv, scan_parquet
from .leak_text import SECRET, Machine, Match, TextRules, scan_card, scan_classes, this_machine


CACHE, LIMIT, UNREADABLE = "cache", "limit", "unreadable"
# What tools leave behind; nobody means to publish it.
CACHES = {
    "__pycache__",
    ".ipynb_checkpoints",
    ".cache",
    ".git",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    "wandb",
}
CACHE_FILES = (".DS_Store", "Thumbs.db", "events.out.tfevents.")
CACHE_SUFFIXES = {".pyc", ".pyo", ".swp", ".tmp", ".partial", ".incomplete", ".lock"}
# A word list has names, and paths, by chance.
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"}
ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".npz"}
# https://huggingface.co/docs/hub/storage-limits
FILES_IN_REPO, ENTRIES_IN_FOLDER, BYTES_IN_FILE = 100_000, 10_000, 200 * 1000**3
SMALL = 1 << 20


@dataclass(frozen=True)
class Leak:
    """
    A finding.

    Args:
        id (`str`): By which it can be allowed.
        file (`str`): Path in the folder.
        place (`str`): Where in the file it is first, as `line 3` or `row 7, image`.
        kind (`str`): What it is.
        excerpt (`str`): What may be shown of it.
        count (`int`): How often the file has it.
    """

    id: str
    file: str
    place: str
    kind: str
    excerpt: str
    count: int = 1

    def __str__(self) -> str:
        often = f", {self.count} times" if self.count > 1 else ""
        return f"{self.id}  {self.file} ({self.place}{often}): {self.kind}: {self.excerpt}"


@dataclass(frozen=True)
class LeakReport:
    """
    What the check found.

    Args:
        leaks (`list[Leak]`): Findings that block.
        allowed (`list[Leak]`): Findings that were allowed.
        unknown (`list[str]`): Ids that were allowed but that no finding has.
    """

    leaks: list[Leak]
    allowed: list[Leak]
    unknown: list[str]


def check_leaks(folder: Path, allow: Iterable[str] = (), machine: Machine | None = None) -> LeakReport:
    """
    Look through a folder for what must not be published.

    Args:
        folder (`Path`): Exactly what is to be published.
        allow (`Iterable[str]`): Ids of findings that may be published.
        machine (`Machine`, *optional*): Whose names and secrets are looked for; this one by default.

    Returns:
        `LeakReport`: Empty lists if nothing is found.
    """
    rules, wanted = TextRules(machine or this_machine()), set(allow)
    found = list(_limits(folder))
    for path in files_of(folder):
        found += _leaks_of(folder, path, rules)
    leaks = [leak for leak in found if leak.id not in wanted]
    allowed = [leak for leak in found if leak.id in wanted]
    return LeakReport(leaks, allowed, sorted(wanted - {leak.id for leak in allowed}))


def files_of(folder: Path) -> Iterator[Path]:
    """
    Every file of a folder, and every link, in the order of their names; no link to a folder is followed.

    Args:
        folder (`Path`): It.

    Yields:
        `Path`: Files.
    """
    for root, folders, files in os.walk(folder):
        folders.sort()
        linked = [name for name in folders if Path(root, name).is_symlink()]
        for name in sorted([*files, *linked]):
            yield Path(root, name)


def _limits(folder: Path) -> Iterator[Leak]:
    total = 0
    for root, folders, files in os.walk(folder):
        name = Path(root).relative_to(folder).as_posix()
        total += len(files)
        if len(folders) + len(files) > ENTRIES_IN_FOLDER:
            text = f"{len(folders) + len(files)} entries in a folder, the Hub takes {ENTRIES_IN_FOLDER}"
            yield Leak(_id(name, LIMIT, text), name, "folder", LIMIT, text)
    if total > FILES_IN_REPO:
        text = f"{total} files, the Hub takes {FILES_IN_REPO}; pack them into Parquet"
        yield Leak(_id(".", LIMIT, text), ".", "folder", LIMIT, text)


def _leaks_of(folder: Path, path: Path, rules: TextRules) -> list[Leak]:
    """Findings in one file: the same thing at several places is one of them."""
    name = path.relative_to(folder).as_posix()
    first: dict[tuple[str, str], tuple[str, Match]] = {}
    places: dict[tuple[str, str], dict[str, None]] = {}
    for place, match in _found_in(folder, path, name, rules):
        key = (match.kind, match.value)
        first.setdefault(key, (place, match))
        places.setdefault(key, {})[f"{place} {match.start}"] = None
    leaks = []
    for key, (place, match) in first.items():
        # Positions of photographs have nothing else that tells them from each other.
        value = "\n".join(places[key]) if match.kind == GPS else match.value
        leaks.append(Leak(_id(name, match.kind, value), name, place, match.kind, match.excerpt, len(places[key])))
    return leaks


def _found_in(folder: Path, path: Path, name: str, rules: TextRules) -> Iterator[Found]:
    parts = set(Path(name).parts)
    if parts & CACHES or path.name.startswith(CACHE_FILES) or path.suffix in CACHE_SUFFIXES:
        yield "name", Match(CACHE, name, 0, "a file that a tool left behind")
    for match in rules.scan(name):
        yield "name", match
    yield from scan_links(folder, path)
    if not path.is_file():  # a folder behind a link, a broken link, a pipe
        yield "name", Match(OUTSIDE, name, 0, "no regular file, so it cannot be published")
        return
    if path.stat().st_size > BYTES_IN_FILE:
        yield "size", Match(LIMIT, str(path.stat().st_size), 0, "the Hub takes 200 GB a file; write more shards")
    try:
        yield from _content(path, rules)
    except (ValueError, OSError) as error:
        # What cannot be looked through is not known to be harmless.
        yield "file", Match(UNREADABLE, type(error).__name__, 0, str(error).replace(str(folder), "")[:160])


def _content(path: Path, rules: TextRules) -> Iterator[Found]:
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(64 << 10)
    if suffix == ".safetensors":
        yield from scan_safetensors(path, rules)
        return
    if suffix == ".parquet" or head.startswith(b"PAR1"):
        yield from scan_parquet(path, rules)
        return
    yield from scan_pickle(path, head)
    if suffix in ARCHIVES or head.startswith(b"PK\3\4") or head[257:262] == b"ustar":
        yield from scan_archive(path, rules)
    elif suffix in IMAGE_SUFFIXES or head.startswith(IMAGE_STARTS):
        yield from scan_image(path.read_bytes() if path.stat().st_size <= 64 << 20 else path, "image")
        with path.open("rb") as file:
            yield from scan_bytes(file, rules)
    elif suffix in TEXT_SUFFIXES or (suffix not in PICKLE_SUFFIXES and _is_text(head)):
        yield from _text(path, rules, suffix)
    else:
        with path.open("rb") as file:
            yield from scan_bytes(file, rules)


def _text(path: Path, rules: TextRules, suffix: str) -> Iterator[Found]:
    vocabulary = path.name in VOCABULARIES
    with path.open("rb") as file:
        # A configuration is one object; rows are a list of them, or one a line.
        rows = not vocabulary and (suffix == ".jsonl" or (suffix == ".json" and file.read(64).lstrip()[:1] == b"["))
        file.seek(0)
        yield from scan_text_file(file, rules, words=not vocabulary, rows=rows)
    if suffix in (".csv", ".tsv"):
        yield from scan_csv(path, rules)
    if path.stat().st_size > SMALL or suffix not in (".md", ".json"):
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    for match in scan_card(text) if suffix == ".md" else scan_classes(text):
        yield f"line {1 + text.count(chr(10), 0, match.start)}", match


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head[: len(head) - 4 if len(head) > 8 else len(head)].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 8
    return True


def _id(file: str, kind: str, value: str) -> str:
    content = f"{file}\0{kind}\0{value}".encode(errors="surrogatepass")
    if kind == SECRET:  # ids are shown, and a weak password must not be guessable from one
        return hashlib.pbkdf2_hmac("sha256", content, b"sharegpt4v leak", 200_000).hex()[:12]
    return hashlib.sha256(content).hexdigest()[:12]

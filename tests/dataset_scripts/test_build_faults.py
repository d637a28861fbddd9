"""Builds that are killed at any moment, meet a full disk or a forbidden place: nothing half is seen, all resumes."""

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataset_scripts.build import BuildOptions, build_config
from dataset_scripts.rows import RowSet, RowSource
from dataset_scripts.writing import WriteError
from tests.dataset_scripts.test_build import contents, path_set
from tests.dataset_scripts.test_shards import stamp


ROOT = Path(__file__).resolve().parents[2]
OPTIONS = BuildOptions(shard_bytes=20_000)
# Runs builds in forked children, each in a copy of a folder. A child counts the rows that it reads and what it is
# about to do to a file of the repository, as the interpreter's audit hooks report it, and kills itself at a given
# count. The first build is not killed; it tells what the steps are.
KILLER = """
import json, os, shutil, signal, sys
from pathlib import Path
import mlcroissant
from dataset_scripts.build import BuildOptions, build_config
from dataset_scripts.rows import RowSource

WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}

def run(folder, end=None):
    steps = []
    def step(name):
        steps.append(name)
        if len(steps) == end:
            os.kill(os.getpid(), signal.SIGKILL)
    def watch(event, args):
        if event in WATCHED and any(str(arg).startswith(folder + "/repo") for arg in args[:2]):
            step(event)
    def read():
        for row in source.captions():
            step("row")
            yield row
    source = RowSource(Path(folder, "rows.json"))
    rows = source.as_set("captions")
    rows.read = read
    sys.addaudithook(watch)
    build_config(folder + "/repo", "set", rows, options=BuildOptions(shard_bytes=20_000))
    return steps

def fork(folder, end=None):
    shutil.copytree(before, folder)
    child = os.fork()
    if child == 0:
        try:
            Path(folder, "steps.json").write_text(json.dumps(run(folder, end)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)

before, place, *wanted = sys.argv[1:]
fork(place + "/whole")
steps = json.loads(Path(place, "whole", "steps.json").read_text())
published = len(steps) - steps[::-1].index("row")
changes = [n for n, name in enumerate(steps, 1) if name in ("os.rename", "os.remove", "os.rmdir") and n > published]
ends = {"change": changes, "every": range(1, len(steps) + 1)}
for want in wanted:
    for end in ends.get(want) or [1 + int(float(want) * len(steps))]:
        fork(f"{place}/{want}-{end}", end)
"""


def killed(before: Path, place: Path, *wanted: object) -> list[Path]:
    """Folders with a build that was not killed, and with builds killed at the points wanted."""
    command = [sys.executable, "-c", KILLER, before, place, *map(str, wanted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    whole, *others = sorted(place.iterdir(), key=lambda folder: folder.name != "whole")
    assert (whole / "steps.json").exists() and not any((folder / "steps.json").exists() for folder in others)
    return [whole, *others]


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """A repository in which a build is about to replace a configuration beside another."""
    folder = tmp_path_factory.mktemp("before")
    build_config(folder / "repo", "set", path_set(30), options=OPTIONS)
    build_config(folder / "repo", "other", path_set(5), options=OPTIONS)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat. " * 150}]
    records = [{"id": n, "image": f"coco/{n}.jpg", "conversations": turns} for n in range(60)]
    (folder / "rows.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def worlds(before, tmp_path_factory) -> list[Path]:
    seeds = [random.Random(seed).random() for seed in range(3)]
    return killed(before, tmp_path_factory.mktemp("killed"), "change", *seeds)


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Stamps of the shards that a killed build had entered as finished, by the hash of their content."""
    found = {}
    for place in (folder / "repo.partial/set", folder / "repo/set"):
        if (place / "progress.json").is_file():
            for shard in json.loads((place / "progress.json").read_text())["splits"]["train"]:
                running = place / shard["file"]
                number = shard["file"].removesuffix(".parquet")
                found[shard["sha256"]] = stamp(running if running.is_file() else next(place.glob(f"{number}-of-*")))
    return found


def part_of(files: dict[str, bytes], part: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.split("/")[0] == part}


def check_nothing_half_is_seen(folder: Path, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    seen = {name: data for name, data in contents(folder / "repo").items() if name != "set/progress.json"}
    assert set(seen) <= set(old) | set(new)
    assert part_of(seen, "other") == part_of(old, "other")
    assert part_of(seen, "set") in ({}, part_of(old, "set"), part_of(new, "set"))
    for name in ("README.md", "croissant.json"):
        assert seen[name] in (old[name], new[name])


def check_all_continue(before: Path, whole: Path, *folders: Path) -> list[int]:
    """Continue every killed build here; gives how many shards each had finished."""
    old, new = contents(before / "repo"), contents(whole / "repo")
    kept = []
    for folder in folders:
        check_nothing_half_is_seen(folder, old, new)
        stamps = finished(folder)
        rows = RowSource(folder / "rows.json").as_set("captions")
        facts = build_config(folder / "repo", "set", rows, options=OPTIONS)
        shards = facts["splits"]["train"]
        assert facts["read"]["records"] == 60 == sum(shard["rows"] for shard in shards)
        assert contents(folder / "repo") == new, folder.name
        assert sorted(path.name for path in folder.iterdir()) == ["repo", "rows.json"]
        made = {shard["sha256"]: stamp(folder / "repo/set" / shard["file"]) for shard in shards}
        assert stamps.items() <= made.items()
        kept.append(len(stamps))
    return kept


def test_a_build_killed_at_random_points_continues_to_the_same_bytes(before, worlds):
    whole, *others = worlds
    others = [folder for folder in others if not folder.name.startswith("change")]
    assert len(check_all_continue(before, whole, *others)) == 3


def test_a_build_killed_before_any_change_of_its_publishing_continues(before, worlds):
    whole, *others = worlds
    kept = check_all_continue(before, whole, *(folder for folder in others if folder.name.startswith("change")))
    assert len(kept) >= 15 and set(kept) == {0, 3, 4}  # 0 once its state is deleted as the last step


@pytest.mark.slow
def test_a_build_killed_at_twenty_random_points_continues(before, tmp_path):
    seeds = [random.Random(seed).random() for seed in range(3, 23)]
    check_all_continue(before, *killed(before, tmp_path, *seeds))


@pytest.mark.slow
def test_a_build_killed_at_any_point_at_all_continues(before, tmp_path):
    assert set(check_all_continue(before, *killed(before, tmp_path, "every"))) == {0, 1, 2, 3, 4}


def swelling_set(mix: int = 0) -> RowSet:
    """Rows whose first shards compress to nothing and whose later ones do not; beside them a file of `mix` bytes."""

    def read():
        for number, row in enumerate(path_set(90).read()):
            noise = random.Random(number).randbytes(900).hex()
            yield row if number < 45 else {**row, "caption": noise}

    return RowSet(read, "captions", {}, lambda: {"mix": {"removed": "x" * mix}})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk does to a process: writing beyond so many bytes of any file fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[None]:
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode != 0:
        pytest.skip("only root may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def stamps_in(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name[:11]: stamp(path) for path in folder.glob("*.parquet")}


def test_a_write_that_fails_keeps_the_finished_shards_and_the_next_run_completes(tmp_path):
    refusal = r"Cannot write .*train-00002.parquet: File too large. Make room and run it again; 2 shards are kept."
    with largest_file(10_000), pytest.raises(WriteError, match=refusal):
        build_config(tmp_path / "repo", "set", swelling_set(), options=OPTIONS)
    partial = tmp_path / "repo.partial/set"
    assert not (tmp_path / "repo").exists() and not list(partial.glob("*.tmp")) and not list(partial.glob("tmp*"))
    kept = stamps_in(partial)
    facts = build_config(tmp_path / "repo", "set", swelling_set(), options=OPTIONS)
    assert sum(shard["rows"] for shard in facts["splits"]["train"]) == 90
    assert len(kept) == 2 and kept.items() <= stamps_in(tmp_path / "repo/set").items()
    build_config(tmp_path / "undisturbed/repo", "set", swelling_set(), options=OPTIONS)
    assert contents(tmp_path / "repo") == contents(tmp_path / "undisturbed/repo")


def test_a_description_that_cannot_be_written_is_no_crash_and_costs_no_shard(tmp_path):
    with largest_file(60_000), pytest.raises(WriteError, match="Cannot write .*repo: File too large"):
        build_config(tmp_path / "repo", "set", swelling_set(mix=80_000), options=OPTIONS)
    partial = tmp_path / "repo.partial/set"
    kept = stamps_in(partial)
    assert not (tmp_path / "repo").exists() and not list(partial.glob("tmp*")) and len(kept) > 5
    build_config(tmp_path / "repo", "set", swelling_set(mix=80_000), options=OPTIONS)
    assert stamps_in(tmp_path / "repo/set") == kept


def test_a_full_disk_is_survived(tmp_path):
    with small_disk(tmp_path / "disk", "size=160k"):
        repo = tmp_path / "disk/repo"
        with pytest.raises(WriteError, match=r"No space left on device. Make room and run it again; [2-9] shards are"):
            build_config(repo, "set", swelling_set(), options=OPTIONS)
        kept = stamps_in(tmp_path / "disk/repo.partial/set")
        assert len(kept) >= 2 and not repo.exists() and not list((tmp_path / "disk").rglob("*tmp*"))
        subprocess.run(["mount", "-o", "remount,size=4m", tmp_path / "disk"], check=True)
        build_config(repo, "set", swelling_set(), options=OPTIONS)
        assert kept.items() <= stamps_in(repo / "set").items()
        build_config(tmp_path / "undisturbed/repo", "set", swelling_set(), options=OPTIONS)
        assert contents(repo) == contents(tmp_path / "undisturbed/repo")


def test_a_read_only_disk_is_said_before_any_work(tmp_path):
    with (
        small_disk(tmp_path / "disk", "ro"),
        pytest.raises(WriteError, match="Cannot write .*: Read-only file system"),
    ):
        build_config(tmp_path / "disk/repo", "set", swelling_set())


def test_a_repository_on_a_disk_of_its_own_is_refused_before_any_work(tmp_path):
    with small_disk(tmp_path / "repo", "size=1m"):
        with pytest.raises(WriteError, match="repo is a file system of its own; give a folder below it"):
            build_config(tmp_path / "repo", "set", swelling_set())
        assert list((tmp_path / "repo").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


@pytest.mark.parametrize("place", ["file", "/proc/1"])
def test_a_place_that_takes_no_folder_is_said_before_any_work(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Cannot write .*repo.partial/set: "):
        build_config(tmp_path / place / "repo", "set", swelling_set())


def test_another_input_under_the_same_name_is_built_anew(tmp_path, caplog):
    with largest_file(10_000), pytest.raises(WriteError):
        build_config(tmp_path / "repo", "set", swelling_set(), options=OPTIONS)
    build_config(tmp_path / "repo", "set", path_set(12), options=OPTIONS)
    assert "anew: input or options have changed" in caplog.text
    assert [row["id"] for row in RowSource(tmp_path / "repo/set").captions()] == [str(n) for n in range(12)]


@pytest.mark.parametrize("change", [{"shard_bytes": 10_000}, {"split": "other"}])
def test_other_options_build_anew(tmp_path, caplog, change):
    with largest_file(10_000), pytest.raises(WriteError):
        build_config(tmp_path / "repo", "set", swelling_set(), options=OPTIONS)
    options = BuildOptions(**{"shard_bytes": 20_000, **change})
    build_config(tmp_path / "repo", "set", swelling_set(), options=options)
    build_config(tmp_path / "undisturbed/repo", "set", swelling_set(), options=options)
    assert "anew: input or options have changed" in caplog.text
    assert contents(tmp_path / "repo") == contents(tmp_path / "undisturbed/repo")

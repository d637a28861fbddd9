"""Shards appear whole or not at all, one process builds a configuration, and what went wrong is said as it was."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset_scripts.coverage import Lost
from dataset_scripts.rows import Row, RowSource
from dataset_scripts.schema import CAPTION_FEATURES, validate_caption, with_paths
from dataset_scripts.shards import ConfigBuild, Table
from dataset_scripts.writing import BusyError, WriteError
from tests.dataset_scripts.test_build import contents, path_set


ROOT = Path(__file__).resolve().parents[2]
TABLE = Table(with_paths(CAPTION_FEATURES), validate_caption)
ROWS = list(path_set(20).read())


def items(rows: list[Row | Lost], start: int):
    """The input of a split from a position on."""
    return islice(enumerate(rows), start, None)


def reading_fails(start: int, at: int = 7):
    """An input whose disk fails."""
    for position, row in items(ROWS, start):
        if position == at:
            raise OSError(5, "Input/output error", "/data/rows.json")
        yield position, row


def describe(text: str = "about") -> dict[str, str]:
    return {"README.md": text}


def write(build: ConfigBuild, rows: list[Row | Lost] = ROWS, shard_bytes: int = 5000) -> None:
    build.write_split("train", partial(items, rows), TABLE, shard_bytes)


def publish(repo: Path, config: str = "set", rows: list[Row | Lost] = ROWS, **fingerprint) -> dict:
    build = ConfigBuild(repo, config, fingerprint)
    try:
        write(build, rows)
        return build.publish({"rows": "captions"}, describe)
    finally:
        build.close()


def stamp(path: Path) -> tuple[int, int]:
    """Changes when a file is written again."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def ids(folder: Path) -> list[str]:
    return [row["id"] for row in RowSource(folder).captions()]


def test_nothing_is_in_the_repository_before_all_is_written(tmp_path):
    build = ConfigBuild(tmp_path / "repo", "set", {})
    write(build)
    assert not (tmp_path / "repo").exists()
    facts = build.publish({"rows": "captions"}, describe)
    assert json.loads((tmp_path / "repo/set/build.json").read_text()) == facts
    assert ids(tmp_path / "repo/set") == [str(number) for number in range(20)]
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["README.md", "set"]


def test_a_build_that_ended_early_continues_after_its_finished_shards(tmp_path, caplog):
    build = ConfigBuild(tmp_path / "repo", "set", {"a": 1})
    with pytest.raises(ValueError, match=r"Row 12 of set/train \(id '12'\): The caption is empty"):
        write(build, [*ROWS[:12], {**ROWS[12], "caption": ""}])
    build.close()
    kept = [stamp(path) for path in sorted(build.folder.glob("*.parquet"))]
    assert len(kept) == 2 and not list(build.folder.glob("*.tmp"))
    started = []

    def rest(start: int):
        started.append(start)
        return items(ROWS, start)

    with caplog.at_level(logging.WARNING):
        build = ConfigBuild(tmp_path / "repo", "set", {"a": 1})
    assert "Continuing set of" in caplog.text and "after 2 finished shards" in caplog.text
    build.write_split("train", rest, TABLE, 5000)
    build.publish({"rows": "captions"}, describe)
    assert started == [10] and ids(tmp_path / "repo/set") == [str(number) for number in range(20)]
    assert [stamp(path) for path in sorted((tmp_path / "repo/set").glob("*.parquet"))][:2] == kept
    publish(tmp_path / "undisturbed", a=1)
    assert contents(tmp_path / "repo") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("change", ["fingerprint", "shard"])
def test_what_no_longer_fits_is_built_anew_and_said(tmp_path, caplog, change):
    build = ConfigBuild(tmp_path / "repo", "set", {"a": 1})
    write(build)
    build.close()
    first = build.folder / "train-00000.parquet"
    if change == "shard":
        first.write_bytes(first.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        publish(tmp_path / "repo", rows=ROWS[5:], a=2 if change == "fingerprint" else 1)
    reason = "input or options have changed" if change == "fingerprint" else "finished shards have changed"
    assert f"anew: {reason}" in caplog.text
    assert ids(tmp_path / "repo/set") == [str(number) for number in range(5, 20)]


def test_leftovers_of_a_kill_are_never_published(tmp_path):
    build = ConfigBuild(tmp_path / "repo", "set", {})
    write(build)
    build.close()
    for name in ("tmpab12cd", "train-00099.parquet", "train-00099.parquet.tmp", "mix.json"):
        (build.folder / name).write_text("half")
    publish(tmp_path / "repo")
    names = {path.name for path in (tmp_path / "repo/set").iterdir()}
    assert names == {"build.json", *(f"train-0000{number}-of-00004.parquet" for number in range(4))}


def test_a_kill_between_taking_out_and_putting_in_leaves_the_old_configuration(tmp_path):
    publish(tmp_path / "repo", rows=ROWS[:3])
    before = contents(tmp_path / "repo/set")
    build = ConfigBuild(tmp_path / "repo", "set", {"new": 1})
    write(build)
    os.replace(tmp_path / "repo/set", tmp_path / "repo.partial/set.old")  # and here the process ends
    build.close()
    build = ConfigBuild(tmp_path / "repo", "set", {"new": 1})
    assert contents(tmp_path / "repo/set") == before
    write(build)
    build.publish({}, describe)
    assert len(ids(tmp_path / "repo/set")) == 20 and not (tmp_path / "repo.partial").exists()


def test_rows_left_out_are_counted_exactly_over_all_shards(tmp_path):
    lost = [Lost("missing", n, f"{n}.jpg", "gone") for n in range(300)]
    broken = [Lost("corrupt", n, f"{n}.jpg", "half") for n in range(300, 310)]
    build = ConfigBuild(tmp_path / "repo", "set", {})
    write(build, [*lost, *ROWS[:10], *broken, *ROWS[10:], lost[0]])
    count, entries = build.lost()
    assert count == 311
    assert [entry["image"] for entry in entries if entry["state"] == "corrupt"] == [entry.image for entry in broken]
    assert [entry["row"] for entry in entries[:100]] == list(range(100)) and len(entries) == 111
    build.publish({}, describe)
    assert len(ids(tmp_path / "repo/set")) == 20


def test_the_position_survives_rows_left_out_between_shards(tmp_path):
    rows = [Lost("missing", n, "a.jpg", "gone") if n % 3 else row for n, row in enumerate(ROWS)]
    build = ConfigBuild(tmp_path / "repo", "set", {})
    bad = [*rows[:18], {**ROWS[18], "caption": ""}, ROWS[19]]
    with pytest.raises(ValueError, match="Row 18 of set/train"):
        write(build, bad, shard_bytes=2000)
    build.close()
    build = ConfigBuild(tmp_path / "repo", "set", {})
    write(build, rows, shard_bytes=2000)
    assert build.lost()[0] == 13
    build.publish({}, describe)
    assert ids(tmp_path / "repo/set") == [str(number) for number in range(0, 20, 3)]


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    build = ConfigBuild(tmp_path / "repo", "set", {})
    with pytest.raises(ValueError, match=r"Cannot read the input of set/train after row 6: .*Input/output error"):
        build.write_split("train", reading_fails, TABLE, 5000)
    with pytest.raises(ValueError, match="Cannot read the input of set/other before its first row: "):
        build.write_split("other", partial(reading_fails, at=0), TABLE, 5000)


def test_too_many_shards_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_scripts.shards.MAX_SHARDS", 3)
    build = ConfigBuild(tmp_path / "repo", "set", {})
    with pytest.raises(ValueError, match="train would have more than 3 shards; make them larger"):
        write(build)
    publish(tmp_path / "other", rows=ROWS[:15])


def test_two_builds_of_one_configuration_exclude_each_other(tmp_path):
    build = ConfigBuild(tmp_path / "repo", "set", {})
    with pytest.raises(BusyError, match="Another process is building set of .*repo. Wait for it, or stop it"):
        ConfigBuild(tmp_path / "repo", "set", {})
    publish(tmp_path / "repo", "other")
    assert (tmp_path / "repo.partial").exists()
    write(build)
    build.publish({}, describe)
    assert not (tmp_path / "repo.partial").exists() and ids(tmp_path / "repo/set") == ids(tmp_path / "repo/other")


def test_a_build_that_is_closed_with_nothing_finished_leaves_nothing(tmp_path):
    build = ConfigBuild(tmp_path / "repo", "set", {})
    with pytest.raises(ValueError, match="Row 0"):
        write(build, [{**ROWS[0], "caption": ""}])
    build.close()
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from dataset_scripts.shards import ConfigBuild
build = ConfigBuild(Path(sys.argv[1]), "set", {})
print("held", flush=True)
time.sleep(600)
"""


def test_a_lock_holds_against_other_processes_and_dies_with_its_own(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "repo")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(BusyError):
                ConfigBuild(tmp_path / "repo", "set", {})
        finally:
            other.kill()
    publish(tmp_path / "repo")
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_the_description_is_made_when_the_configuration_is_in_place(tmp_path):
    seen = []

    def look() -> dict[str, str]:
        seen.append(sorted(path.name for path in (tmp_path / "repo").iterdir()))
        return describe("b")

    publish(tmp_path / "repo", "a")
    build = ConfigBuild(tmp_path / "repo", "b", {})
    write(build)
    build.publish({}, look)
    assert seen == [["README.md", "a", "b"]] and (tmp_path / "repo/README.md").read_text() == "b"


def test_two_configurations_that_end_together_are_both_described(tmp_path):
    def names() -> dict[str, str]:
        return describe(" ".join(sorted(path.name for path in (tmp_path / "repo").iterdir() if path.is_dir())))

    first, second = (ConfigBuild(tmp_path / "repo", name, {}) for name in "ab")
    write(first)
    write(second)
    other = threading.Thread(target=second.publish, args=({}, names))

    def slowly() -> dict[str, str]:
        texts = names()
        other.start()
        other.join(timeout=0.5)
        return texts

    first.publish({}, slowly)
    other.join()
    assert (tmp_path / "repo/README.md").read_text() == "a b"
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_an_input_is_closed_when_a_row_is_refused(tmp_path):
    open_ones = []

    def watched(start: int):
        open_ones.append(start)
        try:
            yield from items([*ROWS[:3], {**ROWS[3], "caption": ""}, *ROWS[4:]], start)
        finally:
            open_ones.pop()

    build = ConfigBuild(tmp_path / "repo", "set", {})
    with pytest.raises(ValueError, match="Row 3 of set/train") as error:
        build.write_split("train", watched, TABLE)
    assert error.value.__traceback__ and open_ones == []


def test_a_repository_deleted_after_a_kill_starts_from_nothing(tmp_path):
    publish(tmp_path / "repo")
    (tmp_path / "repo.partial").mkdir()
    os.replace(tmp_path / "repo/set", tmp_path / "repo.partial/set.old")
    shutil.rmtree(tmp_path / "repo")
    publish(tmp_path / "repo", rows=ROWS[:4])
    assert len(ids(tmp_path / "repo/set")) == 4 and [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file is no folder"):
        ConfigBuild(tmp_path / "file", "set", {})
    with pytest.raises(WriteError, match=r"Cannot write .*file/repo.partial/set: Not a directory"):
        ConfigBuild(tmp_path / "file/repo", "set", {})


def test_a_row_group_ends_with_the_row_that_fills_it(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_scripts.shards.ROW_GROUP_BYTES", 1)
    publish(tmp_path / "repo", rows=ROWS[:3])
    assert pq.read_metadata(tmp_path / "repo/set/train-00000-of-00001.parquet").num_row_groups == 3

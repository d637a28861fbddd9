"""Rows on disk: none lost by the end of a process at any byte, none doubled, no half one left by a full disk."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.store import CaptionRow, Shard, Tally, finished, read_rows
from dataset_scripts.writing import WriteError
from tests.captioning.jobs import ROOT, endpoint_job


JOB = endpoint_job()
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
# Appends rows and says which ones are stored, until it is killed or refused.
WRITER = """
import sys
from pathlib import Path
from captioning.store import Shard
from dataset_scripts.writing import WriteError
from tests.captioning.test_store import row
shard = Shard(Path(sys.argv[1]), 0)
for number in range(int(sys.argv[2]), 10**9):
    try:
        shard.append(row(number))
    except WriteError as error:
        print(error, flush=True)
        raise SystemExit(4)
    print(number, flush=True)
"""


def row(number: int, **facts) -> CaptionRow:
    """A row about an image that does not exist."""
    return CaptionRow(f"{number:064x}", "b" * 64, "m", "c" * 12, **{"prompt_id": "v1/base", "state": "ok", **facts})


def append(out: Path, *rows: CaptionRow) -> None:
    """Append rows to the first shard."""
    shard = Shard(out, 0)
    for one in rows:
        shard.append(one)
    shard.release()


def rows_file(out: Path) -> Path:
    """Where the rows of the first shard are."""
    return out / "rows/00000.jsonl"


def numbers(out: Path) -> list[int]:
    """Which images the first shard has rows of."""
    return [int(one.image_sha256, 16) for one in read_rows(out, 0)]


def started(out: Path, first: int, limit: int | None = None) -> subprocess.Popen:
    """A process that appends rows."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out), str(first)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        preexec_fn=limit_files if limit else None,
    )  # fmt: skip


def test_rows_come_back_as_they_were_in_their_order(tmp_path):
    rows = [
        row(
            1, caption="zwei\nZeilen 猫 \u2028", cost=0.25, prompt_tokens=3, completion_tokens=4, time=1.5, run="0001"
        ),
        row(1, state="failed", error="no", raw={"a": [None, 1]}, attempts=6),
        row(2, state="truncated", finish_reason="length", seconds=0.125),
    ]
    append(tmp_path, *rows)
    assert list(read_rows(tmp_path, 0)) == rows and list(read_rows(tmp_path, 1)) == []


def test_a_shard_knows_the_last_state_of_every_key_and_what_all_rows_cost(tmp_path):
    append(tmp_path, row(1, state="failed", cost=1.0), row(2, cost=2.0), row(1, cost=4.0, prompt_tokens=5))
    shard = Shard(tmp_path, 0)
    assert {key: last.state for key, last in shard.latest.items()} == {row(1).key: "ok", row(2).key: "ok"}
    assert (shard.spent.cost, shard.spent.prompt_tokens) == (7.0, 5)
    assert shard.spent.states == {"ok": 2, "failed": 1}
    shard.release()


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=12), data=st.data())
def test_a_file_that_ends_at_any_byte_loses_no_whole_row_and_doubles_none(texts, data):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        rows = [row(number, caption=text) for number, text in enumerate(texts)]
        append(out, *rows)
        whole = rows_file(out).read_bytes()
        size = data.draw(st.integers(0, len(whole)))
        os.truncate(rows_file(out), size)
        kept = whole[:size].count(b"\n")
        assert list(read_rows(out, 0)) == rows[:kept]  # read while nobody has mended it
        shard = Shard(out, 0)
        assert list(shard.latest) == [one.key for one in rows[:kept]]
        for one in rows:
            if one.key not in shard.latest:
                shard.append(one)
        shard.release()
        assert rows_file(out).read_bytes() == whole


def test_an_unfinished_line_longer_than_a_block_is_cut_off(tmp_path):
    append(tmp_path, row(1), row(2, caption="x" * 300_000))
    whole = rows_file(tmp_path).read_bytes()
    os.truncate(rows_file(tmp_path), len(whole) - 1)
    append(tmp_path, row(3))
    assert numbers(tmp_path) == [1, 3]


def test_what_a_killed_writer_had_stored_is_there(tmp_path):
    said = []
    for first in (0, 1_000_000):
        writer = started(tmp_path, first)
        said.append(int(writer.stdout.readline()))
        time.sleep(0.1)
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout.read().splitlines() if line]
        writer.wait()
        with rows_file(tmp_path).open("ab") as stream:
            stream.write(b'{"image_sha256": "half')
    append(tmp_path)
    found = numbers(tmp_path)
    # Each writer may have stored one more than it could say.
    assert len(found) == len(set(found)) and set(said) <= set(found) and len(found) <= len(said) + 2


def test_a_damaged_line_names_file_and_line_and_what_to_do(tmp_path):
    append(tmp_path, *(row(number) for number in range(5)))
    lines = rows_file(tmp_path).read_bytes().splitlines(keepends=True)
    for broken in (b'{"image_sha256": "0\n', b"17\n", b'{"caption": "a"}\n', b"\0\0\n", b"\xff\n"):
        rows_file(tmp_path).write_bytes(b"".join([*lines[:2], broken, *lines[3:]]))
        for read in (lambda: list(read_rows(tmp_path, 0)), lambda: Shard(tmp_path, 0)):
            with pytest.raises(ValueError, match=r"00000\.jsonl, line 3, is damaged: .*Delete the line"):
                read()
    rows_file(tmp_path).write_bytes(b"".join([*lines[:2], *lines[3:]]))
    append(tmp_path, row(2))  # the refusal has let go of the shard
    assert sorted(numbers(tmp_path)) == [0, 1, 2, 3, 4]


def test_a_shard_belongs_to_one_process_at_a_time(tmp_path):
    writer = started(tmp_path, 0)
    assert writer.stdout.readline() == "0\n"
    with pytest.raises(Timeout):
        Shard(tmp_path, 0)
    Shard(tmp_path, 1).release()
    assert list(read_rows(tmp_path, 0))  # reading is free
    writer.kill()
    writer.communicate()
    Shard(tmp_path, 0).release()


def test_two_claims_of_one_process_exclude_each_other_too(tmp_path):
    shard = Shard(tmp_path, 0)
    with pytest.raises(Timeout):
        Shard(tmp_path, 0)
    shard.release()
    Shard(tmp_path, 0).release()


@pytest.mark.parametrize("limit", [1000, 1900])
def test_a_full_disk_is_told_leaves_no_half_row_and_the_rerun_completes(tmp_path, limit):
    writer = started(tmp_path, 0, limit)
    *said, refusal = writer.communicate()[0].splitlines()
    assert writer.returncode == 4
    assert "cannot be written: File too large. Captions so far are kept; make room and go on." in refusal
    assert rows_file(tmp_path).read_bytes().endswith(b"\n") and numbers(tmp_path) == [int(line) for line in said]
    append(tmp_path, *(row(number) for number in range(len(said), 20)))
    assert numbers(tmp_path) == list(range(20))


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "rows").write_text("in the way", encoding="utf-8")
    with pytest.raises(WriteError, match="rows cannot be written: "):
        Shard(tmp_path, 0)


def test_a_full_disk_at_the_end_of_a_shard_is_told(tmp_path):
    shard = Shard(tmp_path, 0)
    shard.append(row(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(WriteError, match="rows cannot be written: File too large"):
            shard.finish(JOB.variant, "plan", Tally())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    shard.release()
    assert finished(tmp_path, 0, JOB, "plan") is None and not list((tmp_path / "rows").glob("tmp*"))


@pytest.fixture
def done(tmp_path):
    """A shard that is finished for the plan `plan`."""
    shard, tally = Shard(tmp_path, 0), Tally()
    shard.append(row(1, cost=0.5, prompt_tokens=7))
    tally.add(row(1))
    shard.finish(JOB.variant, "plan", tally)
    shard.release()
    return tmp_path


def test_a_finished_shard_tells_its_counts_without_its_rows(done):
    facts = finished(done, 0, JOB, "plan")
    assert facts["tally"]["states"] == {"ok": 1}
    assert (facts["spent"]["cost"], facts["spent"]["prompt_tokens"]) == (0.5, 7)


def test_a_shard_is_not_finished_for_another_plan_or_variant(done):
    assert finished(done, 0, JOB, "other") is None
    assert finished(done, 0, endpoint_job(model="n"), "plan") is None
    assert finished(done, 0, replace(JOB, concurrency=99), "plan") is not None
    assert finished(done, 1, JOB, "plan") is None


def test_a_shard_is_not_finished_when_its_rows_have_changed(done):
    whole = rows_file(done).read_bytes()
    append(done, row(2))
    assert finished(done, 0, JOB, "plan") is None
    os.truncate(rows_file(done), len(whole))
    assert finished(done, 0, JOB, "plan") is not None
    rows_file(done).unlink()
    assert finished(done, 0, JOB, "plan") is None


def test_sums_of_a_tally_add_up():
    whole, parts = Tally(), [Tally(), Tally()]
    for number in range(10):
        one = row(number, state="ok" if number % 3 else "failed", cost=0.1, prompt_tokens=number)
        whole.add(one)
        parts[number % 2].add(one)
    parts[0].merge(json.loads(json.dumps(parts[1].to_json())))
    assert parts[0].to_json() == whole.to_json()

"""The store of checked images: it resumes, forgets what has changed, survives being killed, and says what is wrong."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dataset_scripts.archives import Located
from dataset_scripts.check_image import Check
from dataset_scripts.image_store import COMMIT_EVERY, CheckedImages


ROOT = Path(__file__).resolve().parents[2]
PLACE = Located("/data/a.tar", 1000, 123_456_789_012_345_678, 512)
GOOD = Check("", "ab" * 32, 640, 480, "c0ffee0123456789")
BAD = Check("OSError: image file is truncated")


def fill(path: Path, count: int) -> None:
    with CheckedImages(path) as store:
        for number in range(count):
            store[f"{number}.jpg", PLACE] = GOOD


def test_outcomes_are_there_the_next_time(tmp_path):
    path = tmp_path / "new" / "images.sqlite"
    loose = Located("/data/Café 猫.jpg", 7, 1)
    with CheckedImages(path) as store:
        store["a.jpg", PLACE] = GOOD
        store["Café 猫.jpg", loose] = BAD
        assert store["a.jpg", PLACE] == GOOD
    with CheckedImages(path) as store:
        assert store["a.jpg", PLACE] == store.get("a.jpg", PLACE) == GOOD
        assert store["Café 猫.jpg", loose] == BAD
        assert store.get("b.jpg", PLACE) is None
        with pytest.raises(KeyError, match="b.jpg was not checked"):
            store["b.jpg", PLACE]


@pytest.mark.parametrize(
    "change", [{"file": "/b.tar"}, {"size": 1001}, {"mtime_ns": 1}, {"offset": 0}, {"offset": None}]
)
def test_an_image_that_has_changed_counts_as_unchecked(tmp_path, change):
    with CheckedImages(tmp_path / "images.sqlite") as store:
        store["a.jpg", PLACE] = GOOD
        assert store.get("a.jpg", replace(PLACE, **change)) is None
        store["a.jpg", replace(PLACE, **change)] = BAD
        assert store.get("a.jpg", PLACE) is None
        assert store["a.jpg", replace(PLACE, **change)] == BAD


def test_outcomes_are_kept_when_the_work_ends_with_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), CheckedImages(tmp_path / "images.sqlite") as store:
        store["a.jpg", PLACE] = GOOD
        raise KeyboardInterrupt
    with CheckedImages(tmp_path / "images.sqlite") as store:
        assert store["a.jpg", PLACE] == GOOD


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from dataset_scripts.image_store import CheckedImages
from tests.dataset_scripts.test_image_store import GOOD, PLACE

if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with CheckedImages(Path(sys.argv[1])) as store:
    for number in range(1000):
        store[f"{number}.jpg", PLACE] = GOOD
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_child(path: Path, how: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", CHILD, path, how], cwd=ROOT, capture_output=True, text=True)


def test_a_killed_process_loses_no_more_than_the_last_few(tmp_path):
    path = tmp_path / "images.sqlite"
    assert run_child(path, "kill").returncode == -signal.SIGKILL
    with CheckedImages(path) as store:
        kept = [store.get(f"{number}.jpg", PLACE) for number in range(1000)]
    count = 1000 - kept.count(None)
    assert count > 1000 - COMMIT_EVERY
    assert kept == [GOOD] * count + [None] * (1000 - count)


def test_a_full_disk_ends_with_the_file_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "images.sqlite"
    fill(path, 10)
    ended = run_child(path, "full")
    assert ended.returncode == 1 and f"OSError: {path} cannot be used: " in ended.stderr
    with CheckedImages(path) as store:
        assert store["9.jpg", PLACE] == GOOD


@pytest.mark.parametrize("damage", ["text", "header", "short"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, damage):
    path = tmp_path / "images.sqlite"
    fill(path, 500)
    data = path.read_bytes()
    path.write_bytes({"text": b"no database" * 99, "header": b"X" + data[1:], "short": data[:1000]}[damage])
    with pytest.raises(ValueError, match=f"^{path} is damaged: .*Delete it; the images are checked anew"):
        fill(path, 1)


def test_damage_inside_is_noticed_when_it_is_met(tmp_path):
    path = tmp_path / "images.sqlite"
    fill(path, 500)
    data = bytearray(path.read_bytes())
    data[8192:] = os.urandom(len(data) - 8192)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path} is damaged: "), CheckedImages(path) as store:
        for number in range(500):
            store.get(f"{number}.jpg", PLACE)


def test_a_file_in_use_by_another_process_is_named(tmp_path):
    path = tmp_path / "images.sqlite"
    with CheckedImages(path) as store:
        with pytest.raises(OSError, match=f"{path} cannot be used: database is locked. Another process"):
            CheckedImages(path)
        store["a.jpg", PLACE] = GOOD
    fill(path, 1)


def test_a_database_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "images.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE images (name TEXT)")
    connection.close()
    with pytest.raises(OSError, match=f"{path} cannot be used: "):
        fill(path, 1)


def test_a_place_that_cannot_hold_a_file_is_named(tmp_path):
    (tmp_path / "images.sqlite").mkdir()
    with pytest.raises(OSError, match=f"{tmp_path}/images.sqlite cannot be used: unable to open"):
        CheckedImages(tmp_path / "images.sqlite")

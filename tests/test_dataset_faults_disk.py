"""Faults of disks, streams and interruptions, through the command line; `test_dataset_faults.py` has the others."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from dataset_scripts.reading import open_rows
from tests.fault_world import World


ROOT = Path(__file__).resolve().parents[1]


# Row 31: the disk.
def limited_build(world: World, limit: int) -> subprocess.CompletedProcess:
    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = ["data", "build", world.file, "--repo", world.repo, "--config", "ShareGPT4V", "--images", world.images]
    command = [sys.executable, "-m", "sharegpt4v.cli", *map(str, words), "--workers", "0"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=limit_files if limit else None
    )


def test_a_full_disk_leaves_no_half_shard_and_the_rerun_completes(world):
    stopped = limited_build(world, 4_000)
    assert stopped.returncode == 4, stopped.stderr
    assert "Cannot write" in stopped.stderr and "Make room and run it again" in stopped.stderr
    assert not world.repo.exists()
    assert not list(world.folder.rglob("*.tmp")) and not list(world.folder.rglob("*.parquet"))
    assert world.join().code == 0 and len(world.ids()) == 9


def test_a_place_that_cannot_be_written_is_named(world):
    world.repo = world.file / "below a file" / "repo"
    outcome = world.build()
    assert outcome.code == 4 and "Cannot write" in outcome.errors
    world.repo = world.folder / "repo"
    assert world.build().code == 0


def test_ten_thousand_files_in_one_folder_are_no_obstacle(world):
    first = world.path(0).read_bytes()
    for number in range(10_000):
        (world.images / "coco/train2017" / f"x{number}.jpg").write_bytes(first[:64])
    assert world.verify("--min-coverage", 1).code == 0
    assert world.join().code == 0 and len(world.ids()) == 9


# Row 32: a corrupt row in a built repository.
def test_a_corrupt_row_in_a_stream_is_counted_and_the_stream_goes_on(world):
    assert world.join().code == 0
    shard = next((world.repo / "ShareGPT4V").glob("*.parquet"))
    whole = shard.read_bytes()
    picture = world.path(4).read_bytes()
    assert whole.count(picture) == 1
    shard.write_bytes(whole.replace(picture, b"\0" * len(picture)))
    rows = open_rows(world.repo, "ShareGPT4V")
    assert [row["id"] for row in rows] == [record["id"] for record in world.records if record is not world.records[4]]
    shard.write_bytes(whole)
    assert len(list(open_rows(world.repo, "ShareGPT4V"))) == 9


def test_an_interrupted_command_says_so_and_continues(world):
    words = ["data", "verify", world.file, "--images", world.images, "--output", world.folder / "report"]
    command = [sys.executable, "-m", "sharegpt4v.cli", *map(str, words), "--workers", "0"]
    world.path(8).unlink()
    os.mkfifo(world.path(8))  # reading it would wait for ever; it is refused as no regular file
    for number in range(9, 2000):
        world.records.append(world.record(number, f"wikiart/images/{number}.jpg"))
        shutil.copy(world.path(0), world.path(number))
    world.save()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    store = world.folder / "report" / "images.sqlite"
    for _ in range(600):
        if store.is_file():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # A shell shows 130 for both; Python ends by the signal itself when it arrives in the middle of an `exec`.
    assert process.returncode in (130, -signal.SIGINT), errors
    assert "Run the same command again" in errors
    outcome = world.verify()
    assert outcome.code == 0 and "1999 of 2000 rows can be used" in outcome.output

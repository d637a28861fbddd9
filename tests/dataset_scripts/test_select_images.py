"""Choosing images: a seed decides, quotas are met, look-alikes stay out, and a killed run continues."""

import hashlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from dataset_scripts.images import ImageRoots
from dataset_scripts.layouts import LAYOUTS
from dataset_scripts.select_images import PAPER_QUOTA_100K, PAPER_QUOTA_1200K, QuotaError, read_selection, select
from tests.fresh_process import run_fresh
from tests.image_files import pack_tar, pack_zip, picture


ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"coco": "coco/train2017", "sam": "sam/images", "mine": "mine/2023"}
QUOTA = {"sam": 6, "mine": 8, "coco": 10}
# The repository is put on the path by hand, for processes that begin without it.
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import json
from dataset_scripts.images import ImageRoots
from dataset_scripts.select_images import select
select(ImageRoots([sys.argv[2]]), sys.argv[3], json.loads(sys.argv[4]), 5, workers=0)
print(json.dumps({"hash": hash("a")}))
"""
# The process dies when the 290th image is decoded.
DEADLY = """
import itertools, os, signal, sys
count = itertools.count()
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).startswith(sys.argv[2])
    and next(count) == 290 and os.kill(os.getpid(), signal.SIGKILL))
"""


def save(path: Path, image: Image.Image, quality: int = 92) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=quality)
    return path


def fill(folder: Path, numbers: range) -> None:
    for number in numbers:
        save(folder / f"{number}.jpg", picture(number))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """30 images a source, none like another."""
    root = tmp_path_factory.mktemp("photos")
    for index, (source, folder) in enumerate(FOLDERS.items()):
        for number in range(30):
            save(root / folder / f"{source}_{number}.jpg", picture(100 * index + number))
    return root


def choose(root: Path, output: Path, quota=None, seed=5, **options) -> dict:
    return select(ImageRoots([root]), output, quota or QUOTA, seed, **{"workers": 0, **options})


def images(output: Path) -> list[str]:
    return [row["image"] for row in read_selection(output)]


def rejected(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def known(output: Path) -> list[str]:
    with closing(sqlite3.connect(output / "images.sqlite")) as connection:
        return [name for (name,) in connection.execute("SELECT image FROM images")]


def manifest(output: Path) -> bytes:
    return (output / "images.parquet").read_bytes()


def test_every_source_gets_its_quota_and_the_manifest_says_what_each_image_is(photos, tmp_path):
    report = choose(photos, tmp_path)
    rows = list(read_selection(tmp_path))
    assert [row["source"] for row in rows] == ["coco"] * 10 + ["mine"] * 8 + ["sam"] * 6
    assert len({row["image"] for row in rows}) == 24
    for row in rows:
        data = (photos / row["image"]).read_bytes()
        assert (row["width"], row["height"], len(row["phash"])) == (48, 32, 16)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["id"] == Path(row["image"]).stem and row["image"].startswith(FOLDERS[row["source"]])
    nothing = {"unreadable": 0, "excluded": 0, "duplicate": 0}
    assert report["sources"]["sam"] == {"candidates": 30, "quota": 6, "chosen": 6, "rejected": nothing}
    assert report["total"] == {"candidates": 90, "quota": 24, "chosen": 24, "rejected": nothing}
    assert (report["seed"], report["distance"], report["short"]) == (5, 4, {})
    assert set(report["versions"]) == {"imagehash", "numpy", "pillow", "scipy"}
    assert json.loads((tmp_path / "selection.json").read_text(encoding="utf-8")) == report
    assert rejected(tmp_path) == []


def test_the_manifest_is_a_dataset_of_the_hub_library(photos, tmp_path):
    choose(photos, tmp_path / "out")
    files = str(tmp_path / "out" / "images.parquet")
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == list(read_selection(tmp_path / "out"))
    assert loaded.column_names == ["id", "image", "source", "sha256", "width", "height", "phash"]


def test_another_seed_chooses_other_images(photos, tmp_path):
    for seed in (1, 2):
        choose(photos, tmp_path / str(seed), seed=seed)
    assert 0 < len(set(images(tmp_path / "1")) & set(images(tmp_path / "2"))) < 18


def test_a_seed_means_the_same_in_every_version(tmp_path):
    fill(tmp_path / "photos" / "mine", range(6))
    choose(tmp_path / "photos", tmp_path / "out", {"mine": 6}, seed=0)
    assert [row["id"] for row in read_selection(tmp_path / "out")] == ["4", "0", "5", "3", "2", "1"]


def test_a_seed_means_the_same_in_a_process_with_other_hashes(photos, tmp_path):
    choose(photos, tmp_path / "here")
    there = run_fresh(RUN, ROOT, photos, tmp_path / "there", json.dumps(QUOTA), cwd=tmp_path)
    assert there["hash"] != hash("a")
    assert manifest(tmp_path / "here") == manifest(tmp_path / "there")


def test_the_number_of_processes_does_not_matter(photos, tmp_path):
    assert choose(photos, tmp_path / "none", workers=0) == choose(photos, tmp_path / "two", workers=2)
    for name in ("images.parquet", "selection.json", "rejected.jsonl"):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_an_earlier_choice_decoded_does_not_matter(photos, tmp_path):
    choose(photos, tmp_path / "used", {"sam": 30, "coco": 3}, seed=1)
    assert choose(photos, tmp_path / "used") == choose(photos, tmp_path / "new")
    assert manifest(tmp_path / "used") == manifest(tmp_path / "new")


def test_hardly_more_images_are_decoded_than_chosen(tmp_path):
    fill(tmp_path / "photos" / "mine", range(60))
    choose(tmp_path / "photos", tmp_path / "few", {"mine": 2})
    choose(tmp_path / "photos", tmp_path / "many", {"mine": 40})
    assert len(known(tmp_path / "few")) <= 18 and len(known(tmp_path / "many")) <= 56


def test_a_killed_choice_continues_and_ends_as_if_it_had_not_been(tmp_path):
    root, output, quota = tmp_path / "photos", tmp_path / "killed", {"a": 300, "b": 3}
    fill(root / "a", range(300))
    fill(root / "b", range(300, 305))
    command = [sys.executable, "-c", DEADLY + RUN, ROOT, root, output, json.dumps(quota)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="no finished selection"):
        read_selection(output)
    choose(root, tmp_path / "whole", quota)
    # What was decoded before the kill is not opened again: it could not be read any more.
    done = known(output)
    assert 200 < len(done) < 300
    for name in done:
        status = (root / name).stat()
        (root / name).write_bytes(bytes(status.st_size))
        os.utime(root / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    choose(root, output, quota)
    assert manifest(output) == manifest(tmp_path / "whole")


def test_a_recompressed_copy_in_another_source_is_passed_over(tmp_path):
    root = tmp_path / "photos"
    fill(root / "coco" / "train2017", range(4))
    fill(root / "web", range(4, 8))
    save(root / "web" / "twin.jpg", picture(2), quality=40)
    report = choose(root, tmp_path / "out", {"web": 5, "coco": 4}, allow_short=True)
    assert report["sources"]["web"]["rejected"] == {"unreadable": 0, "excluded": 0, "duplicate": 1}
    assert report["short"] == {"web": 1} and len(images(tmp_path / "out")) == 8
    twin = {"image": "web/twin.jpg", "source": "web", "reason": "duplicate", "twin": "coco/train2017/2.jpg"}
    assert rejected(tmp_path / "out") == [{**twin, "problem": None}]


def test_distance_says_how_alike_is_too_alike(tmp_path):
    root, quota = tmp_path / "photos", {"a": 1, "b": 1}
    save(root / "a" / "1.png", picture(1))
    save(root / "b" / "1.png", picture(1).resize((8, 8)).rotate(4))
    choose(root, tmp_path / "strict", quota, distance=0)
    first, second = (int(row["phash"], 16) for row in read_selection(tmp_path / "strict"))
    apart = (first ^ second).bit_count()
    assert choose(root, tmp_path / "less", quota, distance=apart - 1)["distance"] == apart - 1
    with pytest.raises(QuotaError, match="quota of b is 1, but only 0 of its 1 images can be used .1 duplicate"):
        choose(root, tmp_path / "enough", quota, distance=apart)
    choose(root, tmp_path / "less", {"b": 1}, distance=apart - 1, exclude=ImageRoots([root / "a"]))
    with pytest.raises(QuotaError, match="1 excluded"):
        choose(root, tmp_path / "enough", {"b": 1}, distance=apart, exclude=ImageRoots([root / "a"]))
    with pytest.raises(ValueError, match="0 to 16"):
        choose(root, tmp_path / "too_far", quota, distance=17)


def test_a_rescaled_copy_of_an_excluded_image_is_passed_over(photos, tmp_path):
    choose(photos, tmp_path / "before")
    first = images(tmp_path / "before")[0]
    copy = Image.open(photos / first).resize((300, 240), Image.Resampling.LANCZOS)
    save(tmp_path / "benchmark" / "mmvet" / "v1_0.png", copy)
    save(tmp_path / "benchmark" / "mmvet" / "v1_1.png", picture(900))
    (tmp_path / "benchmark" / "broken.jpg").write_bytes(b"no image")
    report = choose(photos, tmp_path / "after", exclude=ImageRoots([tmp_path / "benchmark"]))
    assert report["exclusion"] == {"in_folders": 3, "listed": 0, "not_found": 0, "unreadable": 1}
    assert report["sources"]["coco"]["rejected"] == {"unreadable": 0, "excluded": 1, "duplicate": 0}
    assert rejected(tmp_path / "after")[0]["twin"] == "mmvet/v1_0.png"
    assert rejected(tmp_path / "after")[0]["image"] == first
    after = images(tmp_path / "after")
    assert after[:9] == images(tmp_path / "before")[1:10] and len(after) == 24


def test_excluded_files_of_one_path_in_two_folders_both_count(photos, tmp_path):
    choose(photos, tmp_path / "before")
    for number, name in enumerate(images(tmp_path / "before")[:2]):
        save(tmp_path / f"benchmark{number}" / "1.jpg", Image.open(photos / name))
    both = ImageRoots([tmp_path / "benchmark0", tmp_path / "benchmark1"])
    report = choose(photos, tmp_path / "after", exclude=both)
    assert report["exclusion"]["in_folders"] == 2 and report["total"]["rejected"]["excluded"] == 2


def test_listed_images_and_what_looks_like_them_are_passed_over(photos, tmp_path, caplog):
    choose(photos, tmp_path / "before")
    first, second = images(tmp_path / "before")[:2]
    copies = tmp_path / "more"
    save(copies / "mine" / "copy.png", Image.open(photos / second).resize((64, 64)))
    done = tmp_path / "done.txt"
    done.write_text(f"\ufeff{first}\r\n\n{second}\ncoco/train2017/gone.jpg\n", encoding="utf-8")
    quota = {"coco": 28, "mine": 31}
    report = select(ImageRoots([photos, copies]), tmp_path / "after", quota, 5, None, done, 4, True, 0)
    assert report["exclusion"] == {"in_folders": 0, "listed": 3, "not_found": 1, "unreadable": 0}
    assert "1 were not found and 0 cannot be read" in caplog.text
    twins = {entry["image"]: entry["twin"] for entry in rejected(tmp_path / "after")}
    assert twins == {first: first, second: second, "mine/copy.png": second}
    assert report["sources"]["coco"]["chosen"] == 28 and report["short"] == {"mine": 1}


@pytest.mark.parametrize("line", [b"/etc/passwd.jpg", b"../secret.jpg", b"caf\xe9.jpg"])
def test_a_line_that_is_no_image_path_is_named(photos, tmp_path, line):
    (tmp_path / "done.txt").write_bytes(b"mine/2023/mine_1.jpg\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"done\.txt, line 2: "):
        choose(photos, tmp_path / "out", exclude_list=tmp_path / "done.txt")


def test_excluding_nothing_by_mistake_is_refused(photos, tmp_path):
    (tmp_path / "done.txt").write_text("000000000009.jpg\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"None of the 1 images in .*done\.txt is below the image roots, first: 0+9"):
        choose(photos, tmp_path / "out", exclude_list=tmp_path / "done.txt")
    (tmp_path / "benchmark").mkdir()
    with pytest.raises(ValueError, match="no images to exclude in .*benchmark"):
        choose(photos, tmp_path / "out", exclude=ImageRoots([tmp_path / "benchmark"]))


def test_an_empty_list_excludes_nothing(photos, tmp_path):
    (tmp_path / "done.txt").touch()
    choose(photos, tmp_path / "listed", exclude_list=tmp_path / "done.txt")
    choose(photos, tmp_path / "plain")
    assert manifest(tmp_path / "listed") == manifest(tmp_path / "plain")


def test_unreadable_images_are_passed_over_and_counted(tmp_path):
    root = tmp_path / "photos"
    fill(root / "mine", range(6))
    (root / "mine" / "cut.jpg").write_bytes((root / "mine" / "0.jpg").read_bytes()[:500])
    (root / "mine" / "empty.png").touch()
    (root / "mine" / "a%2f..%2fb.jpg").write_bytes((root / "mine" / "0.jpg").read_bytes())
    report = choose(root, tmp_path / "out", {"mine": 9}, allow_short=True)
    assert report["sources"]["mine"]["rejected"] == {"unreadable": 3, "excluded": 0, "duplicate": 0}
    entries = rejected(tmp_path / "out")
    assert {entry["image"] for entry in entries} == {"mine/cut.jpg", "mine/empty.png", "mine/a%2f..%2fb.jpg"}
    assert all(entry["reason"] == "unreadable" and entry["problem"] and not entry["twin"] for entry in entries)
    assert sorted(images(tmp_path / "out")) == [f"mine/{number}.jpg" for number in range(6)]


def test_archives_are_chosen_from_in_place_and_their_damage_is_reported(photos, tmp_path):
    packed = tmp_path / "packed"
    coco, sam = (list((photos / FOLDERS[source]).iterdir()) for source in ("coco", "sam"))
    pack_zip(packed / "coco" / "train2017.zip", {f"train2017/{path.name}": path.read_bytes() for path in coco})
    pack_tar(packed / "sam" / "images.tar", {f"images/{path.name}": path.read_bytes() for path in sam})
    (packed / "more.zip").write_bytes(b"PK\x03\x04 cut off")
    quota = {"coco": 7, "sam": 9}
    save(tmp_path / "benchmark" / "1.png", picture(900))
    (tmp_path / "benchmark" / "less.tar").write_bytes(b"no tar file")
    report = choose(packed, tmp_path / "in_place", quota, exclude=ImageRoots([tmp_path / "benchmark"]))
    assert report["archives"].keys() == {str(packed / "more.zip"), str(tmp_path / "benchmark" / "less.tar")}
    assert choose(photos, tmp_path / "unpacked", quota)["sources"] == report["sources"]
    assert manifest(tmp_path / "in_place") == manifest(tmp_path / "unpacked")
    assert not list(packed.rglob("*.jpg"))


def test_a_path_that_two_roots_have_is_one_candidate(tmp_path):
    fill(tmp_path / "first" / "mine", range(3))
    fill(tmp_path / "second" / "mine", range(2, 5))
    roots = ImageRoots([tmp_path / "first", tmp_path / "second"])
    report = select(roots, tmp_path / "out", {"mine": 5}, 0, workers=0)
    assert report["total"]["candidates"] == 5 and len(set(images(tmp_path / "out"))) == 5


def test_a_stem_that_several_images_share_gives_way_to_their_paths(tmp_path):
    root = tmp_path / "photos"
    names = ("gqa/images/24.jpg", "vg/VG_100K/24.jpg", "vg/VG_100K/25.jpg", "mine/a.jpg.png", "a.jpg", "b/c.jpg")
    names += ("b/c.png", "b/.jpg")
    for number, name in enumerate(names):
        save(root / name, picture(number))
    choose(root, tmp_path / "all", {"gqa": 1, "vg": 2, "mine": 1, "other": 1, "b": 3})
    ids = {row["image"]: row["id"] for row in read_selection(tmp_path / "all")}
    stems = {"vg/VG_100K/25.jpg": "25", "a.jpg": "a", "b/.jpg": ".jpg"}
    assert ids == {name: stems.get(name, name) for name in names}
    choose(root, tmp_path / "some", {"vg": 2})
    assert all(ids[row["image"]] == row["id"] for row in read_selection(tmp_path / "some"))


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        ({}, r"quota is empty.*coco \(30 images\), mine \(30 images\), sam \(30 images\)"),
        ({"coco": 0, "sam": 1}, r"at least 1, got \{'coco': 0\}"),
        ({"sam": -3}, r"at least 1, got \{'sam': -3\}"),
        ({"coco": 1, "wikiart": 5, "lcs": 1}, r"No images of lcs, wikiart were found.*mine \(30 images\)"),
        ({"sam": 31, "coco": 99, "mine": 1}, r"asks for 99 of coco, 31 of sam.*allow_short"),
    ],
)
def test_a_quota_that_cannot_be_met_is_refused_before_anything_is_decoded(photos, tmp_path, quota, message):
    with pytest.raises(QuotaError, match=message):
        select(ImageRoots([photos]), tmp_path / "out", quota, 0, workers=0)
    assert not (tmp_path / "out").exists()


def test_an_unknown_source_is_refused_even_if_less_will_do(photos, tmp_path):
    with pytest.raises(QuotaError, match="No images of wikiart"):
        choose(photos, tmp_path, {"wikiart": 5}, allow_short=True)


def test_a_source_that_turns_out_too_small_is_refused_unless_less_will_do(tmp_path):
    root = tmp_path / "photos"
    fill(root / "mine", range(5))
    save(root / "mine" / "copy.png", picture(3))
    (root / "mine" / "broken.jpg").write_bytes(b"no image")
    message = r"quota of mine is 6, but only 5 of its 7 images can be used \(1 unreadable, 1 duplicate\).*allow_short"
    with pytest.raises(QuotaError, match=message):
        choose(root, tmp_path / "out", {"mine": 6})
    with pytest.raises(FileNotFoundError, match="no finished selection"):
        read_selection(tmp_path / "out")
    report = choose(root, tmp_path / "out", {"mine": 60}, allow_short=True)
    assert report["short"] == {"mine": 55} and len(images(tmp_path / "out")) == 5


def test_no_manifest_remains_beside_the_report_of_another_choice(photos, tmp_path):
    choose(photos, tmp_path)
    (tmp_path / "selection.json").unlink()
    (tmp_path / "selection.json" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="selection.json"):
        choose(photos, tmp_path, seed=6)
    with pytest.raises(FileNotFoundError, match="no finished selection"):
        read_selection(tmp_path)


def test_a_manifest_that_does_not_fit_on_the_disk_leaves_nothing_behind(photos, tmp_path):
    choose(photos, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            choose(photos, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.sqlite", "rejected.jsonl", "selection.json"]


def test_a_manifest_that_is_damaged_or_of_another_kind_is_refused(photos, tmp_path):
    choose(photos, tmp_path)
    (tmp_path / "images.parquet").write_bytes(manifest(tmp_path)[:-9])
    with pytest.raises(ValueError, match=r"images\.parquet is damaged"):
        read_selection(tmp_path)
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "images.parquet")
    with pytest.raises(ValueError, match=r"must have the columns .* it has \['id'\]"):
        read_selection(tmp_path)


def test_the_quotas_of_the_paper_name_known_sources_and_sum_up_to_what_was_released():
    known = {layout.source for layout in LAYOUTS}
    assert sum(PAPER_QUOTA_100K.values()) == 102_025 and set(PAPER_QUOTA_100K) <= known
    assert PAPER_QUOTA_100K["coco"] + PAPER_QUOTA_100K["lcs"] == 80_045
    assert sum(PAPER_QUOTA_1200K.values()) == 1_246_901 and set(PAPER_QUOTA_1200K) <= known

"""The check of a dataset's images: exact reports, reruns that only do what is left, and gates that hold."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset_scripts.archives import Located
from dataset_scripts.check_image import check_image
from dataset_scripts.coverage import CoverageError
from dataset_scripts.image_store import CheckedImages
from dataset_scripts.images import ImageRoots
from dataset_scripts.verify import (
    OverlapError,
    check_all,
    hash_all,
    require_no_overlap,
    verify,
    write_lines,
    write_text,
)
from tests.image_files import encoded, pack_tar, pack_zip, put, replace_in_place


ROOT = Path(__file__).resolve().parents[2]
REPORT = ("coverage.json", "lost.jsonl", "duplicates.jsonl", "overlap.jsonl")
NAMES = {
    "coco": "coco/train2017/{:012d}.jpg",
    "sam": "sam/images/sa_{}.jpg",
    "lcs": "llava/llava_pretrain/images/00000/{:09d}.jpg",
    "ocr_vqa": "ocr_vqa/images/{}.jpg",
}


def row(name: object, *images: str) -> dict:
    return {"id": str(name), "source": "any", "images": list(images), "messages": []}


def dataset(count: int = 40) -> tuple[list[dict], dict[str, bytes]]:
    """Rows of one image each, the sources in turn, and the files they name."""
    images = [list(NAMES.values())[number % 4].format(number) for number in range(count)]
    files = {image: encoded(number, (16, 16)) for number, image in enumerate(images)}
    return [row(number, image) for number, image in enumerate(images)], files


def report_in(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in REPORT}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_missing_images_are_counted_and_a_rerun_checks_only_those_that_came(tmp_path):
    rows, files = dataset()
    late = {image: data for number, (image, data) in enumerate(files.items()) if number % 10 in (3, 6, 9)}
    root, output = put(tmp_path / "root", {i: data for i, data in files.items() if i not in late}), tmp_path / "out"
    coverage, report = verify(rows, ImageRoots([root]), output, workers=0)
    counts = {source: of["missing"] for source, of in report["sources"].items()}
    assert counts == {"coco": 2, "lcs": 2, "ocr_vqa": 4, "sam": 4}
    assert report["total"] == {"expected": 40, "found": 28, "corrupt": 0, "missing": 12, "unsafe": 0}
    assert (report["rows"], report["usable_rows"], report["share"]) == (40, 28, 0.7)
    assert report["sources"]["sam"]["missing_from"] == {"sa_000000.tar (by its number)": 4}
    assert json.loads((output / "coverage.json").read_text()) == report
    lost = lines(output / "lost.jsonl")
    assert [(entry["row"], entry["image"]) for entry in lost] == [(list(files).index(image), image) for image in late]
    assert lost[0]["archive"] == "OCR-VQA's download script" and lost[0]["state"] == "missing"
    with pytest.raises(CoverageError, match=r"28 of 40 images are usable \(70.00%, below 80.00%\)"):
        coverage.require(0.8)
    coverage.require(0.7)

    put(root, late)
    known = next(iter(files))  # a check would now fail
    replace_in_place(root / known, bytes(len(files[known])))
    coverage, report = verify(rows, ImageRoots([root]), output, workers=0)
    assert report["total"] == {"expected": 40, "found": 40, "corrupt": 0, "missing": 0, "unsafe": 0}
    assert (report["usable_rows"], lines(output / "lost.jsonl")) == (40, [])
    coverage.require(1.0)
    os.utime(root / known)
    assert verify(rows, ImageRoots([root]), output, workers=0)[1]["total"]["corrupt"] == 1


def test_a_bad_image_is_tried_again_even_if_its_file_looks_the_same(tmp_path):
    good = encoded()
    root = put(tmp_path / "root", {"mine/a.jpg": bytes(len(good))})
    _, report = verify([row(1, "mine/a.jpg")], ImageRoots([root]), tmp_path / "out", workers=0)
    assert (report["total"]["corrupt"], report["usable_rows"]) == (1, 0)
    assert lines(tmp_path / "out/lost.jsonl") == [
        {
            **{"state": "corrupt", "row": 0, "image": "mine/a.jpg"},
            "reason": "UnidentifiedImageError: cannot identify image file",
        }
    ]
    replace_in_place(root / "mine/a.jpg", good)
    _, report = verify([row(1, "mine/a.jpg")], ImageRoots([root]), tmp_path / "out", workers=0)
    assert (report["total"]["corrupt"], report["usable_rows"]) == (0, 1)


def test_unsafe_paths_are_reported_with_their_row_and_never_read(tmp_path):
    root = put(tmp_path, {"secret.jpg": encoded(), "root/a.jpg": encoded()}) / "root"
    images = ["a.jpg", "../secret.jpg", "/etc/passwd", "half\ud800.jpg", "%2e%2e/secret.jpg"]
    rows = [row(number, image) for number, image in enumerate(images)]
    _, report = verify(rows, ImageRoots([root]), tmp_path / "out", workers=0)
    assert report["total"] == {"expected": 5, "found": 1, "corrupt": 0, "missing": 0, "unsafe": 4}
    lost = lines(tmp_path / "out/lost.jsonl")
    assert [(entry["row"], entry["image"], entry["state"]) for entry in lost] == [
        (number, image, "unsafe") for number, image in enumerate(images) if number
    ]


def test_rows_are_usable_when_all_of_their_images_are(tmp_path):
    root = put(tmp_path / "root", {"a.jpg": encoded(1), "b.jpg": encoded(2), "bad.jpg": b"text"})
    rows = [
        row(1, "a.jpg"),
        row(2),
        row(3, "a.jpg", "b.jpg"),
        row(4, "a.jpg", "gone.jpg"),
        row(5, "bad.jpg", "bad.jpg"),
    ]
    coverage, report = verify(iter(rows), ImageRoots([root]), tmp_path / "out", workers=0)
    assert (report["rows"], report["usable_rows"]) == (5, 3)
    assert report["total"] == {"expected": 4, "found": 2, "corrupt": 1, "missing": 1, "unsafe": 0}
    assert [(lost.image, lost.row) for lost in coverage.lost] == [("gone.jpg", 3), ("bad.jpg", 4)]


def test_caption_rows_are_checked_too(tmp_path):
    root = put(tmp_path / "root", {"a.jpg": encoded()})
    caption = {"id": "1", "image": "a.jpg", "source": "other", "caption": "A cat."}
    _, report = verify([caption], ImageRoots([root]), tmp_path / "out", workers=0)
    assert (report["usable_rows"], report["total"]["found"]) == (1, 1)


def test_text_alone_needs_no_images(tmp_path):
    _, report = verify([row(1), row(2)], ImageRoots([tmp_path]), tmp_path / "out", workers=0)
    assert (report["rows"], report["usable_rows"], report["share"], report["sources"]) == (2, 2, 1.0, {})


def test_ids_that_occur_twice_are_listed_with_their_rows(tmp_path):
    rows = [row(name) for name in ("a", "b", "a", "a")]
    _, report = verify(rows, ImageRoots([tmp_path]), tmp_path / "out", workers=0)
    assert report["repeated_ids"] == 2
    assert lines(tmp_path / "out/duplicates.jsonl") == [{"id": "a", "rows": [0, 2]}, {"id": "a", "rows": [0, 3]}]


def test_one_picture_under_two_names_is_listed(tmp_path):
    files = {"a.jpg": encoded(1, (96, 64)), "b.jpg": encoded(2), "c.png": encoded(1, (48, 32), "PNG"), "d.jpg": b""}
    root = put(tmp_path / "root", files)
    rows = [row(number, image) for number, image in enumerate(files)]
    _, report = verify(rows, ImageRoots([root]), tmp_path / "out", workers=0)
    assert report["duplicate_images"] == 1 and report["total"]["found"] == 3
    assert lines(tmp_path / "out/duplicates.jsonl") == [{"images": ["a.jpg", "c.png"], "rows": [0, 2]}]


def test_pictures_of_a_benchmark_are_listed_and_stop_the_work(tmp_path, caplog):
    root = put(tmp_path / "root", {f"{number}.jpg": encoded(number, (96, 64)) for number in range(4)})
    rows = [row(number, f"{number}.jpg") for number in range(4)]
    put(tmp_path / "one", {"val/1.png": encoded(1, kind="PNG"), "val/bad.jpg": b"text"})
    put(tmp_path / "two", {"val/1.png": encoded(3, kind="PNG"), "notes.txt": b"text"})  # the same path again
    pack_zip(tmp_path / "two/more.zip", {"2.jpg": encoded(2)})
    exclude = ImageRoots([tmp_path / "one", tmp_path / "two"])
    _, report = verify(rows, ImageRoots([root]), tmp_path / "out", exclude, workers=0)
    assert report["overlap"] == 3
    assert lines(tmp_path / "out/overlap.jsonl") == [
        {"image": "1.jpg", "row": 1, "excluded": "val/1.png"},
        {"image": "2.jpg", "row": 2, "excluded": "more/2.jpg"},
        {"image": "3.jpg", "row": 3, "excluded": "val/1.png"},
    ]
    assert "1 excluded images cannot be read, first: val/bad.jpg." in caplog.messages
    with pytest.raises(OverlapError, match=r"3 images look like excluded ones, see .*/out/overlap.jsonl"):
        require_no_overlap(report, tmp_path / "out")
    _, report = verify(rows[:1], ImageRoots([root]), tmp_path / "out", exclude, workers=0)
    require_no_overlap(report, tmp_path / "out")
    assert lines(tmp_path / "out/overlap.jsonl") == []


def test_an_excluded_folder_without_images_is_a_mistake(tmp_path):
    with (
        CheckedImages(tmp_path / "images.sqlite") as store,
        pytest.raises(ValueError, match=f"There are no images to exclude in {tmp_path}"),
    ):
        hash_all(ImageRoots([tmp_path]), store, workers=0)


def test_a_distance_out_of_range_is_refused_before_anything_is_read(tmp_path):
    rows = iter([row(1)])
    with pytest.raises(ValueError, match="`distance` must be 0 to 16"):
        verify(rows, ImageRoots([tmp_path]), tmp_path / "out", distance=99, workers=0)
    assert next(rows) == row(1)


def test_problems_of_archives_are_reported_for_each_of_them(tmp_path):
    paths = [tmp_path / folder / "images.zip" for folder in ("root/vg", "root/gqa", "bench")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"cut off")
    put(tmp_path / "bench", {"a.jpg": encoded()})
    roots, exclude = ImageRoots([tmp_path / "root"]), ImageRoots([tmp_path / "bench"])
    _, report = verify([], roots, tmp_path / "out", exclude, workers=0)
    assert report["archives"].keys() == set(map(str, paths))
    assert all("Fetch it again" in problem for problems in report["archives"].values() for problem in problems)


def messy(folder: Path) -> tuple[list[dict], ImageRoots, ImageRoots]:
    """A dataset with one of everything."""
    rows, files = dataset(20)
    del files[rows[4]["images"][0]]
    files[rows[5]["images"][0]] = b"no image"
    files[rows[6]["images"][0]] = files[rows[7]["images"][0]]
    packed = {Path(image).name: files.pop(image) for image in list(files) if image.startswith("sam/")}
    root = put(folder / "root", files)
    pack_tar(root / "sam/sa_000000.tar", packed)
    rows += [row(3), row("unsafe", "../a.jpg")]
    return rows, ImageRoots([root]), ImageRoots([put(folder / "bench", {"b.png": encoded(8, (64, 64), "PNG")})])


def test_the_report_is_the_same_with_and_without_workers(tmp_path):
    rows, roots, exclude = messy(tmp_path)
    for workers in (0, 2):
        _, report = verify(rows, roots, tmp_path / f"out{workers}", exclude, workers=workers)
    assert report_in(tmp_path / "out0") == report_in(tmp_path / "out2")
    total = {"expected": 21, "found": 18, "corrupt": 1, "missing": 1, "unsafe": 1}
    assert (report["total"], report["duplicate_images"], report["overlap"]) == (total, 1, 1)
    assert (report["repeated_ids"], report["usable_rows"]) == (1, 19)


class Poison(str):
    """Name of a file that ends every process it is sent to."""

    def __reduce__(self) -> tuple:
        return os._exit, (1,)


def test_an_image_that_ends_its_worker_costs_nothing_but_itself(tmp_path):
    put(tmp_path, {f"{number}.jpg": encoded(number) for number in range(4)})
    images = {name: ImageRoots([tmp_path]).locate(name) for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg")}
    images["1.jpg"] = Located(Poison(tmp_path / "1.jpg"), images["1.jpg"].size, images["1.jpg"].mtime_ns)
    with CheckedImages(tmp_path / "images.sqlite") as store:
        check_all(images, store, workers=1)
        checks = {name: store[name, located] for name, located in images.items()}
    assert (
        checks.pop("1.jpg").problem == f"decoding {tmp_path}/1.jpg ended the worker process (crash or out of memory)"
    )
    assert checks == {name: check_image(images[name]) for name in checks}


CHILD = """
import sys
from dataset_scripts.images import ImageRoots
from dataset_scripts.verify import verify
from tests.dataset_scripts.test_verify import dataset

rows, _ = dataset(int(sys.argv[3]))
verify(rows, ImageRoots([sys.argv[1]]), sys.argv[2], workers=0)
"""


def test_a_killed_check_goes_on_where_it_was(tmp_path):
    rows, files = dataset(600)
    files[rows[550]["images"][0]] = b"no image"
    del files[rows[560]["images"][0]]
    root, output = put(tmp_path / "root", files), tmp_path / "out"
    arguments = [sys.executable, "-c", CHILD, root, output, str(len(rows))]
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL) as child:
        log, deadline = output / "images.sqlite-wal", time.monotonic() + 60
        while not (log.exists() and log.stat().st_size > 20_000) and time.monotonic() < deadline:
            time.sleep(0.002)  # until the first outcomes are on the disk
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and not (output / "coverage.json").exists()
    _, expected = verify(rows, ImageRoots([root]), tmp_path / "undisturbed", workers=0)

    done = next(iter(files))
    replace_in_place(root / done, bytes(len(files[done])))  # not looked at again
    _, report = verify(rows, ImageRoots([root]), output, workers=0)
    assert report == expected and report_in(output) == report_in(tmp_path / "undisturbed")
    assert report["total"] == {"expected": 600, "found": 598, "corrupt": 1, "missing": 1, "unsafe": 0}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "report.txt"
    write_text(path, "old é\n")
    write_text(path, "new é\n")
    assert path.read_bytes() == "new é\n".encode() and path.stat().st_mode & 0o777 == 0o644
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "text")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "inside", "new", "report.txt"]


def test_any_text_survives_in_a_report(tmp_path):
    entries = [{"image": "a\ud800b\udcff.jpg"}, {"image": "Café\u2028猫😀.jpg"}, {"image": "\\ud800"}]
    write_lines(tmp_path / "lines.jsonl", entries)
    text = (tmp_path / "lines.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.split("\n") if line] == entries

"""Coverage: every image counts once, by source and state, and what is missing is named with its archive."""

import json
import os
from collections import Counter

import pytest

from dataset_scripts.coverage import Coverage, CoverageError, Lost
from dataset_scripts.images import ImageRoots
from tests.image_files import put


IMAGES = {
    "coco/train2017/1.jpg": "found",
    "coco/train2017/2.jpg": "missing",
    "sam/images/sa_1.jpg": "missing",
    "sam/images/sa_2.jpg": "missing",
    "sam/images/sa_20000.jpg": "missing",
    "sam/images/sa_30000.jpg": "found",
    "sam/images/sa_30001.jpg": "corrupt",
    "mine/a.jpg": "found",
    "mine/b.jpg": "missing",
    "../c.jpg": "unsafe",
}


@pytest.fixture
def coverage(tmp_path) -> Coverage:
    there = [image for image, state in IMAGES.items() if state in ("found", "corrupt")]
    roots = ImageRoots([put(tmp_path / "root", dict.fromkeys(there, b"image"))])
    coverage = Coverage()
    for row, (image, state) in enumerate(IMAGES.items()):
        located = coverage.find(row, image, roots)
        assert (located is not None) == (state in ("found", "corrupt"))
        if located is not None:
            assert located.file == f"{tmp_path}/root/{image}"
        if state == "corrupt":
            coverage.corrupt(row, image, "cut off")
    return coverage


def test_the_counts_are_exact_for_every_source(coverage):
    states = Counter(IMAGES.values())
    assert coverage.total == {"expected": 10, **states}
    assert coverage.share == 0.3
    assert coverage.as_dict() == {
        "share": 0.3,
        "total": {"expected": 10, "found": 3, "corrupt": 1, "missing": 5, "unsafe": 1},
        "sources": {
            "coco": {
                **{"expected": 2, "found": 1, "corrupt": 0, "missing": 1, "unsafe": 0},
                "missing_from": {"train2017.zip (COCO)": 1},
            },
            "other": {
                **{"expected": 3, "found": 1, "corrupt": 0, "missing": 1, "unsafe": 1},
                "missing_from": {"unknown": 1},
            },
            "sam": {
                **{"expected": 5, "found": 1, "corrupt": 1, "missing": 3, "unsafe": 0},
                "missing_from": {"sa_000000.tar (by its number)": 2, "sa_000001.tar (by its number)": 1},
            },
        },
    }
    assert json.loads(json.dumps(coverage.as_dict())) == coverage.as_dict()


def test_every_lost_image_is_listed_with_row_and_reason(coverage):
    expected = [(state, row, image) for row, (image, state) in enumerate(IMAGES.items()) if state != "found"]
    assert [(lost.state, lost.row, lost.image) for lost in coverage.lost] == expected
    reasons = {lost.image: lost.reason for lost in coverage.lost}
    assert reasons["mine/b.jpg"] == "no image root has it"
    assert reasons["sam/images/sa_30001.jpg"] == "cut off"
    assert reasons["../c.jpg"].endswith("has an empty, '.' or '..' part.")


def test_only_a_missing_image_has_an_archive():
    line = {"state": "missing", "row": 3, "image": "sam/images/sa_11187.jpg", "reason": "gone"}
    assert Lost(**line).as_dict() == {**line, "archive": "sa_000001.tar (by its number)"}
    line["state"] = "corrupt"
    assert Lost(**line).as_dict() == line


def test_a_link_that_leads_out_is_unsafe(tmp_path):
    put(tmp_path, {"a.jpg": b"image", "root/b.jpg": b""})
    os.symlink(tmp_path / "a.jpg", tmp_path / "root/a.jpg")
    coverage = Coverage()
    assert coverage.find(7, "a.jpg", ImageRoots([tmp_path / "root"])) is None
    assert coverage.total == {"expected": 1, "unsafe": 1}
    assert "another root" in coverage.lost[0].reason and coverage.lost[0].row == 7


def test_too_few_images_are_refused_with_the_table(coverage):
    coverage.require(0.0)
    coverage.require(0.3)
    with pytest.raises(CoverageError) as error:
        coverage.require(0.31)
    message = str(error.value)
    assert message.startswith(
        "3 of 10 images are usable (30.00%, below 31.00%). First lost: row 1: coco/train2017/2.jpg"
    )
    assert "(missing: no image root has it)" in message
    assert message.endswith(coverage.table())


def test_the_table_has_a_line_for_every_source_and_names_the_archives(coverage):
    lines = [line.split() for line in coverage.table().splitlines()]
    assert lines == [
        ["source", "expected", "found", "corrupt", "missing", "unsafe"],
        *(["coco", "2", "1", "0", "1", "0"], ["other", "3", "1", "0", "1", "1"], ["sam", "5", "1", "1", "3", "0"]),
        ["all", "10", "3", "1", "5", "1"],
        "missing of coco: train2017.zip (COCO): 1".split(),
        "missing of other: unknown: 1".split(),
        "missing of sam: sa_000000.tar (by its number): 2, sa_000001.tar (by its number): 1".split(),
    ]


def test_the_table_names_the_five_archives_that_hold_most(tmp_path):
    coverage, roots = Coverage(), ImageRoots([tmp_path])
    for tar in range(7):
        for number in range(tar + 1):
            coverage.find(0, f"sam/images/sa_{tar * 11_186 + number + 1}.jpg", roots)
    last = coverage.table().splitlines()[-1]
    assert last.startswith("missing of sam: sa_000006.tar (by its number): 7, sa_000005.tar")
    assert "sa_000002.tar (by its number): 3" in last and "sa_000001.tar" not in last and last.endswith(", 2 more")


def test_without_images_nothing_is_lacking():
    coverage = Coverage()
    assert coverage.share == 1.0 and coverage.total == {}
    coverage.require(1.0)
    assert coverage.as_dict()["sources"] == {}


def test_with_every_image_corrupt_none_is_usable(tmp_path):
    coverage, roots = Coverage(), ImageRoots([put(tmp_path, {"a.jpg": b""})])
    coverage.find(0, "a.jpg", roots)
    coverage.corrupt(0, "a.jpg", "empty")
    assert coverage.share == 0.0 and coverage.as_dict()["total"]["found"] == 0

"""The plan of a job: shards that stay as they are, images of any origin, and files that are read once."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from captioning.feed import Feed
from captioning.plan import FACTS, PLAN, make_plan, read_facts, read_plan, shard_of
from dataset_scripts.images import ImageRoots
from dataset_scripts.select_images import select
from tests.captioning.jobs import COCO, all_rows, done_by, endpoint_job, picture_file, put_pictures
from tests.image_files import encoded, pack_tar, pack_zip, put, replace_in_place


@pytest.fixture
def images(tmp_path):
    """Thirty pictures of one source."""
    return put_pictures(tmp_path / "images", range(30))


def plan(out: Path, *roots: Path, **options):
    """Plan a job on the images of folders."""
    return make_plan(out, ImageRoots(roots), **options)


def shards(out: Path) -> dict[str, int]:
    """Shard of every image by its path."""
    count = read_facts(out)["shards"]
    return {one.image: number for number in range(count) for one in read_plan(out, number)}


def hashes(out: Path) -> dict[str, str]:
    """Hash of every image by its path."""
    return {one.image: one.sha256 for one in read_plan(out)}


def test_every_image_is_in_the_shard_of_its_hash(tmp_path, images):
    facts = plan(tmp_path / "job", images)
    assert (facts["shards"], facts["images"], facts["distinct"], facts["sources"]) == (16, 30, 30, {"coco": 30})
    assert shards(tmp_path / "job") == {
        f"{COCO}/{number:012d}.jpg": shard_of(hashlib.sha256(picture_file(number)).hexdigest(), 16)
        for number in range(30)
    }


def test_images_that_come_go_or_are_renamed_leave_the_others_in_their_shards(tmp_path, images):
    out = tmp_path / "job"
    plan(out, images)
    before = shards(out)
    put_pictures(images, range(30, 90))
    (images / COCO / f"{3:012d}.jpg").unlink()
    (images / COCO / f"{4:012d}.jpg").rename(images / COCO / "other.jpg")
    facts, after = plan(out, images), shards(out)
    assert facts["shards"] == 16 and facts["images"] == 89
    gone = {f"{COCO}/{3:012d}.jpg", f"{COCO}/{4:012d}.jpg"}
    assert {image: after.get(image) for image in before} == {
        image: None if image in gone else shard for image, shard in before.items()
    }
    assert after[f"{COCO}/other.jpg"] == before[f"{COCO}/{4:012d}.jpg"]


def test_the_order_of_a_plan_does_not_depend_on_the_folders(tmp_path, images):
    others = put_pictures(tmp_path / "others", range(30, 40), "sam/images")
    digests = [plan(tmp_path / name, *roots)["digest"] for name, roots in (("a", (images, others)), ("b", (images,)))]
    assert digests[0] != digests[1]
    before = [one.image for one in read_plan(tmp_path / "a")]
    plan(tmp_path / "a", others, images)
    assert [one.image for one in read_plan(tmp_path / "a")] == before


def test_a_second_plan_reads_no_file_that_it_knows(tmp_path, images):
    out = tmp_path / "job"
    plan(out, images)
    before = hashes(out)
    # Other bytes that only reading can reveal: size and time of change are those of before.
    path = images / COCO / f"{5:012d}.jpg"
    replace_in_place(path, bytes(reversed(path.read_bytes())))
    put_pictures(images, [30])
    plan(out, images)
    after = hashes(out)
    assert {image: after[image] for image in before} == before and len(after) == 31


def test_a_second_plan_reads_a_file_that_has_changed(tmp_path, images):
    out = tmp_path / "job"
    plan(out, images)
    before = hashes(out)
    path = images / COCO / f"{5:012d}.jpg"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(0, 1))
    plan(out, images)
    changed = {image for image, sha256 in hashes(out).items() if sha256 != before[image]}
    assert changed == {f"{COCO}/{5:012d}.jpg"}


def test_the_same_picture_under_two_names_is_asked_about_once(tmp_path, images):
    put(images, {f"{COCO}/twin.jpg": picture_file(7)})
    out = tmp_path / "job"
    facts = plan(out, images)
    assert (facts["images"], facts["distinct"]) == (31, 30)
    feed = Feed(out, endpoint_job())
    assert set(Counter(done_by(feed, iter(feed))).values()) == {1} and len(all_rows(out)) == 30


def test_the_same_picture_of_two_sources_is_asked_about_on_both_prompts(tmp_path, images):
    put_pictures(images, [7], "sam/images")
    out = tmp_path / "job"
    plan(out, images)
    feed = Feed(out, endpoint_job())
    done_by(feed, iter(feed))
    twin = hashlib.sha256(picture_file(7)).hexdigest()
    assert {row.prompt_id for row in all_rows(out) if row.image_sha256 == twin} == {"v1/coco", "v1/sam"}
    assert len(all_rows(out)) == 31


def test_a_selection_is_planned_with_its_ids_and_sources(tmp_path, images):
    put_pictures(images, range(40, 45), "sam/images")
    select(ImageRoots([images]), tmp_path / "choice", {"coco": 6, "sam": 2}, seed=0, workers=0)
    facts = plan(tmp_path / "job", images, selection=tmp_path / "choice")
    planned = list(read_plan(tmp_path / "job"))
    assert facts["sources"] == {"coco": 6, "sam": 2} and all(len(one.phash) == 16 for one in planned)
    assert all(one.id == Path(one.image).stem for one in planned)


def test_a_selection_whose_images_are_elsewhere_names_the_first(tmp_path, images):
    select(ImageRoots([images]), tmp_path / "choice", {"coco": 2}, seed=0, workers=0)
    other = put_pictures(tmp_path / "other", [50])
    with pytest.raises(
        FileNotFoundError, match=rf"2 images of .*choice are in no image folder, first: {COCO}/\d+\.jpg"
    ):
        plan(tmp_path / "job", other, selection=tmp_path / "choice")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(("pack", "name"), [(pack_tar, "train2017.tar"), (pack_zip, "train2017.zip")])
def test_images_of_an_archive_are_planned_and_read_in_place(tmp_path, pack, name):
    files = {f"{number:012d}.jpg": picture_file(number) for number in range(5)}
    pack(tmp_path / "images/coco" / name, files)
    plan(tmp_path / "job", tmp_path / "images")
    planned = {one.image: one for one in read_plan(tmp_path / "job")}
    assert {image: one.read() for image, one in planned.items()} == {
        f"{COCO}/{name}": data for name, data in files.items()
    }


def test_a_file_that_changed_after_planning_fails_with_the_reason(tmp_path, images):
    out = tmp_path / "job"
    plan(out, images)
    (images / COCO / f"{1:012d}.jpg").write_bytes(encoded(99, (200, 200)))
    (images / COCO / f"{2:012d}.jpg").write_bytes(b"short")
    (images / COCO / f"{3:012d}.jpg").unlink()
    feed = Feed(out, endpoint_job())
    done_by(feed, iter(feed))
    names = {one.sha256: int(Path(one.image).stem) for one in read_plan(out)}
    errors = {names[row.image_sha256]: row.error for row in all_rows(out) if row.state == "failed"}
    assert "the file has changed since it was planned. Plan again" in errors.pop(1)
    assert "has become shorter than it was" in errors.pop(2) and "No such file" in errors.pop(3)
    assert not errors and len(all_rows(out)) == 30


def test_a_file_that_cannot_be_read_is_counted_and_named(tmp_path, images):
    path = pack_zip(images / "coco/train2017.zip", {"away.jpg": picture_file(31)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    facts = plan(tmp_path / "job", images)
    assert (facts["images"], facts["unreadable"]) == (30, 1)
    assert facts["first_unreadable"][0].startswith(f"{COCO}/away.jpg: ValueError")


def test_a_folder_without_images_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="There are no images in .*images"):
        plan(tmp_path / "job", tmp_path / "images")
    assert not (tmp_path / "job").exists()


def test_the_number_of_shards_is_kept(tmp_path, images):
    assert plan(tmp_path / "job", images, shards=3)["shards"] == 3
    with pytest.raises(ValueError, match="job has 3 shards, which cannot be changed. Leave the number out"):
        plan(tmp_path / "job", images, shards=4)
    assert plan(tmp_path / "job", images, shards=3)["shards"] == plan(tmp_path / "job", images)["shards"] == 3


def test_shards_without_an_image_are_there(tmp_path):
    plan(tmp_path / "job", put_pictures(tmp_path / "images", [0]), shards=5)
    assert sorted(len(list(read_plan(tmp_path / "job", number))) for number in range(5)) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_plan_that_was_cut_off_is_named_and_made_anew(tmp_path, images, part):
    out = tmp_path / "job"
    digest = plan(out, images)["digest"]
    path = out / PLAN
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"plan\.parquet is damaged: .*Delete it and plan again; captions are kept"):
        list(read_plan(out))
    with pytest.raises(ValueError, match="Delete it and plan again"):
        plan(out, images)
    path.unlink()
    assert plan(out, images)["digest"] == digest and len(list(read_plan(out))) == 30


def test_a_flipped_byte_of_a_plan_is_never_taken_for_another_image(tmp_path, images):
    out = tmp_path / "job"
    plan(out, images)
    good, whole = list(read_plan(out)), (out / PLAN).read_bytes()
    for at in range(0, len(whole), 97):
        (out / PLAN).write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            found = list(read_plan(out))
        except ValueError as error:
            assert "Delete it and plan again" in str(error)
        else:
            assert found == good


def test_damaged_facts_of_a_plan_are_named(tmp_path, images):
    out = tmp_path / "job"
    plan(out, images)
    (out / FACTS).write_text(json.dumps(read_facts(out))[:40], encoding="utf-8")
    with pytest.raises(ValueError, match=r"plan\.json is damaged: .*Delete it and plan again"):
        read_facts(out)


def test_a_plan_without_its_facts_keeps_the_number_of_shards(tmp_path, images):
    out = tmp_path / "job"
    facts = plan(out, images, shards=5)
    (out / FACTS).unlink()  # as an interruption between the two files leaves it
    with pytest.raises(FileNotFoundError, match="has no plan. Plan the job first"):
        Feed(out, endpoint_job())
    with pytest.raises(ValueError, match="has 5 shards, which cannot be changed"):
        plan(out, images, shards=4)
    assert plan(out, images) == facts


def test_a_folder_without_a_plan_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no plan"):
        list(read_plan(tmp_path))

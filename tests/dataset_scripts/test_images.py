"""Image roots: whichever way the archives were unpacked, or not, a record's image is found, and nothing else is."""

import os
import unicodedata
import zipfile
from pathlib import Path

import pytest

from dataset_scripts.archives import read_located
from dataset_scripts.images import ImageRoots
from dataset_scripts.layouts import LAYOUTS, archive_of, folders_of
from tests.image_files import pack_tar, pack_zip, put, tar_member


RECORDS = {
    "coco/train2017/000000000009.jpg": "train2017/000000000009.jpg",
    "llava/llava_pretrain/images/00011/000114116.jpg": "00011/000114116.jpg",
    "sam/images/sa_545504.jpg": "sa_545504.jpg",
    "share_textvqa/images/0054c91397f2fe05.jpg": "data/share_textvqa/images/0054c91397f2fe05.jpg",
    "web-celebrity/images/Luke_Evans.jpg": "data/web-celebrity/images/Luke_Evans.jpg",
    "web-landmark/images/Eiffel_Tower.jpg": "data/web-landmark/images/Eiffel_Tower.jpg",
    "wikiart/images/félix_1.jpg": "data/wikiart/images/félix_1.jpg",
    "gqa/images/2354786.jpg": "images/2354786.jpg",
    "ocr_vqa/images/0060723961.jpg": "images/0060723961.jpg",
    "textvqa/train_images/011e7e629fb9ae7b.jpg": "train_images/011e7e629fb9ae7b.jpg",
    "vg/VG_100K/2338986.jpg": "VG_100K/2338986.jpg",
    "vg/VG_100K_2/107899.jpg": "VG_100K_2/107899.jpg",
}  # what the records say, and the member of the archive it comes in
BY_PREFIX = {layout.prefix: record for layout in LAYOUTS for record in RECORDS if record.startswith(layout.prefix)}


def found(roots: ImageRoots, image: str) -> bytes | None:
    located = roots.locate(image)
    return None if located is None else read_located(located)


def everything(roots: ImageRoots) -> dict[str, bytes]:
    """What a scan lists; each entry must be found by its path, too."""
    listed = {image: read_located(located) for image, located in roots.scan()}
    assert {image: found(roots, image) for image in listed} == listed
    return listed


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.prefix)
def test_every_place_of_a_layout_is_searched_and_scanned(tmp_path, layout):
    record = BY_PREFIX[layout.prefix]
    for number, folder in enumerate(folders_of(layout)):
        root = put(tmp_path / str(number), {folder + record.removeprefix(layout.prefix): b"image", "notes.txt": b""})
        assert everything(ImageRoots([root])) == {record: b"image"}, folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.prefix)
def test_the_folder_of_a_source_may_be_the_root(tmp_path, layout):
    record = BY_PREFIX[layout.prefix]
    for number, folder in enumerate(filter(None, folders_of(layout))):
        put(tmp_path / str(number), {folder + record.removeprefix(layout.prefix): b"image"})
        for root in [tmp_path / str(number) / folder, (tmp_path / str(number) / folder).parent]:
            assert everything(ImageRoots([root])) == {record: b"image"}, root


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("beside", [True, False], ids=["in its folder", "at the root"])
def test_the_archives_of_the_release_are_read_in_place(tmp_path, record, method, beside):
    archive = archive_of(record).split(" ")[0]
    name = archive if archive.endswith((".zip", ".tar")) else "images.zip"
    source = record.split("/")[0]
    folders = {"llava": "llava/llava_pretrain/", "sam": "sam/images/"}
    folder = folders.get(source, f"{source}/") if beside else ""
    pack = pack_tar if name.endswith(".tar") else lambda *given: pack_zip(*given, method)
    pack(tmp_path / folder / name, {RECORDS[record]: b"image", "readme.txt": b"text"})
    roots = ImageRoots([tmp_path])
    if name == "images.zip" and not beside and not record.startswith("vg/"):
        assert found(roots, record) is None  # it could be of LLaVA-Pretrain, GQA or OCR-VQA
        assert list(roots.scan())[0][1] == roots.archives[0].members[RECORDS[record]]
    else:
        assert everything(roots) == {record: b"image"}


@pytest.mark.parametrize(
    "archive",
    ["sa_000048.tar", "sam/sa_000048.tar", "sam/images/sa_000048.tar", "SA-1B/sa_000048.tar", "sam/raw.tar"]
    + ["data/sam/sa_000048.tar", "sam_images_share-sft.tar", "sam/images/sam_images_share-sft.tar"],
)
def test_tar_files_of_sa1b_are_read_in_place(tmp_path, archive):
    pack_tar(tmp_path / archive, {"./sa_545504.jpg": b"image"}, tar_member("./sa_545504.json", b"{}"))
    assert everything(ImageRoots([tmp_path])) == {"sam/images/sa_545504.jpg": b"image"}


def test_tar_files_of_sa1b_with_a_folder_inside_are_read_in_place(tmp_path):
    pack_tar(tmp_path / "sam/sa_000048.tar", {"sa_000048/sa_545504.jpg": b"image"})
    assert everything(ImageRoots([tmp_path])) == {"sam/images/sa_545504.jpg": b"image"}


@pytest.mark.parametrize("folder", ["", "sam/", "sam/images/", "SA-1B/", "data/sam/images/"])
def test_tar_files_of_sa1b_may_be_unpacked_each_into_its_folder(tmp_path, folder):
    put(tmp_path, {f"{folder}sa_0000{number:02d}/sa_{number}.jpg": b"image" for number in range(51)})
    roots = ImageRoots([tmp_path])
    assert everything(roots) == {f"sam/images/sa_{number}.jpg": b"image" for number in range(51)}
    assert roots.locate("sam/images/sa_51.jpg") is None


def test_only_files_named_as_of_sa1b_count_as_such_in_the_root(tmp_path):
    put(tmp_path, {"sa_1.jpg": b"1", "cat.jpg": b"2", "mine/sa_2.jpg": b"3"})
    assert everything(ImageRoots([tmp_path])) == {"sam/images/sa_1.jpg": b"1", "cat.jpg": b"2", "mine/sa_2.jpg": b"3"}


@pytest.mark.parametrize("archive", ["00011.tar", "images/00011.tar", "images.zip"])
@pytest.mark.parametrize("member", ["000114116.jpg", "00011/000114116.jpg"])
def test_shards_of_llava_pretrain_are_read_in_place_with_and_without_folders(tmp_path, archive, member):
    pack = pack_zip if archive.endswith(".zip") else pack_tar
    pack(tmp_path / "llava/llava_pretrain" / archive, {member: b"image"})
    assert everything(ImageRoots([tmp_path])) == {"llava/llava_pretrain/images/00011/000114116.jpg": b"image"}


def test_images_of_llava_pretrain_may_lie_flat(tmp_path):
    put(tmp_path, {"LLaVA-Pretrain/images/000114116.jpg": b"image"})
    assert everything(ImageRoots([tmp_path])) == {"llava/llava_pretrain/images/00011/000114116.jpg": b"image"}


@pytest.mark.parametrize("suffix", [".jpeg", ".JPG", ".png", ".gif", ".webp", ".jpg"])
def test_images_of_ocr_vqa_may_have_another_suffix(tmp_path, suffix):
    put(tmp_path, {f"ocr_vqa/images/0060723961{suffix}": b"image"})
    roots = ImageRoots([tmp_path])
    assert found(roots, "ocr_vqa/images/0060723961.jpg") == b"image"
    assert found(roots, "ocr_vqa/images/006072396.jpg") is None


def test_the_suffix_of_the_record_comes_first(tmp_path):
    put(tmp_path, {"ocr_vqa/images/1.png": b"png", "data/ocr_vqa/images/1.jpg": b"jpg"})
    assert found(ImageRoots([tmp_path]), "ocr_vqa/images/1.jpg") == b"jpg"


@pytest.mark.parametrize("folder", ["wikiart/images", "mine"])
@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("packed", [True, False], ids=["zip", "file"])
def test_accents_may_be_composed_or_not(tmp_path, folder, stored, asked, packed):
    stored, asked = (f"{folder}/" + unicodedata.normalize(form, "Fé.jpg") for form in (stored, asked))
    if packed:
        pack_zip(tmp_path / "images.zip", {stored: b"image"})
    else:
        put(tmp_path, {stored: b"image"})
    assert found(ImageRoots([tmp_path]), asked) == b"image"


@pytest.mark.parametrize("folder", ["", "data/"])
def test_folders_unknown_to_the_release_are_searched_as_they_are(tmp_path, folder):
    put(tmp_path, {f"{folder}mine/a.png": b"image"})
    roots = ImageRoots([tmp_path])
    assert found(roots, "mine/a.png") == b"image"
    assert roots.locate("mine/b.png") is None and roots.locate("a.png") is None


def test_an_images_folder_of_unknown_source_is_not_guessed_at(tmp_path):
    put(tmp_path, {"images/00011/000114116.jpg": b"image", "images/1.jpg": b"image"})
    roots = ImageRoots([tmp_path])
    for image in ("llava/llava_pretrain/images/00011/000114116.jpg", "gqa/images/1.jpg", "ocr_vqa/images/1.jpg"):
        assert roots.locate(image) is None


def test_the_documented_folder_comes_first_then_other_folders_then_archives(tmp_path):
    image = "vg/VG_100K/1.jpg"
    pack_zip(tmp_path / "vg/images.zip", {"VG_100K/1.jpg": b"packed"})
    assert found(ImageRoots([tmp_path]), image) == b"packed"
    put(tmp_path, {"VG_100K/1.jpg": b"other"})
    put(tmp_path, {"vg/VG_100K/1.jpg": b"documented"})
    assert found(ImageRoots([tmp_path]), image) == b"documented"
    (tmp_path / "vg/VG_100K/1.jpg").unlink()
    (tmp_path / "vg/images.zip").unlink()
    assert found(ImageRoots([tmp_path]), image) == b"other"


def test_roots_are_searched_in_the_order_given(tmp_path):
    first, second = (put(tmp_path / name, {"mine/a.jpg": name.encode()}) for name in ("one", "two"))
    put(second, {"sam/images/sa_1.jpg": b"sam"})
    assert found(ImageRoots([first, second]), "mine/a.jpg") == b"one"
    assert found(ImageRoots([second, first]), "mine/a.jpg") == b"two"
    assert found(ImageRoots([first, second]), "sam/images/sa_1.jpg") == b"sam"


def test_a_scan_lists_files_of_the_same_path_in_two_roots_both(tmp_path):
    roots = ImageRoots(put(tmp_path / name, {"val/1.jpg": name.encode()}) for name in ("one", "two"))
    assert [(image, read_located(where)) for image, where in roots.scan()] == [
        ("val/1.jpg", b"one"),
        ("val/1.jpg", b"two"),
    ]


def test_a_scan_has_the_same_order_on_every_disk(tmp_path):
    names = [f"{number * 7 % 30:02d}/{side}.jpg" for number in range(30) for side in "ba"]
    put(tmp_path, dict.fromkeys(names, b""))
    pack_tar(tmp_path / "b.tar", {"31/a.jpg": b""})
    pack_tar(tmp_path / "a.tar", {"32/a.jpg": b""})
    assert [image for image, _ in ImageRoots([tmp_path]).scan()] == [*sorted(names), "a/32/a.jpg", "b/31/a.jpg"]


def test_a_scan_lists_what_lies_in_two_roots_once(tmp_path):
    put(tmp_path, {"mine/a.jpg": b"image"})
    pack_zip(tmp_path / "mine/more.zip", {"b.jpg": b"image"})
    roots = ImageRoots([tmp_path, tmp_path / "mine"])
    assert sorted(where.file for _, where in roots.scan()) == [f"{tmp_path}/mine/a.jpg", f"{tmp_path}/mine/more.zip"]


def test_many_files_in_a_folder_are_found_and_scanned_in_order(tmp_path):
    folder = tmp_path / "sam/images"
    folder.mkdir(parents=True)
    for number in range(10_001):
        os.mknod(folder / f"sa_{number:06d}.jpg")
    roots = ImageRoots([tmp_path])
    images = [f"sam/images/sa_{number:06d}.jpg" for number in range(10_001)]
    assert [image for image, _ in roots.scan()] == images
    assert all(roots.locate(image) is not None for image in images)


@pytest.mark.parametrize("image", ["../secret.jpg", "sam/images/../../../secret.jpg", "/etc/a.jpg", "%2e%2e/a.jpg"])
def test_a_path_that_leads_out_is_refused(tmp_path, image):
    put(tmp_path, {"secret.jpg": b"secret", "root/a.jpg": b""})
    with pytest.raises(ValueError, match="image path"):
        ImageRoots([tmp_path / "root"]).locate(image)


@pytest.mark.parametrize("linked", ["sam/images/sa_1.jpg", "sam/images", "sam"])
def test_a_link_that_leads_out_is_refused_until_its_target_is_a_root(tmp_path, linked):
    outside = put(tmp_path / "disk", {"sam/images/sa_1.jpg": b"image"})
    root = tmp_path / "root"
    (root / linked).parent.mkdir(parents=True)
    (root / linked).symlink_to(outside / linked)
    roots = ImageRoots([root])
    for use in (lambda: roots.locate("sam/images/sa_1.jpg"), lambda: list(roots.scan())):
        with pytest.raises(ValueError, match=r"leads out of the image roots to .*/disk/sam.*as another root\.$"):
            use()
    assert found(ImageRoots([root, outside]), "sam/images/sa_1.jpg") == b"image"
    assert {image for image, _ in ImageRoots([root, outside]).scan()} == {"sam/images/sa_1.jpg"}


def test_a_linked_archive_that_leads_out_is_a_problem_until_its_target_is_a_root(tmp_path, caplog):
    target = pack_tar(tmp_path / "disk/blob", {"sa_1.jpg": b"image"})
    root = tmp_path / "root"
    root.mkdir()
    (root / "sa_000000.tar").symlink_to(target)
    roots = ImageRoots([root])
    assert roots.locate("sam/images/sa_1.jpg") is None
    assert "give the folder it leads to as another root" in roots.archives[0].problems[0] == caplog.messages[0]
    assert found(ImageRoots([root, tmp_path / "disk"]), "sam/images/sa_1.jpg") == b"image"


def test_a_root_may_be_a_link(tmp_path):
    put(tmp_path / "disk/coco", {"train2017/1.jpg": b"image"})
    (tmp_path / "link").symlink_to(tmp_path / "disk/coco")
    assert everything(ImageRoots([tmp_path / "link"])) == {"coco/train2017/1.jpg": b"image"}


def test_a_link_inside_a_root_is_followed(tmp_path):
    put(tmp_path, {"disk/a.jpg": b"image"})
    (tmp_path / "mine").symlink_to(tmp_path / "disk")
    roots = ImageRoots([tmp_path])
    assert found(roots, "mine/a.jpg") == b"image"
    assert [image for image, _ in roots.scan()] == ["disk/a.jpg"]


def test_a_link_to_nothing_is_missing_and_the_next_place_is_tried(tmp_path):
    root = put(tmp_path, {"data/mine/a.jpg": b"image"})
    (root / "mine").mkdir()
    (root / "mine/a.jpg").symlink_to(root / "gone.jpg")
    (root / "mine/b.jpg").symlink_to("/nowhere/gone.jpg")
    roots = ImageRoots([root])
    assert found(roots, "mine/a.jpg") == b"image"
    assert roots.locate("mine/b.jpg") is None
    assert [image for image, _ in roots.scan()] == ["data/mine/a.jpg"]


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg cannot be looked up: Too many levels"):
        ImageRoots([tmp_path]).locate("a.jpg")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg is no regular file"):
        ImageRoots([tmp_path]).locate("a.jpg")


def test_an_archive_that_is_a_pipe_or_damaged_does_not_hide_the_others(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    pack_tar(tmp_path / "c.tar", {"mine/a.jpg": b"image"})
    roots = ImageRoots([tmp_path])
    assert found(roots, "mine/a.jpg") == b"image"
    assert [bool(archive.problems) for archive in roots.archives] == [True, True, False]


@pytest.mark.parametrize("image", ["mine/" + "a" * 300, "sam/images/" + "é" * 200 + ".jpg", "a/" * 500 + "b.jpg"])
def test_a_name_too_long_for_the_disk_is_missing(tmp_path, image):
    put(tmp_path, {"mine/a.jpg": b"", "sam/images/a.jpg": b""})
    assert ImageRoots([tmp_path]).locate(image) is None


def test_a_name_too_long_for_the_disk_is_found_in_an_archive(tmp_path):
    image = "mine/" + "a" * 300 + ".jpg"
    pack_tar(tmp_path / "a.tar", {image: b"image"})
    assert found(ImageRoots([tmp_path]), image) == b"image"


def test_a_name_that_is_not_utf8_ends_a_scan_with_a_remedy(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    with pytest.raises(ValueError, match=r"The name '.*\\udcff.jpg' is not UTF-8. Rename it."):
        list(ImageRoots([tmp_path]).scan())


def test_archives_deep_below_a_root_are_not_searched(tmp_path):
    pack_tar(tmp_path / "1/2/3/4/a.tar", {"b.jpg": b"image"})
    pack_tar(tmp_path / "1/2/3/4/5/a.tar", {"b.jpg": b"image"})
    assert [archive.path for archive in ImageRoots([tmp_path]).archives] == [tmp_path / "1/2/3/4/a.tar"]


def test_roots_that_are_no_folders_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "absent"):
        with pytest.raises(FileNotFoundError, match=f"The image root .*/{name} is no folder"):
            ImageRoots([tmp_path, tmp_path / name])
    with pytest.raises(ValueError, match="At least one image root"):
        ImageRoots([])


@pytest.mark.parametrize(
    ("image", "archive"),
    [
        *(("sam/images/sa_1.jpg", "sa_000000.tar"), ("sam/images/sa_11186.jpg", "sa_000000.tar")),
        *(("sam/images/sa_11187.jpg", "sa_000001.tar"), ("sam/images/sa_570486.jpg", "sa_000050.tar")),
        *(("sam/images/sa_0.jpg", "SA-1B"), ("sam/images/sa_².jpg", "SA-1B"), ("sam/images/cat.jpg", "SA-1B")),
        *(("coco/train2017/1.jpg", "train2017.zip"), ("vg/VG_100K_2/1.jpg", "images2.zip"), ("a/1.jpg", "unknown")),
        *(("web-landmark/images/a.jpg", "web-landmakr.zip"), ("coco/val2017/1.jpg", "unknown")),
    ],
)
def test_the_archive_of_an_image_is_named(image, archive):
    assert archive_of(image).split(" ")[0] == archive

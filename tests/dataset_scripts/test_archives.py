"""Archives read in place: what was packed comes out, and no hostile or damaged archive does harm."""

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_scripts.archives import MAX_IMAGE_BYTES, Located, is_archive, list_archive, read_located
from tests.image_files import encoded, pack_tar, pack_zip, put, tar_header, tar_member


IMAGES = {"a.jpg": encoded(1), "sub/b.png": encoded(2, kind="PNG"), "sub/Café 猫.JPG": encoded(3), "empty.gif": b""}
ODD_KINDS = ("SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "GNUTYPE_SPARSE")
END = bytes(2 * tarfile.BLOCKSIZE)


def pack_deflated(path: Path, images: dict[str, bytes]) -> Path:
    return pack_zip(path, images, zipfile.ZIP_DEFLATED)


PACKERS = {"images.tar": pack_tar, "stored.zip": pack_zip, "deflated.zip": pack_deflated}


def contents(path: Path) -> dict[str, bytes]:
    return {name: read_located(located) for name, located in list_archive(path).members.items()}


def blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize(("name", "pack"), PACKERS.items())
def test_the_bytes_are_those_that_were_packed(tmp_path, name, pack):
    path = pack(tmp_path / name, {**IMAGES, "sub/readme.txt": b"text", "__MACOSX/._a.jpg": b"fork"})
    assert contents(path) == IMAGES
    assert list_archive(path).problems == []
    status = path.stat()
    for name, located in list_archive(path).members.items():
        assert (located.file, located.mtime_ns) == (str(path), status.st_mtime_ns)
        assert located.size == len(IMAGES[name])


@settings(deadline=None, max_examples=20)
@given(st.dictionaries(st.from_regex(r"\A[a-zé]{1,9}\.jpg\Z"), st.binary(max_size=2000), max_size=5))
def test_any_bytes_come_back(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("any")
    for name, pack in PACKERS.items():
        assert contents(pack(folder / name, images)) == images


@pytest.mark.parametrize("flavour", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_flavour_of_tar_is_read(tmp_path, flavour):
    long = "/".join(["folder"] * 20) + "/c.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=flavour) as tar:
        for name in ("a.jpg", long):
            tar.addfile(*(lambda info, data: (info, io.BytesIO(data)))(*tar_member(name, IMAGES["a.jpg"])))
    assert contents(tmp_path / "a.tar") == {"a.jpg": IMAGES["a.jpg"], long: IMAGES["a.jpg"]}


def test_zip64_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle, bundle.open("a.jpg", "w", force_zip64=True) as stream:
        stream.write(IMAGES["a.jpg"])
    assert contents(tmp_path / "a.zip") == {"a.jpg": IMAGES["a.jpg"]}


class Pipe(io.BytesIO):
    def tell(self) -> int:
        raise OSError("a pipe has no position")


def test_a_zip_written_to_a_pipe_is_read(tmp_path):
    with Pipe() as pipe:
        with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("a.jpg", IMAGES["a.jpg"])
        (tmp_path / "a.zip").write_bytes(pipe.getvalue())
    with zipfile.ZipFile(tmp_path / "a.zip") as bundle:
        assert bundle.getinfo("a.jpg").flag_bits & 8  # sizes and checksum stand behind the data only
    assert contents(tmp_path / "a.zip") == {"a.jpg": IMAGES["a.jpg"]}


def test_a_zip_behind_other_data_is_read(tmp_path):
    data = pack_zip(tmp_path / "a.zip", IMAGES).read_bytes()
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + data)
    assert contents(tmp_path / "a.zip") == IMAGES


def test_names_in_utf8_that_do_not_say_so_are_read(tmp_path):
    path = pack_zip(tmp_path / "a.zip", {"f__lix.jpg": IMAGES["a.jpg"], "├⌐.jpg": IMAGES["a.jpg"]})
    path.write_bytes(path.read_bytes().replace(b"f__lix.jpg", "félix.jpg".encode()))
    assert list(list_archive(path).members) == ["félix.jpg", "├⌐.jpg"]  # the second says so


def test_names_in_the_old_code_page_are_read_too(tmp_path):
    path = pack_zip(tmp_path / "a.zip", {"f_lix.jpg": IMAGES["a.jpg"]})
    path.write_bytes(path.read_bytes().replace(b"f_lix.jpg", "félix.jpg".encode("cp437")))
    assert list(list_archive(path).members) == ["félix.jpg"]


@pytest.mark.parametrize(("name", "pack"), PACKERS.items())
def test_a_dot_in_a_member_name_is_no_folder(tmp_path, name, pack):
    path = pack(tmp_path / name, {"./a.jpg": b"1", "././sub/./b.jpg": b"2"})
    assert contents(path) == {"a.jpg": b"1", "sub/b.jpg": b"2"}


def test_of_a_member_packed_twice_the_last_counts(tmp_path):
    path = pack_tar(tmp_path / "a.tar", {"a.jpg": b"old"}, tar_member("a.jpg", b"new"))
    assert contents(path) == {"a.jpg": b"new"}


@pytest.mark.parametrize(("name", "pack"), PACKERS.items())
@pytest.mark.parametrize(
    "member", ["../evil.jpg", "/tmp/evil.jpg", "a/../../evil.jpg", "C:/evil.jpg", "a\\..\\evil.jpg", "%2e%2e/evil.jpg"]
)
def test_a_member_that_leads_out_is_a_problem_and_nothing_is_written(tmp_path, name, pack, member):
    folder = put(tmp_path, {"outside/evil.jpg": b"secret"}) / "inside"
    path = pack(folder / name, {member: b"planted", "good.jpg": b"good"})
    before = snapshot(tmp_path)
    archive = list_archive(path)
    assert contents(path) == {"good.jpg": b"good"}
    assert len(archive.problems) == 1 and "is refused: image path" in archive.problems[0]
    assert snapshot(tmp_path) == before and not Path("/tmp/evil.jpg").exists()


@pytest.mark.parametrize("kind", [getattr(tarfile, name) for name in ODD_KINDS], ids=ODD_KINDS)
def test_links_devices_and_sparse_members_of_a_tar_are_never_read(tmp_path, kind):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    member = tar_member("evil.jpg", type=kind, linkname=str(tmp_path / "secret.jpg"))
    path = pack_tar(tmp_path / "a.tar", {"good.jpg": b"good"}, member, tar_member("also.jpg", b"also"))
    assert contents(path) == {"good.jpg": b"good", "also.jpg": b"also"}
    assert list_archive(path).problems == ["member 'evil.jpg' is a link, a device or sparse; it is not read."]


def test_folders_of_an_archive_are_no_problem(tmp_path):
    tar = pack_tar(tmp_path / "a.tar", {}, tar_member("sub.jpg", type=tarfile.DIRTYPE), tar_member("sub.jpg/a.jpg"))
    assert contents(tar) == {"sub.jpg/a.jpg": b""} and not list_archive(tar).problems
    bundle = pack_zip(tmp_path / "a.zip", {"sub.jpg/": b"", "sub.jpg/a.jpg": b""})
    assert contents(bundle) == {"sub.jpg/a.jpg": b""} and not list_archive(bundle).problems


def zip_with(path: Path, method: int = zipfile.ZIP_STORED, **attributes) -> Path:
    info = zipfile.ZipInfo("evil.jpg")
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("good.jpg", b"good")
        bundle.writestr(info, b"planted", method)
        for key, value in attributes.items():
            setattr(info, key, value)
    return path


@pytest.mark.parametrize(
    ("method", "attributes"),
    [
        (zipfile.ZIP_STORED, {"external_attr": 0o120777 << 16}),
        (zipfile.ZIP_STORED, {"external_attr": 0o020666 << 16}),
        (zipfile.ZIP_STORED, {"flag_bits": 1}),
        (zipfile.ZIP_BZIP2, {}),
        (zipfile.ZIP_LZMA, {}),
    ],
    ids=["link", "device", "encrypted", "bzip2", "lzma"],
)
def test_links_encrypted_and_oddly_packed_members_of_a_zip_are_never_read(tmp_path, method, attributes):
    path = zip_with(tmp_path / "a.zip", method, **attributes)
    assert contents(path) == {"good.jpg": b"good"}
    assert list_archive(path).problems == [
        "member 'evil.jpg' is a link, encrypted or packed in an unknown way; it is not read."
    ]


def test_a_member_that_unpacks_to_hundreds_of_times_its_size_is_not_read(tmp_path):
    path = pack_deflated(tmp_path / "a.zip", {"bomb.jpg": bytes(10**6), "good.jpg": b"good"})
    assert contents(path) == {"good.jpg": b"good"}
    assert "member 'bomb.jpg' unpacks to" in list_archive(path).problems[0]


def test_a_member_that_unpacks_to_more_than_it_says_stops_there(tmp_path):
    path = pack_deflated(tmp_path / "a.zip", {"bomb.jpg": bytes(2**26)})
    whole = struct.pack("<L", 2**26)
    assert path.read_bytes().count(whole) == 2
    path.write_bytes(path.read_bytes().replace(whole, struct.pack("<L", 4096)))
    (located,) = list_archive(path).members.values()
    tracemalloc.start()
    with pytest.raises(ValueError, match="checksum differs"):
        read_located(located)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("size", ["file_size", "compress_size"])
def test_a_member_of_a_zip_over_the_limit_is_a_problem(tmp_path, size):
    path = zip_with(tmp_path / "a.zip", **{size: MAX_IMAGE_BYTES + 1})
    assert contents(path) == {"good.jpg": b"good"}
    assert list_archive(path).problems == [f"member 'evil.jpg' has more than {MAX_IMAGE_BYTES} bytes; it is not read."]


def test_a_member_of_a_tar_over_the_limit_is_a_problem(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_header("large.jpg", MAX_IMAGE_BYTES + 1))
    os.truncate(path, MAX_IMAGE_BYTES + 4096)  # the rest takes no room on the disk
    archive = list_archive(path)
    assert archive.members == {}
    assert archive.problems == [f"member 'large.jpg' has more than {MAX_IMAGE_BYTES} bytes; it is not read."]


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "large.jpg"
    path.touch()
    os.truncate(path, MAX_IMAGE_BYTES + 1)
    with pytest.raises(ValueError, match=f"has {MAX_IMAGE_BYTES + 1} bytes, more than the limit of"):
        read_located(Located(str(path), path.stat().st_size, 0))


def test_the_limit_lies_above_any_image_of_the_release():
    assert MAX_IMAGE_BYTES >= 100 * 2**20


@pytest.mark.parametrize("cut", [300, 700, 1536, 1700])
def test_of_a_tar_file_that_is_cut_off_the_members_before_stay_usable(tmp_path, cut):
    images = {f"{number}.jpg": bytes([number]) * 400 for number in range(3)}
    path = pack_tar(tmp_path / "a.tar", images)
    path.write_bytes(path.read_bytes()[:cut])
    whole = max(0, cut // 1024)
    assert contents(path) == dict(list(images.items())[:whole])
    (problem,) = list_archive(path).problems
    assert problem.startswith(f"unusable after {whole} images (") and problem.endswith("Fetch it again.")


def test_a_tar_file_cut_off_between_two_members_is_noticed(tmp_path):
    path = pack_tar(tmp_path / "a.tar", {f"{number}.jpg": b"image" for number in range(3)})
    path.write_bytes(path.read_bytes()[:2048])
    assert list(contents(path)) == ["0.jpg", "1.jpg"]
    assert "damaged or cut off at byte 2048" in list_archive(path).problems[0]


def test_a_damaged_header_amid_a_tar_file_is_noticed(tmp_path):
    path = pack_tar(tmp_path / "a.tar", {f"{number}.jpg": b"image" for number in range(3)})
    data = bytearray(path.read_bytes())
    data[1024:1100] = os.urandom(76)
    path.write_bytes(data)
    assert list(contents(path)) == ["0.jpg"]
    assert "unusable after 1 images" in list_archive(path).problems[0]


LONG_NAME = tar_header("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME) + blocks(b"a.jpg")
HOSTILE = {
    "negative": tar_header("b.jpg", -1024) + END,
    "negative, unknown kind": tar_header("b.jpg", -1024, b"Z") + END,
    "negative, sparse": tar_header("b.jpg", -512, tarfile.GNUTYPE_SPARSE) + END,
    "negative, attributes": tar_header("b.jpg", -512, tarfile.XHDTYPE) + END,
    "negative, name": tar_header("b.jpg", -2048, tarfile.GNUTYPE_LONGNAME) + END,
    "negative in attributes": tar_header("x", 13, tarfile.XHDTYPE)
    + blocks(b"13 size=-512\n")
    + (tar_header("b.jpg", 3) + blocks(b"abc") + END),
    "attributes without end": tar_header("x", 9, tarfile.XHDTYPE) + blocks(b"9999999 a") + tar_header("b.jpg", 3),
    "2**60 bytes of attributes": tar_header("b.jpg", 2**60, tarfile.XHDTYPE) + END,
    "2**85 bytes": tar_header("b.jpg", 2**85) + END,
    "name without member": LONG_NAME,
    "2000 names": LONG_NAME * 2000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_ends_the_listing_and_not_the_program(tmp_path, data):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_header("a.jpg", 5) + blocks(b"image") + data)
    assert contents(path)["a.jpg"] == b"image"
    assert list_archive(path).problems


@pytest.mark.parametrize("cut", [10, 500, -1, -30])
def test_a_zip_file_that_is_cut_off_is_a_problem(tmp_path, cut):
    path = pack_zip(tmp_path / "a.zip", IMAGES)
    path.write_bytes(path.read_bytes()[:cut])
    assert contents(path) == {}
    assert list_archive(path).problems[0].startswith("unusable after 0 images (BadZipFile: ")


@pytest.mark.parametrize("pack", [pack_zip, pack_deflated])
def test_a_damaged_member_of_a_zip_is_told_apart_from_its_neighbours(tmp_path, pack):
    path = pack(tmp_path / "a.zip", {name: os.urandom(500) for name in ("a.jpg", "b.jpg", "c.jpg")})
    members = list_archive(path).members
    data = bytearray(path.read_bytes())
    start = members["b.jpg"].offset + 100
    data[start : start + 3] = bytes(value ^ 255 for value in data[start : start + 3])
    path.write_bytes(data)
    assert len(read_located(members["a.jpg"])) == len(read_located(members["c.jpg"])) == 500
    with pytest.raises(ValueError, match=f"a.zip is damaged at byte {members['b.jpg'].offset}"):
        read_located(members["b.jpg"])


def test_a_zip_whose_list_points_at_the_wrong_place_is_refused(tmp_path):
    path = pack_zip(tmp_path / "a.zip", {"a.jpg": b"image"})
    (located,) = list_archive(path).members.values()
    for offset in (3, 10**6):
        with pytest.raises(ValueError, match=f"is damaged at byte {offset}"):
            read_located(Located(located.file, 5, 0, offset, 5, 0, located.crc))


def test_a_file_that_has_become_shorter_is_refused(tmp_path):
    (located,) = list_archive(pack_tar(tmp_path / "a.tar", {"a.jpg": b"image"})).members.values()
    (tmp_path / "a.jpg").write_bytes(b"image")
    for shorter, size in ((located, 514), (Located(str(tmp_path / "a.jpg"), 5, 0), 2)):
        os.truncate(shorter.file, size)
        with pytest.raises(ValueError, match=f"{shorter.file} has become shorter than it was"):
            read_located(shorter)


def test_reading_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "a.jpg").write_bytes(IMAGES["a.jpg"])
    tracemalloc.start()
    read_located(Located(str(tmp_path / "a.jpg"), len(IMAGES["a.jpg"]), 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\x1f\x8b" + bytes(600)], ids=["0", "text", "gzip"])
def test_what_only_has_the_name_of_an_archive_is_a_problem(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    archive = list_archive(tmp_path / name)
    assert archive.members == {} and len(archive.problems) == 1 and "Fetch it again" in archive.problems[0]


def test_a_pipe_with_the_name_of_an_archive_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    assert "no regular file" in list_archive(tmp_path / "a.tar").problems[0]


@pytest.mark.parametrize(("name", "pack"), PACKERS.items())
def test_an_empty_archive_is_no_problem(tmp_path, name, pack):
    archive = list_archive(pack(tmp_path / name, {}))
    assert archive.members == {} and archive.problems == []


def test_only_the_first_of_many_problems_are_logged(tmp_path, caplog):
    path = pack_zip(tmp_path / "a.zip", {f"../{number}.jpg": b"" for number in range(50)})
    assert len(list_archive(path).problems) == 50
    assert len(caplog.messages) == 4 and caplog.messages[-1] == f"{path}: 47 more problems."


@pytest.mark.parametrize("name", ["a.tar", "images.ZIP", "sa_000000.Tar"])
def test_tar_and_zip_files_are_archives(name):
    assert is_archive(name)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "tar", "a.zip.part", "a.jpg", "a.tar.xz"])
def test_other_files_are_none(name):
    assert not is_archive(name)

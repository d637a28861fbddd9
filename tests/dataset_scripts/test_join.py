"""Rows get exactly the images they name, original or resized; what cannot be used is counted, exactly."""

import hashlib
import io
import json
import os
import random
import tarfile
import time
from pathlib import Path

import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image

from dataset_scripts.build import BuildOptions, build_config
from dataset_scripts.coverage import CoverageError, Lost
from dataset_scripts.images import ImageRoots
from dataset_scripts.join import Resize, join_images, survey
from dataset_scripts.rows import RowSource
from dataset_scripts.writing import WriteError
from tests.dataset_scripts.test_build import contents
from tests.dataset_scripts.test_build_faults import largest_file
from tests.dataset_scripts.test_rows import record, write_json


HERE = BuildOptions(workers=0)
SKIP = BuildOptions(workers=0, on_missing="skip")
PREFIX = "coco/train2017/"


def jpeg(number: int = 0, size: tuple[int, int] = (60, 40)) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).point(lambda value: (value * 3 + number * 17) % 256).save(stream, "JPEG")
    return stream.getvalue()


def name_of(number: int) -> str:
    return f"{PREFIX}{number:012d}.jpg"


def noise(side: int = 200) -> bytes:
    """A picture that Parquet cannot pack into less than 40 KB."""
    stream = io.BytesIO()
    Image.frombytes("L", (side, side), random.Random(0).randbytes(side * side)).save(stream, "PNG")
    return stream.getvalue()


def put(root: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def data(tmp_path) -> Path:
    """Image root of six pictures and a file of six records."""
    write_json(tmp_path / "rows.json", [record(number) for number in range(6)])
    return put(tmp_path / "data", {name_of(number): jpeg(number) for number in range(6)})


def join(
    data: Path, options: BuildOptions = HERE, kind: str = "captions", rows: str = "rows.json", repo="repo"
) -> dict:
    source = RowSource(data.parent / rows)
    return build_config(data.parent / repo, "set", source.as_set(kind), ImageRoots([data]), options)


def stored(folder: Path) -> list[dict]:
    """Rows with their images as they are stored."""
    rows = load_dataset(str(folder), "set", split="train", streaming=True)
    column = "image" if "image" in rows.features else "images"
    feature = rows.features[column]
    plain = ImageFeature(decode=False) if column == "image" else type(feature)(ImageFeature(decode=False))
    return list(rows.cast_column(column, plain))


def test_original_bytes_are_kept_with_their_hash_and_record_path(data):
    facts = join(data)
    for number, row in enumerate(stored(data.parent / "repo")):
        assert row["image"] == {"bytes": jpeg(number), "path": name_of(number)}
        assert row["sha256"] == hashlib.sha256(jpeg(number)).hexdigest()
    assert facts["images"] == "original" and facts["coverage"]["total"]["found"] == 6 and facts["rows_left_out"] == 0


@pytest.mark.parametrize(("resize", "size"), [(Resize(28), (28, 18)), (Resize(28, "crop"), (28, 28))])
def test_resized_images_have_the_hash_of_the_original_file(data, resize, size):
    facts = join(data, BuildOptions(workers=0, resize=resize))
    rows = stored(data.parent / "repo")
    for number, row in enumerate(rows):
        width, height = Image.open(io.BytesIO(row["image"]["bytes"])).size
        assert width == size[0] and abs(height - size[1]) <= 2
        assert row["image"]["path"] == name_of(number)
        assert row["sha256"] == hashlib.sha256(jpeg(number)).hexdigest()
    assert len(rows) == 6 and facts["images"] == {"side": 28, "mode": resize.mode}


def test_conversations_may_have_no_image_and_share_one(data):
    chat = {key: value for key, value in record(7, "Hi").items() if key != "image"}
    write_json(data.parent / "rows.json", [chat, record(0), record(0, id="again")])
    join(data, kind="conversations")
    rows = stored(data.parent / "repo")
    assert [[image["bytes"] for image in row["images"]] for row in rows] == [[], [jpeg(0)], [jpeg(0)]]
    assert [row["source"] for row in rows] == ["text", "coco", "coco"]


def test_several_images_of_a_row_keep_their_order(data):
    row = {"id": "1", "source": "coco", "images": [name_of(2), name_of(0), name_of(2)], "messages": []}
    ((position, joined),) = join_images([(9, row)], ImageRoots([data]), workers=0)
    assert position == 9 and row["images"][0] == name_of(2)
    assert [image["bytes"] for image in joined["images"]] == [jpeg(2), jpeg(0), jpeg(2)]


def spoil(data: Path) -> None:
    """Rows 1 and 6 show a corrupt image, row 2 a missing one, row 4 one that leads out of the root."""
    put(data, {name_of(1): jpeg(1)[:200]})
    (data / name_of(2)).unlink()
    (data / name_of(4)).unlink()
    outside = put(data.parent / "se cret", {"4.jpg": jpeg(4)})
    (data / name_of(4)).symlink_to(outside / "4.jpg")
    write_json(data.parent / "rows.json", [*(record(number) for number in range(6)), record(1, id="again")])


def test_rows_without_a_usable_image_are_left_out_and_counted_exactly(data):
    spoil(data)
    facts = join(data, SKIP)
    assert [row["id"] for row in stored(data.parent / "repo")] == ["n0", "n3", "n5"]
    total = facts["coverage"]["total"]
    assert total == {"expected": 6, "found": 3, "corrupt": 1, "missing": 1, "unsafe": 1}
    assert facts["rows_left_out"] == 4 and facts["read"]["records"] == 7
    assert [(entry["row"], entry["state"]) for entry in facts["first_left_out"]] == [
        (1, "corrupt"),
        (2, "missing"),
        (4, "unsafe"),
        (6, "corrupt"),
    ]
    assert facts["first_left_out"][1]["archive"] == "train2017.zip (COCO)"
    assert facts["coverage"]["share"] == 0.5 and facts["coverage"]["sources"]["coco"]["found"] == 3


def test_reasons_in_the_repository_do_not_name_places_of_this_machine(data):
    spoil(data)
    put(data, {"train2017.tar": b"no archive"})
    join(data, SKIP)
    for content in contents(data.parent / "repo").values():
        for secret in (str(data.parent), data.parent.name, "se cret", "cret/4"):
            assert secret.encode() not in content
    reasons = [
        entry["reason"] for entry in json.loads((data.parent / "repo/set/build.json").read_text())["first_left_out"]
    ]
    assert "leads out of the image roots to another place" in reasons[2] and all(reasons)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(1, "Row 1: image .*01.jpg is corrupt: "), (2, r"5 of 6 images .*row 2: .*02.jpg \(missing"), (4, "unsafe")],
)
def test_one_image_that_cannot_be_used_stops_the_build_unless_told_otherwise(data, number, reason):
    kept = {path.name: path.read_bytes() for path in (data / PREFIX).iterdir()}
    spoil(data)
    for name in {f"{one:012d}.jpg" for one in (1, 2, 4)} - {f"{number:012d}.jpg"}:
        (data / PREFIX / name).unlink(missing_ok=True)
        (data / PREFIX / name).write_bytes(kept[name])
    with pytest.raises(CoverageError, match=reason):
        join(data)
    assert not (data.parent / "repo").exists()


@pytest.mark.parametrize(("least", "refused"), [(0.5, None), (0.6, "after"), (0.7, "before")])
def test_the_least_coverage_is_asked_for_before_and_after_decoding(data, least, refused):
    spoil(data)
    options = BuildOptions(workers=0, on_missing="skip", min_coverage=least)
    if refused is None:
        assert join(data, options)["coverage"]["share"] == 0.5
        return
    with pytest.raises(CoverageError, match="of 6 images are usable") as error:
        join(data, options)
    assert ("3 of 6" in str(error.value)) == (refused == "after") == (data.parent / "repo.partial").exists()
    assert not (data.parent / "repo").exists()
    assert join(data, SKIP)["rows_left_out"] == 4  # and goes on with what was finished


def test_nothing_usable_is_no_repository(data):
    with pytest.raises(ValueError, match="set/train has no rows: 6 were left out"):
        build_config(
            data.parent / "repo",
            "set",
            RowSource(data.parent / "rows.json").as_set("captions"),
            ImageRoots([put(data.parent / "empty", {"a.txt": b""})]),
            SKIP,
        )


def test_images_added_between_two_runs_start_the_build_anew(data, caplog):
    (data / name_of(1)).unlink()
    put(data, {name_of(4): noise()})
    small = BuildOptions(workers=0, on_missing="skip", shard_bytes=2000)
    with largest_file(20_000), pytest.raises(WriteError, match="[1-9] shards are kept"):
        join(data, small)
    put(data, {name_of(1): jpeg(1), name_of(4): jpeg(4)})
    facts = join(data, small)
    assert "anew: input or options have changed" in caplog.text
    assert len(stored(data.parent / "repo")) == 6 and facts["rows_left_out"] == 0


def test_an_image_that_changed_under_the_same_name_starts_the_build_anew(data):
    rows, roots = RowSource(data.parent / "rows.json").captions, ImageRoots([data])
    digests = [survey(rows, roots, iter)[1], survey(rows, ImageRoots([data]), iter)[1]]
    put(data, {name_of(0): jpeg(5)})
    os.utime(data / name_of(0), (time.time() + 5, time.time() + 5))
    assert digests[0] == digests[1] != survey(rows, ImageRoots([data]), iter)[1]


def test_workers_and_archives_do_not_change_a_byte(data):
    join(data)
    join(data, BuildOptions(workers=2), repo="two/repo")
    packed = data.parent / "packed"
    packed.mkdir()
    with tarfile.open(packed / "train2017.tar", "w") as tar:
        for path in sorted((data / PREFIX).iterdir()):
            tar.add(path, path.name)
    source = RowSource(data.parent / "rows.json")
    build_config(data.parent / "three/repo", "set", source.as_set("captions"), ImageRoots([packed]), HERE)
    one = contents(data.parent / "repo")
    assert contents(data.parent / "two/repo") == one == contents(data.parent / "three/repo")


def test_an_interrupted_join_continues_to_the_same_bytes(data):
    options = BuildOptions(workers=0, shard_bytes=3000)
    put(data, {name_of(4): noise()})
    with largest_file(20_000), pytest.raises(WriteError, match="[1-9] shards are kept"):
        join(data, options)
    facts = join(data, options)
    join(data, options, repo="undisturbed/repo")
    assert contents(data.parent / "repo") == contents(data.parent / "undisturbed/repo")
    assert facts["read"]["records"] == 6 and len(facts["splits"]["train"]) > 2


def test_a_joined_configuration_is_input_again(data):
    join(data)
    first = contents(data.parent / "repo/set")
    source = RowSource(data.parent / "repo/set")
    facts = build_config(data.parent / "again", "set", source.as_set("captions"), ImageRoots([data]), HERE)
    again = contents(data.parent / "again/set")
    assert {name: again[name] for name in first if name != "build.json"} == {
        name: first[name] for name in first if name != "build.json"
    }
    paths = build_config(data.parent / "paths", "set", source.as_set("captions"))
    assert paths["images"] == "paths" and facts["images"] == "original"
    row = next(iter(load_dataset(str(data.parent / "paths"), "set", split="train", streaming=True)))
    assert row["image"] == name_of(0) and row["sha256"] == hashlib.sha256(jpeg(0)).hexdigest()


def test_an_image_that_vanishes_while_it_is_read_costs_its_row(data):
    roots = ImageRoots([data])
    rows = [(number, {"id": str(number), "image": name_of(number)}) for number in range(2)]
    tasks = iter(rows)
    joined = join_images(tasks, roots, on_missing="skip", workers=0)
    assert next(joined)[1]["image"]["bytes"] == jpeg(0)
    (data / name_of(1)).unlink()
    ((position, lost),) = joined
    assert isinstance(lost, Lost) and (position, lost.row, lost.state) == (1, 1, "missing")


@pytest.mark.parametrize(
    ("arguments", "reason"), [((0,), "`side` must be at least 1"), ((9, "fit"), "`mode` must be")]
)
def test_a_size_that_no_image_can_have_is_refused_at_once(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Resize(*arguments)

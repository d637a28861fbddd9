"""
Faults that users of datasets meet, through the command line: message, exit code, and a rerun that ends correct.

Each test breaks a set of nine records, asserts what the user is told, mends the fault, and runs the command again.
"""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image, PngImagePlugin

from dataset_scripts.reading import open_rows
from tests.commands import run_command
from tests.exif import MAKER_AS_FRACTION, SIDEWAYS, exif_block
from tests.tiny import noise_image


ROOT = Path(__file__).resolve().parents[1]


def test_nothing_is_wrong_with_the_set_itself(world):
    outcome = world.verify("--min-coverage", 1)
    assert outcome.code == 0 and "9 of 9 rows can be used" in outcome.output
    assert world.join().code == 0
    assert world.ids() == [record["id"] for record in world.records]


# Row 16: damaged files.
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "UnidentifiedImageError"),
        (b"<html>404</html>", "UnidentifiedImageError"),
        ("half", "truncated"),
    ],
)
def test_a_damaged_image_is_named_its_neighbours_are_used_and_a_mended_one_counts(world, content, reason):
    whole = world.path(3).read_bytes()
    world.path(3).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    outcome = world.verify("--min-coverage", 1)
    assert outcome.code == 3
    assert "8 of 9 images are usable (88.89%, below 100.00%)" in outcome.errors and reason in outcome.errors
    assert [(entry["state"], entry["row"], entry["image"]) for entry in world.lost()] == [
        ("corrupt", 3, world.records[3]["image"])
    ]
    stopped = world.join()
    assert stopped.code == 3 and "Row 3: image coco/train2017/3.jpg is corrupt" in stopped.errors
    assert not world.repo.exists()
    skipped = world.join("--on-missing", "skip")
    assert skipped.code == 0 and "8 of 9 images; 1 rows left out" in skipped.output
    assert world.ids() == [record["id"] for record in world.records if record is not world.records[3]]
    world.write_image(world.records[3]["image"])
    assert world.verify("--min-coverage", 1).code == 0
    assert world.join("--on-missing", "skip").code == 0 and len(world.ids()) == 9


# Row 17: decompression bomb, in a process of its own whose memory is watched.
def test_a_decompression_bomb_is_refused_with_bounded_memory(world):
    stream = io.BytesIO()
    Image.new("L", (14_000, 14_000)).save(stream, format="PNG")
    world.path(4).write_bytes(stream.getvalue())
    assert len(stream.getvalue()) < 300_000
    words = ["data", "verify", world.file, "--images", world.images, "--output", world.folder / "report"]
    code = (
        "import sys, re\nfrom sharegpt4v.cli import main\nimport dataset_scripts.verify\n"
        "read = lambda name: int(re.search(name + r':\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = read('VmRSS')\n"
        "try:\n    main()\nfinally:\n    print('growth', read('VmHWM') - before)\n"
    )
    command = [sys.executable, "-c", code, *map(str, words), "--workers", "0", "--min-coverage", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 3, result.stderr
    assert "DecompressionBombError" in result.stderr and "sa_4.jpg" in result.stderr
    assert int(result.stdout.split("growth")[1]) < 100_000  # kB; the picture would be 196,000
    world.write_image(world.records[4]["image"])
    assert world.verify("--min-coverage", 1).code == 0


# Row 18: unusual but sound images.
def test_unusual_images_are_used_and_converted_as_in_training(world):
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(world.path(0))
    wide = Image.new("I;16", (30, 20), 65535)
    wide.save(world.path(1).with_suffix(".png"))
    shutil.move(world.path(1).with_suffix(".png"), world.path(1))
    Image.new("RGB", (1, 5000), (9, 9, 9)).save(world.path(2))
    Image.new("RGB", (1, 1)).save(world.path(3))
    frames = [Image.new("P", (8, 8), number) for number in (0, 1)]
    frames[0].save(world.path(4), format="GIF", save_all=True, append_images=frames[1:])
    noise_image(5, (40, 20)).save(world.path(5), exif=exif_block(SIDEWAYS))
    assert world.verify("--min-coverage", 1).code == 0
    assert world.join().code == 0
    rows = list(open_rows(world.repo, "ShareGPT4V"))
    assert [row["image"].mode for row in rows] == ["RGB"] * 9
    assert rows[5]["image"].size == (20, 40)
    assert rows[1]["image"].getpixel((0, 0)) == (255, 255, 255)


# Row 19: damaged metadata around sound pixels.
def test_damaged_exif_or_xmp_does_not_cost_the_image(world):
    noise_image(1).save(world.path(1), exif=exif_block(SIDEWAYS, MAKER_AS_FRACTION)[:-6])
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta tiff:Orientation='")
    noise_image(2).save(world.path(2), format="PNG", pnginfo=info)
    assert world.verify("--min-coverage", 1).code == 0
    assert world.join().code == 0
    assert len(list(open_rows(world.repo, "ShareGPT4V"))) == 9


# Row 25: paths that lead elsewhere.
@pytest.mark.parametrize("image", ["../secret.jpg", "/etc/passwd", "C:\\secret.jpg", "a/%2e%2e/%2e%2e/secret.jpg"])
def test_an_unsafe_path_is_refused_with_its_record_and_nothing_outside_is_read(world, image):
    noise_image(99).save(world.folder / "secret.jpg")
    good, world.records[5] = world.records[5], {**world.records[5], "image": image}
    world.save()
    outcome = world.join()
    assert outcome.code == 1 and "record 5: image path" in outcome.errors and not world.repo.exists()
    assert "refused: record 5" in world.verify().output
    skipped = world.join("--on-bad", "skip")
    assert skipped.code == 0 and len(world.ids()) == 8
    secret = (world.folder / "secret.jpg").read_bytes()
    assert not any(secret in file.read_bytes() for file in world.repo.rglob("*.parquet"))
    world.records[5] = good
    world.save()
    assert world.join().code == 0 and len(world.ids()) == 9


def test_a_symbolic_link_out_of_the_root_is_refused_until_its_folder_is_a_root_too(world):
    outside = world.folder / "elsewhere"
    outside.mkdir()
    shutil.move(world.path(0), outside / "0.jpg")
    world.path(0).symlink_to(outside / "0.jpg")
    outcome = world.join()
    assert outcome.code == 3 and "row 0: coco/train2017/0.jpg (unsafe" in outcome.errors
    assert "another root" in outcome.errors
    assert world.join("--images", outside).code == 0 and len(world.ids()) == 9


# Row 26: hostile archives.
def test_a_hostile_archive_is_read_in_place_without_its_bad_members(world):
    shutil.rmtree(world.images / "sam")
    with tarfile.open(world.images / "sa_000000.tar", "w") as tar:
        for number in (1, 4, 7):
            data = io.BytesIO()
            noise_image(number, (8, 8)).resize((96, 80)).save(data, format="JPEG")
            member = tarfile.TarInfo(f"./sa_{number}.jpg")
            member.size = len(data.getvalue())
            data.seek(0)
            tar.addfile(member, data)
        for name, kind in (("../escape.jpg", tarfile.REGTYPE), ("link.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO())
    with zipfile.ZipFile(world.images / "huge.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("bomb.jpg", bytes(30_000_000))
    outcome = world.verify("--min-coverage", 1, "--json")
    assert outcome.code == 0
    problems = json.loads(outcome.output)["archives"]
    problems = {Path(name).name: " ".join(found) for name, found in problems.items()}
    assert "'../escape.jpg'" in problems["sa_000000.tar"] and "is a link" in problems["sa_000000.tar"]
    assert "times its size" in problems["huge.zip"]
    assert not (world.folder / "escape.jpg").exists()
    assert world.join().code == 0 and len(world.ids()) == 9


# Row 27: a third of the images is missing.
def test_missing_images_are_counted_by_source_and_archive_and_the_gate_holds(world):
    shutil.rmtree(world.images / "sam")
    outcome = world.verify("--min-coverage", 0.9)
    assert outcome.code == 3 and "6 of 9 images are usable (66.67%, below 90.00%)" in outcome.errors
    assert "missing of sam: sa_000000.tar (by its number): 3" in outcome.output
    assert world.join("--on-missing", "skip", "--min-coverage", 0.9).code == 3
    assert not world.repo.exists()
    assert world.join("--on-missing", "skip", "--min-coverage", 0.6).code == 0
    facts = json.loads((world.repo / "ShareGPT4V" / "build.json").read_text())
    assert facts["rows_left_out"] == 3 and facts["coverage"]["sources"]["sam"]["missing"] == 3
    assert len(world.ids()) == 6 and "6 of 9 images; 3 rows left out" in (world.repo / "README.md").read_text()
    for number in (1, 4, 7):
        world.write_image(world.records[number]["image"])
    assert world.verify("--min-coverage", 1).code == 0
    assert world.join("--on-missing", "skip").code == 0 and len(world.ids()) == 9


# Row 28: records that would break training.
@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("<image>\n<image>\nWhat?", "A cat.", "2 '<image>' for 1 images"),
        ("<image>\nWhat?", "See <image>.", "2 '<image>' for 1 images"),
        ("<image>\nWhat?", " ", "turn 1 (assistant) is empty"),
        ("Look <image> here", "A cat.", "must stand first or last"),
    ],
)
def test_a_bad_record_is_refused_at_build_and_never_reaches_training(world, question, answer, reason):
    world.records[6] = world.record(6, world.records[6]["image"], question, answer)
    world.save()
    outcome = world.build()
    assert outcome.code == 1 and f"{world.file}, record 6" in outcome.errors and reason in outcome.errors
    assert not world.repo.exists()
    skipped = world.build("--on-bad", "skip", "--json")
    assert skipped.code == 0 and json.loads(skipped.output)["read"]["refused"] == 1
    world.records[6] = world.record(6, world.records[6]["image"])
    world.save()
    assert world.build().code == 0 and len(world.ids()) == 9


def test_an_unknown_role_is_refused_at_build(world):
    world.records[2]["conversations"][0]["from"] = "system"
    world.save()
    outcome = world.build()
    assert outcome.code == 1 and "record 2: turn 0 has the unknown role 'system'" in outcome.errors
    world.records[2] = world.record(2, world.records[2]["image"])
    world.save()
    assert world.build().code == 0


# Row 29: the same thing twice, and benchmark images in the training data.
def test_duplicates_are_listed_and_an_overlap_is_an_error(world):
    world.records.append({**world.record(9, "wikiart/images/9.jpg"), "id": world.records[0]["id"]})
    world.save()
    with Image.open(world.path(0)) as image:
        image.save(world.path(9), quality=60)
    outcome = world.verify("--min-coverage", 1)
    assert outcome.code == 0 and "1 repeated ids, 1 images twice" in outcome.output
    lines = [json.loads(line) for line in (world.folder / "report/duplicates.jsonl").read_text().splitlines()]
    assert {"id": world.records[0]["id"], "rows": [0, 9]} in lines
    assert {"images": ["coco/train2017/0.jpg", "wikiart/images/9.jpg"], "rows": [0, 9]} in lines
    benchmark = world.folder / "benchmark"
    benchmark.mkdir()
    with Image.open(world.path(4)) as image:
        image.resize((120, 100)).save(benchmark / "question.png")
    refused = world.verify("--exclude", benchmark)
    assert refused.code == 3 and "1 images look like excluded ones" in refused.errors
    assert json.loads((world.folder / "report/overlap.jsonl").read_text())["image"] == "sam/images/sa_4.jpg"
    assert world.verify("--exclude", benchmark, "--allow-overlap").code == 0
    del world.records[4]
    world.save()
    assert world.verify("--exclude", benchmark).code == 0


# Row 30: files that other tools have touched.
def test_a_byte_order_mark_other_line_ends_numeric_ids_accents_and_emoji_are_read(world):
    world.records[0]["id"] = 12
    world.records[1]["image"] = "wikiart/images/cafe\u0301.jpg"  # decomposed, as macOS writes it
    world.records[2]["conversations"][1]["value"] = "Ein Café 🐈\r\nam See."
    noise_image(1, (8, 8)).resize((96, 80)).save(world.images / "wikiart/images/caf\u00e9.jpg")
    text = json.dumps(world.records, indent=1, ensure_ascii=False).replace("\n", "\r\n")
    world.file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert world.verify("--min-coverage", 1).code == 0
    assert world.join().code == 0
    rows = list(open_rows(world.repo, "ShareGPT4V"))
    assert rows[0]["id"] == "12" and rows[2]["caption"] == "Ein Café 🐈\r\nam See."


def test_shards_of_two_schemas_are_refused_by_name(world):
    assert world.build().code == 0
    folder = world.repo / "ShareGPT4V"
    shard = next(folder.glob("*.parquet")).rename(folder / "train-00000-of-00002.parquet")
    load_dataset("parquet", data_files=str(shard), split="train", cache_dir=str(world.folder / "c")).remove_columns(
        "license"
    ).to_parquet(folder / "train-00001-of-00002.parquet")
    outcome = run_command(world.capsys, "data", "stats", folder)
    assert outcome.code == 1 and "train-00001-of-00002.parquet" in outcome.errors and "columns" in outcome.errors
    (folder / "train-00001-of-00002.parquet").unlink()
    shard.rename(folder / "train-00000-of-00001.parquet")
    assert run_command(world.capsys, "data", "stats", folder).code == 0

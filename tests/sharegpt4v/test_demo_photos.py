"""Photographs of the demo: the ones that are shipped as text, and a user's own folder."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from sharegpt4v.demo.photos import build_dataset, find_photos, read_photos
from tests.tiny import noise_image


SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "photos.jsonl"


@pytest.fixture
def folder(tmp_path):
    """A user's folder: three pictures, one of them held out."""
    lines = []
    for number in range(3):
        noise_image(number).save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "caption": f"Caption {number}."})
    lines[2]["split"] = "heldout"
    lines[0]["conversation"] = [{"question": "What?", "answer": "That."}]
    write(tmp_path, lines)
    return tmp_path


def write(folder: Path, lines: list) -> None:
    (folder / "photos.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")


def lines_of(folder: Path) -> list:
    return [json.loads(line) for line in (folder / "photos.jsonl").read_text().splitlines()]


def test_shipped_captions_are_detailed_sourced_and_about_real_pictures():
    photos = read_photos(SHIPPED)
    assert len(photos) >= 10
    assert sum(photo.split == "heldout" for photo in photos) == 2
    for photo in photos:
        assert 600 <= len(photo.caption) <= 1200, photo.id
        assert len(photo.conversation) == 2, photo.id
        assert photo.source and photo.license, photo.id
        assert min(Image.open(photo.path).size) >= 100, photo.id


def test_a_users_folder_becomes_a_repository_of_captions_and_conversations(folder, tmp_path):
    repo = build_dataset(find_photos(folder), tmp_path / "repo")
    options = {"cache_dir": str(tmp_path / "cache")}
    assert load_dataset(str(repo), "captions", split="train", **options)["id"][:] == ["0", "1"]
    assert load_dataset(str(repo), "captions", split="heldout", **options)["caption"][:] == ["Caption 2."]
    rows = load_dataset(str(repo), "finetune", split="train", **options)
    assert [message["content"] for message in rows[0]["messages"]][1:] == ["Caption 0.", "What?", "That."]
    assert len(rows[1]["messages"]) == 2
    assert len(load_dataset(str(repo), "pretrain", split="train", **options)[0]["messages"]) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "absent.png"}, "line 2: there is no picture 'absent.png'"),
        ({"image": "../secret.png"}, "line 2: `image` must lie inside"),
        ({"image": "/etc/hostname"}, "line 2: `image` must lie inside"),
        ({"image": "broken.png"}, "line 2: Cannot read .*broken.png"),
        ({"caption": " "}, "line 2: `caption` must be a text"),
        ({"split": "test"}, "line 2: `split` must be 'train' or 'heldout', got 'test'"),
        ({"conversation": [{"question": "What?"}]}, "line 2: `answer` must be a text that is not empty, got None"),
        ({"conversation": [{"question": "What?", "answer": 3}]}, "line 2: `answer` must be a text .*got 3"),
        ({"conversation": ["What?"]}, "line 2: `conversation` must be a list of objects"),
        ({"caption": "A <image> here."}, "line 2: `caption` must not contain '<image>'"),
        ({"caption": 5}, "line 2: `caption` must be a text that is not empty, got 5"),
        ({"id": "0"}, r"the ids \['0'\] occur more than once"),
        ({"split": "heldout"}, "fewer than 2 photographs of split 'train'"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(folder, change, reason):
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    lines = lines_of(folder)
    lines[1].update(change)
    write(folder, lines)
    with pytest.raises(ValueError, match=reason):
        find_photos(folder)


def test_unusual_but_valid_lines_are_read(folder):
    lines = lines_of(folder)
    lines[0] |= {"conversation": None, "source": None, "caption": "one line\u2028still the same"}
    text = "\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\r\n\r\n"
    (folder / "photos.jsonl").write_bytes(text.encode())
    photos = find_photos(folder)
    assert photos[0].caption == "one line\u2028still the same" and photos[0].conversation == []


@pytest.mark.parametrize("text", ["{not json", "[1, 2]"])
def test_a_line_that_is_no_object_is_refused(folder, text):
    with (folder / "photos.jsonl").open("a") as stream:
        stream.write(text + "\n")
    with pytest.raises(ValueError, match="photos.jsonl, line 4"):
        find_photos(folder)


@pytest.mark.parametrize("count", [0, 2])
def test_a_folder_needs_exactly_one_jsonl(folder, count):
    (folder / "photos.jsonl").rename(folder / "a.txt")
    for number in range(count):
        (folder / f"{number}.jsonl").write_text("")
    with pytest.raises(ValueError, match=f"exactly one .jsonl file, found {count}"):
        find_photos(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "private.png"
    noise_image(9).save(outside)
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(outside)
    with pytest.raises(ValueError, match="line 2: `image` must lie inside"):
        find_photos(folder)

"""Real photographs with human captions, where a folder of them lies beside the checkout."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from dataset_scripts.build import write_repo
from dataset_scripts.rows import caption_to_conversation
from modeling_sharegpt4v import to_rgb
from tests.tiny import IMAGE_SIZE, tiny_model


SAMPLES = os.environ.get("SHAREGPT4V_SAMPLES")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
pytestmark = pytest.mark.skipif(not SAMPLES, reason="SHAREGPT4V_SAMPLES names no folder of real photographs")


@pytest.fixture(scope="module")
def rows():
    folder = Path(SAMPLES or "") / "photo-captions" / "coco"
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    return [{**json.loads(line), "path": folder / json.loads(line)["image"]} for line in lines]


def padded_by_hand(image: Image.Image) -> np.ndarray:
    """The original's steps with Pillow and numpy alone: square canvas, bicubic resize, CLIP's statistics."""
    width, height = image.size
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), tuple(int(value * 255) for value in MEAN))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    pixels = np.asarray(canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


def test_photographs_are_padded_as_the_original_does(rows):
    processor = tiny_model()[1]
    for row in rows:
        pixels = processor(images=row["path"], text="<image>", return_tensors="np")["pixel_values"][0]
        expected = padded_by_hand(to_rgb(Image.open(row["path"])))
        assert np.abs(pixels - expected).max() < 1e-5, row["image"]


def test_human_captions_become_a_repository_with_their_photographs(rows, tmp_path):
    captions = [
        {
            "id": row["path"].stem,
            "image": {"bytes": row["path"].read_bytes(), "path": row["path"].name},
            "source": "coco",
            "caption": row["captions"][0],
            "captioner": "human",
            "prompt_id": "",
            "license": row["license"],
            "sha256": "",
        }
        for row in rows
    ]
    talks = [caption_to_conversation(row, "Describe the image.") for row in captions]
    folder = write_repo(tmp_path / "repo", {"train": captions}, {"talk": {"train": talks}})
    loaded = load_dataset(str(folder), "talk", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(rows)
    for row, talk in zip(rows, loaded, strict=True):
        assert talk["messages"][1]["content"] == row["captions"][0]
        assert to_rgb(talk["images"][0]).tobytes() == to_rgb(Image.open(row["path"])).tobytes()

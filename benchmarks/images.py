"""
Images a second from JPEG bytes to the square a CLIP tower takes, against the steps of LLaVA.

The peer opens one image, pads it to a square of the long side and gives it to CLIP's image processor (PIL backend),
as LLaVA's evaluation does. Ours is `fit_image`: from the same bytes (`coco`, `lcs`, `sam`), or from what
`shrink_to_jpeg` made of them beforehand (`shards_*`). Ours ends with padded 8-bit pixels, since that is what a
collator sends to the device; `float_ratios` in the details count the normalisation on the host too.
"""

import importlib.util
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import best_of, finish
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dataset_scripts.resize import shrink_to_jpeg
from modeling_sharegpt4v.images_sharegpt4v import fit_image, open_image


SIDE, ROUNDS, JPEG_QUALITY = 336, 11, 90
# Sizes of the three sources of ShareGPT4V-PT. LCS images are about 500 pixels long, in many shapes.
SIZES = {
    "coco": [(640, 480), (640, 427), (480, 640), (640, 480), (427, 640), (640, 480)],
    "lcs": [(512, 384), (400, 500), (500, 375), (500, 333), (500, 500), (375, 500)],
    "sam": [(2250, 1500), (1500, 2250), (2250, 1500)],
}
PHOTOS = (  # inside installed packages
    "sklearn/datasets/images/china.jpg",
    "skimage/data/coffee.png",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "skimage/data/rocket.jpg",
    "skimage/data/astronaut.png",
    "sklearn/datasets/images/flower.jpg",
)
TARGETS = {"coco": 1.4, "lcs": 1.4, "sam": 2.8, "shards_coco": 10, "shards_lcs": 5, "shards_sam": 50}
LIMITS = {"fast": 0.02, "shards": 0.03}  # mean absolute difference of one image, normalised
EXACT_LIMIT = 1e-6  # largest difference of one value
MEAN, STD = np.array(OPENAI_CLIP_MEAN, dtype=np.float32), np.array(OPENAI_CLIP_STD, dtype=np.float32)
GREY = tuple(int(255 * value) for value in OPENAI_CLIP_MEAN)


Steps = Callable[[bytes], torch.Tensor]


def find_photo(name: str) -> Path:
    """Where a photograph of an installed package lies."""
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The package {package!r} is not installed. Run `make setup`.")
    return Path(spec.submodule_search_locations[0]) / rest


def make_jpeg(path: Path, size: tuple[int, int], seed: int) -> bytes:
    """A photograph brought to a size, with the detail it lacks there drawn as 1/f noise, and a little sensor noise."""
    rng = np.random.default_rng(seed)
    photo = open_image(path)
    if (photo.width > photo.height) != (size[0] > size[1]):
        photo = photo.transpose(Image.Transpose.ROTATE_90)
    scale = max(size[0] / photo.width, size[1] / photo.height)
    photo = photo.resize(size, Image.Resampling.LANCZOS, (0, 0, size[0] / scale, size[1] / scale))
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    detail = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, s=(height, width))
    pixels = np.asarray(photo) + (6 * detail / detail.std())[..., None] + rng.normal(0, 2, (height, width, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def llava_steps(processor: CLIPImageProcessorPil, data: bytes) -> torch.Tensor:
    """The peer: (3, 336, 336) float32 from JPEG bytes, as LLaVA does it for one image."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return processor.preprocess(square, return_tensors="pt")["pixel_values"][0]


def normalise(pixels: np.ndarray) -> np.ndarray:
    """(side, side, 3) bytes to (3, side, side) float32 as CLIP takes them."""
    values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    values *= (1 / (255 * STD))[:, None, None]
    values -= (MEAN / STD)[:, None, None]
    return values


def compare(name: str, peer: Steps, files: list[bytes], shards: list[bytes]) -> dict[str, float]:
    """Largest differences from the peer among the images of a class; the program ends where one is too large."""
    found = {"fast": 0.0, "shards": 0.0, "exact": 0.0}
    for data, shard in zip(files, shards, strict=True):
        expected = peer(data).numpy()
        for kind, pixels in (("fast", fit_image(data, SIDE)), ("shards", fit_image(shard, SIDE))):
            found[kind] = max(found[kind], float(np.abs(normalise(pixels) - expected).mean()))
        exact = normalise(fit_image(data, SIDE, exact=True))
        found["exact"] = max(found["exact"], float(np.abs(exact - expected).max()))
    for kind, limit in {**LIMITS, "exact": EXACT_LIMIT}.items():
        if found[kind] > limit:
            raise SystemExit(f"{name}, {kind}: differs from the peer by {found[kind]:.2g}, allowed are {limit:g}.")
    return found


def measure(name: str, peer: Steps, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Ratios and details of one class of images."""
    names = [PHOTOS[index % len(PHOTOS)] for index in range(len(SIZES[name]))]
    files = [
        make_jpeg(find_photo(photo), size, seed + index)
        for index, (photo, size) in enumerate(zip(names, SIZES[name], strict=True))
    ]
    shards = [shrink_to_jpeg(data, SIDE) for data in files]
    differences = compare(name, peer, files, shards)
    print(f"{name}: {len(files)} images, differences {differences}", file=sys.stderr)
    seconds = best_of(
        ROUNDS,
        peer=lambda: [peer(data) for data in files],
        fast=lambda: [fit_image(data, SIDE) for data in files],
        fast_float=lambda: [normalise(fit_image(data, SIDE)) for data in files],
        shards=lambda: [fit_image(data, SIDE) for data in shards],
        shards_float=lambda: [normalise(fit_image(data, SIDE)) for data in shards],
    )
    details = {
        "images": len(files),
        "images_per_second": {side: round(len(files) / value, 1) for side, value in seconds.items()},
        "float_ratios": {side: round(seconds["peer"] / seconds[f"{side}_float"], 2) for side in ("fast", "shards")},
        "differences": {kind: float(f"{value:.2g}") for kind, value in differences.items()},
        "bytes_per_image": {
            "file": sum(map(len, files)) // len(files),
            "shard": sum(map(len, shards)) // len(shards),
        },
    }
    return {name: seconds["peer"] / seconds["fast"], f"shards_{name}": seconds["peer"] / seconds["shards"]}, details


def main() -> None:
    """Measure the three classes."""
    torch.set_num_threads(1)
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    ratios, details = {}, {}
    for index, name in enumerate(SIZES):
        measured, details[name] = measure(name, partial(llava_steps, processor), 100 * index)
        ratios |= measured
    finish("images", {name: ratios[name] for name in TARGETS}, TARGETS, details, equal=True)


if __name__ == "__main__":
    main()

"""
Where the images of each source come from, and where users really have them after unpacking.

A record names its image relative to one root as docs/Data.md of the release lays the folders out
(ShareGPT4Omni/ShareGPT4V@b6f70e9), `sam/images/sa_1.jpg`. The archives unpack differently: the web data brings an
inner `data/`, SA-1B comes as tar files of flat names, and LLaVA-Pretrain's zip lacks the outer folders.
"""

import re
from dataclasses import dataclass


TEXT_ONLY, OTHER = "text", "other"
SAM_IMAGES_PER_TAR = 11_186  # InternLM/InternLM-XComposer#217: 51 tar files with 570,486 images
SAM_NUMBER = re.compile(r"/sa_([1-9][0-9]{0,8})\.[a-z]+$")


@dataclass(frozen=True)
class Layout:
    """Folder of a source in the records, other folders that hold the same files, and the archive they come in."""

    prefix: str
    source: str
    archive: str
    others: tuple[str, ...] = ()


LAYOUTS = (
    Layout(
        "coco/train2017/",
        "coco",
        "train2017.zip (COCO)",
        ("train2017/", "coco/images/train2017/", "COCO/train2017/", "coco2017/train2017/"),
    ),
    Layout(
        "llava/llava_pretrain/images/",
        "lcs",
        "images.zip (LLaVA-Pretrain)",
        ("llava_pretrain/images/", "LLaVA-Pretrain/images/", "llava/LLaVA-Pretrain/images/"),
    ),
    Layout(
        "sam/images/",
        "sam",
        "SA-1B",
        ("SAM/images/", "SA-1B/images/", "SA-1B/", "sa-1b/", "sam_images_share-sft/", ""),
    ),
    Layout("share_textvqa/images/", "textcaps", "share_textvqa.zip"),
    Layout("web-celebrity/images/", "web-celebrity", "web-celebrity.zip"),
    Layout(
        "web-landmark/images/",
        "web-landmark",
        "web-landmakr.zip",
        ("web-landmakr/data/web-landmark/images/", "web-landmakr/web-landmark/images/", "web-landmakr/images/"),
    ),
    Layout("wikiart/images/", "wikiart", "wikiart.zip"),
    Layout("gqa/images/", "gqa", "images.zip (GQA)", ("GQA/images/",)),
    Layout("ocr_vqa/images/", "ocr_vqa", "OCR-VQA's download script", ("ocrvqa/images/", "OCR-VQA/images/")),
    Layout(
        "textvqa/train_images/",
        "textvqa",
        "train_val_images.zip (TextVQA)",
        (
            *("textvqa/train_val_images/train_images/", "TextVQA/train_images/"),
            *("TextVQA/train_val_images/train_images/", "train_val_images/train_images/"),
        ),
    ),
    Layout(
        "vg/VG_100K/",
        "vg",
        "images.zip (Visual Genome)",
        ("VG_100K/", "vg/images/VG_100K/", "VG/VG_100K/", "visual_genome/VG_100K/"),
    ),
    Layout(
        "vg/VG_100K_2/",
        "vg",
        "images2.zip (Visual Genome)",
        ("VG_100K_2/", "vg/images2/VG_100K_2/", "VG/VG_100K_2/", "visual_genome/VG_100K_2/"),
    ),
)
# Only the first folder decides the source of a record, as in the released files' documentation.
SOURCE_FOLDERS = {"llava/llava_pretrain/": "lcs"} | {
    layout.prefix.split("/")[0] + "/": layout.source for layout in LAYOUTS if layout.source != "lcs"
}


def source_of(image: str | None) -> str:
    """
    Source of an image by the folder it lies in.

    Args:
        image (`str`, *optional*): Path in a record, relative to the root of all images.

    Returns:
        `str`: A source of `LAYOUTS`, `text` without an image, `other` for an unknown folder.
    """
    if image is None:
        return TEXT_ONLY
    return next((source for folder, source in SOURCE_FOLDERS.items() if image.startswith(folder)), OTHER)


def layout_of(image: str) -> Layout | None:
    """
    Layout that an image path belongs to.

    Args:
        image (`str`): Path in a record.

    Returns:
        `Layout` or `None`: `None` for a folder that the release does not know.
    """
    return next((layout for layout in LAYOUTS if image.startswith(layout.prefix)), None)


def archive_of(image: str) -> str:
    """
    Archive in which the release's instructions deliver an image.

    Args:
        image (`str`): Path in a record.

    Returns:
        `str`: Name of the archive; for SA-1B the tar file that the image's number points at.
    """
    layout = layout_of(image)
    if layout is None:
        return "unknown"
    if layout.source == "sam" and (number := SAM_NUMBER.search(image)):
        return f"sa_{(int(number[1]) - 1) // SAM_IMAGES_PER_TAR:06d}.tar (by its number)"
    return layout.archive


def folders_of(layout: Layout) -> list[str]:
    """
    Every folder below a root in which the images of a layout are looked for, the documented one first.

    Args:
        layout (`Layout`): Layout of a source.

    Returns:
        `list[str]`: Folders with a trailing slash; empty text for the root itself.
    """
    folders = []
    for folder in (layout.prefix, *layout.others):
        folders.append(folder)
        if folder.endswith("/images/"):  # `gqa/1.jpg`
            folders.append(folder.removesuffix("images/"))
    found = []
    for folder in folders:
        found.append(folder)
        if parts := folder.split("/")[:-1]:
            found += [f"data/{folder}", f"{parts[0]}/data/{folder}", f"{folder}data/{folder}"]
            found += [f"{parts[0]}/{folder}", f"{folder}{parts[-1]}/"]
    return list(dict.fromkeys(found))

"""
Image roots: from the path in a record to the bytes on this machine, whichever way the archives were unpacked.

Several folders can be roots. Below each, the documented folder of a source is tried first, then the places where the
files end up in practice (`layouts.py`), then archives that were never unpacked: a tar or zip file counts as unpacked
into its own folder, and as unpacked into a folder of its own name.
"""

import errno
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .archives import Archive, Located, is_archive, list_archive
from .image_paths import check_image_path, is_image_name
from .layouts import LAYOUTS, Layout, folders_of, layout_of


logger = logging.getLogger(__name__)
ARCHIVE_DEPTH = 4  # folders below a root in which archives are looked for
SAM_PREFIX, LCS_PREFIX = "sam/images/", "llava/llava_pretrain/images/"
SAM_FOLDER, SAM_FILE = re.compile(r"sa_\d{6}"), re.compile(r"sa_\d+\.jpg")
LCS_FILE = re.compile(r"(\d{5})\d{4}\.jpg")  # 000114116.jpg belongs into 00011/
OTHER_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".png", ".gif", ".webp")  # OCR-VQA arrives with several
ONE_SUFFIX = {"coco", "lcs", "sam", "gqa", "vg"}


@dataclass(frozen=True)
class _Place:
    root: str
    folder: str

    @property
    def path(self) -> str:
        return f"{self.root}/{self.folder}"


class ImageRoots:
    """
    Folders in which images are looked up, with the archives they hold.

    Args:
        roots (`Iterable[str or os.PathLike]`): Folders, tried in this order.

    Raises:
        `FileNotFoundError`: A root is no folder.
        `ValueError`: No root is given.
    """

    def __init__(self, roots: Iterable[str | os.PathLike]):
        self.roots = [Path(root).resolve() for root in roots]
        if not self.roots:
            raise ValueError("At least one image root is needed.")
        for root in self.roots:
            if not root.is_dir():
                raise FileNotFoundError(f"The image root {root} is no folder.")
        self._inside: dict[str, bool] = {}
        paths = dict.fromkeys(path for root in self.roots for path in _archives_below(root))
        self.archives: list[Archive] = [self._list_archive(path) for path in paths]
        self._members: dict[str, Located] = {}
        self._places: dict[str, list[_Place]] = {}
        for archive in self.archives:
            for name, located in archive.members.items():
                for path in _mounted(archive, name):
                    self._members.setdefault(path, located)
        folders = _with_parents({os.path.dirname(path) for path in self._members})
        for layout in LAYOUTS:
            self._places[layout.prefix] = [place for root in self.roots for place in _places_of(layout, root, folders)]
        starts = [(place.path, prefix) for prefix, places in self._places.items() for place in places]
        self._starts = sorted(starts, key=lambda start: len(start[0]), reverse=True)
        self._bare = {f"{root}/" for root in self.roots}

    def locate(self, image: str) -> Located | None:
        """
        Find an image.

        Args:
            image (`str`): Path as a record has it, relative to the root of all images.

        Returns:
            `Located` or `None`: Where its bytes are; `None` where no root has it.

        Raises:
            `ValueError`: The path is unsafe, leads out of the roots through a symbolic link, or is no regular file.
        """
        check_image_path(image)
        layout = layout_of(image)
        if layout is None:
            places = [_Place(str(root), folder) for root in self.roots for folder in ("", "data/")]
            return self._find(places, [image, *_respelled([image], ())])
        tail = image.removeprefix(layout.prefix)
        tails = [tail, tail.rsplit("/", 1)[-1]] if layout.source == "lcs" else [tail]
        places = self._places[layout.prefix]
        suffixes = () if layout.source in ONE_SUFFIX else OTHER_SUFFIXES
        return self._find(places, tails) or self._find(places, _respelled(tails, suffixes))

    def scan(self) -> Iterator[tuple[str, Located]]:
        """
        List every image file below the roots and every image in their archives, also those that no record can reach
        because another has the same path.

        Yields:
            `tuple[str, Located]`: Path that a record would have for it, below the documented folder of its source, or
                else relative to its root, and where the bytes are; each place once.

        Raises:
            `ValueError`: A symbolic link leads out of the roots, a name is not UTF-8, or what has the name of an image
                is no regular file.
        """
        seen: set[str] = set()
        for path in self._image_files():
            if path not in seen and (located := self._file(path)) is not None:
                seen.add(path)
                yield self._record_path(path), located
        for archive in self.archives:
            for name, located in archive.members.items():
                images = [self._record_path(path) for path in _mounted(archive, name)]
                known = [image for image in images if layout_of(image)]
                yield min(known, key=len, default=images[0]), located

    def _image_files(self) -> Iterator[str]:
        for root in self.roots:
            for folder, subfolders, names in os.walk(root, onerror=_warn):
                subfolders.sort()
                for name in subfolders:
                    self._check_inside(f"{folder}/{name}")  # a linked folder inside is listed where it really is
                for path in (f"{folder}/{name}" for name in sorted(names) if is_image_name(name)):
                    if path.encode(errors="replace").decode() != path:
                        raise ValueError(f"The name {path!r} is not UTF-8. Rename it.")
                    yield path

    def _record_path(self, path: str) -> str:
        for start, prefix in self._starts:
            if path.startswith(start):
                tail = path.removeprefix(start)
                if prefix == SAM_PREFIX and start in self._bare and not SAM_FILE.fullmatch(tail):
                    continue
                if flat := LCS_FILE.fullmatch(tail) if prefix == LCS_PREFIX else None:
                    tail = f"{flat[1]}/{tail}"
                return prefix + tail
        root = next(root for root in self.roots if path.startswith(f"{root}/"))
        return path.removeprefix(f"{root}/")

    def _list_archive(self, path: Path) -> Archive:
        try:
            self._check_inside(str(path))
        except ValueError as error:
            logger.warning("%s", error)
            return Archive(path, problems=[str(error)])
        return list_archive(path)

    def _find(self, places: list[_Place], tails: list[str]) -> Located | None:
        for place in places:
            for tail in tails:
                path = place.path + tail
                found = self._file(path) or self._members.get(path)
                if found is not None:
                    return found
        return None

    def _file(self, path: str) -> Located | None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no file can have it
                return None
            raise ValueError(f"{path} cannot be looked up: {error.strerror}.") from error
        self._check_inside(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file.")
        return Located(path, status.st_size, status.st_mtime_ns)

    def _check_inside(self, path: str) -> None:
        if not os.path.islink(path) and self._is_inside(os.path.dirname(path)):
            return
        real = os.path.realpath(path)
        if not self._holds(real):
            raise ValueError(
                f"{path} leads out of the image roots to {real}. If that is meant, give the folder it leads to as "
                "another root."
            )

    def _is_inside(self, folder: str) -> bool:
        if folder not in self._inside:
            self._inside[folder] = self._holds(os.path.realpath(folder))
        return self._inside[folder]

    def _holds(self, real: str) -> bool:
        return any(f"{real}/".startswith(f"{root}/") for root in self.roots)


def _places_of(layout: Layout, root: Path, archive_folders: set[str]) -> Iterator[_Place]:
    inside = folders_of(layout)
    # A root may itself be the folder of a source: `--images /data/coco` holds `train2017/`.
    for folder in list(inside):
        parts = folder.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            if root.parts[-depth:] == tuple(parts[:depth]):
                inside.append("".join(f"{part}/" for part in parts[depth:]))
    for folder in dict.fromkeys(inside):
        base = f"{root}/{folder}".rstrip("/")
        if base not in archive_folders and not os.path.isdir(base):
            continue
        yield _Place(str(root), folder)
        if layout.prefix == SAM_PREFIX:  # each tar file unpacked into a folder of its own
            names = {os.path.basename(known) for known in archive_folders if os.path.dirname(known) == base}
            names |= set(os.listdir(base)) if os.path.isdir(base) else set()
            for name in sorted(filter(SAM_FOLDER.fullmatch, names)):
                yield _Place(str(root), f"{folder}{name}/")


def _mounted(archive: Archive, name: str) -> list[str]:
    # As if unpacked into a folder of the archive's name, and as if unpacked beside it.
    base, stem = archive.path.parent, archive.path.stem
    if SAM_FOLDER.fullmatch(stem) and "/" not in name:  # half a million files: once is enough
        return [f"{base}/{stem}/{name}"]
    return [f"{base}/{stem}/{name}", f"{base}/{name}"]


def _archives_below(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        if len(Path(folder).relative_to(root).parts) >= ARCHIVE_DEPTH:
            subfolders.clear()
        yield from (Path(folder, name) for name in sorted(filter(is_archive, names)))


def _with_parents(folders: set[str]) -> set[str]:
    found = set()
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = os.path.dirname(folder)
    return found


def _warn(error: OSError) -> None:
    logger.warning("%s. Images in there are not listed.", error)


def _respelled(tails: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """The same names as other systems store them: composed or decomposed accents, another suffix."""
    names = [*tails, *((tail.rpartition(".")[0] or tail) + suffix for tail in tails for suffix in suffixes)]
    forms = [unicodedata.normalize(form, name) for name in names for form in ("NFC", "NFD")]
    return [name for name in dict.fromkeys(forms) if name not in tails]

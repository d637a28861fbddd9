"""
Image roots: from the path in a record to the bytes on this machine, whichever way the archives were unpacked.

Several folders can be roots. Below each, the documented folder of a source is tried first, then the places where the
files end up in practice (`layouts.py`), then archives that were never unpacked: a tar or zip file counts as unpacked
into its own folder, and as unpacked into a folder of its own name.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .archives import Archive, Located, is_archive, list_archive
from .image_paths import IMAGE_SUFFIXES, check_image_path
from .layouts import LAYOUTS, Layout, folders_of, layout_of


ARCHIVE_DEPTH = 4  # folders below a root in which archives are looked for
SAM_FOLDER, SAM_FILE = re.compile(r"sa_\d{6}"), re.compile(r"sa_\d+\.jpg")
OTHER_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".png", ".gif", ".webp")  # OCR-VQA arrives with several
ONE_SUFFIX = {"coco", "lcs", "sam", "gqa", "vg"}


@dataclass(frozen=True)
class _Place:
    root: str
    folder: str


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
        self.archives: list[Archive] = [archive for root in self.roots for archive in _archives_below(root)]
        self._members: dict[str, Located] = {}
        self._places: dict[str, list[_Place]] = {}
        for archive in self.archives:
            self._mount(archive)
        folders = {os.path.dirname(path) for path in self._members}
        for layout in LAYOUTS:
            self._places[layout.prefix] = [place for root in self.roots for place in _places_of(layout, root, folders)]

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
        direct = [_Place(str(root), folder) for root in self.roots for folder in ("", "data/")]
        if layout is None:
            return self._find(direct, [image])
        tail = image.removeprefix(layout.prefix)
        tails = [tail, tail.rsplit("/", 1)[-1]] if layout.source == "lcs" else [tail]
        places = self._places[layout.prefix]
        suffixes = () if layout.source in ONE_SUFFIX else OTHER_SUFFIXES
        return self._find(places, tails) or self._find(places, _respelled(tails, suffixes))

    def scan(self) -> Iterator[str]:
        """
        List every image below the roots, by the path a record would have for it.

        Yields:
            `str`: Path below the documented folder of its source, or else relative to its root; each once.
        """
        seen: set[str] = set()
        for root in self.roots:
            for path in _image_files(root):
                yield from self._once(f"{root}/{path}", root, seen)
        for path in self._members:
            if path.lower().endswith(IMAGE_SUFFIXES):
                root = next(root for root in self.roots if path.startswith(f"{root}/"))
                yield from self._once(path, root, seen)

    def _once(self, path: str, root: Path, seen: set[str]) -> Iterator[str]:
        image = self._record_path(path, root)
        if image not in seen:
            seen.add(image)
            yield image

    def _record_path(self, path: str, root: Path) -> str:
        best, image = -1, path.removeprefix(f"{root}/")
        for prefix, places in self._places.items():
            for place in places:
                start = f"{place.root}/{place.folder}"
                plain = place.folder or SAM_FILE.fullmatch(path.removeprefix(start))
                if plain and len(start) > best and path.startswith(start):
                    best, image = len(start), prefix + path.removeprefix(start)
        return image

    def _mount(self, archive: Archive) -> None:
        base, stem = archive.path.parent, archive.path.stem
        for name, located in archive.members.items():
            self._members.setdefault(f"{base}/{stem}/{name}", located)
            if not SAM_FOLDER.fullmatch(stem):  # flat names of half a million files: once is enough
                self._members.setdefault(f"{base}/{name}", located)

    def _find(self, places: list[_Place], tails: list[str]) -> Located | None:
        for place in places:
            for tail in tails:
                path = f"{place.root}/{place.folder}{tail}"
                found = self._file(path) or self._members.get(path)
                if found is not None:
                    return found
        return None

    def _file(self, path: str) -> Located | None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # a name too long for the file system, or a link that points at itself
            raise ValueError(f"{path} cannot be looked up: {error.strerror}.") from error
        real = os.path.realpath(path)
        if not any(real.startswith(f"{root}/") for root in self.roots):
            raise ValueError(
                f"{path} leads out of the image roots to {real}. If that is meant, give that folder as another root."
            )
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file.")
        return Located(path, status.st_size, status.st_mtime_ns)


def _places_of(layout: Layout, root: Path, archive_folders: set[str]) -> Iterator[_Place]:
    inside = [folder for folder in folders_of(layout)]
    # A root may itself be the folder of a source: `--images /data/coco` holds `train2017/`.
    inside += [folder.removeprefix(f"{root.name}/") for folder in inside if folder.startswith(f"{root.name}/")]
    for folder in dict.fromkeys(inside):
        base = f"{root}/{folder}"
        virtual = any(f"{known}/".startswith(base) for known in archive_folders)
        if not virtual and not os.path.isdir(base):
            continue
        yield _Place(str(root), folder)
        if layout.source == "sam":  # each tar file unpacked into a folder of its own
            names = {known.removeprefix(base).split("/")[0] for known in archive_folders if known.startswith(base)}
            names |= {entry.name for entry in os.scandir(base) if entry.is_dir()} if os.path.isdir(base) else set()
            yield from (_Place(str(root), f"{folder}{name}/") for name in sorted(names) if SAM_FOLDER.fullmatch(name))


def _archives_below(root: Path) -> Iterator[Archive]:
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        if len(Path(folder).relative_to(root).parts) >= ARCHIVE_DEPTH:
            subfolders.clear()
        for name in sorted(filter(is_archive, names)):
            yield list_archive(Path(folder, name))


def _image_files(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        inside = os.path.relpath(folder, root)
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield name if inside == "." else f"{inside}/{name}"


def _respelled(tails: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """The same names as other systems store them: composed or decomposed accents, another suffix."""
    names = [*tails, *((tail.rpartition(".")[0] or tail) + suffix for tail in tails for suffix in suffixes)]
    forms = [unicodedata.normalize(form, name) for name in names for form in ("NFC", "NFD")]
    return [name for name in dict.fromkeys(forms) if name not in tails]

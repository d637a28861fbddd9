"""Repositories as the Hub keeps them: commits on branches, tags, and bytes in a folder by their SHA-256."""

import hashlib
import io
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol


KINDS = ("model", "dataset", "space")
MAIN = "main"
PIECE = 1 << 20  # bytes read at once
LARGE = 10_000_000  # bytes from which on a file is large whatever its name; no commit takes it inline
# What a new repository declares as large by name; the Hub's own list is longer.
_ARCHIVES = "*.7z *.gz *.rar *.tar *.tgz *.xz *.zip *.zst"
_WEIGHTS = "*.bin *.ckpt *.gguf *.h5 *.model *.npy *.npz *.onnx *.pickle *.pkl *.pt *.pth *.safetensors *tfevents*"
_TABLES = "*.arrow *.parquet"
_MEDIA = "*.bmp *.gif *.jpeg *.jpg *.mp4 *.pdf *.png *.tiff *.wav *.webp"
LARGE_NAMES = {
    "model": f"{_ARCHIVES} {_WEIGHTS} {_TABLES}",
    "dataset": f"{_ARCHIVES} {_WEIGHTS} {_TABLES} {_MEDIA}",
    "space": f"{_ARCHIVES} {_WEIGHTS} {_TABLES}",
}


class HubError(Exception):
    """An answer that is no success: status, what it says, the Hub's code of it, and more headers and fields."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None, **fields: Any
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers, self.fields = status, message, code, headers or {}, fields


@dataclass(frozen=True)
class File:
    """A file of a commit: its bytes by SHA-256, and its name in Git, which for a large file is that of its pointer."""

    sha256: str
    size: int
    oid: str
    is_large: bool

    @property
    def pointer(self) -> bytes:
        """What Git holds of a large file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        """What a cache goes by."""
        return self.sha256 if self.is_large else self.oid


@dataclass(frozen=True)
class Commit:
    """All files of a repository at a time, and who put them there."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]

    def folders(self) -> set[str]:
        """Every folder that has a file below it."""
        parts = (name.split("/") for name in self.files)
        return {"/".join(part[:depth]) for part in parts for depth in range(1, len(part))}


class Readable(Protocol):
    """What bytes come from."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, none at the end."""


def git_oid(data: bytes) -> str:
    """The name that Git gives to the bytes of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    """The time as the Hub writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


class Blobs:
    """A folder with files named by the SHA-256 of what they hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where bytes are, or would be."""
        return self.folder / sha256

    def keep(self, data: bytes) -> str:
        """Keep bytes; gives their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.keep_stream([io.BytesIO(data)], sha256)
        return sha256

    def keep_stream(self, streams: Iterable[Readable], sha256: str) -> None:
        """Keep what streams hold one after another, if it is what was announced."""
        digest, part = hashlib.sha256(), self.folder / f"{sha256}.{threading.get_ident()}.part"
        try:
            with part.open("wb") as file:
                for stream in streams:
                    while piece := stream.read(PIECE):
                        digest.update(piece)
                        file.write(piece)
            if digest.hexdigest() != sha256:
                raise HubError(400, "The bytes received are not those announced.")
            part.replace(self.path(sha256))
        finally:
            part.unlink(missing_ok=True)


@dataclass
class Repository:
    """
    A repository.

    `uploaded` names the large files whose bytes it has, committed or not; `granted` those whom a gated one lets in.
    """

    kind: str
    id: str
    blobs: Blobs
    private: bool = False
    gated: bool | str = False
    sdk: str | None = None
    granted: set[str] = field(default_factory=set)
    created: str = field(default_factory=now)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        names = LARGE_NAMES[self.kind].split()
        attributes = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in names)
        self.commit(MAIN, {".gitattributes": self.keep(attributes.encode())}, "initial commit", author="system")

    @property
    def owner(self) -> str:
        """Namespace that it is in."""
        return self.id.partition("/")[0]

    @property
    def head(self) -> Commit:
        """Newest commit of the main branch."""
        return self.commits[self.branches[MAIN]]

    @property
    def names(self) -> list[str]:
        """Files of the main branch that were not there from the start, sorted."""
        return sorted(set(self.head.files) - {".gitattributes"})

    def read(self, name: str, revision: str = MAIN) -> bytes:
        """Bytes of a file."""
        return self.blobs.path(self.at(revision).files[name].sha256).read_bytes()

    def keep(self, data: bytes) -> File:
        """Make a file that Git itself holds."""
        return File(self.blobs.keep(data), len(data), git_oid(data), is_large=False)

    def keep_large(self, sha256: str) -> File:
        """Make a file whose bytes have been uploaded."""
        if sha256 not in self.uploaded:
            raise HubError(400, f"The pointer of a large file names {sha256}, which was not uploaded.")
        file = File(sha256, self.blobs.path(sha256).stat().st_size, "", is_large=True)
        return File(sha256, file.size, git_oid(file.pointer), is_large=True)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a hash (or its first characters, at least 7) means."""
        known = self.branches.get(revision) or self.tags.get(revision)
        found = [known] if known else [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def history(self, revision: str) -> list[Commit]:
        """A commit and its ancestors, the newest first."""
        found: list[Commit] = []
        sha: str | None = self.at(revision).sha
        while sha is not None:
            found.append(self.commits[sha])
            sha = found[-1].parent
        return found

    def commit(
        self, branch: str, files: dict[str, File], title: str, message: str = "", author: str = "", parent: str = ""
    ) -> Commit:
        """
        Put a commit with exactly these files on a branch.

        Args:
            branch (`str`): Name of the branch.
            files (`dict[str, File]`): All files of the commit.
            title (`str`): First line of what is said of it.
            message (`str`, *optional*): The rest.
            author (`str`, *optional*): Name of a user.
            parent (`str`, *optional*): Commit that must be the newest of the branch.

        Returns:
            `Commit`: The new commit.

        Raises:
            `HubError`: The branch has moved on, there is no such branch, or a name is a file and a folder at once.
        """
        if self.commits and branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        before = self.branches.get(branch)
        if parent and parent != before:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        date = now()
        listed = sorted((name, file.oid) for name, file in files.items())
        described = (self.kind, self.id, before, title, date, time.time_ns(), listed)
        sha = hashlib.sha1(repr(described).encode()).hexdigest()
        new = Commit(sha, before, title, message, author, date, files)
        if both := sorted(new.folders() & set(files)):
            raise HubError(400, f"{both[0]} would be a file and a folder.")
        self.commits[sha], self.branches[branch] = new, sha
        return new

    def is_large(self, name: str, size: int, sample: bytes) -> bool:
        """Whether a file is kept as a large one: by the attributes of the repository, its size or what is in it."""
        lines = self.read(".gitattributes").decode().splitlines() if ".gitattributes" in self.head.files else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        short = name.rpartition("/")[2]
        return size > LARGE or b"\0" in sample or any(fnmatch(short, pattern) for pattern in patterns)


class Store:
    """All repositories, by type and name; one change at a time by `lock`."""

    def __init__(self, folder: Path) -> None:
        self.blobs = Blobs(folder)
        self.lock = threading.RLock()
        self._all: dict[tuple[str, str], Repository] = {}

    def __iter__(self) -> Any:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def find(self, id: str, kind: str = "model") -> Repository | None:
        """A repository, or nothing."""
        return self._all.get((kind, id))

    def create(self, id: str, kind: str = "model", **options: Any) -> Repository:
        """Make a new one."""
        if (kind, id) in self._all:
            raise HubError(409, f"You already created this {kind} repo")
        repository = Repository(kind, id, self.blobs, **options)
        self._all[kind, id] = repository
        return repository

    def delete(self, repository: Repository) -> None:
        """Forget one."""
        del self._all[repository.kind, repository.id]

    def move(self, repository: Repository, id: str) -> None:
        """Give one another name."""
        if (repository.kind, id) in self._all:
            raise HubError(409, f"There is a {repository.kind} repo {id} already.")
        self.delete(repository)
        repository.id = id
        self._all[repository.kind, id] = repository

"""
Weight files on disk: tensors are read one at a time, shards are written at a bounded size, and a folder appears under
its name only when it is complete.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging


logger = logging.get_logger(__name__)
# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_json(path: Path) -> dict[str, Any]:
    """
    Read a JSON object.

    Args:
        path (`Path`): File.

    Returns:
        `dict[str, Any]`: Its content.

    Raises:
        `FileNotFoundError`: There is no such file.
        `ValueError`: The file holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """
    Write a JSON object.

    Args:
        path (`Path`): File.
        content (`dict[str, Any]`): What to write.
    """
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_weight_files(folder: Path) -> list[Path]:
    """
    Weight files of a checkpoint folder, in the order of their names.

    Args:
        folder (`Path`): Folder with safetensors or `.bin` weights, in one file or in shards with an index.

    Returns:
        `list[Path]`: Files.

    Raises:
        `FileNotFoundError`: The folder has no weights, or lacks a shard that its index names.
        `ValueError`: The index names a file outside of the folder.
    """
    for name in WEIGHT_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        shards = sorted(set(read_json(path).get("weight_map", {}).values()))
        if outside := [shard for shard in shards if Path(shard).name != shard]:
            raise ValueError(f"{path} names files outside of its folder: {outside[:3]}.")
        if absent := [shard for shard in shards if not (folder / shard).is_file()]:
            raise FileNotFoundError(f"{len(absent)} of {len(shards)} shards of {path} are absent: {absent[:3]}.")
        return [folder / shard for shard in shards]
    raise FileNotFoundError(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)} is there.")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """
    Names and shapes of the tensors in a weight file, without reading their data where the format allows it.

    Args:
        path (`Path`): A safetensors file or a file of `torch.save`.

    Returns:
        `dict[str, tuple[int, ...]]`: Shape of each tensor.

    Raises:
        `ValueError`: The file is damaged or holds more than tensors.
    """
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in _load_pickle(path).items()}
    with _open_safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def read_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """
    Read some tensors of a weight file, one at a time. They may alias the file: copy what is kept.

    Args:
        path (`Path`): A safetensors file or a file of `torch.save`.
        names (`Iterable[str]`): Tensors to read, in this order.

    Yields:
        `tuple[str, torch.Tensor]`: Name and tensor on the CPU.

    Raises:
        `ValueError`: The file is damaged or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            for name in names:
                yield name, file.get_tensor(name)
    else:
        tensors = _load_pickle(path)
        for name in names:
            yield name, tensors.pop(name)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is: its file, its name in there and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]


def scan_tensors(
    files: Iterable[Path], rename: Callable[[str], str | None]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """
    Find the tensors of a checkpoint.

    Args:
        files (`Iterable[Path]`): Weight files.
        rename (`Callable`): Gives the new name of a tensor, or `None` if it is dropped.

    Returns:
        `tuple[dict[str, StoredTensor], list[str]]`: Tensors by their new names, and the old names of dropped ones.

    Raises:
        `ValueError`: Two tensors get the same name, or a file cannot be read.
    """
    tensors: dict[str, StoredTensor] = {}
    dropped = []
    for file in files:
        for name, shape in read_shapes(file).items():
            new_name = rename(name)
            if new_name is None:
                dropped.append(name)
            elif new_name in tensors:
                other = tensors[new_name]
                raise ValueError(f"{name} of {file} and {other.name} of {other.file} are both {new_name}.")
            else:
                tensors[new_name] = StoredTensor(file, name, shape)
    return tensors, dropped


def stream_tensors(tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """
    Read tensors one at a time, file by file.

    Args:
        tensors (`dict[str, StoredTensor]`): Tensors by their new names.

    Yields:
        `tuple[str, torch.Tensor]`: New name and tensor.
    """
    by_file: dict[Path, dict[str, str]] = defaultdict(dict)
    for new_name, stored in tensors.items():
        by_file[stored.file][stored.name] = new_name
    with logging.tqdm(total=len(tensors), desc="convert", unit="tensor") as bar:
        for file, names in by_file.items():
            for name, tensor in read_tensors(file, names):
                yield names[name], tensor
                bar.update()


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, framework="pt")
    except Exception as error:  # safetensors raises its own kind, and others for a file cut short
        raise ValueError(f"{path} is not a complete safetensors file: {error}.") from error
    with file as opened:
        yield opened


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped into memory.
        tensors = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # an unpickler fails in many ways on bytes it does not expect
        raise ValueError(
            f"{path} cannot be read as plain tensors: the file is damaged, or it would run code while it loads, which "
            f"is refused. Fetch the file again, or ask its author for safetensors. ({str(error).splitlines()[:1]})"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(tensors).__name__} with other things.")
    return tensors


def load_tokenizer(folder: Path, vocabulary: int, **options: Any) -> PreTrainedTokenizerBase:
    """
    Load a tokenizer that must be complete: transformers fills in for absent files, down to an empty vocabulary.

    Args:
        folder (`Path`): Folder of the tokenizer.
        vocabulary (`int`): Tokens that the model has.
        options: Passed to [`~transformers.AutoTokenizer.from_pretrained`].

    Returns:
        `PreTrainedTokenizerBase`: Tokenizer.

    Raises:
        `ValueError`: Files are absent or damaged, or the tokenizer has more tokens than the model.
    """
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if not has_vocabulary or not (folder / "tokenizer_config.json").is_file():
        raise ValueError(
            f"{folder} has no complete tokenizer: tokenizer_config.json and tokenizer.model or tokenizer.json are "
            "needed. Name the folder of one by `--tokenizer`."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The tokenizer in {folder} cannot be read: {error}. Name another by `--tokenizer`."
        ) from error
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocabulary}. Name the folder of the "
            "tokenizer it was trained with by `--tokenizer`."
        )
    if len(tokenizer) < vocabulary:
        logger.warning("The tokenizer in %s has %d tokens, the model %d.", folder, len(tokenizer), vocabulary)
    return tokenizer


def set_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """
    Cut or grow an embedding or a head.

    Args:
        tensor (`torch.Tensor`): Of shape (V, D).
        rows (`int`): Rows wanted.

    Returns:
        `torch.Tensor`: Of shape (rows, D); new rows are the mean of the V rows, taken in float32.
    """
    if rows <= len(tensor):
        return tensor[:rows]
    mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)  # (1, D)
    return torch.cat([tensor, mean.expand(rows - len(tensor), -1)])


class ShardWriter:
    """
    Writes tensors as safetensors shards with an index; at most one shard is held in memory.

    Args:
        folder (`Path`): Existing folder.
        max_shard_size (`int`): Upper bound of a shard's tensors in bytes; a larger tensor gets a shard of its own.
    """

    def __init__(self, folder: Path, max_shard_size: int):
        self.folder = folder
        self.max_shard_size = max_shard_size
        self.total_size = 0
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_size = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """
        Add a tensor; its data is copied, so the file it was read from can be closed.

        Args:
            name (`str`): Name in the file.
            tensor (`torch.Tensor`): Of any shape.
        """
        if self._pending and self._pending_size + tensor.nbytes > self.max_shard_size:
            self._flush()
        self._pending[name] = tensor.to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
        self._pending_size += tensor.nbytes

    def finish(self) -> int:
        """
        Write what is left, give the shards their final names and write the index if there are several.

        Returns:
            `int`: Number of tensors written.
        """
        self._flush()
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, start=1):
            total = len(self._shards)
            name = "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
            self._part(number).rename(self.folder / name)
            weight_map |= dict.fromkeys(names, name)
        if len(self._shards) > 1:
            index = {"metadata": {"total_size": self.total_size}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(self.folder / "model.safetensors.index.json", index)
        return len(weight_map)

    def _flush(self) -> None:
        if not self._pending:
            return
        self._shards.append(list(self._pending))
        save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
        self.total_size += self._pending_size
        self._pending, self._pending_size = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"


def describe_files(files: Iterable[Path], root: Path) -> dict[str, dict[str, Any]]:
    """
    Size and hash of files, so that they can be recognised later.

    Args:
        files (`Iterable[Path]`): Files below `root`.
        root (`Path`): Folder that the names are relative to.

    Returns:
        `dict[str, dict[str, Any]]`: Name with forward slashes to `size` in bytes and `sha256`.
    """
    described = {}
    for path in logging.tqdm(sorted(files), desc="sha256", unit="file"):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described[path.relative_to(root).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    return described


@contextmanager
def complete_folder(output: Path) -> Iterator[Path]:
    """
    A folder to fill that gets its name at the end, so that nobody ever sees it half full.

    Args:
        output (`Path`): Name it gets; an empty folder of that name is replaced.

    Yields:
        `Path`: Hidden folder beside `output`, removed if anything fails.

    Raises:
        `FileExistsError`: `output` is a file or a folder with content.
    """
    output = output.resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"`output` exists and is not empty: {output}. Remove it or choose another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except BaseException:  # an interrupt from the keyboard included
        shutil.rmtree(partial, ignore_errors=True)
        raise

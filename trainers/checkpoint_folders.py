"""
Checkpoints on the disk: put in place in one step, listed in `complete.json`, compared with it before they are used.

A folder `checkpoint-N` of a run is written aside, in `_incomplete`, and renamed when all of it is on the disk.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


logger = logging.getLogger(__name__)

MARKER = "complete.json"
# Beside the checkpoints, so that a rename suffices. transformers leaves names with "_" in front out of its pushes.
INCOMPLETE = "_incomplete"
CHECKPOINT_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def verify_checkpoint(folder: str | os.PathLike) -> list[str]:
    """
    Compare a checkpoint with the list that was written with it, byte for byte.

    Args:
        folder (`str` or `os.PathLike`): A `checkpoint-N` folder.

    Returns:
        `list[str]`: What is wrong, each with the file's name; empty when the checkpoint is as it was written.
    """
    folder = Path(folder)
    try:
        listed = _read_marker(folder)["files"]
    except ValueError as error:
        return [str(error)]
    found = _files(folder)
    problems = [f"{name} is missing" for name in sorted(listed.keys() - found.keys())]
    problems += [f"{name} does not belong to it" for name in sorted(found.keys() - listed.keys())]
    names = sorted(listed.keys() & found.keys())
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda name: _compare(name, found[name], listed[name]), names)
        return problems + [problem for problem in results if problem is not None]


def newest_complete(output_dir: str | os.PathLike) -> tuple[Path | None, list[tuple[Path, list[str]]]]:
    """
    Find the checkpoint to go on from; each one that is passed over is logged with the reasons.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of a run; it need not exist.

    Returns:
        `tuple[Path | None, list[tuple[Path, list[str]]]]`: The complete checkpoint with the largest step, if any, and
            those with larger steps that are damaged or unproven, with their problems.
    """
    refused: list[tuple[Path, list[str]]] = []
    for folder in reversed(list_checkpoints(Path(output_dir))):
        problems = verify_checkpoint(folder)
        if not problems:
            return folder, refused
        logger.warning("%s is not used: %s.", folder, "; ".join(problems))
        refused.append((folder, problems))
    return None, refused


def resolve_resume(
    output_dir: str | os.PathLike,
    resume_from_checkpoint: str | os.PathLike | bool | None,
    world_size: int | None = None,
) -> Path | None:
    """
    Say which checkpoint a run resumes from, after every file of it was compared with its list.

    With `True`, checkpoints that are newer than the complete one but damaged are renamed to `checkpoint-N.refused`:
    the run passes their steps again and would replace them. A checkpoint of another number of processes is accepted
    with a warning: weights, optimizer and schedule go on, but the random states of its processes do not fit.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        resume_from_checkpoint (`str`, `os.PathLike` or `bool`, *optional*): A checkpoint; `True` (or `"true"`, as
            from a command line) for the newest complete one in `output_dir`; `False` or nothing for a new run.
        world_size (`int`, *optional*): Processes of this run, to compare with those that wrote the checkpoint.

    Returns:
        `Path`, *optional*: The checkpoint. `None` for a new run, which is also what `True` starts in a folder without
            checkpoints: the same command is then right for the first start of a job and for all later ones.

    Raises:
        `FileNotFoundError`: The path is no checkpoint.
        `ValueError`: The checkpoint of the path, or every one in `output_dir`, is damaged, or has no optimizer state.
    """
    if isinstance(resume_from_checkpoint, str) and resume_from_checkpoint.lower() in ("true", "false"):
        resume_from_checkpoint = resume_from_checkpoint.lower() == "true"
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return None
    if resume_from_checkpoint is not True:
        chosen = Path(resume_from_checkpoint)
        _check_chosen(chosen)
        _check_fit(chosen, world_size)
        return chosen
    newest, refused = newest_complete(output_dir)
    if newest is None and refused:
        listed = "\n".join(f"- {folder}: {'; '.join(problems)}" for folder, problems in refused)
        raise ValueError(
            f"No checkpoint in {output_dir} is complete:\n{listed}\nMove them away to start anew. One without "
            f"{MARKER}, as transformers alone writes it, is accepted when `resume_from_checkpoint` is its path."
        )
    if newest is None:
        logger.warning("There is no checkpoint in %s yet: the run starts at its beginning.", output_dir)
        return None
    _check_fit(newest, world_size)
    for folder, _ in refused:
        _set_aside(folder)
    return newest


def list_checkpoints(run_dir: Path) -> list[Path]:
    """
    List the checkpoints of a run, complete or not.

    Args:
        run_dir (`Path`): Folder of the run; it need not exist.

    Returns:
        `list[Path]`: Folders `checkpoint-N`, smallest step first.
    """
    folders = [path for path in run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    return sorted((path for path in folders if CHECKPOINT_NAME.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """
    Read the step of a checkpoint off its name.

    Args:
        folder (`Path`): Folder `checkpoint-N`.

    Returns:
        `int`: N.
    """
    return int(folder.name.rpartition("-")[2])


def publish_checkpoint(written: Path, final: Path, step: int, world_size: int) -> None:
    """
    Put a checkpoint into its place, with its list, when all of it is on the disk.

    Args:
        written (`Path`): The checkpoint, in `_incomplete` beside `final`.
        final (`Path`): Its place. A checkpoint that an earlier run has left there is replaced.
        step (`int`): Optimizer steps taken.
        world_size (`int`): Processes that have written it.
    """
    files = _files(written)
    with ThreadPoolExecutor() as pool:
        entries = dict(zip(files, pool.map(_flush_and_describe, files.values()), strict=True))
    marker: dict[str, Any] = {"step": step, "world_size": world_size, "files": entries}
    marker["sha256"] = _hash_of(marker)
    (written / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
    for path in [written / MARKER, *(path for path in written.rglob("*") if path.is_dir()), written]:
        _flush(path)
    if final.exists():
        os.replace(final, written.with_name(f"{final.name}.older"))
    os.replace(written, final)
    _flush(final.parent)
    shutil.rmtree(written.parent, ignore_errors=True)  # what stays is in nobody's way until the next save


def remove_checkpoint(folder: Path) -> None:
    """
    Delete a checkpoint; a run that is killed meanwhile leaves no half of it.

    Args:
        folder (`Path`): The checkpoint.
    """
    gone = folder.parent / INCOMPLETE / f"{folder.name}.removed"
    gone.parent.mkdir(exist_ok=True)
    os.replace(folder, gone)
    shutil.rmtree(gone.parent, ignore_errors=True)


def clear_incomplete(run_dir: Path) -> None:
    """
    Delete what a killed run has left in `_incomplete`, but for a checkpoint that it was about to replace.

    Args:
        run_dir (`Path`): Folder of the run; it need not exist.
    """
    aside = run_dir / INCOMPLETE
    for older in aside.glob("*.older"):
        if not (final := run_dir / older.stem).exists():
            os.replace(older, final)
    if aside.exists():
        names = ", ".join(sorted(path.name for path in aside.iterdir()))
        logger.info("Deleting what a killed run has left in %s: %s.", aside, names)
        shutil.rmtree(aside)


def _set_aside(folder: Path) -> None:
    target = folder.with_name(f"{folder.name}.refused")
    while target.exists():
        target = target.with_name(f"{target.name}.refused")
    os.replace(folder, target)
    logger.warning("%s is renamed to %s.", folder, target.name)


def _check_chosen(folder: Path) -> None:
    if folder.absolute().parent.name == INCOMPLETE:
        raise ValueError(f"{folder} was not finished. Resume with `True`, or from a folder beside {INCOMPLETE}.")
    if (folder / MARKER).is_file():
        if problems := verify_checkpoint(folder):
            raise ValueError(
                f"Checkpoint {folder} is damaged: {'; '.join(problems)}. Resume from another one, or with `True` from "
                "the newest complete one."
            )
    elif (folder / TRAINER_STATE_NAME).is_file():
        logger.warning("%s has no %s: nothing tells whether all of it is there and unchanged.", folder, MARKER)
    else:
        raise FileNotFoundError(f"{folder} is no checkpoint: it has neither {MARKER} nor {TRAINER_STATE_NAME}.")


def _check_fit(folder: Path, world_size: int | None) -> None:
    if not any(folder.glob("rng_state*.pth")):
        raise ValueError(
            f"{folder} has no random states, as with `save_only_model`, so the optimizer's state is not in it either: "
            "no run can go on from it. Start a new run with it as the model."
        )
    if world_size is None or not (folder / MARKER).is_file():
        return
    written = _read_marker(folder)["world_size"]
    if written != world_size:
        logger.warning(
            "%s was written by %d processes and is resumed by %d: dropout will differ from the uninterrupted run, and "
            "so will the order of the data unless the whole batch has as many samples as before.",
            folder,
            written,
            world_size,
        )


def _files(folder: Path) -> dict[str, Path]:
    named = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in named.items() if name != MARKER}


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"size": stream.tell(), "sha256": digest}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)  # a folder cannot be opened for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_and_describe(path: Path) -> dict[str, Any]:
    _flush(path)
    return _describe(path)


def _compare(name: str, path: Path, listed: dict[str, Any]) -> str | None:
    try:
        found = _describe(path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if found["size"] != listed["size"]:
        return f"{name} has {found['size']} bytes instead of {listed['size']}"
    return None if found == listed else f"{name} is changed"


def _hash_of(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        is_whole = marker.pop("sha256") == _hash_of(marker)
    except FileNotFoundError as error:
        raise ValueError(f"{MARKER} is missing") from error
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{MARKER} cannot be read ({error})") from error
    if not is_whole:
        raise ValueError(f"{MARKER} is changed")
    return marker

"""Is what a card promises in the folder: classes, adapters' base, data files, rows, the Croissant description?"""

import ast
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .findings import Finding
from .front_matter import listed


SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def check_model(folder: Path) -> Iterator[Finding]:
    """
    Check `architectures` and `auto_map`.

    Args:
        folder (`Path`): Of the model.

    Yields:
        `Finding`: A class that nobody could load, with or without code of the repository.
    """
    config = _read_object(folder / "config.json")
    if isinstance(config, Finding):
        yield config
        return
    architectures = [str(name) for name in listed(config.get("architectures"))]
    if not architectures:
        yield Finding("config.json", "architectures", "It names no class in `architectures`.")
    remote = list(_references(config))
    own = {reference.split("--")[-1].rpartition(".")[2] for reference in remote}
    for name in architectures:
        if name in own:
            message = f"`architectures` has {name} of the repository's own code; put the class of transformers back."
            yield Finding("config.json", "architectures", message)
    for reference in remote:
        yield from _check_reference(folder, "config.json", reference)
    for file in ("processor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            described = _read_object(folder / file)
            if isinstance(described, Finding):
                yield described
                continue
            for reference in _references(described):
                yield from _check_reference(folder, file, reference)


def check_adapter(metadata: dict[str, Any], folder: Path) -> Iterator[Finding]:
    """
    Check what adapters say they belong to.

    Args:
        metadata (`dict`): Of the card.
        folder (`Path`): Of the adapters.

    Yields:
        `Finding`: A base that card and adapters do not agree on.
    """
    config = _read_object(folder / "adapter_config.json")
    if isinstance(config, Finding):
        yield config
        return
    names = listed(metadata.get("base_model"))
    named = config.get("base_model_name_or_path")
    if named not in names:
        message = f"The adapters belong to {named!r} and the card says {', '.join(map(str, names)) or 'nothing'}."
        yield Finding("adapter_config.json", "base_model", message)
    if metadata.get("base_model_relation") != "adapter":
        yield Finding("README.md", "base_model", "`base_model_relation` of adapters is `adapter`.")
    if metadata.get("library_name") != "peft":
        yield Finding("README.md", "library_name", "`library_name` of adapters is `peft`.")
    if not config.get("revision"):
        yield Finding("adapter_config.json", "revision", "It does not say which `revision` of the base.", "warning")


def check_dataset(metadata: dict[str, Any], folder: Path) -> Iterator[Finding]:
    """
    Check configurations, features and numbers of rows against the files, and the Croissant description.

    Args:
        metadata (`dict`): Of the card.
        folder (`Path`): Of the dataset.

    Yields:
        `Finding`: What `load_dataset` would stumble over, and numbers that are not those of the files.
    """
    configs, infos = _mappings(metadata.get("configs")), _mappings(metadata.get("dataset_info"))
    if not configs:
        yield Finding("README.md", "configs", "There are no `configs`, so the Hub guesses what belongs together.")
    described = {info.get("config_name"): info for info in infos}
    rows = 0
    for config in configs:
        name = config.get("config_name")
        told = {
            split.get("name"): split.get("num_examples") for split in _mappings(described.get(name, {}).get("splits"))
        }
        if name not in described:
            yield Finding("README.md", "N", f"`dataset_info` does not describe {name}: its columns and rows.")
        else:
            yield from _check_features(name, described[name])
        for entry in _mappings(config.get("data_files")):
            files = _files_of(folder, entry.get("path"))
            if isinstance(files, str) or not files:
                reason = files if isinstance(files, str) else "no file is there"
                yield Finding(
                    "README.md", "configs", f"{name}, {entry.get('split')}: {entry.get('path')!r}: {reason}."
                )
                continue
            found = _rows_of(files)
            rows += found or 0
            if told.get(entry.get("split")) != found and name in described:
                says = told.get(entry.get("split"))
                message = f"{name}, {entry.get('split')}: the metadata says {says} rows and the files have {found}."
                yield Finding("README.md", "N", message)
    size = next((label for limit, label in SIZES if rows < limit), "n>10M")
    if size not in _texts(metadata.get("size_categories")):
        yield Finding("README.md", "size_categories", f"`size_categories` of {rows} rows is {size}.")
    if not metadata.get("task_categories"):
        yield Finding("README.md", "task_categories", "There are no `task_categories`.")
    yield from _check_croissant(folder)


def check_metric(folder: Path, repo_id: str | None) -> Iterator[Finding]:
    """
    Check that `evaluate` finds the script.

    Args:
        folder (`Path`): Of the metric.
        repo_id (`str`, *optional*): Name on the Hub, whose last part is the script's name.

    Yields:
        `Finding`: A script that is missing or no Python.
    """
    name = repo_id.split("/")[-1] if repo_id else None
    scripts = [folder / f"{name}.py"] if name else sorted(folder.glob("*.py"))
    if not scripts or not scripts[0].is_file():
        yield Finding(
            f"{name or '*'}.py", "script", "`evaluate.load` takes the script that is called as its repository."
        )
    for script in scripts:
        if script.is_file():
            yield from _parse(script)[1]


def _references(config: dict[str, Any]) -> Iterator[str]:
    """Classes of `auto_map`; a value may be a pair, of a slow and a fast tokenizer."""
    remote = config.get("auto_map") or {}
    for value in remote.values() if isinstance(remote, dict) else [remote]:
        yield from (str(one) for one in listed(value) if one is not None)


def _check_reference(folder: Path, file: str, reference: str) -> Iterator[Finding]:
    if "--" in reference:
        message = f"`auto_map` runs code of another repository, {reference}; copy its files here."
        yield Finding(file, "auto_map", message)
        return
    module, _, name = reference.rpartition(".")
    script = folder / f"{module}.py"
    if not script.is_file():
        yield Finding(file, "auto_map", f"{reference} is named and {module}.py is not in the folder.")
        return
    tree, problems = _parse(script)
    yield from problems
    if tree is None:
        return
    if name not in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]:
        yield Finding(file, "auto_map", f"{module}.py has no class {name}.")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            if not (folder / f"{node.module}.py").is_file():
                yield Finding(script.name, "auto_map", f"It imports .{node.module}, which is not in the folder.")


def _parse(script: Path) -> tuple[ast.Module | None, list[Finding]]:
    try:
        return ast.parse(script.read_text(encoding="utf-8")), []
    except (SyntaxError, ValueError) as error:
        return None, [Finding(script.name, "code", f"It is no Python: {error}.")]


def _read_object(file: Path) -> dict[str, Any] | Finding:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return Finding(file.name, "json", f"It is no JSON: {error}.")
    return content if isinstance(content, dict) else Finding(file.name, "json", "It is no JSON object.")


def _mappings(value: Any) -> list[dict[str, Any]]:
    entries = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [one for one in entries if isinstance(one, dict)]


def _texts(value: Any) -> list[str]:
    return [str(one) for one in listed(value)]


def _files_of(folder: Path, patterns: Any) -> list[Path] | str:
    found: list[Path] = []
    for pattern in _texts(patterns):
        if pattern.startswith("/") or ".." in Path(pattern).parts or "://" in pattern:
            return "data files lie in the repository"
        found += sorted(folder.glob(pattern))
    return found


def _rows_of(files: list[Path]) -> int | None:
    import pyarrow.parquet as pq  # a tenth of a second, needed for datasets alone

    if any(file.suffix != ".parquet" for file in files):
        return None
    return sum(pq.read_metadata(file).num_rows for file in files)


def _check_features(name: Any, info: dict[str, Any]) -> Iterator[Finding]:
    from datasets import Features  # a second, needed for datasets alone

    try:
        Features._from_yaml_list(info.get("features"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        yield Finding("README.md", "dataset_info", f"{name}: its `features` cannot be read: {error!r}.")


def _check_croissant(folder: Path) -> Iterator[Finding]:
    import mlcroissant as mlc  # half a second, needed for datasets alone

    file = folder / "croissant.json"
    if not file.is_file():
        yield Finding(file.name, "croissant", "There is no Croissant description.", "warning")
        return
    described = _read_object(file)
    if isinstance(described, Finding):
        yield described
        return
    log = logging.getLogger("absl")  # repeats every warning
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        issues = mlc.Dataset(jsonld=described).metadata.ctx.issues
    except (mlc.ValidationError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        yield Finding(file.name, "croissant", f"It is not valid: {str(error).strip()}")
        return
    finally:
        log.setLevel(level)
    for warning in sorted(issues.warnings):
        yield Finding(file.name, "croissant", warning, "warning")
    for entry in _mappings(described.get("distribution")):
        address = entry.get("contentUrl")
        if address and "://" not in str(address) and not (folder / str(address)).is_file():
            yield Finding(file.name, "croissant", f"It names {address}, which is not in the folder.")

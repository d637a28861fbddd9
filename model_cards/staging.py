"""
The exact folder that is published: copied from a run, a build or a metric, and put right for the Hub.

Put right means: `architectures` names the class of transformers next to `auto_map`, the code files that `auto_map`
names lie beside it, adapters name their base by its name on the Hub, no configuration keeps a path of this machine,
and the card is written. What tools leave behind stays out, and is listed.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .leaks import CACHE_FILES, CACHE_SUFFIXES, CACHES, files_of


Kind = Literal["model", "captioner", "adapter", "dataset", "metric"]
REPO_TYPES = {"model": "model", "captioner": "model", "adapter": "model", "dataset": "dataset", "metric": "space"}
# Class of transformers for the type of a model; both read the same files.
NATIVE = {"llava": "LlavaForConditionalGeneration"}
CODE = Path(__file__).resolve().parents[1] / "modeling_sharegpt4v"
RELATIVE_IMPORT = re.compile(r"^\s*from \.(\w+) import ", re.MULTILINE)
CONFIGS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
LOCAL_NAMES = ("_name_or_path", "_model_name_or_path", "name_or_path")
# State of a training run, which only that run can read, and facts that are in the card.
RUN_FILES = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "card.yaml"}
RUN_FILES |= {"results.json", "README.md", ".gitignore", ".env"}
RUN_PREFIXES = ("rng_state", "checkpoint-", "global_step", "predictions")
RUN_FOLDERS = {"runs", "logs", ".eval_results", "tokenised"}
KEPT_HIDDEN = {".gitattributes"}
# Written once and only read from then on, so a second name for the same bytes does no harm.
LINKED_SUFFIXES = {".safetensors", ".parquet", ".gguf"}
LINKED_FROM = 1 << 20


class StageError(ValueError):
    """The folder cannot be published as it is; the message says what to do."""


@dataclass(frozen=True)
class Staged:
    """
    A folder that is ready to be published.

    Args:
        kind (`str`): `model`, `captioner`, `adapter`, `dataset` or `metric`.
        folder (`Path`): It.
        repo_id (`str`): Name on the Hub.
        files (`dict[str, int]`): Size of each file in bytes.
        licence (`str`): As the card's metadata has it.
        changes (`list[str]`): What was put right.
        left_out (`list[str]`): What of the source is not in it.
        base (`str`, *optional*): What an adapter is for.
        configs (`list[str]`): Configurations of a dataset, the default one first.
        base_revision (`str`, *optional*): Commit or tag of `base`.
    """

    kind: Kind
    folder: Path
    repo_id: str
    files: dict[str, int]
    licence: str
    changes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    base: str | None = None
    configs: list[str] = field(default_factory=list)
    base_revision: str | None = None

    @property
    def repo_type(self) -> str:
        """What the Hub calls it: `model`, `dataset` or `space`."""
        return REPO_TYPES[self.kind]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def stage(kind: Kind, path: Path, repo_id: str, target: Path, given: dict[str, Any]) -> Staged:
    """
    Make the exact folder that is published.

    Args:
        kind (`str`): What it is; a model whose `run.json` is of a captioner gets a captioner's card.
        path (`Path`): Output folder of training, repository of a build, or folder of a metric; it is not changed.
        repo_id (`str`): Name on the Hub, `owner/name`.
        target (`Path`): New or empty folder.
        given (`dict`): Facts for the card, see [`model_cards.render.write_card`]; `revision` is the tag.

    Returns:
        `Staged`: The folder and what is in it.

    Raises:
        `StageError`: Something is missing, or the target is not empty.
        `CardError`: The card lacks facts.
    """
    from .render import write_card

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StageError(f"{target} exists and is not empty. Remove it, or choose another folder for `--stage`.")
    kind = _kind_of(kind, path)
    _require(kind, path, repo_id)
    target.mkdir(parents=True, exist_ok=True)
    left_out = list(_copy(path, target))
    changes = _put_right(kind, target)
    base = _adapter_base(path, target, given, changes) if kind == "adapter" else (None, None)
    config = _read(target / "config.json")
    facts = {"architecture": config["architectures"][0]} if config.get("architectures") else {}
    write_card(kind, path, target, repo_id, {**(facts if kind in ("model", "captioner") else {}), **given})
    front = _front_matter(target / "README.md")
    licence = str(front.get("license", "none"))
    if licence == "other":
        licence = f"other ({front.get('license_name', 'no name')})"
    files = {one.relative_to(target).as_posix(): one.lstat().st_size for one in files_of(target)}
    return Staged(kind, target, repo_id, files, licence, changes, left_out, base[0], _configs(front), base[1])


def load_line(staged: Staged, revision: str) -> str:
    """
    The line that loads what was published.

    Args:
        staged (`Staged`): It.
        revision (`str`): Commit.

    Returns:
        `str`: Python.
    """
    repo, native = staged.repo_id, "from transformers import AutoModelForImageTextToText"
    if staged.kind == "adapter":
        pinned = f', revision="{staged.base_revision}"' if staged.base_revision else ""
        base = f'AutoModelForImageTextToText.from_pretrained("{staged.base}"{pinned})'
        loaded = f'PeftModel.from_pretrained({base}, "{repo}", revision="{revision}")'
        return f"from peft import PeftModel; {native}; model = {loaded}"
    if staged.kind == "dataset":
        config = f', "{staged.configs[0]}"' if staged.configs else ""
        return f'from datasets import load_dataset; rows = load_dataset("{repo}"{config}, revision="{revision}")'
    if staged.kind == "metric":
        return f'import evaluate; metric = evaluate.load("{repo}", revision="{revision}")'
    return f'{native}; model = AutoModelForImageTextToText.from_pretrained("{repo}", revision="{revision}")'


def _kind_of(kind: Kind, path: Path) -> Kind:
    if not path.is_dir():
        raise StageError(f"{path} is no folder. Name the folder of the {kind}.")
    return "captioner" if kind == "model" and _read(path / "run.json").get("stage") == "captioner" else kind


def _require(kind: str, path: Path, repo_id: str) -> None:
    """Refuse a folder that is something else than it is published as."""
    if kind in ("model", "captioner"):
        if (path / "adapter_config.json").is_file() and not any(path.glob("model*.safetensors")):
            raise StageError(f"{path} holds adapters. Publish them with `sharegpt4v publish adapter`.")
        needed: tuple[str, ...] = ("config.json", "model*.safetensors")
    elif kind == "adapter":
        needed = ("adapter_config.json", "adapter_model*.safetensors")
    elif kind == "dataset":
        needed = ("**/*.parquet",)
    else:
        needed = (f"{repo_id.rsplit('/', 1)[-1]}.py",)
    for pattern in needed:
        if any(path.glob(pattern)):
            continue
        if any(path.glob("*.bin")) and "safetensors" in pattern:
            raise StageError(
                f"{path} has its weights as pickles, which are not published. Convert them with "
                "`python -m modeling_sharegpt4v.convert_weights import`, or save with safetensors."
            )
        raise StageError(f"{path} has no {pattern}, so it cannot be published as a {kind}.")
    index = _read(path / "model.safetensors.index.json")
    if absent := sorted({name for name in index.get("weight_map", {}).values() if not (path / name).is_file()}):
        raise StageError(f"{path} lacks {len(absent)} shards of its weights: {', '.join(absent[:3])}. Save it again.")


def _copy(path: Path, target: Path) -> Iterator[str]:
    """Copy what belongs to the repository; yields what does not."""
    for source in files_of(path):
        name = source.relative_to(path)
        if _stays_out(name):
            if name.as_posix() != "README.md":  # the card takes its place
                yield name.as_posix()
            continue
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and not source.resolve().is_relative_to(path.resolve()):
            copy.symlink_to(
                source.resolve()
            )  # the leak check sees it, and whoever allows it publishes what it leads to
        elif source.is_dir():
            raise StageError(f"{source} is a link to a folder. Put the folder in its place.")
        elif source.suffix in LINKED_SUFFIXES and source.stat().st_size > LINKED_FROM:
            _link(source.resolve(), copy)
        else:
            shutil.copyfile(source, copy)


def _stays_out(name: Path) -> bool:
    parts = set(name.parts)
    hidden = any(part.startswith(".") and part not in KEPT_HIDDEN for part in name.parts)
    return (
        hidden
        or bool(parts & (CACHES | RUN_FOLDERS))
        or name.name in RUN_FILES
        or name.suffix in CACHE_SUFFIXES
        or name.name.startswith(CACHE_FILES)
        or name.parts[0].startswith(RUN_PREFIXES)
    )


def _link(source: Path, copy: Path) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, copy)


def _put_right(kind: str, target: Path) -> list[str]:
    changes = []
    config = _read(target / "config.json")
    native = NATIVE.get(config.get("model_type", ""))
    if native and "auto_map" in config and config.get("architectures") != [native]:
        changes.append(f"config.json: `architectures` is {native} again, so that loading without a flag works")
        config["architectures"] = [native]
        _write(target / "config.json", config)
    for file in sorted({*target.glob("*config*.json")}):
        content = _read(file)
        if dropped := _drop_local_names(content):
            changes.append(f"{file.name}: {', '.join(dropped)} named a folder of this machine and is gone")
            _write(file, content)
    if kind in ("model", "captioner"):
        changes += _add_code(target)
    return changes


def _drop_local_names(content: Any) -> list[str]:
    dropped = []
    if isinstance(content, dict):
        for name in [name for name in LOCAL_NAMES if _is_local(content.get(name))]:
            del content[name]
            dropped.append(name)
        for value in content.values():
            dropped += _drop_local_names(value)
    return dropped


def _is_local(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    return value.startswith((".", "~")) or Path(value).is_absolute() or value.count("/") > 1 or Path(value).exists()


def _add_code(target: Path) -> list[str]:
    """Copy the code files that `auto_map` needs and that are not there."""
    wanted = [name for file in CONFIGS for name in _modules_of(_read(target / file).get("auto_map"))]
    added, seen = [], set()
    while wanted:
        module = wanted.pop()
        if module in seen:
            continue
        seen.add(module)
        file = target / f"{module}.py"
        if not file.is_file():
            own = CODE / file.name
            if not own.is_file():
                raise StageError(
                    f"`auto_map` needs {file.name}, which is neither in the folder nor one of ours. Put it there, or "
                    "remove `auto_map` from the configuration."
                )
            shutil.copyfile(own, file)
            added.append(file.name)
        wanted += RELATIVE_IMPORT.findall(file.read_text(encoding="utf-8"))
    return [f"{', '.join(sorted(added))}: added, because `auto_map` needs them"] if added else []


def _modules_of(auto_map: Any) -> list[str]:
    names: list[str] = []
    for value in auto_map.values() if isinstance(auto_map, dict) else []:
        for one in value if isinstance(value, list | tuple) else [value]:
            # A class of another repository, `owner/name--module.Class`, is a finding of the leak check.
            if isinstance(one, str) and "--" not in one:
                names.append(one.split(".")[0])
    return names


def _adapter_base(path: Path, target: Path, given: dict[str, Any], changes: list[str]) -> tuple[str, str | None]:
    """Let adapters name their base, and its commit, as others can load it."""
    from .fact_files import person_facts

    config = _read(target / "adapter_config.json")
    told = {**person_facts(path), **given}
    names = told.get("base_model")
    base = (names[0] if isinstance(names, list) else names) or config.get("base_model_name_or_path")
    if not base or _is_local(base):
        raise StageError(
            f"The adapters in {path} name a folder of this machine as their base model. Give its name on the Hub: "
            "`--fact base_model=owner/name`, and `--fact base_model_revision=COMMIT`."
        )
    revision = told.get("base_model_revision") or config.get("revision")
    if (base, revision) != (config.get("base_model_name_or_path"), config.get("revision")):
        changes.append(f"adapter_config.json: the base model is {base} at {revision or 'its newest commit'}")
        _write(target / "adapter_config.json", {**config, "base_model_name_or_path": base, "revision": revision})
    return str(base), revision


def _front_matter(card: Path) -> dict[str, Any]:
    from .front_matter import split_card

    return split_card(card.read_text(encoding="utf-8"))[0]


def _configs(front: dict[str, Any]) -> list[str]:
    listed = [one for one in front.get("configs") or [] if isinstance(one, dict)]
    return [str(one["config_name"]) for one in sorted(listed, key=lambda one: not one.get("default"))]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path.name} is no valid JSON: {error}.") from error
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""`sharegpt4v doctor`: what this machine has, what is missing for which purpose, and what to install."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from .exit_codes import ExitCode
from .options import AsJson, show


DISTRIBUTION = "sharegpt4v"
GIB = 2**30
LEAST_FREE = 20 * GIB  # a 7B model in bfloat16 is 14 GB, and its checkpoint as much again
REACH_SECONDS = 5
State = Literal["ok", "note", "warning", "failed"]
PURPOSES = {
    "flash": "fastest attention in training, on a GPU",
    "quant": "weights and Adam in 8 bits",
    "deepspeed": "training with ZeRO",
    "lmms-eval": "the bridge to lmms-eval",
    "ray": "captioning on a Ray cluster",
    "tracking": "curves in TensorBoard or trackio",
    "space": "the demo Space",
    "serve": "`sharegpt4v serve`",
    "demo": "`make demo`",
    "dev": "tests and checks of this repository",
}


@dataclass(frozen=True)
class Check:
    """
    One thing that was looked at.

    Args:
        name (`str`): What.
        state (`str`): `ok`; `note` for what may be as it is; `warning` for what will hinder someone; `failed`.
        found (`str`): What is there.
        advice (`str`): What to do; empty if nothing.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check this machine and say what to install."""
    checks = [*check_python(), *check_packages(), *check_torch(), *check_torchvision(), *check_folders(), *check_hub()]
    failed = [one.name for one in checks if one.state == "failed"]
    lines = []
    for one in checks:
        lines.append(f"{one.state:8}{one.name}: {one.found}")
        if one.advice:
            lines.append(f"{'':8}-> {one.advice}")
    verdict = f"{len(failed)} checks failed: {', '.join(failed)}." if failed else "Nothing is in the way."
    facts = {"failed": failed, "checks": [asdict(one) for one in checks]}
    show(facts, [*lines, verdict], as_json)
    if failed:
        raise typer.Exit(ExitCode.NOT_ENOUGH)


def check_python() -> Iterator[Check]:
    """
    Python and the system.

    Returns:
        `Iterator[Check]`: Two checks.
    """
    found = f"{platform.python_version()} in {sys.prefix}"
    wanted = _wanted_python()
    if wanted.contains(platform.python_version(), prereleases=True):
        yield Check("python", "ok", found)
    else:
        yield Check("python", "failed", found, f"Make an environment with Python {wanted}.")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield Check("system", "ok" if sys.platform == "linux" else "warning", system)


def check_packages() -> Iterator[Check]:
    """
    Dependencies against the lower bounds in the installed metadata, and the optional extras.

    Returns:
        `Iterator[Check]`: One for all required packages that fit, one for each that does not, one for each extra.
    """
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        advice = "Install this repository: pip install -c constraints.txt -e ."
        yield Check("packages", "failed", f"{DISTRIBUTION} is not installed, so its needs are not known", advice)
        return
    required = [one for one in declared if "extra ==" not in str(one.marker)]
    wrong = [one for one in required if _fault(one)]
    for one in wrong:
        yield Check(f"package {one.name}", "failed", _fault(one), f'pip install "{one.name}{one.specifier}"')
    if not wrong:
        yield Check("packages", "ok", f"all {len(required)} that are required")
    for extra in importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        members = [one for one in declared if one.marker and _is_of(one, extra) and one.name != DISTRIBUTION]
        faults = [fault for one in members if (fault := _fault(one))]
        purpose = PURPOSES.get(extra, "see pyproject.toml")
        if faults:
            advice = f'For {purpose}: pip install "{DISTRIBUTION}[{extra}]"'
            yield Check(f"extra {extra}", "note", "; ".join(faults), advice)
        else:
            yield Check(f"extra {extra}", "ok", f"for {purpose}")


def check_torch() -> Iterator[Check]:
    """
    torch, the GPUs and their memory, bfloat16, and the kernel for packed rows.

    Returns:
        `Iterator[Check]`: In this order.
    """
    try:
        import torch
    except Exception as error:  # a broken installation raises as it likes: OSError for a missing library
        yield Check("torch", "failed", f"cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    build = f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    yield Check("torch", "ok", build)
    if not torch.cuda.is_available():
        if torch.version.cuda:
            yield Check("gpu", "warning", "none usable, though torch is built for CUDA", "Look at `nvidia-smi`.")
        else:
            advice = "With a GPU, take torch for CUDA: https://pytorch.org/get-started/locally"
            yield Check("gpu", "note", "none; everything runs on the processor, large models slowly", advice)
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Check(f"gpu {number}", "ok", f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Check("bfloat16", "ok", "in hardware")
    else:
        yield Check(
            "bfloat16", "warning", "not in hardware", "Recipes set bf16; train with `--bf16 false --fp16 true`."
        )
    yield _check_attention()


def check_torchvision() -> Iterator[Check]:
    """
    A torchvision that does not fit torch: transformers sees it and its image processors then fail to import.

    Returns:
        `Iterator[Check]`: One check.
    """
    if importlib.util.find_spec("torchvision") is None:
        yield Check("torchvision", "ok", "absent, and not needed: images go through Pillow")
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # RuntimeError: operator torchvision::nms does not exist
        found = f"installed, but does not fit torch ({error})"
        yield Check("torchvision", "failed", found, "It breaks image loading: pip uninstall torchvision")
    else:
        yield Check("torchvision", "ok", "fits torch; images go through Pillow all the same")


def check_folders() -> Iterator[Check]:
    """
    Room in the cache, and where can be written.

    Returns:
        `Iterator[Check]`: Three checks.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(_existing(cache)).free
    room = f"{free / GIB:.0f} GiB free for {cache}"
    advice = "A 7B model takes 14 GB. Make room, or set HF_HOME to a larger disk."
    yield Check("disk", "ok", room) if free >= LEAST_FREE else Check("disk", "warning", room, advice)
    for name, folder, remedy in (
        ("cache folder", cache, "Set HF_HOME to a folder of yours."),
        ("current folder", Path.cwd(), "Results go to folders below it; change to another one."),
    ):
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):
                yield Check(name, "ok", f"{folder} can be written")
        except OSError as error:
            yield Check(name, "failed", f"{folder} cannot be written: {error.strerror}", remedy)


def check_hub() -> Iterator[Check]:
    """
    Whether there is a token (never which), and whether the Hub can be reached unless this machine is offline.

    Returns:
        `Iterator[Check]`: Two checks.
    """
    import huggingface_hub
    from huggingface_hub import constants

    yield _check_token(huggingface_hub.get_token)
    if constants.HF_HUB_OFFLINE:
        yield Check("hub", "note", "not asked, HF_HUB_OFFLINE is set")
        return
    import httpx2

    try:
        httpx2.head(constants.ENDPOINT, timeout=REACH_SECONDS)
        yield Check("hub", "ok", f"{constants.ENDPOINT} answers")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        found = f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
        yield Check("hub", "warning", found, "Check network and proxy, or set HF_HUB_OFFLINE=1.")


def _check_token(read: Callable[[], str | None]) -> Check:
    try:
        if read():
            return Check("hub token", "ok", "there is one")
    except OSError as error:
        found = f"its file cannot be read: {error.strerror}"
        return Check("hub token", "failed", found, "Set HF_HOME or HF_TOKEN_PATH to a place of yours.")
    return Check("hub token", "note", "none", "For gated models and to publish: hf auth login")


def _wanted_python() -> Any:
    from packaging.specifiers import SpecifierSet

    try:
        return SpecifierSet(importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or "")
    except importlib.metadata.PackageNotFoundError:
        return SpecifierSet("")


def _check_attention() -> Check:
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        return Check("packed attention", "ok", "flash-attn")
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return Check("packed attention", "ok", "torch's own varlen kernel; flash-attn is not needed")
    advice = f'pip install --no-build-isolation "{DISTRIBUTION}[flash]", or torch 2.11 or newer'
    return Check("packed attention", "warning", "sample by sample, slowly", advice)


def _fault(requirement: Any) -> str:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} does not fit {requirement.specifier}"


def _is_of(requirement: Any, extra: str) -> bool:
    return requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder

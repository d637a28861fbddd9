"""
A projector as LLaVA publishes it, alone in `mm_projector.bin`, into safetensors with this project's names.

```bash
python -m modeling_sharegpt4v.convert_projector mm_projector.bin projector.safetensors
```

Recipes take it by `projector_from: projector.safetensors`. The paper's pretraining starts from the projector of
LLaVA-1.5's first stage (InternLM/InternLM-XComposer@0f70c3e, `scripts/sharegpt4v/slurm_pretrain_7b.sh`).
"""

import argparse
import logging as python_logging
from pathlib import Path

from safetensors.torch import save_file
from transformers.utils import logging

from .checkpoint_files import scan_tensors, stream_tensors
from .published_layouts import live_name


logger = logging.get_logger(__name__)

PROJECTOR = "model.multi_modal_projector."
NAMES = {f"linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")}


def convert_projector(source: Path, output: Path) -> None:
    """
    Convert one projector.

    Args:
        source (`Path`): `mm_projector.bin` of LLaVA (tensors only, anything that would run code is refused), or a
            safetensors file with a projector in any layout.
        output (`Path`): New safetensors file.

    Raises:
        `FileExistsError`: The output is there already.
        `ValueError`: The source cannot be read, or holds no projector of two layers.
    """
    if output.exists():
        raise FileExistsError(f"{output} is there already. Name a new file.")
    found, _ = scan_tensors([source], _projector_name)
    if set(found) != {PROJECTOR + name for name in NAMES}:
        raise ValueError(
            f"{source} holds no projector of two layers (mlp2x_gelu): found {sorted(found) or 'none of its tensors'}."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in stream_tensors(found)}, output)
    logger.info("%s holds %d tensors of %s.", output, len(found), source)


def _projector_name(name: str) -> str | None:
    # LLaVA's own file has `model.` in front; a projector saved under ZeRO has `base_model.model.` too.
    _, own, rest = name.partition("mm_projector.")
    new_name = live_name(f"model.{own}{rest}" if own else name)
    return new_name if new_name is not None and new_name.startswith(PROJECTOR) else None


def main(argv: list[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv (`list[str]`, *optional*): Arguments, those of the process by default.

    Returns:
        `int`: Exit status, 1 if the conversion was refused.
    """
    parser = argparse.ArgumentParser(
        prog="python -m modeling_sharegpt4v.convert_projector",
        description="Convert a projector as LLaVA publishes it.",
    )
    parser.add_argument("source", type=Path, help="mm_projector.bin, or a safetensors file.")
    parser.add_argument("output", type=Path, help="New safetensors file.")
    arguments = parser.parse_args(argv)
    python_logging.basicConfig(level=python_logging.INFO, format="%(levelname)s %(message)s")
    try:
        convert_projector(arguments.source, arguments.output)
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

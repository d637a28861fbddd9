"""
Join adapters with the model that they were trained on; the result loads like any other model.

```sh
python -m trainers.merge runs/captioner_lora --output runs/captioner
```
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.trainer_utils import align_special_tokens

from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor


logger = logging.getLogger(__name__)


def merge_adapters(folder: Path, output: Path, base: str | None = None, dtype: str = "auto") -> None:
    """
    Merge and save.

    Args:
        folder (`Path`): Output folder of a run with `lora_rank`.
        output (`Path`): New folder.
        base (`str`, *optional*): Model that the adapters were trained on, by default the one that they name.
        dtype (`str`, defaults to `"auto"`): Type of the weights.

    Raises:
        `FileExistsError`: The output is there already.
        `ValueError`: The adapters name no base model.
    """
    if output.exists():
        raise FileExistsError(f"{output} is there already. Name a new folder.")
    base = base or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if base in (None, "", "None"):  # the last is what PEFT writes of a model that was never saved
        raise ValueError(f"{folder} does not say what its adapters were trained on. Name it by --base.")
    model_class, processor_class = AutoModelForImageTextToText, AutoProcessor
    if AutoConfig.from_pretrained(base).model_type == ShareGPT4VConfig.model_type:
        model_class, processor_class = ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor
    model = PeftModel.from_pretrained(model_class.from_pretrained(base, dtype=dtype), str(folder)).merge_and_unload()
    processor = processor_class.from_pretrained(folder)
    align_special_tokens(model, processor)  # as the trainer did: it ends where the training's answers ended
    model.save_pretrained(output)
    processor.save_pretrained(output)
    logger.info("%s with the adapters of %s is in %s.", base, folder, output)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv (`Sequence[str]`, *optional*): Command line, defaults to that of the process.

    Returns:
        `int`: Exit status, 1 if the merge was refused.
    """
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        merge_adapters(arguments.folder, arguments.output, arguments.base, arguments.dtype)
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """
    Parser of the command line.

    Returns:
        `argparse.ArgumentParser`: Its result has the arguments of [`merge_adapters`].
    """
    parser = argparse.ArgumentParser(prog="python -m trainers.merge", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="Output folder of a run with `lora_rank`.")
    parser.add_argument("--output", type=Path, required=True, help="New folder.")
    parser.add_argument("--base", help="Model that the adapters were trained on; by default the one that they name.")
    parser.add_argument("--dtype", default="auto", help="Type of the weights, for example bfloat16.")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

"""
Run one training stage.

```sh
accelerate launch -m trainers.train --config recipes/demo_pretrain.yaml
accelerate launch -m trainers.train --config recipes/demo_finetune.yaml --learning_rate 1e-4
```

Every field of a recipe can be overridden by a flag of the same name.
"""

import argparse
import gc
import json
import logging
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from accelerate import PartialState
from datasets import Image, List, load_dataset
from trl import TrlParser

from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor

from .save_on_signal import EXIT_TERMINATED
from .sharegpt4v_trainer import FinetuneConfig, FinetuneTrainer, PretrainConfig, PretrainTrainer


logger = logging.getLogger(__name__)

STAGES = {"pretrain": (PretrainConfig, PretrainTrainer), "finetune": (FinetuneConfig, FinetuneTrainer)}


@dataclass
class RunArguments:
    """What a recipe says beside the trainer's own arguments."""

    stage: Literal["pretrain", "finetune"] = field(metadata={"help": "Which trainer runs."})
    model: str = field(metadata={"help": "Folder or Hub id of the model to start from."})
    dataset: str = field(metadata={"help": "Folder or Hub id of a repository with conversation rows."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})


def parse_arguments(argv: Sequence[str]) -> tuple[RunArguments, FinetuneConfig]:
    """
    Read a recipe and the flags that override it.

    Args:
        argv (`Sequence[str]`): Command line without the program's name.

    Returns:
        `tuple[RunArguments, FinetuneConfig]`: The run, and the arguments of its stage's trainer.
    """
    # TRL looks for the flag as a word of its own.
    argv = [word for given in argv for word in (given.split("=", 1) if given.startswith("--config=") else [given])]
    parser = TrlParser((RunArguments, STAGES[_stage_of(argv)][0]))
    run, config = parser.parse_args_and_config(args=list(argv))
    return run, config


def main(argv: Sequence[str] | None = None) -> None:
    """
    Train one stage; model, processor, `trainable.json`, `trainer_state.json` and `run.json` end in `output_dir`.

    Args:
        argv (`Sequence[str]`, *optional*): Command line, defaults to that of the process.

    Raises:
        `SystemExit`: With `EXIT_TERMINATED` after a SIGTERM or SIGUSR1: a complete checkpoint was saved, and
            `--resume_from_checkpoint true` goes on.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("trainers").setLevel(logging.INFO)
    run, config = parse_arguments(sys.argv[1:] if argv is None else argv)
    code = run_stage(run, config)
    _leave_group()
    if code:
        sys.exit(code)


def run_stage(run: RunArguments, config: FinetuneConfig) -> int:
    """
    Train and save.

    Args:
        run (`RunArguments`): The run.
        config (`FinetuneConfig`): Arguments of its trainer.

    Returns:
        `int`: 0, or `EXIT_TERMINATED` for a run that a signal ended.
    """
    model = ShareGPT4VForConditionalGeneration.from_pretrained(run.model, dtype="float32")
    processor = ShareGPT4VProcessor.from_pretrained(run.model)
    dataset = load_dataset(run.dataset, run.dataset_config, split=run.dataset_split)
    logger.info("%s", describe_data(run, len(dataset)))
    if "images" in dataset.column_names:  # the trainer names what is missing
        # As stored: the processor decodes, so that training sees the pixels that inference sees.
        dataset = dataset.cast_column("images", List(Image(decode=False)))
    trainer = STAGES[run.stage][1](model=model, args=config, train_dataset=dataset, processing_class=processor)
    result = trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    if trainer.stopped_by is not None:
        logger.warning("%s ended the run after step %d.", trainer.stopped_by.name, trainer.state.global_step)
        return EXIT_TERMINATED
    trainer.save_state()
    trainer.save_model()
    if trainer.is_world_process_zero():
        facts = {
            "stage": run.stage,
            "samples": len(dataset),
            "world_size": config.world_size,
            "bf16": config.bf16,
            "seconds": round(result.metrics["train_runtime"], 1),
            "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
        (Path(config.output_dir) / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def describe_data(run: RunArguments, samples: int) -> str:
    """
    Say how many samples there are, and what was left out when they were built.

    Args:
        run (`RunArguments`): The run.
        samples (`int`): Rows of the loaded split.

    Returns:
        `str`: One line.
    """
    name = "/".join(filter(None, (run.dataset, run.dataset_config, run.dataset_split)))
    line = f"Training on {samples} samples of {name}."
    build = Path(run.dataset, run.dataset_config or "", "build.json")
    facts = json.loads(build.read_text(encoding="utf-8")) if build.is_file() else {}
    if facts.get("rows_left_out"):
        total = facts["coverage"]["total"]
        line += f" It was built with {total['found']} of {total['expected']} images; "
        line += f"{facts['rows_left_out']} rows are left out."
    return line


def _leave_group() -> None:
    # Python must not end before the threads of a group do: one of gloo's that drops its last tensor meanwhile aborts
    # the process (torch 2.13, one run in six). Only a group that nobody refers to, as DDP does, waits for its threads.
    gc.collect()
    PartialState().destroy_process_group()


def _stage_of(argv: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage")
    parser.add_argument("--config", type=Path)
    given, _ = parser.parse_known_args(argv)
    stage = given.stage
    if stage is None and given.config is not None:
        stage = yaml.safe_load(given.config.read_text(encoding="utf-8")).get("stage")
    if stage not in STAGES:
        raise ValueError(
            f"`stage` must be one of {sorted(STAGES)}, got {stage!r}. Set it in the recipe or by --stage."
        )
    return stage


if __name__ == "__main__":
    main()

"""
Run one training stage.

```sh
accelerate launch -m trainers.train --config recipes/demo_pretrain.yaml
accelerate launch -m trainers.train --config recipes/demo_finetune.yaml --learning_rate 1e-4
```

Every field of a recipe can be overridden by a flag of the same name.
"""

import gc
import json
import logging
import os
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from .any_model import AnyModelTrainer
from .configs import StageConfig
from .loading import describe_data, load_model, load_rows
from .recipes import RunArguments, parse_arguments
from .save_on_signal import EXIT_TERMINATED
from .sharegpt4v_trainer import CaptionerTrainer, FinetuneTrainer, PretrainTrainer


logger = logging.getLogger(__name__)

LIBRARIES = ("accelerate", "datasets", "peft", "torch", "transformers", "trl")
TRAINERS = {
    "pretrain": PretrainTrainer,
    "finetune": FinetuneTrainer,
    "captioner": CaptionerTrainer,
    "any_model": AnyModelTrainer,
}


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


def run_stage(run: RunArguments, config: StageConfig) -> int:
    """
    Train and save.

    Args:
        run (`RunArguments`): The run.
        config (`StageConfig`): Arguments of its trainer.

    Returns:
        `int`: 0, or `EXIT_TERMINATED` for a run that a signal ended.
    """
    model, processor = load_model(run)
    rows = load_rows(run)
    logger.info("%s", describe_data(run, len(rows)))
    trainer = TRAINERS[run.stage](model=model, args=config, train_dataset=rows, processing_class=processor)
    result = trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    if trainer.stopped_by is not None:
        logger.warning("%s ended the run after step %d.", trainer.stopped_by.name, trainer.state.global_step)
        return EXIT_TERMINATED
    trainer.save_state()
    if trainer.is_fsdp_enabled:  # sharded checkpoints are no model that anything loads
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    if trainer.is_world_process_zero():
        facts = {
            "stage": run.stage,
            "instruction": config.instruction,
            "samples": len(trainer.train_dataset),
            **trainer.run_facts(),
            "step_samples": config.step_samples,
            "world_size": config.world_size,
            "bf16": config.bf16,
            **provenance(run, config.world_size),
            "seconds": round(result.metrics["train_runtime"], 1),
            "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
        (Path(config.output_dir) / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def provenance(run: RunArguments, world_size: int) -> dict[str, Any]:
    """
    What a card tells of a run beside its figures.

    Args:
        run (`RunArguments`): The run.
        world_size (`int`): Number of processes.

    Returns:
        `dict`: `base_model`, `datasets`, `hardware` and `versions`.
    """
    cores = f"CPU with {os.cpu_count()} cores"
    hardware = f"{world_size} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cores
    begun_with = [name for name in map(_hub_name, (run.model, run.vision_tower)) if name]
    datasets = [name for name in [_hub_name(run.dataset)] if name]
    versions = {name: version(name) for name in LIBRARIES}
    return {"base_model": begun_with, "datasets": datasets, "hardware": hardware, "versions": versions}


def _hub_name(name: str | None) -> str | None:
    # A folder of this machine says nothing to others, and too much about it.
    return name if name is not None and not Path(name).exists() else None


def _leave_group() -> None:
    # Python must not end before the threads of a group do: one of gloo's that drops its last tensor meanwhile aborts
    # the process (torch 2.13, one run in six). Only a group that nobody refers to, as DDP does, waits for its threads.
    gc.collect()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()

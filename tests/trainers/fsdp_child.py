"""Two steps of packed training in one process, or in two that share the parameters out among them by FSDP2."""

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.tiny import noise_image, tiny_model
from tests.trainers.checkpoint_child import ranks, run_together
from tests.trainers.rows import dataset_of, row
from trainers import label_loss
from trainers.attention import use_varlen_attention
from trainers.configs import PretrainConfig
from trainers.label_loss import add_label_loss, weigh_labels
from trainers.packing import PackedCollator, pack_rows
from trainers.planner import PlannedBatches
from trainers.sharding import prepare_sharding, run_tower_on_text
from trainers.sharegpt4v_trainer import LLM_LINEARS, PretrainTrainer
from trainers.tokenised import tokenise_batch
from trainers.trainable import select_trainable


SECONDS = 30  # after which a process gives up waiting for the other
STEPS, BATCH, CHUNK = 2, 4, 8
SEED = 42  # of the order of samples, and what transformers takes
WORDS = (1, 12, 2, 9, 1, 14, 3, 5)
ALL, FEW = tuple(range(len(WORDS))), (3, 4)  # samples with an image; of the few, one is in the first step


@dataclass(frozen=True)
class Case:
    """
    How the model is trained, and what of it is sharded on its own.

    `units`: `layers` of the LLM, with the rest in the root; `all`, those, tower blocks, embeddings and head; or
    `accelerate`, what accelerate chooses. `images` names the samples that have one.
    """

    units: str = "layers"
    micro_batches: int = 1
    normalisation: str = "tokens"
    images: tuple[int, ...] = ALL
    chunk: int = 2048
    tune_from: int | None = 1
    reshard_root: bool = False
    lora: bool = False
    checkpointing: bool = False
    half: bool = False


CASES = {
    "plain": Case(),
    "accumulated by tokens": Case(micro_batches=2),
    "accumulated by samples": Case(micro_batches=2, normalisation="samples"),
    "text alone": Case(images=FEW),
    "text alone, tower blocks sharded": Case("all", images=FEW, micro_batches=2),
    "text alone, frozen tower blocks sharded": Case("all", images=FEW, tune_from=None),
    "adapters": Case(images=FEW, tune_from=None, lora=True),
    "checkpointing": Case("all", images=FEW, checkpointing=True),
    "chunks": Case(chunk=CHUNK),
    "chunks, root resharded": Case(chunk=CHUNK, reshard_root=True),
    "chunks, head sharded": Case("all", chunk=CHUNK, micro_batches=2),
    "accelerate": Case("accelerate", images=FEW, chunk=CHUNK, normalisation="samples"),
    "accelerate, half precision": Case("accelerate", images=FEW, chunk=CHUNK, normalisation="samples", half=True),
}


def train(case: Case, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """
    Losses, gradients and weights of all steps, and what this rank's micro-batches were.

    One process takes each global batch as one micro-batch, whatever the case says.
    """
    micro_batches = case.micro_batches if world > 1 else 1
    model, processor = build(case)
    rows = tokenise_batch(conversations(case.images), processor)
    lengths = np.array([pack_rows([sample], processor)["max_length_q"] for sample in rows])
    has_image = np.array([bool(sample["images"]) for sample in rows])
    plan = list(PlannedBatches(lengths, has_image, BATCH, world, rank, micro_batches, SEED))
    collate = PackedCollator(processor)
    model, optimizer = shard(model, case) if world > 1 else (model, sgd(model))
    found: dict[str, Any] = {"losses": [], "gradients": [], "facts": []}
    for step in range(STEPS):
        parts = plan[step * micro_batches : (step + 1) * micro_batches]
        batches = [collate([rows[place] for place in part]) for part in parts]
        weighed = [weigh_labels(batch["labels"], batch["cu_seq_lens_q"], case.normalisation) for batch in batches]
        total = torch.stack([count for _, count in weighed]).sum()
        if world > 1:
            dist.all_reduce(total)
        loss = torch.zeros((), dtype=torch.double)
        for number, (batch, (weights, _)) in enumerate(zip(batches, weighed, strict=True), start=1):
            if world > 1:
                model.set_requires_gradient_sync(number == micro_batches)
            part = model(**batch, label_weights=weights, use_cache=False).loss
            (part * world / total).backward()  # the gradients of the ranks are averaged
            loss += part.detach() / total
            found["facts"].append(facts_of(batch, part))
        if world > 1:
            dist.all_reduce(loss)
        found["losses"].append(loss.item())
        found["gradients"].append({name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    found["weights"] = {name: whole(p) for name, p in model.named_parameters()}
    return found


def conversations(images: tuple[int, ...]) -> list[dict[str, Any]]:
    """Eight samples of very different lengths."""
    rows = []
    for number, words in enumerate(WORDS):
        sample = row(str(number), ("What is it?", "A red square. " * words), images=0)
        rows.append({**sample, "images": [noise_image(number)] if number in images else []})
    return rows


def build(case: Case) -> tuple[torch.nn.Module, Any]:
    """A model in double precision, prepared as the trainer prepares it."""
    model, processor = tiny_model()
    model = model.train() if case.half else model.double().train()
    select_trainable(model, case.tune_from, True, True)
    use_varlen_attention(model)
    add_label_loss(model)
    if case.checkpointing:
        model.gradient_checkpointing_enable()
    if case.lora:
        torch.manual_seed(1)
        save = ["multi_modal_projector"]
        config = LoraConfig(r=4, target_modules=LLM_LINEARS, modules_to_save=save, init_lora_weights=False)
        model = get_peft_model(model, config)
    return model, processor


def shard(model: torch.nn.Module, case: Case) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The model with its parameters spread over the ranks, and its optimizer."""
    if case.units == "accelerate":
        options = {"fsdp_version": 2, "reshard_after_forward": True, "auto_wrap_policy": "transformer_based_wrap"}
        accelerator = accelerator_with_fsdp("bf16" if case.half else "no", **options)
        prepare_sharding(accelerator, model)
        return accelerator.prepare(model, sgd(model))
    base = model.get_base_model() if case.lora else model
    run_tower_on_text(base)
    if case.units == "all":
        for part in (base.get_input_embeddings(), *base.model.vision_tower.encoder.layers):
            fully_shard(part)
        fully_shard(base.lm_head, reshard_after_forward=False)
    for layer in base.model.language_model.layers:
        fully_shard(layer)
    fully_shard(model, reshard_after_forward=case.reshard_root)
    return model, sgd(model)


def accelerator_with_fsdp(precision: str = "no", **options: Any) -> Accelerator:
    """An accelerator that shards although there is no GPU; only its choice of the kind of training is overruled."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    plugin = FullyShardedDataParallelPlugin(**options)
    if precision != "no":
        plugin.set_mixed_precision(precision)
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)


def facts_of(batch: dict[str, Any], loss: torch.Tensor) -> dict[str, Any]:
    scored = int((batch["labels"] != label_loss.IGNORED).sum())
    facts = {"tokens": batch["input_ids"].numel(), "has_image": "pixel_values" in batch}
    return {**facts, "chunks": -(-scored // CHUNK), "dtype": loss.dtype}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def run_trainer(folder: Path, world: int, resume: Path | None = None) -> dict[str, torch.Tensor]:
    """Weights after two steps of the pretraining stage with all that it does, checkpoints among it."""
    config = PretrainConfig(
        output_dir=str(folder),
        tune_vision_from_block=1,
        global_batch_size=BATCH,
        per_device_train_batch_size=1 if world > 1 else BATCH,
        loss_normalisation="samples",
        max_steps=STEPS,
        save_steps=1,
        learning_rate=0.1,
        adam_epsilon=1.0,  # else what the rounding of a gradient of zero gives would be as large as any other update
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        fsdp=world > 1,
    )
    if world > 1:
        accelerator_with_fsdp(**config.fsdp_plugin_args)
    model, processor = tiny_model()
    rows = dataset_of(*conversations(FEW))
    trainer = PretrainTrainer(model=model, args=config, train_dataset=rows, processing_class=processor)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if resume is None:
        trainer.save_model()
    return {name: whole(p) for name, p in trainer.model.named_parameters()}


def child(folder: Path, rank: dict[str, str], kind: str) -> None:
    """Run the cases, or the trainer, as one of two processes; what there is to know is left in the folder."""
    os.environ.update({**rank, "HF_HUB_OFFLINE": "1"})
    number, world = int(rank["RANK"]), int(rank["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))
    runs: dict[str, Callable[[], dict]] = {name: partial(train, case, number, world) for name, case in CASES.items()}
    if kind == "stage":
        checkpoint = folder / "whole" / "checkpoint-1"
        runs = {
            "whole": partial(run_trainer, folder / "whole", world),
            "resumed": partial(run_trainer, folder / "resumed", world, checkpoint),
        }
    found: dict[str, Any] = {}
    try:
        for name, run in runs.items():
            label_loss.CHUNK = CASES[name].chunk if kind == "cases" else CHUNK
            found[name] = run()
            torch.save(found, folder / f"found-{number}.pt")
    except Exception:  # the other process is waiting, so no more can be run
        (folder / f"error-{number}.txt").write_text(f"{name}: {traceback.format_exc()}")
        raise


class Found(dict):
    """What a process has found; asked for what it did not come to, it says why."""

    def __init__(self, found: dict[str, Any], errors: str):
        super().__init__(found)
        self.errors = errors

    def __missing__(self, name: str) -> Any:
        raise AssertionError(f"{name} was not reached:\n{self.errors}")


def run_pair(folder: Path, kind: str) -> list[Found]:
    """What each of two processes has found."""
    codes = run_together(child, [(folder, rank, kind) for rank in ranks(2)])
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("error-*.txt")))
    places = [folder / f"found-{number}.pt" for number in (0, 1)]
    return [Found(torch.load(path) if path.is_file() else {}, f"exit codes {codes}\n{errors}") for path in places]

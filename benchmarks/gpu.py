"""
What the benchmarks of training on a GPU share: the model, the ways to train it, a step and its clock.

All ways share one set of weights: they differ in layout, attention, checkpointing, head, kernels and compilation,
which are switched on and off between the steps. The learning rate is 0, so that the optimizer does all of its work and
every way still starts from the same weights.
"""

import gc
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # ways of other sizes take turns

import torch
from batches import IGNORED, draw_samples, pack, pad
from gpu_run import reason_of
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama import modeling_llama


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VForConditionalGeneration
from trainers.attention import VARLEN, backend_for
from trainers.geometry import Geometry, Tuning, build_on_meta, measure
from trainers.label_loss import add_label_loss, weigh_labels
from trainers.memory import Batch, Layout, layout_of, step_memory
from trainers.roofline import sample_flops


LABELS, SPREAD, TEXT = 190, 60, 10  # label tokens of a caption, their standard deviation, tokens of the question
TINY_LABELS, TINY_SPREAD = 12, 4
# Loss and norm of the gradient of each part of the model, relative to those of the padded stock step.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 5e-2)}


@dataclass(frozen=True)
class Way:
    """
    One way to run the same training step.

    Args:
        name (`str`): Its name.
        packed (`bool`): One packed row with varlen attention, or padded rows with SDPA.
        checkpointing (`bool`): Whether layers of LLM and tower keep only their inputs.
        label_only (`bool`): Head on label positions, or transformers' own loss.
        kernels (`bool`): Fused RMSNorm, SwiGLU and RoPE.
        compiled (`bool`): Decoder layers by `torch.compile`.
        trl (`bool`): Loss of TRL's trainer.
        tower_checkpointing (`bool`): Whether the tower follows `checkpointing`.
    """

    name: str
    packed: bool = True
    checkpointing: bool = True
    label_only: bool = True
    kernels: bool = False
    compiled: bool = False
    trl: bool = False
    tower_checkpointing: bool = True


STOCK = Way("padded stock", packed=False, label_only=False)


def geometry_config(tiny: bool) -> ShareGPT4VConfig:
    """Vicuna-7B with CLIP ViT-L/14 at 336 pixels, or a model of 2 layers and 4 blocks."""
    if tiny:
        text = LlamaConfig(
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
            vocab_size=400,
            initializer_range=0.2,  # as much attention as in a wide model, or no comparison would notice it
        )
        vision = CLIPVisionConfig(
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2},
            **{"image_size": 56, "patch_size": 14},
        )
    else:
        config = build_on_meta("Lin-Chen/ShareGPT4V-7B").config
        text, vision = config.text_config, config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    image_token = text.vocab_size - 1  # the released vocabulary has a row more for it
    return ShareGPT4VConfig(
        text_config=text, vision_config=vision, image_token_index=image_token, image_seq_length=patches
    )


class Trainee:
    """
    A model with random weights, the samples of a step, and its optimizer.

    Args:
        tiny (`bool`): Whether the geometry is small, on the processor in float32.
        samples (`int`): Samples of a step.
    """

    def __init__(self, tiny: bool, samples: int):
        self.device = torch.device("cpu" if tiny else "cuda")
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.tiny = tiny
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        with self.device:
            self.model = ShareGPT4VForConditionalGeneration(geometry_config(tiny)).train()
        torch.set_default_dtype(before)
        self.config = self.model.config
        self.layers = self.model.model.language_model.layers
        add_label_loss(self.model)
        spread = (TINY_LABELS, TINY_SPREAD) if tiny else (LABELS, SPREAD)
        token, features = self.config.image_token_id, self.config.image_seq_length
        self.samples = draw_samples(samples, *spread, token, features, TEXT)
        side = self.config.vision_config.image_size
        self.pixels = torch.randn(samples, 3, side, side, device=self.device, dtype=self.dtype)
        self.labels = sum(int((sample["labels"][1:] != IGNORED).sum()) for sample in self.samples)
        self.batches: dict[tuple[bool, int], list[dict[str, Any]]] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_note = "none: forward and backward only"
        self.trl: Any = None
        self.compiled: list[Any] = []
        self.plain_functions = dict(vars(modeling_llama))

    def tune_from(self, block: int) -> Geometry:
        """Train the LLM, the projector and the tower from this block on; the optimizer starts afresh."""
        self.model.zero_grad(set_to_none=True)
        self.optimizer = None
        self.release()
        size = measure(self.model, Tuning(block))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            from torchao.optim import AdamW8bit

            if self.device.type == "cuda":  # its step is compiled, which a trial need not wait for
                self.optimizer = AdamW8bit(trained, lr=0.0, weight_decay=0.0)
                self.optimizer_note = "AdamW of torchao with 8-bit moments, learning rate 0"
        except ImportError as error:
            self.optimizer_note = f"none: forward and backward only ({reason_of(error)})"
        return size

    def drop_optimizer(self, error: Exception) -> None:
        """Go on without an optimizer, because its step failed."""
        self.optimizer, self.optimizer_note = None, f"none: forward and backward only ({reason_of(error)})"
        self.release()

    @property
    def layout(self) -> Layout:
        """Bytes of a parameter under this optimizer."""
        return Layout(2, 2, 0, 2) if self.optimizer is None else layout_of("bfloat16", "adamw_torch_8bit")

    def start_trl(self) -> None:
        """
        Make TRL's trainer over the same weights, without changing our `forward`.

        Raises:
            `ImportError`: `trl` or `datasets` is missing.
        """
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from modeling_sharegpt4v.composition import add_image_and_pad_tokens, build_processor
        from tests.tiny import noise_image, tiny_tokenizer

        with torch.device("meta"):
            model = LlavaForConditionalGeneration(self.config).train()
        model.model, model.lm_head = self.model.model, self.model.lm_head
        tokenizer = tiny_tokenizer()
        add_image_and_pad_tokens(tokenizer)
        turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
        rows = Dataset.from_list([{"images": [noise_image()], "messages": turns}])
        options = {"use_cpu": self.device.type == "cpu", "bf16": False, "max_length": None, "report_to": "none"}
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(output_dir=folder, **options)
            processor = build_processor(self.config, tokenizer)
            self.trl = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)

    def switch(self, way: Way) -> None:
        """Make the model train this way."""
        self.model.set_attn_implementation({"text_config": VARLEN if way.packed else "sdpa"})
        if way.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            if not way.tower_checkpointing:
                for module in self.model.model.vision_tower.modules():
                    if isinstance(module, GradientCheckpointingLayer):
                        module.gradient_checkpointing = False
        else:
            self.model.activation_checkpointing_disable()
        self._switch_kernels(way.kernels)
        self._switch_compilation(way.compiled)

    def _switch_kernels(self, fused: bool) -> None:
        language_model = self.model.model.language_model
        if fused:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            heads = {"cross_entropy": False, "fused_linear_cross_entropy": False}
            apply_liger_kernel_to_llama(rope=True, swiglu=True, rms_norm=True, model=language_model, **heads)
            return
        vars(modeling_llama).update(self.plain_functions)
        for module in language_model.modules():
            vars(module).pop("forward", None)

    def _switch_compilation(self, on: bool) -> None:
        if on and not self.compiled:
            for layer in self.layers:
                layer.compile(backend="eager" if self.tiny else "inductor")
            self.compiled = [layer._compiled_call_impl for layer in self.layers]
        for number, layer in enumerate(self.layers):
            layer._compiled_call_impl = self.compiled[number] if on else None

    def batch(self, packed: bool, parts: int) -> list[dict[str, Any]]:
        """The samples of a step as so many micro-batches."""
        if (packed, parts) not in self.batches:
            each, made = len(self.samples) // parts, []
            for begin in range(0, len(self.samples), each):
                batch = (pack if packed else pad)(self.samples[begin : begin + each])
                batch = {
                    key: value.to(self.device) if torch.is_tensor(value) else value for key, value in batch.items()
                }
                made.append(batch | {"pixel_values": self.pixels[begin : begin + each]})
            self.batches[packed, parts] = made
        return self.batches[packed, parts]

    def step(self, way: Way, parts: int = 1) -> torch.Tensor:
        """One step of all samples: forward, backward and optimizer. Gives the loss."""
        loss = self.forward_backward(way, parts)
        if self.optimizer is not None:
            self.optimizer.step()
        return loss

    def forward_backward(self, way: Way, parts: int = 1) -> torch.Tensor:
        """Fresh gradients of all samples. Gives the loss."""
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for batch in self.batch(way.packed, parts):
            loss = self._loss(way, batch)
            loss.backward()
            total += loss.detach()
        return total

    def _loss(self, way: Way, batch: dict[str, Any]) -> torch.Tensor:
        if way.trl:
            return self.trl.compute_loss(self.trl.model, dict(batch), num_items_in_batch=self.labels)
        if way.label_only:
            weights, _ = weigh_labels(batch["labels"], batch.get("cu_seq_lens_q"), "tokens")
            return self.model(**batch, label_weights=weights, use_cache=False).loss / self.labels
        return self.model(**batch, use_cache=False, num_items_in_batch=self.labels).loss

    def fingerprint(self, loss: torch.Tensor) -> dict[str, float]:
        """Loss, and the norm of the gradient of each part of the model."""
        squares: dict[str, float] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                part = name.removeprefix("model.").split(".")[0]
                norm = float(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
                squares[part] = squares.get(part, 0.0) + norm**2
        return {"loss": float(loss), **{part: value**0.5 for part, value in squares.items()}}

    def differences(self, found: dict[str, float], reference: dict[str, float]) -> tuple[dict[str, float], bool]:
        """Relative differences of two fingerprints, and whether all are within the tolerance."""
        if set(found) != set(reference):
            raise RuntimeError(f"Gradients differ in their parts: {sorted(found)} against {sorted(reference)}.")
        apart = {key: abs(found[key] - value) / max(abs(value), 1e-12) for key, value in reference.items()}
        loss, gradient = TOLERANCE[self.dtype]
        equal = all(value <= (loss if key == "loss" else gradient) for key, value in apart.items())
        return {key: float(f"{value:.2g}") for key, value in apart.items()}, equal

    def seconds(self, way: Way, parts: int) -> float:
        """Time of one step, by the GPU's own clock where there is one."""
        if self.device.type == "cpu":
            start = time.perf_counter()
            self.step(way, parts)
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.step(way, parts)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def release(self) -> None:
        """Give memory back, so that the next way meets an empty cache and a fresh count of the peak."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """Peak of allocated memory since the last [`release`]; `None` without a GPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None

    def tokens(self, packed: bool, parts: int) -> int:
        """Positions of the largest micro-batch, padding included."""
        return max(batch["input_ids"].numel() for batch in self.batch(packed, parts))

    def floor_gb(self, way: Way, parts: int, size: Geometry) -> float:
        """Memory that this way needs at least, weights in bf16."""
        tower = way.checkpointing and way.tower_checkpointing
        images = len(self.samples) / parts
        head = way.label_only or way.trl
        batch = Batch(self.tokens(way.packed, parts), images, way.checkpointing, tower, head)
        return sum(step_memory(size, self.layout, 1, batch).values()) / 1e9

    def flops(self, size: Geometry) -> float:
        """Operations of a step on real tokens, without recomputation."""
        return sum(
            sum(sample_flops(size, len(one["input_ids"]), int((one["labels"] != IGNORED).sum()), 1).values())
            for one in self.samples
        )


def describe(trainee: Trainee) -> dict[str, Any]:
    """What ran: device, packages, samples and tolerance."""
    on_gpu = trainee.device.type == "cuda"
    loss, gradient = TOLERANCE[trainee.dtype]
    lengths = [len(sample["input_ids"]) for sample in trainee.samples]
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "geometry": "tiny" if trainee.tiny else "Vicuna-7B and CLIP ViT-L/14-336, random weights",
        "dtype": str(trainee.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "samples": len(lengths),
        "tokens": sum(lengths),
        "token_efficiency": round(sum(lengths) / len(lengths) / max(lengths), 3),
        "labels": trainee.labels,
        "attention": backend_for(trainee.device, trainee.dtype),
        "tolerance": {"loss": loss, "gradient_norms": gradient},
    }


def gemm_ceiling(trainee: Trainee) -> float:
    """Operations a second that a square product of matrices reaches, 8192 cubed in bf16 on a GPU."""
    side = 256 if trainee.tiny else 8192
    left, right = (torch.randn(side, side, device=trainee.device, dtype=trainee.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        run = partial(torch.matmul, left, right)
        if trainee.device.type == "cpu":
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            run()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e4)
    return 2 * side**3 / best

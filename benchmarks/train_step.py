"""
Forward and backward of 16 samples: packed with varlen attention and a head on label positions, against padded batches.

Peers in the same process, on the same weights and samples: transformers' own Llava with its SDPA and loss, and TRL's
SFTTrainer (`compute_loss` with its fused head). Loss and gradients are compared before anything is timed.

```sh
python benchmarks/train_step.py
```
"""

import copy
import sys
import tempfile
from typing import Any

import torch
from batches import draw_samples, pack, pad, small_model
from common import best_of, finish
from datasets import Dataset
from transformers import LlavaForConditionalGeneration


SAMPLES, VOCABULARY, IMAGE_TOKENS, TEXT = 16, 8_000, 144, 20
ROUNDS = 3
TARGETS = {"stock_087": 1.4, "stock_057": 2.1, "trl_087": 2.0, "trl_057": 3.0}
# Label tokens a sample; with the image and the question the padded batch is that full.
SPREADS = {"087": (60, 14.5), "057": (60, 72)}


def build_model() -> tuple[Any, Any]:
    """Make a small model of the real shape: 144 image tokens, a vocabulary of 8,000 words, 4 layers."""
    model, processor = small_model(VOCABULARY, width=256, feed_forward=688, heads=8, side=168)
    return model.float().train(), processor


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by parameter name, without the wrapping of the peers."""
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


class Sides:
    """The three ways to the same loss and gradients."""

    def __init__(self, folder: str):
        from trainers.attention import use_varlen_attention
        from trainers.label_loss import add_label_loss

        self.ours, self.processor = build_model()
        self.stock = LlavaForConditionalGeneration(self.ours.config).train()
        self.stock.load_state_dict(self.ours.state_dict())
        self.trl = self._trl_trainer(copy.deepcopy(self.stock), folder)
        use_varlen_attention(self.ours)
        add_label_loss(self.ours)

    def _trl_trainer(self, model: torch.nn.Module, folder: str) -> Any:
        from trl import SFTConfig, SFTTrainer

        from tests.tiny import noise_image

        turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
        rows = Dataset.from_list([{"images": [noise_image()], "messages": turns}])
        options = SFTConfig(
            output_dir=folder,
            report_to="none",
            use_cpu=True,
            bf16=False,
            max_length=None,
            gradient_checkpointing=False,
        )
        return SFTTrainer(model=model, args=options, train_dataset=rows, processing_class=self.processor)

    def run_ours(self, batch: dict[str, Any]) -> torch.Tensor:
        """Packed row, varlen attention, head on label positions."""
        from trainers.label_loss import weigh_labels

        self.ours.zero_grad(set_to_none=True)
        weights, count = weigh_labels(batch["labels"], batch["cu_seq_lens_q"], "tokens")
        loss = self.ours(**batch, label_weights=weights, use_cache=False).loss / count
        loss.backward()
        return loss.detach()

    def run_stock(self, batch: dict[str, Any]) -> torch.Tensor:
        """Padded batch through transformers' Llava."""
        self.stock.zero_grad(set_to_none=True)
        loss = self.stock(**batch, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def run_trl(self, batch: dict[str, Any]) -> torch.Tensor:
        """Padded batch through TRL's trainer."""
        self.trl.model.zero_grad(set_to_none=True)
        loss = self.trl.compute_loss(self.trl.model, dict(batch))
        loss.backward()
        return loss.detach()


def compare(sides: Sides, packed: dict[str, Any], padded: dict[str, Any]) -> dict[str, float]:
    """Largest differences of loss and gradients (relative to the largest gradient of each tensor)."""
    ours, stock, trl = sides.run_ours(packed), sides.run_stock(padded), sides.run_trl(padded)
    mine = gradients(sides.ours)
    found = {"loss_stock": float((ours - stock).abs()), "loss_trl": float((ours - trl).abs())}
    for name, theirs in (("stock", gradients(sides.stock)), ("trl", gradients(sides.trl.model))):
        if set(theirs) != set(mine):
            raise SystemExit(f"Gradients differ in their names: {sorted(set(theirs) ^ set(mine))[:3]}.")
        whole = sum(float(grad.double().square().sum()) for grad in theirs.values()) ** 0.5
        # A gradient that is zero but for rounding (a key's bias) is compared by the size of all of them.
        found[f"gradient_{name}"] = max(
            float((mine[key] - grad).norm()) / max(float(grad.norm()), 1e-3 * whole) for key, grad in theirs.items()
        )
    return found


def main() -> None:
    """Compare, then time each side in turns, at two token efficiencies."""
    torch.set_num_threads(1)
    ratios, details, equal = {}, {}, True
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(folder)
        pixels = torch.randn(SAMPLES, 3, 168, 168, generator=torch.Generator().manual_seed(1))
        for name, (mean, spread) in SPREADS.items():
            samples = draw_samples(SAMPLES, mean, spread, sides.processor.image_token_id, IMAGE_TOKENS, TEXT)
            packed, padded = pack(samples) | {"pixel_values": pixels}, pad(samples) | {"pixel_values": pixels}
            efficiency = packed["input_ids"].numel() / padded["input_ids"].numel()
            differences = compare(sides, packed, padded)
            equal &= max(differences.values()) <= 1e-5
            seconds = best_of(
                ROUNDS,
                ours=lambda batch=packed: sides.run_ours(batch),
                stock=lambda batch=padded: sides.run_stock(batch),
                trl=lambda batch=padded: sides.run_trl(batch),
            )
            ratios |= {
                f"stock_{name}": seconds["stock"] / seconds["ours"],
                f"trl_{name}": seconds["trl"] / seconds["ours"],
            }
            details[name] = {
                "token_efficiency": round(efficiency, 3),
                "label_share": round(float((packed["labels"] != -100).float().mean()), 3),
                "differences": {key: float(f"{value:.2g}") for key, value in differences.items()},
                "seconds": {key: round(value, 3) for key, value in seconds.items()},
            }
            print(name, details[name], file=sys.stderr)
    finish("train_step", ratios, TARGETS, details, equal)


if __name__ == "__main__":
    main()

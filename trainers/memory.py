"""
GPU memory of a training step: states, activations, gathered layers and head, by component and sharding.

States follow Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3.1): bf16 weights and gradients with master
weights and two moments in float32 are 16 bytes a trained parameter, and sharding divides them by the number of GPUs.
What a layer keeps for its backward pass was counted on transformers' own layers, as `tests/trainers/test_memory.py`
does. All figures are bytes, and a floor: fragmentation, workspaces and the CUDA context come on top.
"""

# h width of the LLM, f its feed-forward width, d width of the tower, V vocabulary

from dataclasses import dataclass
from typing import Any, Literal

from .geometry import Geometry, Tuning, build_on_meta, measure
from .label_loss import CHUNK


Sharding = Literal["ddp", "fsdp2", "hsdp", "zero3"]
NODE = 8  # GPUs that HSDP shards over
GATHERED = 4  # layers that exist whole in a sharded step: two of weights, two of gradients
QUANTISED = 4.127 / 8  # bytes a weight in NF4 with double quantisation (QLoRA, arXiv:2305.14314, section 3)
PAPER_TABLE8 = {24: 49.6, 18: 53.2, 12: 56.7, 6: 60.0, 0: 63.6}  # GB, Table 8 of the paper
PAPER_GPUS = 16  # of that table
TABLE8_IMAGES, TABLE8_TOKENS = 16, 13_600  # a GPU's micro-batch, padded to its longest caption (estimate)
LORA_RANK = 128  # of the adapters among the ways to train on one GPU


@dataclass(frozen=True)
class Layout:
    """
    Bytes of a parameter.

    Args:
        weight (`float`): Of a trained one.
        gradient (`float`): Its gradient; 0 if the optimizer steps during the backward pass.
        optimizer (`float`): Its moments and master copy.
        frozen (`float`): Of one that does not train.
    """

    weight: float
    gradient: float
    optimizer: float
    frozen: float


MASTER = Layout(2, 2, 12, 2)  # mixed precision with float32 master weights
STEP_IN_BACKWARD = Layout(2, 0, 2, 2)
MASTER_8BIT_STEP_IN_BACKWARD = Layout(2, 0, 6, 2)
MOMENTS = {"adamw_torch": None, "adamw_torch_fused": None, "adamw_torch_8bit": 2, "adamw_bnb_8bit": 2}


def layout_of(dtype: str, optim: str) -> Layout:
    """
    Layout that a recipe's trainer has.

    Args:
        dtype (`str`): Of weights and gradients, `float32` or `bfloat16`; full moments are of the same.
        optim (`str`): Name of transformers' optimizer.

    Returns:
        `Layout`: Bytes by parameter.

    Raises:
        `ValueError`: The optimizer is not known here.
    """
    if optim not in MOMENTS:
        raise ValueError(f"Memory is known for the optimizers {', '.join(MOMENTS)}, got `optim` {optim!r}.")
    size = {"float32": 4, "bfloat16": 2}[dtype]
    moments = MOMENTS[optim]
    return Layout(size, size, 2 * size if moments is None else moments, size)


@dataclass(frozen=True)
class Batch:
    """
    A micro-batch of one GPU and what is kept of it.

    Args:
        tokens (`float`): Tokens, image features included.
        images (`float`): Images.
        recompute_llm (`bool`): Whether LLM layers keep only their inputs.
        recompute_tower (`bool`): Whether tower blocks do.
        label_only_head (`bool`, defaults to `True`): Whether logits exist for a chunk of labels, or for every token.
    """

    tokens: float
    images: float
    recompute_llm: bool
    recompute_tower: bool
    label_only_head: bool = True


def shards_of(sharding: Sharding, count: int) -> int:
    """
    Over how many GPUs states are spread.

    Args:
        sharding (`str`): `ddp` (every GPU has all of it), `fsdp2`, `hsdp` (within a node) or `zero3`.
        count (`int`): GPUs of the run.

    Returns:
        `int`: Shards.
    """
    return {"ddp": 1, "hsdp": min(count, NODE)}.get(sharding, count)


def kept_by_layer(size: Geometry) -> float:
    """
    What an LLM layer keeps of a token for its backward pass, in bf16 with fused attention.

    Args:
        size (`Geometry`): The model.

    Returns:
        `float`: Bytes, `24 h + 8 f`: 186,000 for Vicuna-7B.
    """
    return 24 * size.width + 8 * size.feed_forward


def kept_by_block(size: Geometry) -> float:
    """
    What a tower block keeps of an image for its backward pass, in bf16 with fused attention.

    Args:
        size (`Geometry`): The model.

    Returns:
        `float`: Bytes, `tokens (16 d + 6 f)`: 23.6e6 for CLIP-L/336.
    """
    return size.vision_tokens * (16 * size.vision_width + 6 * size.vision_feed_forward)


def states(size: Geometry, layout: Layout, shards: int) -> dict[str, float]:
    """
    Weights, gradients and optimizer of one GPU.

    Args:
        size (`Geometry`): The model and what trains.
        layout (`Layout`): Bytes by parameter.
        shards (`int`): GPUs that share them.

    Returns:
        `dict[str, float]`: Bytes.
    """
    frozen = size.parameters - size.trained
    return {
        "weights": (size.trained * layout.weight + frozen * layout.frozen) / shards,
        "gradients": size.trained * layout.gradient / shards,
        "optimizer": size.trained * layout.optimizer / shards,
    }


def activations(size: Geometry, batch: Batch) -> dict[str, float]:
    """
    What is kept between the forward and the backward pass, and the one layer that is run again.

    A layer of the LLM and a block of the tower that are run again are both counted, although the tower's turn comes
    when the LLM's activations are gone.

    Args:
        size (`Geometry`): The model and what trains.
        batch (`Batch`): The micro-batch.

    Returns:
        `dict[str, float]`: Bytes.
    """
    layer, block = kept_by_layer(size) * batch.tokens, kept_by_block(size) * batch.images
    llm, tower = size.layers * layer, size.trained_blocks * block
    if batch.recompute_llm:
        llm = size.layers * 2 * size.width * batch.tokens + layer
    if batch.recompute_tower and size.trained_blocks:
        tower = size.trained_blocks * 2 * size.vision_width * size.vision_tokens * batch.images + block
    return {"LLM activations": llm, "tower activations": tower}


def head(size: Geometry, batch: Batch) -> float:
    """
    Logits, their gradient, and the head's own gradient in float32.

    Args:
        size (`Geometry`): The model.
        batch (`Batch`): The micro-batch.

    Returns:
        `float`: Bytes; all logits exist in bf16, in float32 and as gradients, 12 in sum, unless only labels have some.
    """
    if not batch.label_only_head:
        return 12 * size.vocabulary * batch.tokens
    return 4 * size.vocabulary * (size.width + CHUNK)


def step_memory(size: Geometry, layout: Layout, shards: int, batch: Batch) -> dict[str, float]:
    """
    Everything that one GPU holds at the peak of a step.

    Args:
        size (`Geometry`): The model and what trains.
        layout (`Layout`): Bytes by parameter.
        shards (`int`): GPUs that share the states.
        batch (`Batch`): The micro-batch.

    Returns:
        `dict[str, float]`: Bytes by component.
    """
    gathered = GATHERED * 2 * size.layer_parameters / size.layers if shards > 1 else 0.0
    return {
        **states(size, layout, shards),
        "gathered layers": gathered,
        **activations(size, batch),
        "head": head(size, batch),
    }


def outermost_group(size: Geometry) -> float:
    """
    What FSDP2 gathers besides the LLM's layers and keeps through a step: tower, projector, embeddings and head.

    Args:
        size (`Geometry`): The model and what trains.

    Returns:
        `float`: Bytes of their weights and gradients in bf16.
    """
    trained = size.part("language model").trained > 0
    weights = size.parameters - size.layer_parameters - size.part("adapters").parameters
    gradients = size.trained - size.part("adapters").trained - size.layer_parameters * trained
    return 2 * (weights + gradients)


def table8_batch(stock: bool) -> Batch:
    """
    Micro-batch of the paper's Table 8.

    Args:
        stock (`bool`): As the release trained: only LLM layers are checkpointed, every token has logits
            (InternLM/InternLM-XComposer@0f70c3e with transformers 4.31). Else the tower is too, and labels alone do.

    Returns:
        `Batch`: 16 images.
    """
    return Batch(TABLE8_TOKENS, TABLE8_IMAGES, True, not stock, not stock)


def quantised_states(size: Geometry, layout: Layout) -> float:
    """
    States on one GPU when the matrices of the LLM's layers are frozen in 4 bits (QLoRA).

    Args:
        size (`Geometry`): The model with adapters.
        layout (`Layout`): Bytes by parameter of the rest.

    Returns:
        `float`: Bytes.
    """
    rest = sum(states(size, layout, 1).values()) - size.layer_parameters * layout.frozen
    return rest + size.layer_parameters * QUANTISED


def table8(model: str, vision_tower: str | None, counts: tuple[int, ...] = (16, 8, 1)) -> list[dict[str, Any]]:
    """
    Memory by the block that training begins with, beside Table 8 of the paper.

    Args:
        model (`str`): LLM or whole model.
        vision_tower (`str`, *optional*): Tower.
        counts (`tuple[int, ...]`, defaults to `(16, 8, 1)`): GPUs that share the states.

    Returns:
        `list[dict]`: GB in rows of the paper's order: the paper's, the stock way on 16 GPUs, and ours by count.
    """
    built = build_on_meta(model, vision_tower)
    rows = []
    for block, paper in PAPER_TABLE8.items():
        size = measure(built, Tuning(block))
        floor = {str(count): _total(size, MASTER, count, table8_batch(stock=False)) for count in counts}
        stock = _total(size, MASTER, PAPER_GPUS, table8_batch(stock=True))
        rows.append({"block": block, "paper": paper, "stock": stock, "floor": floor})
    return rows


def one_gpu(model: str, vision_tower: str | None, size: Geometry) -> list[dict[str, Any]]:
    """
    Weights, gradients and optimizer on one GPU, by ways to make them smaller.

    Args:
        model (`str`): LLM or whole model.
        vision_tower (`str`, *optional*): Tower.
        size (`Geometry`): The model and what trains; adapters are counted with a frozen tower.

    Returns:
        `list[dict]`: GB by way.
    """
    adapters = measure(build_on_meta(model, vision_tower), Tuning(lora_rank=LORA_RANK))
    ways = {
        "float32 master, AdamW": sum(states(size, MASTER, 1).values()),
        "bf16, AdamW": sum(states(size, layout_of("bfloat16", "adamw_torch"), 1).values()),
        "float32 master, 8-bit AdamW, step in backward": sum(states(size, MASTER_8BIT_STEP_IN_BACKWARD, 1).values()),
        "bf16, 8-bit AdamW": sum(states(size, layout_of("bfloat16", "adamw_torch_8bit"), 1).values()),
        "bf16, 8-bit AdamW, step in backward": sum(states(size, STEP_IN_BACKWARD, 1).values()),
        f"LoRA of rank {LORA_RANK}": sum(states(adapters, MASTER, 1).values()),
        f"QLoRA of rank {LORA_RANK}": quantised_states(adapters, MASTER),
    }
    return [{"way": way, "gb": held / 1e9} for way, held in ways.items()]


def _total(size: Geometry, layout: Layout, shards: int, batch: Batch) -> float:
    return sum(step_memory(size, layout, shards, batch).values()) / 1e9

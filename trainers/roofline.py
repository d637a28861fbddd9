"""
What training and captioning need at least: floating-point operations, bytes through the memory, and time.

A product of matrices of a parameter count `P` over `S` tokens takes `2 P S` operations forward and twice as many
backward (Kaplan et al. 2020, arXiv:2001.08361, section 2.1); causal attention over `S` tokens of width `h` takes
`2 h S²` a layer, the half of the full square. Model FLOPs utilisation (MFU) leaves recomputation out (Chowdhery et al.
2022, arXiv:2204.02311, appendix B).

Peaks are dense bf16 without sparsity, from NVIDIA's data sheets of A100, H100 and L40S SXM or PCIe modules, of H200,
and from the Ada architecture whitepaper (RTX 4090, bf16 with fp32 accumulation). Units: FLOP, bytes, seconds.
"""

# S tokens of a sample, image features included; K positions that predict a label

from dataclasses import dataclass, replace

from .geometry import Geometry
from .memory import Batch, Layout, kept_by_block, kept_by_layer


CAPTION_PREFILL_SHARE = 0.6  # of the peak, what large products of a captioner reach while it reads prompts


@dataclass(frozen=True)
class Gpu:
    """
    A GPU by its data sheet.

    Args:
        name (`str`): Its name.
        flops (`float`): Dense bf16 operations a second.
        bandwidth (`float`): Of its memory, bytes a second.
        memory (`float`): Bytes.
        link (`float`): To other GPUs of its node, bytes a second in each direction: NVLink, else PCIe.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float

    def at(self, flops: float | None = None, bandwidth: float | None = None) -> "Gpu":
        """The same GPU with measured ceilings in place of the data sheet's."""
        return replace(self, flops=flops or self.flops, bandwidth=bandwidth or self.bandwidth)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-80GB", 312e12, 2.039e12, 80e9, 300e9),
        Gpu("A100-40GB", 312e12, 1.555e12, 40e9, 300e9),
        Gpu("H100", 989e12, 3.35e12, 80e9, 450e9),
        Gpu("H200", 989e12, 4.8e12, 141e9, 450e9),
        Gpu("L40S", 362e12, 0.864e12, 48e9, 32e9),
        Gpu("RTX-4090", 165.2e12, 1.008e12, 24e9, 32e9),
    )
}


@dataclass(frozen=True)
class Workload:
    """
    Mean sample of a stage.

    Args:
        image_share (`float`): Share of samples with an image.
        text_tokens (`float`): Text tokens of those, beside the image's.
        labels (`float`): Label tokens of those.
        text_spread (`float`): Standard deviation of `text_tokens`.
        text_only_tokens (`float`, defaults to 0): Tokens of samples without an image.
        text_only_labels (`float`, defaults to 0): Label tokens of those.
        text_only_spread (`float`, defaults to 0): Standard deviation of `text_only_tokens`.
    """

    image_share: float
    text_tokens: float
    labels: float
    text_spread: float
    text_only_tokens: float = 0
    text_only_labels: float = 0
    text_only_spread: float = 0


# Estimates. Captions have 826 characters on average, those of GPT4-V 942 (Table 2 of the paper), some 200 and 215
# tokens; the captioner's question comes on top. Lengths of the SFT mix are not published, nor is any spread.
WORKLOADS = {
    "pretrain": Workload(image_share=1, text_tokens=200, labels=200, text_spread=60),
    "captioner": Workload(image_share=1, text_tokens=270, labels=215, text_spread=60),
    "finetune": Workload(0.94, 224, 100, 140, text_only_tokens=1100, text_only_labels=550, text_only_spread=500),
}


def llm_forward(size: Geometry, tokens: float, scored: float) -> float:
    """
    Operations of the LLM forward.

    Args:
        size (`Geometry`): The model.
        tokens (`float`): S.
        scored (`float`): K, positions that the head sees.

    Returns:
        `float`: FLOP.
    """
    return (
        2 * size.layer_parameters * tokens
        + attention_forward(size, tokens)
        + 2 * size.vocabulary * size.width * scored
    )


def attention_forward(size: Geometry, tokens: float) -> float:
    """
    Operations of causal attention in all layers, its projections left out.

    Args:
        size (`Geometry`): The model.
        tokens (`float`): S.

    Returns:
        `float`: FLOP.
    """
    return 2 * size.layers * size.width * tokens**2


def vision_block(size: Geometry) -> float:
    """
    Operations of one tower block forward for one image; its attention is not causal.

    Args:
        size (`Geometry`): The model.

    Returns:
        `float`: FLOP, 15.9e9 for CLIP-L/336.
    """
    width, tokens = size.vision_width, size.vision_tokens
    return 2 * (4 * width**2 + 2 * width * size.vision_feed_forward) * tokens + 4 * tokens**2 * width


def vision_forward(size: Geometry, blocks: int) -> float:
    """
    Operations of the patch embedding and of so many tower blocks forward for one image.

    Args:
        size (`Geometry`): The model.
        blocks (`int`): How many.

    Returns:
        `float`: FLOP.
    """
    return blocks * vision_block(size) + 2 * size.patch_values * size.vision_width * size.patches


def projector_forward(size: Geometry) -> float:
    """
    Operations of the projector's two layers forward for one image.

    Args:
        size (`Geometry`): The model.

    Returns:
        `float`: FLOP.
    """
    return 2 * (size.vision_width * size.width + size.width**2) * size.patches


def sample_flops(size: Geometry, tokens: float, scored: float, images: float) -> dict[str, float]:
    """
    Operations that training on one sample needs, without recomputation.

    What trains costs a forward pass and twice that backward. A frozen LLM still passes gradients on, for once a
    forward pass; frozen tower blocks pass none.

    Args:
        size (`Geometry`): The model and what trains.
        tokens (`float`): S.
        scored (`float`): K.
        images (`float`): Images of the sample.

    Returns:
        `dict[str, float]`: FLOP by component.
    """
    tower = vision_forward(size, size.used_blocks) + 2 * size.trained_blocks * vision_block(size)
    projector = 3 if size.part("projector").trained else 1 + (size.trained_blocks > 0)
    factor = 3 if size.part("language model").trained else 2
    adapters = 6 * size.part("adapters").parameters * tokens
    return {
        "vision tower": images * tower,
        "projector": images * projector * projector_forward(size),
        "language model": factor * 2 * size.layer_parameters * tokens + adapters + 3 * attention_forward(size, tokens),
        "head": factor * 2 * size.vocabulary * size.width * scored,
    }


def recomputed_flops(size: Geometry, tokens: float, images: float) -> float:
    """
    Operations that full activation checkpointing adds to a sample: the layers that backward passes run again.

    Args:
        size (`Geometry`): The model and what trains.
        tokens (`float`): S.
        images (`float`): Images of the sample.

    Returns:
        `float`: FLOP.
    """
    return llm_forward(size, tokens, 0) + images * size.trained_blocks * vision_block(size)


def mean_flops(size: Geometry, load: Workload) -> tuple[dict[str, float], float]:
    """
    Operations of a stage's mean sample.

    Args:
        size (`Geometry`): The model and what trains.
        load (`Workload`): The samples.

    Returns:
        `tuple[dict[str, float], float]`: FLOP by component, and what full checkpointing adds.
    """
    tokens, share = size.patches + load.text_tokens, load.image_share
    with_image = sample_flops(size, tokens, load.labels, 1)
    without = sample_flops(size, load.text_only_tokens, load.text_only_labels, 0)
    flops = {name: share * with_image[name] + (1 - share) * without[name] for name in with_image}
    added = share * recomputed_flops(size, tokens, 1) + (1 - share) * recomputed_flops(size, load.text_only_tokens, 0)
    return flops, added


def hours(flops: float, gpu: Gpu, count: int, utilisation: float = 1.0) -> float:
    """
    Wall time.

    Args:
        flops (`float`): FLOP of the run.
        gpu (`Gpu`): Which.
        count (`int`): How many.
        utilisation (`float`, defaults to 1): MFU, 0 to 1.

    Returns:
        `float`: Hours.
    """
    return flops / (gpu.flops * count * utilisation) / 3600


def utilisation(flops: float, gpu: Gpu, count: int, taken: float) -> float:
    """
    Model FLOPs utilisation of a run.

    Args:
        flops (`float`): FLOP of the run without recomputation.
        gpu (`Gpu`): Which.
        count (`int`): How many.
        taken (`float`): Hours.

    Returns:
        `float`: MFU, 0 to 1.
    """
    return hours(flops, gpu, count) / taken


@dataclass(frozen=True)
class Work:
    """Operations of a component and the bytes that it moves through the GPU's memory."""

    flops: float
    moved: float

    def seconds(self, gpu: Gpu) -> float:
        """
        Time at least: the slower of the two.

        Args:
            gpu (`Gpu`): Which.

        Returns:
            `float`: Seconds.
        """
        return max(self.flops / gpu.flops, self.moved / gpu.bandwidth)

    def bound(self, gpu: Gpu) -> str:
        """
        What takes that time.

        Args:
            gpu (`Gpu`): Which.

        Returns:
            `str`: `compute` or `memory`.
        """
        return "compute" if self.flops / gpu.flops >= self.moved / gpu.bandwidth else "memory"


def micro_step(
    size: Geometry, load: Workload, samples: float, batch: Batch, layout: Layout, shards: int
) -> dict[str, Work]:
    """
    Work of one GPU for a micro-batch, and of the optimizer for its shard.

    Weights are read in bf16 once by every pass, gradients written once, and what is kept for the backward pass is
    written and read once. Everything else could stay in the caches.

    Args:
        size (`Geometry`): The model and what trains.
        load (`Workload`): The samples.
        samples (`float`): How many.
        batch (`Batch`): Their tokens and images.
        layout (`Layout`): Bytes by parameter.
        shards (`int`): GPUs that share the optimizer's work.

    Returns:
        `dict[str, Work]`: By component.
    """
    flops, recomputed = mean_flops(size, load)
    kept = {
        "vision tower": 2 * size.trained_blocks * kept_by_block(size) * batch.images,
        "language model": 2 * size.layers * kept_by_layer(size) * batch.tokens,
    }
    work = {}
    for name, of_sample in flops.items():
        part = size.part(name)
        weights = 2 * (part.parameters + part.passed + part.trained)
        work[name] = Work(samples * of_sample, weights + kept.get(name, 0))
    if batch.recompute_llm:
        work["recomputation"] = Work(samples * recomputed, 2 * size.part("language model").parameters)
    touched = 2 * (layout.weight + layout.optimizer) + layout.gradient
    work["optimizer"] = Work(0, size.trained * touched / shards)
    return work


@dataclass(frozen=True)
class CaptionSeconds:
    """
    What a captioner's GPU needs at least for each of its parts.

    Args:
        prompt (`float`): Seconds to read one image with its prompt.
        weights (`float`): Seconds of a decode step for the weights, however many captions it is for.
        context (`float`): Seconds of a decode step for the keys and values of one token.
    """

    prompt: float
    weights: float
    context: float

    def steps(self, count: float, rows: float, contexts: float) -> float:
        """Seconds of `count` decode steps of `rows` captions that have `contexts` tokens together at first."""
        return count * (self.weights + self.context * (contexts + rows * count / 2))


def caption_seconds(size: Geometry, gpu: Gpu, prompt: int = 625) -> CaptionSeconds:
    """
    Time of a captioner's parts, with keys and values of every head kept in bf16.

    A step reads all weights once and every caption's keys and values; reading prompts is bound by operations.

    Args:
        size (`Geometry`): The model.
        gpu (`Gpu`): Which.
        prompt (`int`, defaults to 625): Tokens before the answer, those of the image included.

    Returns:
        `CaptionSeconds`: Seconds.
    """
    weights = 2 * (size.layer_parameters + size.vocabulary * size.width)
    cached = 2 * size.layers * size.width * 2  # bytes of keys and values a token
    reading = llm_forward(size, prompt, 1) + vision_forward(size, size.used_blocks) + projector_forward(size)
    prompt_seconds = reading / (CAPTION_PREFILL_SHARE * gpu.flops)
    return CaptionSeconds(prompt_seconds, weights / gpu.bandwidth, cached / gpu.bandwidth)


@dataclass(frozen=True)
class CaptionRate:
    """Images a second of one GPU: prompts and answers in turns, at once, and if memory cost nothing."""

    serial: float
    overlapped: float
    compute_only: float


def caption_rate(size: Geometry, gpu: Gpu, batch: int, prompt: int = 625, answer: int = 190) -> CaptionRate:
    """
    Greedy captions of one GPU at best.

    Args:
        size (`Geometry`): The model.
        gpu (`Gpu`): Which.
        batch (`int`): Captions that are written at once.
        prompt (`int`, defaults to 625): Tokens before the answer, those of the image included.
        answer (`int`, defaults to 190): Tokens of the answer.

    Returns:
        `CaptionRate`: Images a second.
    """
    seconds = caption_seconds(size, gpu, prompt)
    attending = 4 * size.layers * size.width * (answer * prompt + answer**2 / 2)
    writing = 2 * (size.layer_parameters + size.vocabulary * size.width) * answer + attending
    write = seconds.steps(answer, batch, batch * prompt) / batch
    busy = seconds.prompt + writing / (CAPTION_PREFILL_SHARE * gpu.flops)
    return CaptionRate(1 / (seconds.prompt + write), 1 / max(busy, write), 1 / (CAPTION_PREFILL_SHARE * busy))

"""Memory of a step: what real layers keep, and the figures that follow for the paper's runs."""

from functools import cache

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VForConditionalGeneration
from trainers.geometry import Geometry, Tuning, build_on_meta, measure
from trainers.memory import (
    MASTER,
    Batch,
    kept_by_block,
    kept_by_layer,
    layout_of,
    one_gpu,
    outermost_group,
    shards_of,
    states,
    step_memory,
    table8,
    table8_batch,
)


LLM, CLIP = "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"
BLOCKS = (24, 18, 12, 6, 0)
NEAR = {"rel": 0.02}


@cache
def size_of(block: int | None = 12) -> Geometry:
    return measure(build_on_meta(LLM, CLIP), Tuning(block))


@cache
def small() -> tuple[ShareGPT4VConfig, Geometry]:
    """A model whose layers run here, with the proportions of the paper's, and its sizes."""
    text = LlamaConfig(hidden_size=512, intermediate_size=1376, num_attention_heads=4, num_hidden_layers=1)
    vision = CLIPVisionConfig(
        hidden_size=512,
        intermediate_size=2048,
        num_attention_heads=8,
        num_hidden_layers=2,
        image_size=56,
        patch_size=14,
    )
    with torch.device("meta"):
        model = ShareGPT4VForConditionalGeneration(ShareGPT4VConfig(text_config=text, vision_config=vision))
    model.config.text_config._attn_implementation = model.config.vision_config._attn_implementation = "sdpa"
    return model.config, measure(model, Tuning())


def kept(layer: torch.nn.Module, *args, **kwargs) -> int:
    """Bytes of everything but weights that autograd holds after the forward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    found = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        layer(*args, **kwargs)
    return sum(storage.nbytes() for storage in found.values())


def test_a_layer_of_the_llm_keeps_what_the_formula_says():
    (config, size), tokens = small(), 256
    layer = LlamaDecoderLayer(config.text_config, 0).to(torch.bfloat16)
    hidden = torch.randn(1, tokens, size.width, dtype=torch.bfloat16, requires_grad=True)
    positions = LlamaRotaryEmbedding(config.text_config)(hidden, torch.arange(tokens)[None])
    found = kept(layer, hidden, position_embeddings=positions, attention_mask=None)
    assert found == pytest.approx(kept_by_layer(size) * tokens, rel=0.03)


def test_a_block_of_the_tower_keeps_what_the_formula_says():
    config, size = small()
    block = CLIPEncoderLayer(config.vision_config).to(torch.bfloat16)
    hidden = torch.randn(1, size.vision_tokens, size.vision_width, dtype=torch.bfloat16, requires_grad=True)
    assert kept(block, hidden, attention_mask=None) == pytest.approx(kept_by_block(size), rel=0.03)


def test_layers_of_the_paper_model_keep_the_measured_bytes():
    assert kept_by_layer(size_of()) == pytest.approx(187e3, **NEAR)
    assert kept_by_block(size_of()) == pytest.approx(23.7e6, **NEAR)


@pytest.mark.parametrize(
    ("shards", "stock", "expected"),
    [
        (16, True, (19.7, 21.7, 24.0, 26.4, 28.7)),
        (16, False, (15.4, 15.9, 16.1, 16.3, 16.4)),
        (8, False, (22.2, 22.8, 23.0, 23.2, 23.5)),
        (1, False, (115.7, 117.1, 118.2, 119.4, 120.6)),
    ],
)
def test_the_rows_of_table_8(shards, stock, expected):
    found = [sum(step_memory(size_of(b), MASTER, shards, table8_batch(stock)).values()) / 1e9 for b in BLOCKS]
    assert found == pytest.approx(expected, **NEAR)


def test_the_table_itself_has_the_paper_column_and_the_same_floors():
    rows = table8(LLM, CLIP)
    assert [row["paper"] for row in rows] == [49.6, 53.2, 56.7, 60.0, 63.6]
    assert [row["stock"] for row in rows] == pytest.approx((19.7, 21.7, 24.0, 26.4, 28.7), **NEAR)
    assert [row["floor"]["8"] for row in rows] == pytest.approx((22.2, 22.8, 23.0, 23.2, 23.5), **NEAR)


def test_the_slope_of_the_stock_row_is_the_tower_without_checkpointing():
    stock = [row["stock"] for row in table8(LLM, CLIP)]
    blocks = 12  # from 12 to 0
    assert (stock[4] - stock[2]) / blocks == pytest.approx(16 * 23.7e-3 + 12.6e-3 * 14 / 16, **NEAR)


def test_ways_to_train_on_one_gpu():
    expected = {
        "bf16, AdamW": 55.5,
        "bf16, 8-bit AdamW": 41.7,
        "float32 master, 8-bit AdamW, step in backward": 55.5,
        "bf16, 8-bit AdamW, step in backward": 27.9,
        "LoRA of rank 128": 19.5,
    }
    found = {row["way"]: row["gb"] for row in one_gpu(LLM, CLIP, size_of())}
    assert {way: found[way] for way in expected} == pytest.approx(expected, **NEAR)
    # 4 bits and 0.127 of constants a weight, adapters and projector with master weights: 9.9, of which 0.3 projector
    assert found["QLoRA of rank 128"] == pytest.approx(9.7, rel=0.025)


def test_sixteen_gpus_need_little_for_states():
    assert sum(states(size_of(), MASTER, 16).values()) / 1e9 == pytest.approx(6.9, **NEAR)


@pytest.mark.parametrize(
    ("dtype", "optim", "trained", "frozen"),
    [
        ("float32", "adamw_torch", 16, 4),
        ("float32", "adamw_torch_8bit", 10, 4),
        ("bfloat16", "adamw_torch_fused", 8, 2),
        ("bfloat16", "adamw_bnb_8bit", 6, 2),
    ],
)
def test_bytes_of_a_parameter(dtype, optim, trained, frozen):
    layout = layout_of(dtype, optim)
    assert (layout.weight + layout.gradient + layout.optimizer, layout.frozen) == (trained, frozen)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="got `optim` 'adafactor'"):
        layout_of("float32", "adafactor")


def test_hsdp_shards_within_a_node():
    assert [shards_of("hsdp", count) for count in (4, 8, 64)] == [4, 8, 8]
    assert (shards_of("fsdp2", 64), shards_of("zero3", 64), shards_of("ddp", 64)) == (64, 64, 1)


def test_fsdp2_keeps_what_is_no_layer_of_the_llm():
    weights = 303_507_456 + 20_979_712 + 2 * 131_072_000 + 65 * 4096  # tower, projector, embeddings, head, norms
    assert outermost_group(size_of(None)) == 2 * (2 * weights - 303_507_456)


def test_without_checkpointing_a_token_keeps_six_megabytes():
    batch = Batch(1000, 1, False, False)
    assert step_memory(size_of(), MASTER, 16, batch)["LLM activations"] / 1000 == pytest.approx(6e6, **NEAR)

"""The composed model: generation, attention, gradients, rows of different content, and what can be composed."""

import copy
from functools import partial

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    Gemma2Config,
    GPT2Config,
    LlavaForConditionalGeneration,
    OPTConfig,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
)

from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration, compose
from tests.tiny import BLOCKS, chat, noise_image, tiny_clip, tiny_llm, tiny_model, tiny_siglip, tiny_tokenizer


ROWS = {
    "one image": chat("Describe the image in detail.", noise_image(1)),
    "another length": chat("What is it?", noise_image(2, (20, 50))),
    "text only": chat("Tell me about two dogs and a small boat on a lake."),
    "two images": chat("Which picture shows a cat?", noise_image(3), noise_image(4)),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On tiny tensors more threads only wait for each other, for minutes where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def composed():
    return tiny_model()


@pytest.fixture(scope="module")
def gentle(composed):
    """Smaller weights in the LLM: the rounding of equal computations stays far below 1e-5, a mistake does not."""
    model = copy.deepcopy(composed[0])
    for weight in model.model.language_model.parameters():
        weight.data.mul_(1 / 3 if weight.ndim == 2 else 1)
    return model


@pytest.fixture
def trainable(composed):
    return copy.deepcopy(composed[0]).train()


def inputs_of(processor, *names):
    conversations = [ROWS[name] for name in names]
    options = {"padding": True} if len(names) > 1 else {}
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs=options,
    )


def generate(model, inputs, **options):
    """Greedy continuation, always of 12 tokens."""
    ids = model.generate(**inputs, do_sample=False, min_new_tokens=12, max_new_tokens=12, **options)
    return ids[:, inputs["input_ids"].shape[1] :]


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


# Generation and attention


def test_a_batch_is_padded_on_the_left(composed):
    inputs = inputs_of(composed[1], *ROWS)
    assert inputs["attention_mask"].sum(1).unique().numel() == len(ROWS)
    assert inputs["attention_mask"][:, -1].all()


def test_batched_generation_equals_one_at_a_time(composed):
    model, processor = composed
    together = generate(model, inputs_of(processor, *ROWS))
    alone = [generate(model, inputs_of(processor, name)) for name in ROWS]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row.tolist()) for row in together}) == len(ROWS)


def test_cached_generation_equals_uncached(composed):
    inputs = inputs_of(composed[1], *ROWS)
    cached, uncached = (generate(composed[0], inputs, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached, uncached)


def test_eager_attention_equals_sdpa(composed, gentle, tmp_path):
    gentle.save_pretrained(tmp_path)
    inputs = inputs_of(composed[1], *ROWS)
    eager, sdpa = (
        ShareGPT4VForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name)
        for name in ("eager", "sdpa")
    )
    assert eager.config._attn_implementation == "eager" and sdpa.config._attn_implementation == "sdpa"
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits_of(eager, inputs)[real], logits_of(sdpa, inputs)[real], atol=1e-5, rtol=0)


# Rows of different content


@pytest.mark.parametrize("names", [("text only",), ("two images",)])
def test_text_only_and_several_images_run(composed, names):
    inputs = inputs_of(composed[1], *names)
    assert ("pixel_values" in inputs) == (names != ("text only",))
    assert logits_of(composed[0], inputs).isfinite().all()


@pytest.mark.parametrize(
    "names", [("one image", "text only"), ("two images", "one image"), ("text only", "two images", "another length")]
)
def test_a_row_of_a_mixed_batch_equals_the_row_alone(gentle, composed, names):
    inputs = inputs_of(composed[1], *names)
    together = logits_of(gentle, inputs)
    for row, mask, name in zip(together, inputs["attention_mask"].bool(), names, strict=True):
        alone = logits_of(gentle, inputs_of(composed[1], name))[0]
        torch.testing.assert_close(row[mask], alone, atol=1e-5, rtol=0)


def test_exchanged_images_exchange_the_logits(composed):
    inputs = inputs_of(composed[1], "two images")
    exchanged = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert (logits_of(composed[0], inputs) - logits_of(composed[0], exchanged)).abs().max() > 0.01


def test_a_wrong_number_of_image_tokens_names_both_numbers(composed):
    model, processor = composed
    inputs = inputs_of(processor, "one image")
    extra = torch.full((1, 1), model.config.image_token_index)
    ids = torch.cat([inputs["input_ids"], extra], dim=1)
    with pytest.raises(ValueError, match=r"tokens: 5, features: \d+"):  # features times width in transformers 5.23
        model(input_ids=ids, pixel_values=inputs["pixel_values"])


# Gradients


def gradients(model, processor, calls=None):
    """Loss and gradients by name; `calls` counts how often the first MLP of tower and LLM ran."""
    inputs = inputs_of(processor, "one image", "two images")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    counted = {
        "tower": model.model.vision_tower.encoder.layers[0].mlp,
        "llm": model.model.language_model.layers[0].mlp,
    }
    hooks = []
    for name, part in counted.items() if calls is not None else ():
        calls[name] = 0
        hooks.append(part.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1})))
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    for hook in hooks:
        hook.remove()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), grads


def blocks_of(names):
    prefix = "model.vision_tower.encoder.layers."
    return {int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)}


def freeze_below(model, block):
    tower = model.model.vision_tower
    for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:block]):
        part.requires_grad_(False)


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"preserve_rng_state": False}])
@pytest.mark.parametrize("first_block", [0, 2])
def test_checkpointing_changes_neither_loss_nor_gradients(trainable, composed, first_block, options):
    freeze_below(trainable, first_block)
    plain, checkpointed = trainable, copy.deepcopy(trainable)
    checkpointed.gradient_checkpointing_enable(options)
    (loss, grads), calls = gradients(plain, composed[1]), {}
    checkpointed_loss, checkpointed_grads = gradients(checkpointed, composed[1], calls)
    assert calls["llm"] == 2  # once more in the backward pass: checkpointing is really on
    assert torch.equal(loss, checkpointed_loss)
    assert grads.keys() == checkpointed_grads.keys()
    for name in grads:
        torch.testing.assert_close(checkpointed_grads[name], grads[name], atol=1e-6, rtol=1e-5)


def test_checkpointing_reaches_the_tower(trainable, composed):
    trainable.gradient_checkpointing_enable()
    calls: dict[str, int] = {}
    gradients(trainable, composed[1], calls)
    assert calls == {"tower": 2, "llm": 2}


def test_checkpointing_does_not_run_frozen_blocks_again(trainable, composed):
    freeze_below(trainable, 1)
    trainable.gradient_checkpointing_enable()
    calls: dict[str, int] = {}
    gradients(trainable, composed[1], calls)
    assert calls == {"tower": 1, "llm": 2}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("first_block", range(BLOCKS - 1))
def test_gradients_reach_exactly_the_blocks_that_train(trainable, composed, first_block, checkpointing):
    if first_block:
        freeze_below(trainable, first_block)
    if checkpointing:
        trainable.gradient_checkpointing_enable()
    _, grads = gradients(trainable, composed[1])
    assert blocks_of(grads) == set(range(first_block, BLOCKS - 1))
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if "k_proj.bias" not in name)
    rest = {name for name, _ in trainable.named_parameters() if "vision_tower" not in name}
    assert rest <= grads.keys()


@pytest.mark.parametrize("first_block", [0, 2])
def test_last_block_and_last_norm_of_the_tower_never_get_a_gradient(trainable, composed, first_block):
    freeze_below(trainable, first_block)
    _, grads = gradients(trainable, composed[1])
    unused = {name for name, weight in trainable.named_parameters() if weight.requires_grad} - grads.keys()
    assert blocks_of(unused) == {BLOCKS - 1}
    assert {name for name in unused if "encoder.layers" not in name} == {
        "model.vision_tower.post_layernorm.weight",
        "model.vision_tower.post_layernorm.bias",
    }


@pytest.mark.parametrize("method", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
def test_reentrant_checkpointing_is_refused_while_the_tower_trains(trainable, method):
    freeze_below(trainable, 2)
    with pytest.raises(ValueError, match="use_reentrant=True.*silently stop the gradients of the vision tower"):
        getattr(trainable, method)({"use_reentrant": True})


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the frozen tower's, rightly
def test_reentrant_checkpointing_of_a_frozen_tower_keeps_all_other_gradients(trainable, composed):
    trainable.model.vision_tower.requires_grad_(False)
    reentrant = copy.deepcopy(trainable)
    reentrant.gradient_checkpointing_enable({"use_reentrant": True})
    (loss, grads), (reentrant_loss, reentrant_grads) = (gradients(m, composed[1]) for m in (trainable, reentrant))
    assert torch.equal(loss, reentrant_loss)
    assert grads.keys() == reentrant_grads.keys() and len(grads) > 20
    for name in grads:
        torch.testing.assert_close(reentrant_grads[name], grads[name], atol=1e-6, rtol=1e-5)


# Composition

SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
GROUPED = dict(**SMALL, intermediate_size=128, num_key_value_heads=2)
LLMS = {
    "llama": tiny_llm,
    "qwen2, tied": partial(Qwen2Config, **GROUPED, initializer_range=0.3, tie_word_embeddings=True),
    "gpt2, tied, other names": partial(GPT2Config, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3),
    "opt, tied, nested": partial(OPTConfig, **SMALL, ffn_dim=128, word_embed_proj_dim=64, init_std=0.3),
}
TOWERS = {"clip": tiny_clip, "siglip": tiny_siglip}


def build_llm(name, size):
    torch.manual_seed(1)
    made = LLMS[name](vocab_size=size)
    return made if name == "llama" else AutoModelForCausalLM.from_config(made)


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("tower", TOWERS)
def test_composed_models_are_saved_for_the_native_class(tmp_path, tower, llm):
    tokenizer = tiny_tokenizer()
    model, processor = compose(TOWERS[tower](), build_llm(llm, len(tokenizer)), tokenizer)
    model.eval().save_pretrained(tmp_path)
    native, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    inputs = inputs_of(processor, *ROWS)
    assert torch.equal(logits_of(native, inputs), logits_of(model, inputs))


@pytest.mark.parametrize("llm", LLMS)
def test_composing_keeps_the_logits_of_the_llm_on_text(tmp_path, llm):
    tokenizer = tiny_tokenizer()
    build_llm(llm, len(tokenizer)).save_pretrained(tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path)
    model, _ = compose(tiny_clip(), AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer)
    ids = torch.randint(3, 400, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = logits_of(alone, {"input_ids": ids})
    logits = logits_of(model, {"input_ids": ids})
    assert logits.shape[-1] == len(tokenizer) > expected.shape[-1]
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_only_a_tied_llm_shares_head_and_embedding(tied):
    model, _ = tiny_model(tie_word_embeddings=tied)
    shared = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert shared == model.config.tie_word_embeddings == tied


def test_an_llm_with_soft_capped_logits_is_refused():
    tokenizer = tiny_tokenizer()
    config = Gemma2Config(**GROUPED, head_dim=16, vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match="Gemma2ForCausalLM does more than a linear head"):
        compose(tiny_clip(), AutoModelForCausalLM.from_config(config), tokenizer)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_folder_of_a_whole_dual_encoder_gives_its_tower(tmp_path, tower):
    whole, config = {"clip": (CLIPModel, CLIPConfig), "siglip": (SiglipModel, SiglipConfig)}[tower]
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    dual = whole(config(vision_config=TOWERS[tower]().to_dict(), text_config=text))
    dual.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    model, _ = compose(tmp_path, tiny_llm(len(tokenizer)), tokenizer)
    expected, got = dual.vision_model.state_dict(), model.model.vision_tower.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("loaded", [True, False])
def test_dtype_and_attention_are_honoured(tmp_path, loaded):
    tokenizer = tiny_tokenizer()
    llm = tiny_llm(len(tokenizer))
    llm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text, given = (llm, tokenizer) if loaded else (tmp_path, None)
    model, _ = compose(tiny_clip(), text, given, dtype="bfloat16", attn_implementation="eager")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    parts = (model, model.model.vision_tower, model.model.language_model)
    assert [part.config._attn_implementation for part in parts] == ["eager"] * 3


def test_dtype_follows_a_half_precision_llm():
    tokenizer = tiny_tokenizer()
    model, _ = compose(tiny_clip(), tiny_llm(len(tokenizer)).to(torch.bfloat16), tokenizer)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("shared", ["eos_token", "unk_token"])
def test_a_tokenizer_that_pads_with_a_token_of_meaning_gets_its_own(shared):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = getattr(tokenizer, shared)
    model, processor = compose(tiny_clip(), tiny_llm(len(tokenizer)), tokenizer)
    pad_id = processor.tokenizer.convert_tokens_to_ids("<pad>")
    assert processor.tokenizer.pad_token == "<pad>" and pad_id > processor.tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == pad_id


def test_a_padding_token_of_its_own_is_kept():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model, processor = compose(tiny_clip(), tiny_llm(len(tokenizer)), tokenizer)
    assert processor.tokenizer.pad_token == "[PAD]"
    assert "<pad>" not in processor.tokenizer.get_vocab()


def test_generation_ends_at_the_end_tokens_of_llm_and_tokenizer():
    tokenizer = tiny_tokenizer()
    llm = tiny_llm(len(tokenizer))
    llm.generation_config.eos_token_id = [7]
    model, _ = compose(tiny_clip(), llm, tokenizer)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 7]


def test_a_loaded_llm_without_its_tokenizer_is_an_error():
    with pytest.raises(ValueError, match="`tokenizer` is required when `text` is a loaded model"):
        compose(tiny_clip(), tiny_llm(400))

"""
Checkpoints as ShareGPT4V and LLaVA published them, at tiny widths: their names and numbers of tensors, their
configuration fields and a real sentencepiece tokenizer. All is spelled out here, nothing comes from the package.
"""

import functools
import io
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from tests.tiny import CORPUS


WIDTH, INNER, TOWER_WIDTH, TOWER_INNER, BLOCKS = 16, 24, 16, 32, 24
IMAGE_SIZE, PATCH_SIZE, PATCHES = 28, 14, 4
VOCABULARY = 384
OPENAI_NAME = "openai/clip-vit-large-patch14-336"
LLAVA = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": OPENAI_NAME}
TUNED_FOLDER = "ShareGPT4V-7B_Pretrained_vit-large336-l12"
TUNED_NAME = f"Lin-Chen/{TUNED_FOLDER}"


@functools.cache
def sentencepiece_model() -> bytes:
    """A byte-pair model with byte fallback and the settings of Llama's, trained on a few sentences."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=buffer,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return buffer.getvalue()


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.model`, `tokenizer_config.json` and `special_tokens_map.json`, as Vicuna has them."""

    def token(content: str) -> dict:
        kind = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        return {"__type": "AddedToken", "content": content, **kind}

    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fields = {name: token(content) for name, content in names.items()} | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def llm_shapes(layers: int = 32, width: int = WIDTH, inner: int = INNER) -> dict[str, tuple[int, ...]]:
    """LLM and projector: 327 tensors for 32 layers, 407 for 40."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes[f"{prefix}self_attn.rotary_emb.inv_freq"] = (width // 4,)
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{prefix}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (VOCABULARY, width)}
    shapes |= {"model.mm_projector.0.weight": (width, TOWER_WIDTH), "model.mm_projector.0.bias": (width,)}
    shapes |= {"model.mm_projector.2.weight": (width, width), "model.mm_projector.2.bias": (width,)}
    return shapes


def llm_tensors(layers: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    """LLM and projector in bfloat16, the rotary buffers in float32."""
    tensors = _random(llm_shapes(layers), torch.bfloat16, seed)
    return {name: value.float() if name.endswith("inv_freq") else value for name, value in tensors.items()}


def tower_tensors(dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> dict[str, torch.Tensor]:
    """A vision tower of 24 blocks: 391 tensors."""
    shapes = {
        "vision_model.embeddings.class_embedding": (TOWER_WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (TOWER_WIDTH, 3, PATCH_SIZE, PATCH_SIZE),
        "vision_model.embeddings.position_embedding.weight": (PATCHES + 1, TOWER_WIDTH),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"vision_model.{name}.{kind}": (TOWER_WIDTH,) for kind in ("weight", "bias")}
    for block in range(BLOCKS):
        prefix = f"vision_model.encoder.layers.{block}."
        sizes = {f"self_attn.{name}_proj": (TOWER_WIDTH, TOWER_WIDTH) for name in ("k", "v", "q", "out")}
        sizes |= {"mlp.fc1": (TOWER_INNER, TOWER_WIDTH), "mlp.fc2": (TOWER_WIDTH, TOWER_INNER)}
        sizes |= {"layer_norm1": (TOWER_WIDTH,), "layer_norm2": (TOWER_WIDTH,)}
        for name, size in sizes.items():
            shapes |= {f"{prefix}{name}.weight": size, f"{prefix}{name}.bias": size[:1]}
    return _random(shapes, dtype, seed)


def tuned_from(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tower that training makes of `original`: blocks 12 to 22 changed, everything in bfloat16."""
    trained = tuple(f"vision_model.encoder.layers.{block}." for block in range(12, 23))
    return {name: (value + name.startswith(trained)).bfloat16() for name, value in original.items()}


def _random(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (0.2 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


def share4v_config(layers: int = 32, **changes) -> dict:
    """All fields of the released `config.json` of the 7B model."""
    return {
        "_name_or_path": "ShareGPT4V-7B",
        "architectures": ["Share4VLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 4096,
        "mm_hidden_size": TOWER_WIDTH,
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TUNED_NAME,
        "model_type": "share4v",
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "tune_entire_model": False,
        "tune_mm_mlp_adapter": False,
        "tune_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vision_tower_lr": None,
        "vocab_size": VOCABULARY,
    } | changes


def tower_config(**changes) -> dict:
    """Configuration of the released tower."""
    return {
        "architectures": ["CLIPVisionModel"],
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": TOWER_WIDTH,
        "image_size": IMAGE_SIZE,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": TOWER_INNER,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 1,
        "num_channels": 3,
        "num_hidden_layers": BLOCKS,
        "patch_size": PATCH_SIZE,
        "projection_dim": 768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
    } | changes


def llava_hf_tensors(llm: dict, tower: dict) -> dict[str, torch.Tensor]:
    """The names of llava-hf, with a vocabulary that already holds `<image>` and `<pad>` and is padded."""
    tensors = {f"vision_tower.{name}": value for name, value in tower.items()}
    for name, value in llm.items():
        if name.endswith("inv_freq"):
            continue
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            value = torch.cat([value, torch.full((16, WIDTH), 0.5, dtype=value.dtype)])
        for old, new in {"mm_projector.0": "linear_1", "mm_projector.2": "linear_2"}.items():
            if name.startswith(f"model.{old}."):
                name = name.replace(f"model.{old}.", f"multi_modal_projector.{new}.")
        tensors[name if name.startswith("multi_modal") else f"language_model.{name}"] = value
    return tensors


def save_bin(tensors: dict, folder: Path, shards: int = 1, legacy: bool = False) -> None:
    """`pytorch_model.bin`, or shards with an index; `legacy` is the format of torch before 1.6."""
    parts = _split(tensors, shards)
    for name, part in zip(_names("pytorch_model", "bin", shards), parts, strict=True):
        torch.save(part, folder / name, _use_new_zipfile_serialization=not legacy)
    _write_index(folder / "pytorch_model.bin.index.json", _names("pytorch_model", "bin", shards), parts)


def save_safetensors(tensors: dict, folder: Path, shards: int = 1) -> None:
    """`model.safetensors`, or shards with an index."""
    parts = _split(tensors, shards)
    for name, part in zip(_names("model", "safetensors", shards), parts, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
    _write_index(folder / "model.safetensors.index.json", _names("model", "safetensors", shards), parts)


def _split(tensors: dict, shards: int) -> list[dict]:
    names = list(tensors)
    size = -(-len(names) // shards)
    return [{name: tensors[name] for name in names[i * size : (i + 1) * size]} for i in range(shards)]


def _names(stem: str, suffix: str, shards: int) -> list[str]:
    if shards == 1:
        return [f"{stem}.{suffix}"]
    return [f"{stem}-{number:05d}-of-{shards:05d}.{suffix}" for number in range(1, shards + 1)]


def _write_index(path: Path, names: list[str], parts: list[dict]) -> None:
    if len(parts) > 1:
        weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def write_model(
    folder: Path, tensors: dict | None = None, config: dict | None = None, save=save_bin, **options
) -> Path:
    """A folder with LLM, projector and tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or share4v_config()))
    write_tokenizer(folder)
    save(llm_tensors() if tensors is None else tensors, folder, **options)
    return folder


def write_tower(folder: Path, tensors: dict | None = None, config: dict | None = None) -> Path:
    """A folder with a vision tower."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or tower_config()))
    save_bin(tower_tensors() if tensors is None else tensors, folder)
    return folder


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the safetensors files in a folder."""
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def expected_tensors(llm: dict, tower: dict) -> Iterator[tuple[str, torch.Tensor]]:
    """Live names and the values they must have, without the grown rows."""
    for name, value in tower.items():
        yield name.replace("vision_model.", "model.vision_tower."), value
    for name, value in llm.items():
        if name.startswith("model.mm_projector."):
            number, kind = name.split(".")[2:]
            yield f"model.multi_modal_projector.linear_{1 if number == '0' else 2}.{kind}", value
        elif not name.endswith("inv_freq"):
            yield name.replace("model.", "model.language_model.", 1), value


@torch.no_grad()
def reference_logits(
    llm: dict, tower: dict, before: list[int], after: list[int], pixels: torch.Tensor
) -> torch.Tensor:
    """Logits (1, S, V) of text, one image (1, 3, H, W) and text, from the parts and with no code of LLaVA's."""
    keys = LlamaConfig.__annotations__.keys() & share4v_config().keys()
    language = LlamaForCausalLM(LlamaConfig(**{key: share4v_config()[key] for key in keys})).eval()
    own = {n: v.float() for n, v in llm.items() if "mm_projector" not in n and not n.endswith("inv_freq")}
    language.load_state_dict(own)
    keys = CLIPVisionConfig.__annotations__.keys() & tower_config().keys()
    vision = CLIPVisionModel(CLIPVisionConfig(**{key: tower_config()[key] for key in keys})).eval()
    vision.load_state_dict({name.removeprefix("vision_model."): value.float() for name, value in tower.items()})
    features = vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]  # (1, P, V)
    weights = [llm[f"model.mm_projector.{n}"].float() for n in ("0.weight", "0.bias", "2.weight", "2.bias")]
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(features, *weights[:2]))
    features = torch.nn.functional.linear(hidden, *weights[2:])  # (1, P, D)
    embed = language.get_input_embeddings()
    parts = [embed(torch.tensor([before])), features, embed(torch.tensor([after]))]
    return language(inputs_embeds=torch.cat(parts, dim=1)).logits


def whole_clip(folder: Path) -> Path:
    """A whole CLIP, as OpenAI publishes it."""
    others = {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.tensor(1.0)}
    others["vision_model.embeddings.position_ids"] = torch.arange(PATCHES + 1)[None]
    vision = {name: value for name, value in tower_config().items() if name != "projection_dim"}
    return write_tower(folder, tower_tensors() | others, {"model_type": "clip", "vision_config": vision})


def nameless_copy(folder: Path) -> Path:
    """OpenAI's tower as transformers 5 saves it: nothing in it says what it is."""
    return write_tower(folder)


def openai_name(folder: Path) -> Path:
    """A tower whose configuration says that it is OpenAI's."""
    return write_tower(folder, config=tower_config(_name_or_path=OPENAI_NAME))


def equal(tensors: dict, others: dict) -> bool:
    """Same names, types and bits."""
    same = tensors.keys() == others.keys()
    return same and all(v.dtype == others[n].dtype and torch.equal(v, others[n]) for n, v in tensors.items())


def assert_converted(folder: Path, llm: dict, tower: dict) -> None:
    """Every tensor is its source, bit for bit; the two new rows are the mean of the others."""
    tensors = read_all(folder)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows, new = tensors[name][:VOCABULARY], tensors[name][VOCABULARY:]
        assert torch.equal(new, rows.float().mean(dim=0).to(rows.dtype).expand(2, -1))
        tensors[name] = rows
    assert equal(tensors, dict(expected_tensors(llm, tower)))


def load_native(folder: Path) -> LlavaForConditionalGeneration:
    """transformers' own model of a folder, with nothing missing and nothing left over."""
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model.eval()


def logits_with_image(model, before: list[int], after: list[int], pixels: torch.Tensor) -> torch.Tensor:
    """Logits (1, S, V) of text, one image (1, 3, H, W) and text, for the original vocabulary."""
    ids = torch.tensor([before + [model.config.image_token_id] * PATCHES + after])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits[..., :VOCABULARY]


class Canary:
    """Unpickles by creating a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)

"""Conversion of published checkpoints: nothing is lost, nothing is guessed, and what is doubtful is refused."""

import hashlib
import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, CLIPVisionModel, LlavaForConditionalGeneration

from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration
from modeling_sharegpt4v.checkpoint_files import read_json
from modeling_sharegpt4v.convert_weights import build_parser, export_checkpoint, import_checkpoint, main
from tests.fresh_process import run_fresh
from tests.original_checkpoints import (
    IMAGE_SIZE,
    LLAVA,
    OPENAI_NAME,
    PATCHES,
    TUNED_FOLDER,
    TUNED_NAME,
    VOCABULARY,
    Canary,
    assert_converted,
    equal,
    llava_hf_tensors,
    llm_shapes,
    llm_tensors,
    load_native,
    logits_with_image,
    read_all,
    reference_logits,
    save_bin,
    save_safetensors,
    share4v_config,
    tower_config,
    tower_tensors,
    whole_clip,
    write_model,
    write_tokenizer,
    write_tower,
)
from tests.tiny import noise_image


CODE_FILES = {f"{name}_sharegpt4v.py" for name in ("configuration", "modeling", "processing", "images")}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """The released 7B model in two shards, its tower, and what `import` makes of them."""
    root = tmp_path_factory.mktemp("released")
    write_model(root / "model", shards=2)
    write_tower(root / TUNED_FOLDER)
    arguments = ["--model", root / "model", "--vision-tower", root / TUNED_FOLDER, "--output", root / "ours"]
    assert main(["import", *map(str, arguments)]) == 0
    return root


@pytest.mark.parametrize(
    ("save", "options"),
    [(save_bin, {"shards": 3}), (save_bin, {}), (save_bin, {"legacy": True}), (save_safetensors, {"shards": 2})],
)
def test_every_tensor_equals_its_source(tmp_path, save, options):
    model, tower = write_model(tmp_path / "model", save=save, **options), write_tower(tmp_path / TUNED_FOLDER)
    import_checkpoint(model, tmp_path / "ours", vision_tower=tower, max_shard_size="100KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert_converted(tmp_path / "ours", llm_tensors(), tower_tensors())


def test_numbers_of_tensors_are_those_of_the_release(tmp_path):
    llm = llm_tensors(layers=40)
    assert (len(llm_tensors()), len(llm), len(tower_tensors())) == (327, 407, 391)
    model = write_model(tmp_path / "13b", llm, share4v_config(layers=40, max_length=4096))
    import_checkpoint(model, tmp_path / "ours", vision_tower=write_tower(tmp_path / TUNED_FOLDER))
    manifest = read_json(tmp_path / "ours" / "conversion.json")
    assert (manifest["tensors_in"], len(manifest["dropped"]), manifest["tensors_out"]) == (798, 40, 758)
    assert all(name.endswith("rotary_emb.inv_freq") for name in manifest["dropped"])


def test_imported_model_computes_what_the_parts_compute(released):
    before, after, pixels = [1, 30, 31, 32], [40, 41, 42, 43, 44], torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = reference_logits(llm_tensors(), tower_tensors(), before, after, pixels)
    options = {"dtype": "float32", "output_loading_info": True}
    ours, info = ShareGPT4VForConditionalGeneration.from_pretrained(released / "ours", **options)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for model in (ours.eval(), load_native(released / "ours")):
        torch.testing.assert_close(logits_with_image(model, before, after, pixels), expected, atol=1e-5, rtol=1e-5)


def test_imported_folder_is_complete(released):
    names = {path.name for path in (released / "ours").iterdir()}
    assert CODE_FILES | {"chat_template.jinja", "generation_config.json", "tokenizer.json"} <= names
    config = AutoConfig.from_pretrained(released / "ours")
    assert config.architectures == ["LlavaForConditionalGeneration"] and "AutoModel" in config.auto_map
    assert (config.text_config.vocab_size, config.image_token_id, config.pad_token_id) == (386, 384, 385)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.text_config.rms_norm_eps, config.dtype) == (1e-5, torch.bfloat16)
    processor = AutoProcessor.from_pretrained(released / "ours")
    assert processor.image_processor.do_pad
    batch = processor(images=noise_image(), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    assert (batch["input_ids"] == config.image_token_id).sum() == PATCHES
    text = "A chat between a curious user and an assistant. USER: naïve\n\n 12?"
    expected = AutoTokenizer.from_pretrained(released / "model", config=config.text_config)(text).input_ids
    assert processor.tokenizer(text).input_ids == expected
    assert not any(str(released) in path.read_text() for path in (released / "ours").glob("*.json"))


def test_image_aspect_ratio_and_feature_selection_follow_the_source(tmp_path):
    changes = {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -3}
    config = share4v_config(image_aspect_ratio="square", **changes)
    model, tower = write_model(tmp_path / "model", config=config), write_tower(tmp_path / TUNED_FOLDER)
    import_checkpoint(model, tmp_path / "ours", vision_tower=tower, dtype="float32")
    converted, processor = load_native(tmp_path / "ours"), AutoProcessor.from_pretrained(tmp_path / "ours")
    assert not processor.image_processor.do_pad and converted.config.vision_feature_layer == -3
    batch = processor(images=noise_image(), text="<image> What?", return_tensors="pt")
    assert converted(**batch).logits.dtype == torch.float32  # raises unless tokens and features are equal in number
    features = (batch["input_ids"] == converted.config.image_token_id).sum()
    assert features == converted.config.image_seq_length == PATCHES + 1


def test_training_checkpoint_uses_the_tower_inside(tmp_path):
    tower = tower_tensors(seed=7)
    inside = {f"model.vision_tower.vision_tower.{name}": value for name, value in tower.items()}
    config = share4v_config(mm_vision_tower=OPENAI_NAME)
    model = write_model(tmp_path / "checkpoint-100", llm_tensors() | inside, config, shards=2)
    import_checkpoint(model, tmp_path / "ours")
    assert_converted(tmp_path / "ours", llm_tensors(), tower)
    vision, expected = AutoConfig.from_pretrained(tmp_path / "ours").vision_config.to_dict(), tower_config()
    for name in ("image_size", "patch_size", "num_attention_heads", "num_hidden_layers", "hidden_act"):
        assert vision[name] == expected[name]
    with pytest.raises(ValueError, match="Two vision towers"):
        import_checkpoint(model, tmp_path / "other", vision_tower=write_tower(tmp_path / TUNED_FOLDER))


def test_llava_takes_openais_clip(tmp_path, released):
    model = write_model(tmp_path / "llava", config=share4v_config(**LLAVA), save=save_safetensors)
    import_checkpoint(model, tmp_path / "ours", vision_tower=whole_clip(tmp_path / "clip"))
    assert_converted(tmp_path / "ours", llm_tensors(), tower_tensors())
    assert load_native(tmp_path / "ours").config.text_config.vocab_size == VOCABULARY + 2
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == (released / "ours" / "tokenizer.json").read_text()


def test_llava_hf_layout_keeps_its_vocabulary(tmp_path, released):
    export_checkpoint(released / "ours", tmp_path / "hf", "llava-hf")
    config = read_json(tmp_path / "hf" / "config.json")
    config["text_config"]["vocab_size"] = VOCABULARY + 16
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    source = llava_hf_tensors(llm_tensors(), tower_tensors())
    save_file(source, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert CODE_FILES <= {path.name for path in (tmp_path / "ours").iterdir()}
    assert AutoProcessor.from_pretrained(tmp_path / "ours").image_processor.do_pad
    ours, native = load_native(tmp_path / "ours"), load_native(tmp_path / "hf")
    assert ours.config.text_config.vocab_size == VOCABULARY + 16
    assert equal(ours.state_dict(), native.state_dict())


def test_llava_export_is_the_original_again(tmp_path, released):
    export_checkpoint(released / "ours", tmp_path / "llava", "llava")
    llm = {name: value for name, value in llm_tensors().items() if not name.endswith("inv_freq")}
    assert equal(read_all(tmp_path / "llava"), llm)
    assert equal(read_all(tmp_path / "llava" / "vision_tower"), tower_tensors())
    config, source = read_json(tmp_path / "llava" / "config.json"), share4v_config(**LLAVA)
    assert config["mm_vision_tower"] == "vision_tower" and "auto_map" not in config
    kept = source.keys() & config.keys() - {"mm_vision_tower"}
    assert {name: config[name] for name in kept} == {name: source[name] for name in kept}
    assert {"vocab_size", "pad_token_id", "mm_projector_type", "torch_dtype", "rope_scaling"} <= kept
    write_tokenizer(tmp_path)
    assert (tmp_path / "llava" / "tokenizer.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert read_json(tmp_path / "llava" / name) == read_json(tmp_path / name)
    assert not (tmp_path / "llava" / "tokenizer.json").exists()
    _, info = CLIPVisionModel.from_pretrained(tmp_path / "llava" / "vision_tower", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_export_and_import_return_every_bit(tmp_path, released):
    export_checkpoint(released / "ours", tmp_path / "llava", "llava")
    import_checkpoint(tmp_path / "llava", tmp_path / "again")  # finds `vision_tower` by itself
    export_checkpoint(tmp_path / "again", tmp_path / "hf", "llava-hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "third")
    for name in ("again", "third"):
        assert equal(read_all(tmp_path / name), read_all(released / "ours"))
    assert (tmp_path / "again" / "tokenizer.json").read_text() == (released / "ours" / "tokenizer.json").read_text()
    with pytest.raises(ValueError, match="Two vision towers"):
        import_checkpoint(tmp_path / "llava", tmp_path / "other", vision_tower=released / TUNED_FOLDER)


def test_llava_export_of_a_trained_model_cuts_by_its_tokenizer(tmp_path, released):
    trained = tmp_path / "trained"  # saved by a trainer: no record of the import, no `tokenizer.model`
    shutil.copytree(released / "ours", trained, ignore=shutil.ignore_patterns("conversion.json", "tokenizer.model"))
    export_checkpoint(trained, tmp_path / "llava", "llava")
    assert read_all(tmp_path / "llava")["lm_head.weight"].shape[0] == VOCABULARY
    config = AutoConfig.from_pretrained(trained).text_config
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llava", config=config)
    assert len(tokenizer) == VOCABULARY and tokenizer.pad_token is None
    assert read_json(tmp_path / "llava" / "tokenizer_config.json")["legacy"] is False


def test_llava_hf_export_is_what_transformers_writes_itself(tmp_path, released):
    export_checkpoint(released / "ours", tmp_path / "hf", "llava-hf")
    native = LlavaForConditionalGeneration(AutoConfig.from_pretrained(tmp_path / "hf")).bfloat16()
    native.load_state_dict(read_all(released / "ours"))
    native.save_pretrained(tmp_path / "native")
    exported = read_all(tmp_path / "hf")  # with a level that CLIP had before transformers 5, which both read
    written = {name.replace(".vision_model.", "."): value for name, value in exported.items()}
    assert equal(written, read_all(tmp_path / "native")) and len(written) == len(exported)
    load_native(tmp_path / "hf")
    assert not list((tmp_path / "hf").glob("*.py"))
    assert not any("auto_map" in path.read_text() for path in (tmp_path / "hf").glob("*.json"))
    assert type(AutoProcessor.from_pretrained(tmp_path / "hf")).__name__ == "LlavaProcessor"
    assert read_json(tmp_path / "hf" / "tokenizer_config.json")["processor_class"] == "LlavaProcessor"


def test_a_missing_tower_names_the_option(tmp_path):
    with pytest.raises(ValueError, match="no vision tower.*--vision-tower"):
        import_checkpoint(write_model(tmp_path / "model"), tmp_path / "ours")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, legacy):
    canary = tmp_path / "canary"
    model, tower = write_model(tmp_path / "model", shards=2), write_tower(tmp_path / TUNED_FOLDER)
    name = "pytorch_model-00002-of-00002.bin"
    torch.save({"x": Canary(canary)}, model / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=f"{name} cannot be read as plain tensors"):
        import_checkpoint(model, tmp_path / "ours", vision_tower=tower)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # it would have run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda llm: llm.pop("model.layers.3.mlp.up_proj.weight"), r"1 missing: .*layers\.3\.mlp\.up_proj\.weight"),
        (lambda llm: llm.update({"model.image_newline": torch.ones(4)}), r"1 unexpected: model\.image_newline"),
        (lambda llm: llm.update({"model.norm.weight": torch.ones(5)}), r"norm\.weight is \(5,\), expected \(16,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    llm = llm_tensors()
    change(llm)
    model, tower = write_model(tmp_path / "model", llm), write_tower(tmp_path / TUNED_FOLDER)
    with pytest.raises(ValueError, match=message):
        import_checkpoint(model, tmp_path / "ours", vision_tower=tower)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"model_type": "llama"}, "model type .* got 'llama'"),
        ({"vocab_size": 300}, r"embed_tokens\.weight is \(384, 16\), expected \(300, 16\)"),
    ],
)
def test_a_configuration_that_cannot_be_expressed_is_refused(tmp_path, config, message):
    model, tower = (
        write_model(tmp_path / "model", config=share4v_config(**config)),
        write_tower(tmp_path / TUNED_FOLDER),
    )
    with pytest.raises(ValueError, match=message):
        import_checkpoint(model, tmp_path / "ours", vision_tower=tower)


def test_existing_output_is_refused_and_untouched(tmp_path, released):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="not empty"):
        import_checkpoint(released / "model", tmp_path / "ours", vision_tower=released / TUNED_FOLDER)
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("pytorch_model-00002-of-00002.bin", "cannot be read as plain tensors"),
        ("tokenizer_config.json", "The tokenizer in .* cannot be read"),
        ("generation_config.json", "generation_config.json is not valid JSON"),  # read when the weights are written
    ],
)
def test_a_failure_leaves_nothing(tmp_path, damaged, message, caplog):
    model, tower = write_model(tmp_path / "model", shards=2), write_tower(tmp_path / TUNED_FOLDER)
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    content = (model / damaged).read_bytes()
    (model / damaged).write_bytes(content[: len(content) // 2])
    arguments = ["--model", model, "--vision-tower", tower, "--output", tmp_path / "ours"]
    assert main(["import", *map(str, arguments)]) == 1
    assert re.search(message, caplog.text)
    assert {path.name for path in tmp_path.iterdir()} == {"model", TUNED_FOLDER}


def test_manifest_describes_every_file(released):
    manifest = read_json(released / "ours" / "conversion.json")
    assert (manifest["layout"], manifest["tool"].split()[0]) == ("sharegpt4v", "sharegpt4v")
    assert manifest["vision_tower"] == {"origin": "folder", "declared": TUNED_NAME}
    assert manifest["vocabulary"] == {"size": VOCABULARY, "added_tokens": {"<image>": 384, "<pad>": 385}}
    folders = {"model": released / "model", "vision_tower": released / TUNED_FOLDER}
    described = [(folders[role] / n, d) for role, files in manifest["source_files"].items() for n, d in files.items()]
    described += [(released / "ours" / name, facts) for name, facts in manifest["output_files"].items()]
    everything = {path for folder in (*folders.values(), released / "ours") for path in folder.iterdir()}
    assert {path for path, _ in described} == everything - {released / "ours" / "conversion.json"}
    for path, facts in described:
        content = path.read_bytes()
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


MEASURE = """
import sys
from pathlib import Path
from modeling_sharegpt4v.convert_weights import main

def peak_after(name, size):
    arguments = ["--model", name, "--vision-tower", sys.argv[1], "--output", name + "-out", "--max-shard-size", size]
    assert main(["import", *arguments]) == 0
    # Not `ru_maxrss`: it starts at the size of the process that started this one.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

before = peak_after("model", "1GB")  # what Python and its packages need
print(max(peak_after("bin", "10MB"), peak_after("safetensors", "10MB")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_that_of_a_shard(tmp_path, released):
    shutil.copytree(released, tmp_path, dirs_exist_ok=True)
    shapes, config = llm_shapes(width=384, inner=1152), share4v_config(hidden_size=384, intermediate_size=1152)
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    write_model(tmp_path / "bin", tensors, config, save_bin, shards=16)
    write_model(tmp_path / "safetensors", tensors, config, save_safetensors, shards=16)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEASURE, TUNED_FOLDER]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    total = sum(tensor.nbytes for tensor in tensors.values())  # of each of the two
    assert total > 120e6 and int(done.stdout) < total / 2


def test_imported_folder_loads_with_remote_code(tmp_path, released):
    code = """
import json
from transformers import AutoModel
model, info = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
faults = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys")}
print(json.dumps({"class": type(model).__name__, **faults}))
"""
    report = run_fresh(code, released / "ours", cwd=tmp_path)
    assert report == {"class": "ShareGPT4VForConditionalGeneration", "missing_keys": [], "unexpected_keys": []}


def test_every_option_is_an_argument_of_its_function():
    for command, function in {"import": import_checkpoint, "export": export_checkpoint}.items():
        required = ["--model", "a", "--output", "b"] + (["--layout", "llava"] if command == "export" else [])
        arguments = vars(build_parser().parse_args([command, *required]))
        assert arguments.pop("command") == command
        parameters = inspect.signature(function).parameters
        assert arguments.keys() == parameters.keys()
        defaults = {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}
        assert {name: arguments[name] for name in defaults} == defaults

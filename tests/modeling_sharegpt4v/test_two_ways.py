"""
One repository, two ways to load it: without a flag as transformers' Llava, with `trust_remote_code=True` as ours.

What a user of the Hub does is done here in fresh processes that cannot import this repository; each does many loads at
once, because starting one costs seconds. What they report and save is compared here.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VForConditionalGeneration
from tests.fresh_process import run_fresh
from tests.tiny import tiny_model


CODE_FILES = {
    f"{role}_sharegpt4v.py": Path("modeling_sharegpt4v", f"{role}_sharegpt4v.py")
    for role in ("configuration", "modeling", "processing", "images")
}
PACKAGE = Path(__file__).parents[2]
SHARD_SIZE = {"whole": "1GB", "sharded": "200KB"}
NO_FAULTS = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}

SHARED = """
import json
import os

import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer,
    LlavaForConditionalGeneration, LlavaProcessor, pipeline,
)

root = sys.argv[1]
down, right, round = Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L")
image = Image.merge("RGB", (down, right, round)).resize((40, 30))
content = [{"type": "image", "image": image}, {"type": "text", "text": "What is in this picture?"}]
conversation = [{"role": "user", "content": content}]


def load(auto, folder, **options):
    model, info = auto.from_pretrained(folder, output_loading_info=True, **options)
    faults = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return model, {"class": type(model).__name__, "module": type(model).__module__.split(".")[0], "faults": faults}


def inputs_of(processor):
    options = dict(tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    return processor.apply_chat_template(conversation, **options)


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def answer_of(model, processor, inputs):
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:]
    return processor.decode(ids, skip_special_tokens=True)


def pipeline_answer_of(folder, **options):
    pipe = pipeline("image-text-to-text", model=folder, **options)
    out = pipe(text=conversation, max_new_tokens=8, return_full_text=False, generate_kwargs={"do_sample": False})
    return out[0]["generated_text"]


facts = {}
"""

WITHOUT_FLAG = (
    SHARED
    + """
for kind, shard_size in json.loads(sys.argv[2]).items():
    folder = f"{root}/{kind}"
    model, facts[kind] = load(AutoModelForImageTextToText, folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = inputs_of(processor)
    torch.save(dict(inputs), f"{root}/without-{kind}.pt")
    facts[kind] |= {
        "config": type(AutoConfig.from_pretrained(folder)).__name__,
        "processor": type(processor).__name__,
        "padding_side": processor.tokenizer.padding_side,
        "generate": answer_of(model, processor, inputs),
    }
    model.save_pretrained(f"{root}/native-{kind}", max_shard_size=shard_size)
    processor.save_pretrained(f"{root}/native-{kind}")
    reloaded, facts[f"native-{kind}"] = load(AutoModelForImageTextToText, f"{root}/native-{kind}")
    facts[f"native-{kind}"]["equal"] = torch.equal(logits_of(reloaded, inputs), logits_of(model, inputs))
facts["tokenizer_vocabulary"] = len(AutoTokenizer.from_pretrained(f"{root}/whole"))
facts["pipeline"] = pipeline_answer_of(f"{root}/whole")
print(json.dumps(facts))
"""
)

WITH_FLAG = (
    SHARED
    + """
flag = {"trust_remote_code": True}
for kind, shard_size in json.loads(sys.argv[2]).items():
    folder = f"{root}/{kind}"
    processor, native_processor = AutoProcessor.from_pretrained(folder, **flag), LlavaProcessor.from_pretrained(folder)
    inputs, native_inputs = inputs_of(processor), inputs_of(native_processor)
    expected = logits_of(LlavaForConditionalGeneration.from_pretrained(folder), native_inputs)
    autos = [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText] if kind == "whole" else [AutoModel]
    for auto in autos:
        model, facts[f"{kind}-{auto.__name__}"] = load(auto, folder, **flag)
        facts[f"{kind}-{auto.__name__}"]["equal"] = torch.equal(logits_of(model, inputs), expected)
    torch.save(dict(inputs), f"{root}/with-{kind}.pt")
    facts[kind] = {
        "config": type(AutoConfig.from_pretrained(folder, **flag)).__name__,
        "processor": type(processor).__name__,
        "padding_side": processor.tokenizer.padding_side,
        "same_inputs": all(torch.equal(inputs[name], native_inputs[name]) for name in inputs),
        "generate": answer_of(model, processor, inputs),
    }
    model.save_pretrained(f"{root}/ours-{kind}", max_shard_size=shard_size)
    processor.save_pretrained(f"{root}/ours-{kind}")
    for saved in (f"ours-{kind}", f"native-with-code-{kind}"):
        model, facts[saved] = load(AutoModelForImageTextToText, f"{root}/{saved}", **flag)
        facts[saved]["equal"] = torch.equal(logits_of(model, inputs), expected)
facts["pipeline"] = pipeline_answer_of(f"{root}/whole", **flag)
try:
    AutoModelForImageTextToText.from_pretrained(f"{root}/native-whole", **flag)
except OSError as error:
    facts["native_without_code"] = str(error)
print(json.dumps(facts))
"""
)

BACK_WITHOUT_FLAG = (
    SHARED
    + """
for kind in json.loads(sys.argv[2]):
    first, _ = load(AutoModelForImageTextToText, f"{root}/{kind}")
    model, facts[kind] = load(AutoModelForImageTextToText, f"{root}/ours-{kind}")
    inputs = inputs_of(AutoProcessor.from_pretrained(f"{root}/ours-{kind}"))
    facts[kind]["equal"] = torch.equal(logits_of(model, inputs), logits_of(first, inputs))
print(json.dumps(facts))
"""
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ways")
    model, processor = tiny_model()
    for kind, shard_size in SHARD_SIZE.items():
        model.save_pretrained(folder / kind, max_shard_size=shard_size)
        processor.save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def without_flag(root):
    return run_fresh(WITHOUT_FLAG, root, json.dumps(SHARD_SIZE), cwd=root)


@pytest.fixture(scope="module")
def with_flag(root, without_flag):
    for kind in SHARD_SIZE:
        shutil.copytree(root / f"native-{kind}", root / f"native-with-code-{kind}")
        for name, source in CODE_FILES.items():
            shutil.copy(PACKAGE / source, root / f"native-with-code-{kind}" / name)
    return run_fresh(WITH_FLAG, root, json.dumps(SHARD_SIZE), cwd=root)


@pytest.fixture(scope="module")
def back_without_flag(root, with_flag):
    return run_fresh(BACK_WITHOUT_FLAG, root, json.dumps(SHARD_SIZE), cwd=root)


def weights_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by file and name."""
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def assert_same_weights(folder: Path, expected: Path) -> None:
    saved, original = weights_of(folder), weights_of(expected)
    assert {file: sorted(tensors) for file, tensors in saved.items()} == {
        file: sorted(tensors) for file, tensors in original.items()
    }
    for file, tensors in original.items():
        assert all(torch.equal(saved[file][name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", SHARD_SIZE)
def test_without_a_flag_transformers_own_classes_load_everything(without_flag, kind):
    facts = without_flag[kind]
    assert (facts["class"], facts["module"]) == ("LlavaForConditionalGeneration", "transformers")
    assert (facts["config"], facts["processor"]) == ("LlavaConfig", "LlavaProcessor")
    assert facts["faults"] == NO_FAULTS


def test_without_a_flag_the_tokenizer_loads_alone(without_flag):
    assert without_flag["tokenizer_vocabulary"] == 402


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"])
def test_with_the_flag_every_auto_class_gives_our_model(with_flag, auto):
    facts = with_flag[f"whole-{auto}"]
    assert (facts["class"], facts["module"]) == ("ShareGPT4VForConditionalGeneration", "transformers_modules")
    assert facts["faults"] == NO_FAULTS


def test_with_the_flag_config_and_processor_are_ours(with_flag):
    assert with_flag["whole"]["config"] == "ShareGPT4VConfig"
    assert with_flag["whole"]["processor"] == "ShareGPT4VProcessor"


def test_a_sharded_checkpoint_loads_and_generates_as_auto_model(without_flag, with_flag):
    assert with_flag["sharded-AutoModel"]["faults"] == NO_FAULTS
    assert with_flag["sharded"]["generate"] == without_flag["sharded"]["generate"]


@pytest.mark.parametrize(
    "load", ["whole-AutoModel", "whole-AutoModelForCausalLM", "whole-AutoModelForImageTextToText", "sharded-AutoModel"]
)
def test_logits_equal_those_of_transformers_llava(with_flag, load):
    assert with_flag[load]["equal"]


@pytest.mark.parametrize("kind", SHARD_SIZE)
def test_both_processors_make_the_same_inputs(root, without_flag, with_flag, kind):
    assert with_flag[kind]["same_inputs"]
    ours, native = torch.load(root / f"with-{kind}.pt"), torch.load(root / f"without-{kind}.pt")
    assert sorted(ours) == ["attention_mask", "input_ids", "pixel_values"]
    assert all(torch.equal(ours[name], native[name]) for name in ours)


def test_batches_are_padded_on_the_left_in_both_ways(without_flag, with_flag):
    assert without_flag["whole"]["padding_side"] == with_flag["whole"]["padding_side"] == "left"


def test_pipeline_gives_the_text_of_generate_without_a_flag(without_flag):
    assert without_flag["pipeline"] == without_flag["whole"]["generate"]
    assert len(without_flag["pipeline"]) > 0


def test_pipeline_gives_the_same_text_with_the_flag(without_flag, with_flag):
    assert with_flag["pipeline"] == with_flag["whole"]["generate"] == without_flag["pipeline"]


@pytest.mark.parametrize("kind", SHARD_SIZE)
@pytest.mark.parametrize("saved_by", ["native", "ours"])
def test_saving_again_keeps_files_names_and_tensors(root, back_without_flag, saved_by, kind):
    assert_same_weights(root / f"{saved_by}-{kind}", root / kind)


def test_a_sharded_save_has_several_files(root):
    assert len(weights_of(root / "sharded")) > 2


@pytest.mark.parametrize("kind", SHARD_SIZE)
def test_what_the_native_class_saved_loads_natively(without_flag, kind):
    facts = without_flag[f"native-{kind}"]
    assert facts["faults"] == NO_FAULTS and facts["equal"]


@pytest.mark.parametrize("kind", SHARD_SIZE)
def test_what_our_class_saved_loads_in_our_class(with_flag, kind):
    facts = with_flag[f"ours-{kind}"]
    assert facts["class"] == "ShareGPT4VForConditionalGeneration"
    assert facts["faults"] == NO_FAULTS and facts["equal"]


@pytest.mark.parametrize("kind", SHARD_SIZE)
def test_what_our_class_saved_loads_natively(back_without_flag, kind):
    facts = back_without_flag[kind]
    assert facts["class"] == "LlavaForConditionalGeneration"
    assert facts["faults"] == NO_FAULTS and facts["equal"]


@pytest.mark.parametrize("kind", SHARD_SIZE)
def test_what_the_native_class_saved_loads_in_our_class_once_the_code_is_put_back(with_flag, kind):
    facts = with_flag[f"native-with-code-{kind}"]
    assert facts["class"] == "ShareGPT4VForConditionalGeneration"
    assert facts["faults"] == NO_FAULTS and facts["equal"]


def test_what_the_native_class_saved_names_the_code_but_does_not_hold_it(root, with_flag):
    assert "auto_map" in json.loads((root / "native-whole/config.json").read_text())
    assert not list((root / "native-whole").glob("*.py"))
    assert "configuration_sharegpt4v.py" in with_flag["native_without_code"]


@pytest.mark.parametrize("folder", ["whole", "native-whole", "ours-whole", "ours-sharded"])
def test_saved_config_names_the_native_architecture_and_our_classes(root, back_without_flag, folder):
    config = json.loads((root / folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["model_type"] == "llava"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_sharegpt4v.ShareGPT4VConfig",
        "AutoModel": "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration",
    }


@pytest.mark.parametrize("folder", ["whole", "ours-whole"])
def test_saved_processor_config_is_complete_and_names_both_processors(root, with_flag, folder):
    config = json.loads((root / folder / "processor_config.json").read_text())
    assert config["processor_class"] == "LlavaProcessor"
    assert config["auto_map"] == {"AutoProcessor": "processing_sharegpt4v.ShareGPT4VProcessor"}
    assert (config["patch_size"], config["num_additional_image_tokens"]) == (14, 1)
    assert config["vision_feature_select_strategy"] == "default"


@pytest.mark.parametrize("folder", ["whole", "sharded", "ours-whole", "ours-sharded"])
def test_our_classes_save_exactly_the_code_files_they_need(root, with_flag, folder):
    saved = {path.name: path.read_text() for path in (root / folder).glob("*.py")}
    assert saved == {name: (PACKAGE / source).read_text() for name, source in CODE_FILES.items()}


def test_a_model_built_from_a_config_is_saved_under_live_names(root, tmp_path):
    config = ShareGPT4VConfig.from_pretrained(root / "whole")
    ShareGPT4VForConditionalGeneration(config).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(root / "whole/model.safetensors").keys()


LAYOUTS = {
    "llava-hf": [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.vision_tower\.", "vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    ],
    "original": [
        (r"^model\.language_model\.", "model."),
        (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    ],
}


def rename(name: str, layout: str) -> str:
    for pattern, replacement in LAYOUTS[layout]:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def published(request, root):
    folder = root / request.param
    shutil.copytree(root / "whole", folder)
    tensors = {rename(name, request.param): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    if request.param == "original":  # a buffer that old releases carry and nobody reads
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_published_names_load_in_our_class_with_nothing_missing(root, published):
    model, info = ShareGPT4VForConditionalGeneration.from_pretrained(published, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    expected = load_file(root / "whole/model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_published_names_are_saved_back_under_live_names(root, published, tmp_path):
    ShareGPT4VForConditionalGeneration.from_pretrained(published).save_pretrained(tmp_path)
    assert_same_weights(tmp_path, root / "whole")
    _, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(root, tmp_path):
    shutil.copytree(root / "whole", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    del tensors["model.multi_modal_projector.linear_2.bias"]
    save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing .*model\.multi_modal_projector\.linear_2\.bias"):
        ShareGPT4VForConditionalGeneration.from_pretrained(tmp_path / "model")

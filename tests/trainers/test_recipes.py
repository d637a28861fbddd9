"""The recipes: parsed by the real parser, compared with numbers of the paper, with each other and with their pages."""

import re
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from transformers import TrainingArguments

from dataset_scripts.schema import CAPTION_INSTRUCTION
from modeling_sharegpt4v.convert_weights import build_parser
from tests.commands import parse_command
from trainers.configs import accumulation_for
from trainers.recipes import CONFIGS, load_recipe, parse_arguments


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes"
RECIPES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.yaml")
    if path.parent.name != "accelerate"
)
OVERRIDES = [name for name in RECIPES if "extends:" in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")]
PAGES = {"table1": ["table1"], "table6": ["table6"], "table7": ["table7"], "table8": ["table8"]}
PAGES |= {"fig5": ["fig5a", "fig5b"], "fig6": ["fig6"]}
HUB_ID = re.compile(r"(?!runs/)[\w.-]+/[\w.-]+")


@cache
def parsed(*words: str):
    return parse_arguments([*words, "--use_cpu", "true"])  # without a GPU bf16 is refused


@cache
def merged(name: str) -> dict:
    return load_recipe(FOLDER / f"{name}.yaml")


def own(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def changes(name: str, base: str) -> dict:
    one, other = merged(name), merged(base)
    return {field: one.get(field) for field in one.keys() | other.keys() if one.get(field) != other.get(field)}


def commands(page: str) -> list[list[str]]:
    """Commands of a page, as words, in order."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def recipe_of(words: list[str]) -> str | None:
    path = option(words, "--config")
    return path.removeprefix("recipes/").removesuffix(".yaml") if path and path.endswith(".yaml") else None


def built_by(words: list[str]) -> tuple[str | None, str | None] | None:
    """Repository and configuration that a data command writes."""
    if words[:2] != ["sharegpt4v", "data"]:
        return None
    return option(words, "--repo"), option(words, "--config") or Path(words[3]).name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_parses(name):
    run, config = parsed("--config", str(FOLDER / f"{name}.yaml"))
    assert type(config) is CONFIGS[run.stage] and run.stage == merged(name)["stage"]
    assert config.activation_checkpointing_kwargs is None  # reentrant checkpointing would stop the tower
    assert config.step_samples == merged(name).get("global_batch_size", 2)


PAPER = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "max_length": 2048,
    "bf16": True,
    "loss_normalisation": "tokens",
    "activation_checkpointing": True,
    "exact_images": True,
    "seed": 42,
    "dataloader_num_workers": 4,
    "tune_projector": True,
}
STAGES = {
    "pretrain": {
        "global_batch_size": 256,
        "learning_rate": 2e-5,
        "tune_vision_from_block": 12,
        "tune_language_model": True,
        "image_aspect_ratio": "crop",
        "chat_template": "plain",
        "on_too_long": "error",
    },
    "finetune": {
        "global_batch_size": 128,
        "learning_rate": 2e-5,
        "tune_vision_from_block": None,
        "tune_language_model": True,
        "image_aspect_ratio": "pad",
        "chat_template": "vicuna_v1",
        "on_too_long": "drop_turns",
    },
    "llava15_stage1": {
        "global_batch_size": 256,
        "learning_rate": 1e-3,
        "tune_vision_from_block": None,
        "tune_language_model": False,
        "image_aspect_ratio": "crop",
        "chat_template": "plain",
    },
}


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize("stage", STAGES)
def test_main_recipes_have_the_numbers_of_the_paper(stage, size):
    _, config = parsed("--config", str(FOLDER / f"{stage}_{size}.yaml"))
    expected = PAPER | STAGES[stage]
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.lora_rank is None and config.optim == "adamw_torch_fused"


def test_the_stages_follow_each_other():
    run, _ = parsed("--config", str(FOLDER / "pretrain_7b.yaml"))
    assert (run.model, run.vision_tower) == ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336")
    assert run.projector_from == merged("llava15_stage1_7b")["output_dir"] and run.dtype == "float32"
    assert merged("finetune_7b")["model"] == merged("pretrain_7b")["output_dir"]
    assert changes("llava15_finetune_7b", "finetune_7b").keys() == {
        *("model", "vision_tower", "projector_from", "dataset_config", "output_dir"),
    }


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "llava15_stage1", "llava15_finetune"])
def test_13b_differs_in_names_alone(stage):
    assert changes(f"{stage}_13b", f"{stage}_7b").keys() <= {"model", "projector_from", "output_dir"}


def test_captioners_learn_one_instruction_and_see_whole_images():
    for name in ("captioner_7b", "captioner_7b_lora"):
        run, config = parsed("--config", str(FOLDER / f"{name}.yaml"))
        assert (run.stage, config.instruction, config.image_aspect_ratio) == ("captioner", CAPTION_INSTRUCTION, "pad")
    assert changes("captioner_7b_lora", "captioner_7b") == {
        **{"tune_vision_from_block": None, "lora_rank": 128, "lora_alpha": 256, "learning_rate": 2e-4},
        "output_dir": "runs/captioner_7b_lora",
    }


def test_a_captioner_of_any_model_learns_the_same_captions_by_adapters_or_in_full_by_flag():
    path = str(FOLDER / "captioner_any_lora.yaml")
    run, config = parsed("--config", path)
    assert (run.stage, config.instruction, config.lora_rank) == ("any_model", CAPTION_INSTRUCTION, 64)
    for field in ("dataset", "dataset_config", "global_batch_size", "num_train_epochs", "seed"):
        assert merged("captioner_any_lora")[field] == merged("captioner_7b")[field]
    _, config = parsed("--config", path, "--lora_rank", "0", "--learning_rate", "2e-5")
    assert config.lora_rank is None and config.learning_rate == 2e-5 and not config.tune_vision


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_changes_all_that_it_names(name):
    fields = own(name)
    parent = load_recipe((FOLDER / f"{name}.yaml").parent / fields.pop("extends"))
    idle = [field for field, value in fields.items() if field in parent and parent[field] == value]
    assert idle == []
    comment = "".join((FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:2])
    assert ("The same run as" in comment) == (not fields)


@pytest.mark.parametrize("block", [24, 18, 12, 6, 0])
def test_table_8_changes_the_block_alone(block):
    expected = {"tune_vision_from_block": block, "output_dir": f"runs/table8/pretrain_from_{block}"}
    assert changes(f"table8/pretrain_from_{block}", "pretrain_7b") == ({} if block == 12 else expected)
    start = {"model": f"runs/table8/pretrain_from_{block}", "output_dir": f"runs/table8/finetune_from_{block}"}
    assert changes(f"table8/finetune_from_{block}", "finetune_7b") == ({} if block == 12 else start)


@pytest.mark.parametrize(
    ("folder", "base", "fields"),
    [
        ("table1", "llava15_finetune_7b", {"dataset_config"}),
        ("fig5a", "llava15_finetune_7b", {"dataset_config"}),
        ("table7", "pretrain_7b", {"dataset_config"}),
        ("fig5b", "pretrain_7b", {"dataset_config"}),
        ("table7", "finetune_7b", {"dataset_config", "model"}),
        ("fig5b", "finetune_7b", {"model"}),
    ],
)
def test_rows_and_points_differ_in_data_alone(folder, base, fields):
    stage = f"{folder}/{base.removesuffix('_7b')}_" if folder in ("table7", "fig5b") else f"{folder}/"
    names = [name for name in RECIPES if name.startswith(stage) and name != "fig5b/finetune_0k"]
    assert len(names) >= 2
    for name in names:
        assert changes(name, base).keys() in ({*fields, "output_dir"}, set()), name


def test_single_gpu_variants_keep_batch_rate_and_data_of_the_paper():
    for stage in ("pretrain", "finetune"):
        difference = changes(f"single_gpu/{stage}_7b_8bit", f"{stage}_7b")
        _, config = parsed("--config", str(FOLDER / f"single_gpu/{stage}_7b_8bit.yaml"))
        assert difference["dtype"] == "bfloat16" and config.optim == "adamw_torch_8bit"
        assert difference.keys() <= {
            *("dtype", "optim", "optim_args", "per_device_train_batch_size", "model", "output_dir"),
        }
        assert config.optim_args == "bf16_stochastic_round=true"


def test_every_run_has_a_folder_of_its_own_by_its_name():
    folders: dict[str, str] = {}
    for name in RECIPES:
        folder = merged(name)["output_dir"]
        if not name.startswith("demo") and own(name).keys() != {"extends"}:
            assert folder == f"runs/{name}"
        assert changes(name, folders.setdefault(folder, name)) == {}


@pytest.mark.parametrize("name", RECIPES)
def test_inputs_are_on_the_hub_or_made_by_another_recipe(name):
    made = {merged(other)["output_dir"] for other in RECIPES} | {"runs/demo/base"}
    for field in ("model", "projector_from", "vision_tower"):
        place = merged(name).get(field)
        assert place is None or place in made - {merged(name)["output_dir"]} or HUB_ID.fullmatch(place), place
    data = (merged(name)["dataset"], merged(name).get("dataset_config"))
    written = {built_by(words) for page in (*PAGES, "README") for words in commands(page)}
    assert data in written or data[0] == "runs/demo/dataset"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_goes_from_the_data_to_every_run_in_order(page):
    folders, data, done = {"runs/text"}, set(), []
    for words in commands(page):
        if built := built_by(words):
            inputs = [word for word in words if word.startswith(("runs/text/", "runs/data/"))]
            assert {str(Path(place).parent) for place in inputs} <= {"runs/text", "runs/data"}
            assert all((str(Path(place).parent), Path(place).name) in data for place in inputs), words
            data.add(built)
        if name := recipe_of(words):
            fields = merged(name)
            places = {fields["model"], fields.get("projector_from"), fields.get("vision_tower")} - {None}
            assert all(place in folders or HUB_ID.fullmatch(place) for place in places), name
            assert (fields["dataset"], fields["dataset_config"]) in data, name
            folders.add(fields["output_dir"])
            done.append(name)
    rows = [name for name in RECIPES if name.split("/")[0] in PAGES[page]]
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    assert set(rows) <= set(done)
    assert {name for name in re.findall(r"`(\w+/\w+)\.yaml`", text)} == set(rows) - {"fig6/llava_7b_stage1"}


def parse_words(words: list[str]) -> None:
    if words[0] == "accelerate":
        arguments = launch_command_parser().parse_args(words[2:])
        assert arguments.module and arguments.training_script == "trainers.train"
        assert arguments.config_file is None or (ROOT / arguments.config_file).is_file()
        parsed(*arguments.training_script_args)
    elif words[0] == "torchrun":
        arguments = get_args_parser().parse_args(words[1:])
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.training_script) == ("2", "8", "trainers.train")
        _, config = parsed(*arguments.training_script_args)
        assert config.fsdp_plugin_args["transformer_cls_names_to_wrap"] == "LlamaDecoderLayer"
    elif words[0] == "sharegpt4v":
        parse_command(words[1:])
    elif words[0] == "sbatch":
        script, recipe, *flags = words[1 + 2 * (words[1] == "--nodes") :]
        assert (ROOT / script).is_file()
        parsed("--config", recipe, *flags)
    elif words[2].endswith("convert_weights"):
        build_parser().parse_args(words[3:])
    else:
        assert words[:2] == ["python", "-m"] and find_spec(words[2]) is not None


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_every_command_of_a_page_is_parsed_by_what_it_calls(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # parsing `--fsdp` sets it
    for words in commands(page):
        parse_words(words)


WORLDS = [1, 2, 8, 16, 24, 64]


@pytest.mark.parametrize("world", WORLDS)
def test_the_batch_is_kept_on_any_number_of_gpus(world):
    for fields in map(merged, RECIPES):
        batch = fields.get("global_batch_size")
        if batch is None or batch < world:
            continue
        per_device = fields["per_device_train_batch_size"]
        steps = accumulation_for(batch, per_device, world)
        assert world * steps <= batch  # a sample at least for every micro-batch
        assert steps == batch // world or steps * world * per_device >= batch


@pytest.mark.parametrize("world", WORLDS)
def test_the_parser_computes_the_micro_batches(world, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: world))
    _, config = parse_arguments(["--config", str(FOLDER / "pretrain_7b.yaml"), "--use_cpu", "true"])
    expected = {1: 16, 2: 8, 8: 2, 16: 1, 24: 1, 64: 1}
    assert (config.step_samples, config.gradient_accumulation_steps) == (256, expected[world])


@pytest.mark.parametrize(
    ("name", "world", "words"),
    [
        ("pretrain_7b", 257, "`global_batch_size` of 256 cannot be kept on 257 GPUs"),
        ("fig6/llava_7b_before", 64, "`global_batch_size` of 32 cannot be kept on 64 GPUs"),
        ("fig6/qwen_7b_before", 24, "`global_batch_size` of 128 must be a multiple of 48"),
    ],
)
def test_a_recipe_that_cannot_keep_its_batch_says_so(name, world, words, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: world))
    with pytest.raises(ValueError, match=words):
        parse_arguments(["--config", str(FOLDER / f"{name}.yaml"), "--use_cpu", "true"])

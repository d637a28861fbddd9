"""Recipes on top of recipes, and the batch that is kept on any number of GPUs."""

import pytest

from trainers.configs import FinetuneConfig, accumulation_for
from trainers.recipes import load_recipe, parse_arguments


def write(folder, **files: str):
    for name, text in files.items():
        place = folder / f"{name}.yaml"
        place.write_text(text)
    return place


def test_a_recipe_is_all_that_it_extends_with_its_own_fields_on_top(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, base="a: 1\nb: 1\nc: 1\n", middle="extends: base.yaml\nb: 2\nc: 2\n")
    top = write(tmp_path / "deep", top="extends: ../middle.yaml\nc: null\n")
    assert load_recipe(top) == {"a": 1, "b": 2, "c": None}


def test_a_circle_is_refused(tmp_path):
    one = write(tmp_path, two="extends: one.yaml\n", one="extends: two.yaml\n")
    with pytest.raises(ValueError, match="two.yaml extends .*one.yaml, which extends it again"):
        load_recipe(one)


def test_a_missing_parent_is_named_with_the_file_that_wants_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no recipe .*gone.yaml, which .*one.yaml extends"):
        load_recipe(write(tmp_path, one="extends: gone.yaml\n"))
    with pytest.raises(FileNotFoundError, match="There is no recipe .*none.yaml.$"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["- a\n", "", "a: [1\n", "a: 1\n b: 2\n"])
def test_what_is_no_mapping_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match="one.yaml (must be a mapping|is no YAML file)"):
        load_recipe(write(tmp_path, one=text))


def test_values_of_a_recipe_arrive_typed_and_flags_win(tmp_path):
    recipe = write(
        tmp_path,
        one="stage: finetune\nmodel: m\ndataset: d\nlearning_rate: 2e-5\nlora_rank: 8\nuse_cpu: true\nbf16: false\n",
    )
    run, config = parse_arguments(["--config", str(recipe), "--lora_rank", "0", "--dtype", "bfloat16"])
    assert config.learning_rate == 2e-5 and config.lora_rank is None and run.dtype == "bfloat16"


def test_help_is_shown_without_a_stage(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    assert stop.value.code == 0 and "--global_batch_size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpus", "per_device", "steps"),
    [(1, 16, 16), (2, 16, 8), (8, 16, 2), (16, 16, 1), (24, 16, 1), (24, 8, 2), (64, 16, 1), (3, 100, 1), (200, 1, 1)],
)
def test_the_global_batch_is_kept_on_any_number_of_gpus(gpus, per_device, steps):
    assert accumulation_for(256, per_device, gpus) == steps
    assert gpus * steps <= 256  # every micro-batch has a sample


def test_more_gpus_than_samples_are_refused():
    with pytest.raises(ValueError, match="`global_batch_size` of 256 cannot be kept on 257 GPUs"):
        accumulation_for(256, 1, 257)


def test_a_recipe_sets_its_accumulation(tmp_path):
    config = FinetuneConfig(
        str(tmp_path), global_batch_size=20, per_device_train_batch_size=8, use_cpu=True, bf16=False
    )
    assert (config.gradient_accumulation_steps, config.step_samples) == (3, 20)
    with pytest.raises(ValueError, match="`global_batch_size` of 20 must be a multiple of 8"):
        config.require_equal_micro_batches()


GIVEN = "stage: finetune\nmodel: m\ndataset: d\nuse_cpu: true\nbf16: false\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("image_aspect_ratio: Pad", "`image_aspect_ratio` must be one of pad, crop, got 'Pad'"),
        ("loss_normalisation: sampels", "`loss_normalisation` must be one of tokens, samples, got 'sampels'"),
        ("on_too_long: cut", "`on_too_long` must be one of error, drop_turns, got 'cut'"),
        ("dtype: float16", "`dtype` must be one of float32, bfloat16, got 'float16'"),
        ("lora_rank: 2.5", "`lora_rank` must be of type int, got 2.5"),
        ("global_batch_size: 8.0", "`global_batch_size` must be of type int, got 8.0"),
        ("tune_projector: 1", "`tune_projector` must be of type bool, got 1"),
        ("model: null", "`model` must not be null"),
        ("save_strategy: no", "got False .put it in quotes: YAML reads a bare no"),
        ("extends: [a.yaml]", "`extends` of .*one.yaml must name one file, got"),
        ("global_batch_size: 8\nper_device_train_batch_size: 0", "`per_device_train_batch_size` must be at least 1"),
        ("vision_tower: t\nlora_rank: 4", "`lora_rank` needs a model that is saved"),
        ("projector_from: p\nlora_rank: 4\ntune_projector: false", "`projector_from` would be lost"),
        ("projector_from: p\nstage: any_model", "are for ShareGPT4V's own architecture, not `any_model`"),
    ],
)
def test_a_value_that_is_no_value_of_its_field_is_refused(tmp_path, line, message):
    fields = {entry.partition(":")[0]: entry for entry in [*GIVEN.splitlines(), *line.split("\n")]}
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(write(tmp_path, one="\n".join(fields.values())))])


def test_whole_numbers_are_fractions_too_and_null_is_unset(tmp_path):
    recipe = write(tmp_path, one=f"{GIVEN}num_train_epochs: 1\nlora_rank: null\nreport_to: [none]\n")
    _, config = parse_arguments(["--config", str(recipe)])
    assert config.num_train_epochs == 1 and config.lora_rank is None

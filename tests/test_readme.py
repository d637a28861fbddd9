"""The README: what is quick and offline runs, every command is parsed with all its flags by the real parser."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from transformers import CLIPVisionModel

from evaluation.metrics import build_parser as metrics_parser
from evaluation.score import build_parser as score_parser
from modeling_sharegpt4v.convert_weights import build_parser as converter_parser
from sharegpt4v.demo.story import build_parser as demo_parser
from sharegpt4v.exit_codes import ExitCode
from tests.commands import parse_command, run_command
from tests.original_checkpoints import TUNED_FOLDER, write_model, write_tower
from tests.released_files import write_released
from tests.tiny import noise_image, tiny_clip, tiny_llm, tiny_model, tiny_tokenizer
from trainers.merge import build_parser as merge_parser
from trainers.recipes import parse_arguments


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
SHELL = [line for kind, block in BLOCKS if kind == "sh" for line in block.replace("\\\n", " ").splitlines()]
INLINE = [
    text
    for text in re.findall(r"`([^`\n]+)`", README)
    if re.match(r"(make|accelerate|python|sharegpt4v|[A-Z_]+=\S+ make) ", text) and "NAME" not in text
]
COMMANDS = sorted({line.split("#")[0].strip() for line in [*SHELL, *INLINE]} - {""})
SNIPPETS = [block for kind, block in BLOCKS if kind == "python"]


def parse_launch(words: list[str]) -> None:
    arguments = launch_command_parser().parse_args(words)
    if arguments.no_python:
        assert arguments.training_script == "sharegpt4v"
        parse_command(arguments.training_script_args)
        return
    assert arguments.module and arguments.training_script == "trainers.train"
    parse_arguments([*arguments.training_script_args, "--use_cpu", "true"])  # their bf16 wants a GPU otherwise


def parse_module(module: str, words: list[str]) -> None:
    parsers = {
        "modeling_sharegpt4v.convert_weights": converter_parser,
        "sharegpt4v.demo": demo_parser,
        "trainers.merge": merge_parser,
        "evaluation.score": score_parser,
        "evaluation.metrics": metrics_parser,
    }
    if words in (["import"], ["export"]):  # named in the table without their folders
        words = [*words, "--help"]
        with pytest.raises(SystemExit) as stop:
            parsers[module]().parse_args(words)
        assert stop.value.code == 0
    else:
        parsers[module]().parse_args(words)


def test_the_exit_codes_are_those_of_the_command_line():
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)} == set(ExitCode)


def test_the_readme_has_commands_of_every_kind():
    text = "\n".join(COMMANDS)
    for kind in ("make demo", "make test", "accelerate launch", "convert_weights import", "data verify", "data join"):
        assert kind in text


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "make":
        plan = subprocess.run(["make", "--dry-run", *words[1:]], capture_output=True, text=True, timeout=60)
        assert plan.returncode == 0, plan.stderr
        run = ("sharegpt4v.demo", "tests.walk", "pytest")
        assert any(name in plan.stdout for name in run) or "setup" in words
    elif words[:2] == ["accelerate", "launch"]:
        parse_launch(words[2:])
    elif words[0] == "sharegpt4v":
        parse_command(words[1:])
    else:
        assert words[:2] == ["python", "-m"], f"No parser is known for {command!r}."
        parse_module(words[2], words[3:])


def test_the_ten_line_inference_runs_as_printed(tmp_path):
    model, processor = tiny_model()
    model.save_pretrained(tmp_path / "runs/demo/model")
    processor.save_pretrained(tmp_path / "runs/demo/model")
    noise_image().save(tmp_path / "photo.jpg")
    snippet = SNIPPETS[0]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
    result = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_the_composition_snippet_uses_the_real_call(tmp_path):
    code = compile(SNIPPETS[1], "README.md", "exec")
    source = SNIPPETS[1].replace("openai/clip-vit-large-patch14-336", str(tmp_path / "clip"))
    source = source.replace("lmsys/vicuna-7b-v1.5", str(tmp_path / "llm"))
    save_parts(tmp_path)
    names: dict = {}
    exec(compile(source, code.co_filename, "exec"), names)  # noqa: S102
    assert names["model"].dtype.is_floating_point and str(names["model"].dtype) == "torch.bfloat16"
    assert names["processor"].image_token == "<image>"


def test_the_conversions_run_as_printed(tmp_path):
    write_model(tmp_path / "ShareGPT4V-7B", shards=2)
    write_tower(tmp_path / TUNED_FOLDER)
    commands = [shlex.split(line) for line in SHELL if "convert_weights" in line]
    assert [words[3] for words in commands] == ["import", "export"]
    for words in commands:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *words[1:]]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "llava-7b" / "vision_tower" / "config.json").is_file()


def test_the_datasets_are_built_and_loaded_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_released(tmp_path / "sharegpt4v_instruct_gpt4-vision_cap100k.json", "cap100k", 40)
    write_released(tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json", "pt", 50)
    for line in SHELL:
        if line.startswith(("sharegpt4v data build", "sharegpt4v data stats")):
            assert run_command(capsys, *shlex.split(line)[1:]).code == 0
    names: dict = {}
    exec(compile(SNIPPETS[2], "README.md", "exec"), names)  # noqa: S102
    assert len(list(names["captions"])) == 50


def test_make_explains_itself():
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert all(f"\n{target} " in "\n" + result.stdout for target in ("demo", "test", "quality", "setup"))


def save_parts(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    CLIPVisionModel(tiny_clip()).save_pretrained(folder / "clip")
    tiny_llm(len(tokenizer)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")


@pytest.mark.parametrize(
    "arguments", [["-m", "modeling_sharegpt4v.convert_weights", "--help"], ["-m", "sharegpt4v.demo", "--help"]]
)
def test_help_runs(arguments):
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout

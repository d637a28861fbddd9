"""What the demo refuses before it starts, and (slow) the story itself."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharegpt4v.demo.story import main
from tests.sharegpt4v.test_demo_photos import write
from tests.tiny import noise_image


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        noise_image(number).save(folder / f"{number}.png")
    write(folder, [{"image": f"{number}.png", "caption": f"Caption {number}."} for number in range(2)])
    return folder


def test_an_output_folder_with_files_of_others_is_left_alone(data, tmp_path, caplog):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with caplog.at_level(logging.ERROR):
        assert main(["--data", str(data), "--output", str(tmp_path / "mine")]) == 2
    assert "holds files that no demo wrote" in caplog.text
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_pictures_inside_the_output_folder_are_not_emptied_away(data, caplog):
    (data / ".sharegpt4v-demo").touch()
    with caplog.at_level(logging.ERROR):
        assert main(["--data", str(data), "--output", str(data)]) == 2
    assert "is emptied first and holds" in caplog.text
    assert (data / "0.png").is_file()


def test_a_failed_step_ends_with_its_command_and_status_3(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no Python of a step can start
    with caplog.at_level(logging.ERROR):
        assert main(["--data", str(data), "--output", str(tmp_path / "run")]) == 3
    assert "A step of the demo failed" in caplog.text and "sharegpt4v.demo.base" in caplog.text


def test_unusable_photographs_end_with_their_line_and_status_2(data, tmp_path, caplog):
    (data / "1.png").write_bytes(b"no image")
    with caplog.at_level(logging.ERROR):
        assert main(["--data", str(data), "--output", str(tmp_path / "run")]) == 2
    assert "photos.jsonl, line 2" in caplog.text
    assert not (tmp_path / "run").exists()


def test_the_folder_of_the_environment_variable_is_used(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("SHAREGPT4V_DEMO_DATA", str(data / "absent"))
    with caplog.at_level(logging.ERROR):
        assert main(["--output", str(tmp_path / "run")]) == 2
    assert "absent must hold exactly one .jsonl file" in caplog.text


@pytest.mark.slow
def test_the_whole_story_holds_and_needs_less_than_six_gigabytes(tmp_path):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "sharegpt4v.demo", "--output", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if name != "SHAREGPT4V_DEMO_DATA"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [check["holds"] for check in report["checks"]] == [True] * 4
    assert report["peak_memory_gb"] < 6

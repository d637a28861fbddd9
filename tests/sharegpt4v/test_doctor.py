"""`sharegpt4v doctor`: what it finds here, and on a machine with several faults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.sharegpt4v.test_guard import free_port


TOKEN = "hf_canary_token_of_the_tests"


def states(output: str) -> dict[str, dict]:
    return {check["name"]: check for check in json.loads(output)["checks"]}


def test_a_sound_machine_passes_and_the_token_is_not_shown(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    outcome = run_command(capsys, "doctor", "--json")
    found = states(outcome.output)
    assert outcome.code == 0 and json.loads(outcome.output)["failed"] == []
    assert found["packages"]["state"] == found["torch"]["state"] == found["hub token"]["state"] == "ok"
    assert found["hub"]["state"] == "note" and TOKEN not in outcome.output
    text = run_command(capsys, "doctor").output
    assert "Nothing is in the way." in text and TOKEN not in text


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A machine with a torchvision that does not fit, old packages, a cache that is a file, and no Hub."""
    root = tmp_path_factory.mktemp("broken")
    (root / "torchvision").mkdir()
    (root / "torchvision" / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    about = root / "sharegpt4v-0.1.0.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: sharegpt4v", "Version: 0.1.0", "Requires-Python: >=3.99"]
    lines += ["Requires-Dist: numpy>=999", "Requires-Dist: no-such-package-here", "Provides-Extra: serve"]
    lines += ['Requires-Dist: no-such-server; extra == "serve"']
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    (root / "file").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HOME": str(root / "file" / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    command = [Path(sys.executable).with_name("sharegpt4v"), "doctor", "--json"]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)


def test_what_fails_ends_with_3_and_says_what_to_install(broken):
    found = states(broken.stdout)
    assert broken.returncode == 3, broken.stderr
    expected = {"python", "package numpy", "package no-such-package-here", "torchvision", "cache folder", "hub token"}
    assert set(json.loads(broken.stdout)["failed"]) == expected
    assert found["package numpy"]["advice"] == 'pip install "numpy>=999"'
    assert "pip uninstall torchvision" in found["torchvision"]["advice"]
    assert "HF_HOME" in found["cache folder"]["advice"]


def test_what_is_optional_or_out_of_reach_is_no_failure(broken):
    found = states(broken.stdout)
    assert found["extra serve"]["state"] == "note" and "sharegpt4v[serve]" in found["extra serve"]["advice"]
    assert found["hub"]["state"] == "warning" and "HF_HUB_OFFLINE" in found["hub"]["advice"]

"""Every block of code of rendered cards runs as it stands, in a fresh process, against a Hub that has it all."""

import json
import re

import pytest

from model_cards.render import code_blocks, write_card
from tests.hub_stand_in.access import USER
from tests.hub_stand_in.world import HubStandIn
from tests.model_cards.given import FOLDER, GIVEN


REPO_TYPES = {"dataset": "dataset", "metric": "space"}
PUBLISH = """
import json, sys
from huggingface_hub import HfApi
repo_id, repo_type, *folders = sys.argv[1:]
api, of = HfApi(), {"repo_id": repo_id, "repo_type": repo_type}
api.create_repo(**of, **({"space_sdk": "static"} if repo_type == "space" else {}))
for folder in folders:
    commit = api.upload_folder(folder_path=folder, ignore_patterns=["*.bin"], **of).oid
api.create_tag(tag="v1.0", **of)
print(json.dumps({"commit": commit}))
"""
RUN = """
import contextlib, io, json, sys
said = io.StringIO()
with contextlib.redirect_stdout(said):
    for number, block in enumerate(json.loads(open(sys.argv[1]).read())):
        exec(compile(block, f"block {number}", "exec"), {"__name__": "__main__"})
print(json.dumps({"said": said.getvalue()}))
"""


@pytest.fixture(scope="module")
def hub():
    with HubStandIn() as running:
        yield running


def publish(hub, made, kind, target, **facts):
    """Put a folder with its card on the Hub, tagged; gives the blocks of its card."""
    source, repo_id = made / FOLDER.get(kind, kind), f"{USER}/{FOLDER.get(kind, 'tiny-' + kind)}"
    card = write_card(kind, source, target, repo_id, {**GIVEN[kind], **facts})
    hub.run(PUBLISH, repo_id, REPO_TYPES.get(kind, "model"), source, target, cwd=target)
    return code_blocks(card.read_text())


def run_all(hub, blocks, tmp_path):
    """Run the blocks of Python one after another; gives what they print."""
    python = [block.code for block in blocks if block.language == "python"]
    assert python and all(block.needs is None for block in blocks)
    (tmp_path / "blocks.json").write_text(json.dumps(python))
    return hub.run(RUN, tmp_path / "blocks.json", cwd=tmp_path)["said"]


def test_every_block_of_the_cards_of_model_dataset_and_metric_runs(hub, made, tmp_path):
    blocks = [block for kind in ("model", "dataset", "metric") for block in publish(hub, made, kind, tmp_path / kind)]
    before = len(hub.log)
    said = run_all(hub, blocks, tmp_path)
    assert "num_rows: 4" in said and "'caption': 'Picture 0.'" in said
    assert "{'perception_total': 200.0, 'cognition_total': 0.0}" in said
    resolved = {found for one in list(hub.log)[before:] for found in re.findall(r"/resolve/([^/]+)/", one.path)}
    assert "main" not in resolved, "what cards load is pinned"


@pytest.mark.slow
def test_every_block_of_the_cards_of_captioner_and_adapter_runs(hub, made, tmp_path):
    blocks = publish(hub, made, "captioner", tmp_path / "captioner")
    commit = hub.run(PUBLISH, f"{USER}/tiny-base", "model", made / "base", cwd=tmp_path)["commit"]
    base = {"base_model": f"{USER}/tiny-base", "base_model_revision": commit}
    blocks += publish(hub, made, "adapter", tmp_path / "adapter", **base)
    assert len(blocks) == 4
    assert run_all(hub, blocks, tmp_path).count("\n") >= 4

"""What `test_faults.py` lets the client do: each upload in a thread of its own, because waiting takes the time."""

import json
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download


api = HfApi()


def publish(name: str) -> str:
    """Publish a folder: one commit and a tag."""
    api.create_repo(name, private=True, exist_ok=True)
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("# A model\n")
    (folder / "model.safetensors").write_bytes(name.encode() * 4000)
    done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Publish")
    api.create_tag(name, tag="v1", revision=done.oid, exist_ok=True)
    return done.oid


def fetch(name: str) -> str:
    """Download what was published."""
    path = Path(snapshot_download(name, revision="v1", local_dir=f"{name}-back", max_workers=1))
    return "same" if (path / "model.safetensors").read_bytes() == name.encode() * 4000 else "other"


def look(name: str) -> str:
    """Read one file."""
    return Path(hf_hub_download(name, "README.md", local_dir=f"{name}-one")).read_text()


def whoami(name: str) -> str:
    """Ask whose token it is."""
    return api.whoami()["name"]


def outcome(act: str, name: str) -> dict[str, Any]:
    """What came of it: a result, or the error with all that led to it."""
    try:
        return {"result": globals()[act](name)}
    except Exception as error:
        chain, one = [], error
        while one is not None:
            chain.append([type(one).__name__, getattr(getattr(one, "response", None), "status_code", None)])
            one = one.__cause__
        return {"errors": chain, "said": "".join(traceback.format_exception(error))}


wanted = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(wanted)) as pool:
    found = dict(zip([name for name, _ in wanted], pool.map(lambda one: outcome(one[1], one[0]), wanted), strict=True))
sys.stdout.write(json.dumps(found) + "\n")

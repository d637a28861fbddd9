"""What `test_protocol.py` lets the client do, in one process: starting one takes most of the time."""

import json
import sys
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    hf_hub_download,
    metadata_update,
    snapshot_download,
)


READ, EXPIRED, STRANGER = sys.argv[1:4]
api, facts, errors = HfApi(), {}, {}


def fails(name, act, *words, **options):
    try:
        act(*words, **options)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        errors[name] = [type(error).__name__, status, str(error)]


folder = Path("repo")
for name, data in {
    "README.md": b"---\nlicense: mit\ntags: [tiny]\n---\n# A model\n",
    "config.json": b"{}",
    "a b/\xe9#1.txt": b"odd",
    "model.safetensors": bytes(range(256)) * 13,
    "deep/er/table.parquet": b"PAR1" * 40,
    "empty.bin": b"",
}.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

facts["whoami"] = api.whoami()["name"], [org["name"] for org in api.whoami()["orgs"]]
url = api.create_repo("tester/one", private=True)
facts["url"] = str(url), url.repo_id
fails("exists", api.create_repo, "tester/one")
facts["exist_ok"] = api.create_repo("tester/one", exist_ok=True).repo_id
api.create_repo("short-name")
first = api.upload_folder(
    repo_id="tester/one", folder_path=folder, commit_message="First", commit_description="All of it."
)
second = api.upload_file(repo_id="tester/one", path_or_fileobj=b'{"a": 1}', path_in_repo="config.json")
facts["again"] = (
    api.upload_folder(repo_id="tester/one", folder_path=folder, allow_patterns="*.safetensors").oid == second.oid
)
api.create_tag("tester/one", tag="v1.0", revision=first.oid, tag_message="One")
fails("tag_exists", api.create_tag, "tester/one", tag="v1.0")
api.create_tag("tester/one", tag="v1.0", exist_ok=True)
api.create_branch("tester/one", branch="feature/x", revision="v1.0")
api.create_commit(
    "tester/one",
    revision="feature/x",
    commit_message="Change",
    parent_commit=first.oid,
    operations=[
        CommitOperationDelete("a b/"),
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
        CommitOperationCopy("config.json", "copy.json"),
    ],
)
fails(
    "moved_on",
    api.create_commit,
    "tester/one",
    commit_message="Late",
    parent_commit=first.oid,
    operations=[CommitOperationAdd("late.txt", b"late")],
)
refs = api.list_repo_refs("tester/one")
facts["refs"] = {one.name: one.target_commit for one in refs.branches + refs.tags}
facts["commits"] = first.oid, second.oid
facts["history"] = [(one.title, one.message, one.authors) for one in api.list_repo_commits("tester/one")]
facts["files"] = {
    revision: sorted(api.list_repo_files("tester/one", revision=revision))
    for revision in ("v1.0", "feature/x", "main")
}
fails("branch_protected", api.delete_branch, "tester/one", branch="main")
api.delete_branch("tester/one", branch="feature/x")
fails("no_tag", api.delete_tag, "tester/one", tag="v9")

facts["read"] = {
    revision: Path(hf_hub_download("tester/one", "config.json", revision=revision)).read_text()
    for revision in ("main", "v1.0", first.oid, second.oid)
}
facts["odd"] = Path(hf_hub_download("tester/one", "a b/\xe9#1.txt")).read_text()
snapshot = Path(snapshot_download("tester/one", revision="v1.0"))
facts["snapshot"] = (
    snapshot.name == first.oid,
    all(
        (snapshot / path.relative_to(folder)).read_bytes() == path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    ),
)
fails("no_file", hf_hub_download, "tester/one", "nothing.json")
fails("no_revision", hf_hub_download, "tester/one", "config.json", revision="v9")
fails("no_repo", hf_hub_download, "tester/none", "config.json")
fails("no_canonical", api.model_info, "gpt2")
facts["exists"] = (
    api.file_exists("tester/one", "config.json"),
    api.file_exists("tester/one", "none"),
    api.repo_exists("tester/none"),
    api.revision_exists("tester/one", "v9"),
)

tree = {one.path: one for one in api.list_repo_tree("tester/one", recursive=True, expand=True)}
facts["tree"] = {path: [getattr(one, "size", None), one.last_commit.title] for path, one in tree.items()}
facts["top"] = [one.path for one in api.list_repo_tree("tester/one")]
facts["below"] = [one.path for one in api.list_repo_tree("tester/one", "deep", recursive=True)]
fails("no_folder", lambda: list(api.list_repo_tree("tester/one", "nowhere")))
lfs = tree["model.safetensors"].lfs
facts["lfs"] = lfs.size, lfs.sha256
facts["paths"] = [one.path for one in api.get_paths_info("tester/one", ["config.json", "deep", "none"])]
facts["verified"] = len(api.verify_repo_checksums("tester/one", revision="v1.0", local_dir=folder).mismatches)
info = api.model_info("tester/one", files_metadata=True)
facts["info"] = info.private, info.sha, info.card_data.to_dict(), {one.rfilename: one.size for one in info.siblings}
files = HfFileSystem()
with files.open("tester/one/model.safetensors", block_size=100) as file:
    file.seek(1000)
    facts["range"] = file.read(7).hex()
facts["glob"] = files.glob("tester/one/**/*.parquet")

fails("bad_card", lambda: ModelCard("---\nlicense: {a: 1}\n---\n").push_to_hub("tester/one"))
fails(
    "bad_card_committed",
    api.upload_file,
    repo_id="tester/one",
    path_or_fileobj=b"---\ntags: {a: 1}\n---\n",
    path_in_repo="README.md",
)
metadata_update("tester/one", {"license": "apache-2.0"}, overwrite=True)
facts["license"] = ModelCard.load("tester/one").data.license

everyone = {"anybody": False, "stranger": STRANGER, "expired": EXPIRED, "wrong": "hf_unknown"}
for who, token in everyone.items():
    fails(f"private_{who}", hf_hub_download, "tester/one", "README.md", token=token, local_dir=who)
fails("whoami_expired", api.whoami, token=EXPIRED)
fails("create_anybody", api.create_repo, "tester/other", token=False)
fails("create_expired", api.create_repo, "tester/other", token=EXPIRED)
fails("create_read_only", api.create_repo, "tester/other", token=READ)
fails("create_elsewhere", api.create_repo, "somebody/other")
fails(
    "commit_read_only", api.upload_file, repo_id="tester/one", path_or_fileobj=b"1", path_in_repo="x.txt", token=READ
)
api.update_repo_settings("tester/one", private=False)
facts["public"] = Path(hf_hub_download("tester/one", "README.md", token=False, local_dir="public")).exists()
fails("commit_anybody", api.upload_file, repo_id="tester/one", path_or_fileobj=b"1", path_in_repo="x.txt", token=False)
fails(
    "commit_stranger",
    api.upload_file,
    repo_id="tester/one",
    path_or_fileobj=b"1",
    path_in_repo="x.txt",
    token=STRANGER,
)
api.update_repo_settings("tester/one", gated="manual")
fails("gated_anybody", hf_hub_download, "tester/one", "README.md", token=False, local_dir="new")
fails("gated_stranger", hf_hub_download, "tester/one", "README.md", token=STRANGER, local_dir="new")
facts["gated_info"] = api.model_info("tester/one", token=False).gated
api.move_repo("tester/short-name", "laboratory/moved")
facts["moved"] = api.repo_exists("laboratory/moved"), api.repo_exists("tester/short-name")
api.delete_repo("laboratory/moved")
fails("deleted", api.delete_repo, "laboratory/moved")
api.delete_repo("laboratory/moved", missing_ok=True)
for kind in ("dataset", "space"):
    api.create_repo("tester/one", repo_type=kind, space_sdk="static" if kind == "space" else None)
    api.upload_file(repo_id="tester/one", repo_type=kind, path_or_fileobj=kind.encode(), path_in_repo="me.txt")
    facts[kind] = (
        Path(hf_hub_download("tester/one", "me.txt", repo_type=kind)).read_text(),
        api.repo_info("tester/one", repo_type=kind).id,
    )
sys.stdout.write(json.dumps({"facts": facts, "errors": errors}) + "\n")

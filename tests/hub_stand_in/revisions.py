"""What is in a repository: trees, files, commits, branches and tags."""

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from tests.hub_stand_in import large_files
from tests.hub_stand_in.cards import faults_of
from tests.hub_stand_in.store import LARGE, MAIN, Commit, File, HubError, Repository
from tests.hub_stand_in.wire import Answer, Request, json_answer


if TYPE_CHECKING:
    from tests.hub_stand_in.server import Hub


EXPANDED_PAGE = 50  # entries on a page of a tree with the last commit of each


def tree(hub: "Hub", request: Request, kind: str, id: str, revision: str, path: str | None) -> Answer:
    """List a folder, or all below it, page by page."""
    repository = hub.readable(request, id, kind)
    commit, folder = repository.at(revision), (path or "").strip("/")
    folders = commit.folders()
    if folder and folder not in folders:
        raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    start = f"{folder}/" if folder else ""
    names = [name for name in sorted({*commit.files, *folders}) if name.startswith(start)]
    if not request.flag("recursive"):
        names = [name for name in names if "/" not in name.removeprefix(start)]
    first, expand = int(request.query.get("cursor", ["0"])[0]), request.flag("expand")
    size = min(EXPANDED_PAGE if expand else hub.page_size, int(request.query.get("limit", ["1000"])[0]))
    answer = json_answer([_entry(repository, commit, name, expand) for name in names[first : first + size]])
    if first + size < len(names):
        query = {**{name: values[0] for name, values in request.query.items()}, "cursor": str(first + size)}
        answer.headers["Link"] = f'<{hub.url}{request.path}?{urlencode(query)}>; rel="next"'
    return answer


def paths_info(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """Describe the paths that there are."""
    repository, body = hub.readable(request, id, kind), request.body
    commit, paths = repository.at(revision), body.get("paths", [])
    there = {*commit.files, *commit.folders()}
    paths = [path.strip("/") for path in ([paths] if isinstance(paths, str) else paths)]
    expand = str(body.get("expand", "")).lower().strip("[]'") == "true"
    return json_answer([_entry(repository, commit, path, expand) for path in paths if path in there])


def resolve(hub: "Hub", request: Request, kind: str, id: str, revision: str, path: str) -> Answer:
    """Give a file, or for a large one the link to its bytes."""
    repository = hub.openable(request, id, kind)
    commit = repository.at(revision)
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": commit.sha})
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}"
    if not file.is_large:
        return Answer(hub.store.blobs.path(file.sha256), headers=headers, kind="application/octet-stream")
    headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
    headers["Location"] = large_files.link(hub, "GET", repository, file.sha256)
    return Answer(status=302, headers=headers, kind="text/plain")


def refs(hub: "Hub", request: Request, kind: str, id: str) -> Answer:
    """List branches and tags."""
    repository = hub.readable(request, id, kind)
    both = (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
    found: dict[str, Any] = {"converts": [], "pullRequests": []}
    for title, folder, names in both:
        found[title] = [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in names.items()
        ]
    return json_answer(found)


def commits(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """List a commit and its ancestors."""
    found = hub.readable(request, id, kind).history(revision)
    return json_answer(
        [
            {"id": one.sha, "title": one.title, "message": one.message, "date": one.date}
            | {"authors": [{"user": one.author}]}
            for one in found
        ]
    )


def preupload(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """Tell how each file is to be uploaded, and what is there under its name."""
    repository = hub.writable(request, id, kind, "upload files")
    files, there = [], repository.at(revision).files
    for one in request.body["files"]:
        large = repository.is_large(one["path"], one["size"], base64.b64decode(one.get("sample", "")))
        old = there.get(one["path"])
        answer = {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        files.append(answer | ({"oid": old.etag} if old else {}))
    return json_answer({"files": files, "commitOid": repository.at(revision).sha})


def commit(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """Make a commit of added, changed and deleted files, wholly or not at all."""
    repository = hub.writable(request, id, kind, "commit")
    if request.flag("create_pr"):
        raise HubError(400, "This Hub has no pull requests.")
    author, header, lines = hub.known(request).user, {}, [json.loads(line) for line in request.data.splitlines()]
    with hub.store.lock:
        files = dict(repository.at(revision).files)
        for line in lines:
            if line["key"] == "header":
                header = line["value"]
            else:
                _apply(repository, files, line["key"], line["value"])
        _check_card(repository, files)
        title, message = header.get("summary", ""), header.get("description", "")
        new = repository.commit(revision, files, title, message, author, header.get("parentCommit", ""))
    url = f"{hub.url}/{large_files.PREFIX[kind]}{id}/commit/{new.sha}"
    return json_answer({"success": True, "commitOid": new.sha, "commitUrl": url, "hookOutput": ""})


def create_branch(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """Start a branch."""
    repository = hub.writable(request, id, kind, "create a branch")
    _add_name(repository, repository.branches, "branch", revision, request.body.get("startingPoint", MAIN))
    return json_answer({"success": True})


def delete_branch(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """Delete a branch other than the main one."""
    repository = hub.writable(request, id, kind, "delete a branch")
    if revision == MAIN:
        raise HubError(403, "The main branch cannot be deleted")
    return _drop_name(repository.branches, revision)


def create_tag(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """Name a commit."""
    repository = hub.writable(request, id, kind, "create a tag")
    _add_name(repository, repository.tags, "tag", request.body["tag"], revision)
    return json_answer({"success": True})


def delete_tag(hub: "Hub", request: Request, kind: str, id: str, revision: str) -> Answer:
    """Delete a tag."""
    return _drop_name(hub.writable(request, id, kind, "delete a tag").tags, revision)


def _add_name(repository: Repository, names: dict[str, str], what: str, name: str, target: str) -> None:
    if name in names:
        raise HubError(409, f"The {what} {name} exists already")
    names[name] = repository.at(target).sha


def _drop_name(names: dict[str, str], name: str) -> Answer:
    if name not in names:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    del names[name]
    return json_answer({"success": True})


def _apply(repository: Repository, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """Do one line of a commit to a list of files."""
    path = value["path"]
    if key in ("file", "lfsFile") and (path.startswith("/") or {"", ".", "..", ".git"} & set(path.split("/"))):
        raise HubError(400, f"Invalid path {path}")
    if key == "file":
        data = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
        if len(data) > LARGE:
            raise HubError(400, f"Files of more than {LARGE} bytes must be uploaded as large ones: {path}")
        files[path] = repository.keep(data)
    elif key == "lfsFile":
        files[path] = repository.keep_large(value["oid"])
    elif key in ("deletedFile", "deletedFolder"):
        start = f"{path.rstrip('/')}/"
        gone = [name for name in files if (name.startswith(start) if key == "deletedFolder" else name == path)]
        if not gone:
            raise HubError(400, f"{path} cannot be deleted: it is not there")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown line {key} in a commit")


def _check_card(repository: Repository, files: dict[str, File]) -> None:
    card = files.get("README.md")
    if card is not None and card != repository.head.files.get("README.md"):
        errors, _ = faults_of(repository.blobs.path(card.sha256).read_text(encoding="utf-8"), repository.kind)
        if errors:
            raise HubError(400, f"Your commit was rejected: invalid metadata in README.md: {'; '.join(errors)}")


def _entry(repository: Repository, commit: Commit, name: str, expand: bool) -> dict[str, Any]:
    file = commit.files.get(name)
    if file is None:
        below = sorted((path, one.oid) for path, one in commit.files.items() if path.startswith(f"{name}/"))
        oid = hashlib.sha1(repr(below).encode()).hexdigest()
        found: dict[str, Any] = {"type": "directory", "path": name, "oid": oid, "size": 0}
    else:
        found = {"type": "file", "path": name, "oid": file.oid, "size": file.size}
        if file.is_large:
            found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    if expand:
        last = _last_change(repository, commit, name)
        found["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
    return found


def _last_change(repository: Repository, commit: Commit, name: str) -> Commit:
    """The newest commit, up to one, that changed a file or something in a folder."""

    def state(at: Commit) -> dict[str, File]:
        return {path: one for path, one in at.files.items() if path == name or path.startswith(f"{name}/")}

    history = repository.history(commit.sha)
    for newer, older in zip(history, history[1:], strict=False):
        if state(newer) != state(older):
            return newer
    return history[-1]

"""
Large files: where to upload them, in one piece or in parts, and where to get them.

The protocol is that of Git LFS (https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md) with the Hub's own
transfer in parts. The bytes travel to and from another address with signed links, and no token may go there.
"""

import hashlib
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tests.hub_stand_in.store import HubError, Repository
from tests.hub_stand_in.wire import Answer, Request, json_answer


if TYPE_CHECKING:
    from tests.hub_stand_in.server import Hub


PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def link(hub: "Hub", method: str, repository: Repository, sha256: str, part: int = 0) -> str:
    """Address of the bytes of a large file, good for one method, repository and part."""
    path = f"/{repository.kind}/{repository.id}/{sha256}/{part}"
    return f"{hub.storage_url}{path}?signature={_signature(hub, method, path)}"


def batch(hub: "Hub", request: Request, kind: str, id: str) -> Answer:
    """Tell where to upload each object; nowhere if it is there already."""
    repository = hub.writable(request, id, kind, "upload files")
    home = f"{hub.url}/{PREFIX[kind]}{id}.git/info/lfs/objects"
    objects = []
    for wanted in request.body["objects"]:
        sha256, size = wanted["oid"], wanted["size"]
        answer: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
        if sha256 not in repository.uploaded:
            verify = {"href": f"{home}/verify"}
            upload: dict[str, Any] = {"href": link(hub, "PUT", repository, sha256)}
            if hub.part_size and size > hub.part_size:
                count = math.ceil(size / hub.part_size)
                links = {f"{part:05d}": link(hub, "PUT", repository, sha256, part) for part in range(1, count + 1)}
                upload = {"href": f"{home}/complete", "header": {"chunk_size": str(hub.part_size), **links}}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return json_answer({"transfer": "multipart" if hub.part_size else "basic", "objects": objects})


def complete(hub: "Hub", request: Request, kind: str, id: str) -> Answer:
    """
    Put the parts of an object together.

    The client sends no token here: that the parts have arrived by signed links is proof enough.
    """
    repository = hub.store.find(id, kind)
    if repository is None:
        raise HubError(404, "Repository not found", "RepoNotFound")
    sha256 = request.body["oid"]
    parts = [_part(hub, sha256, one["partNumber"]) for one in request.body["parts"]]
    if missing := [path.name for path in parts if not path.exists()]:
        raise HubError(400, f"Parts have not arrived: {missing}")
    with ExitStack() as stack:
        hub.store.blobs.keep_stream([stack.enter_context(path.open("rb")) for path in parts], sha256)
    for path in parts:
        path.unlink()
    repository.uploaded.add(sha256)
    return json_answer({"success": True})


def verify(hub: "Hub", request: Request, kind: str, id: str) -> Answer:
    """Say whether an object has arrived."""
    repository = hub.writable(request, id, kind, "upload files")
    sha256, size = request.body["oid"], request.body["size"]
    if sha256 not in repository.uploaded or hub.store.blobs.path(sha256).stat().st_size != size:
        raise HubError(404, f"Object {sha256} has not arrived.")
    return json_answer({"success": True})


def put(hub: "Hub", request: Request, kind: str, id: str, sha256: str, part: str) -> Answer:
    """Take an object or a part of one."""
    repository = _signed(hub, request, "PUT", kind, id)
    if int(part):
        _part(hub, sha256, int(part)).write_bytes(request.data)
        return Answer(headers={"ETag": f'"{hashlib.md5(request.data, usedforsecurity=False).hexdigest()}"'})
    hub.store.blobs.keep_stream([request.stream], sha256)
    repository.uploaded.add(sha256)
    return Answer(headers={"ETag": f'"{sha256}"'})


def get(hub: "Hub", request: Request, kind: str, id: str, sha256: str, part: str) -> Answer:
    """Give an object, or a range of it."""
    _signed(hub, request, "GET", kind, id)
    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
    return Answer(hub.store.blobs.path(sha256), headers=headers, kind="application/octet-stream")


def _signed(hub: "Hub", request: Request, method: str, kind: str, id: str) -> Repository:
    repository = hub.store.find(id, kind)
    if repository is None or request.query.get("signature") != [_signature(hub, method, request.path)]:
        raise HubError(403, "The signature of the link is wrong.")
    if "authorization" in request.headers:
        raise HubError(400, "Only one way to authenticate is allowed: the link is signed, and there is a token too.")
    return repository


def _signature(hub: "Hub", method: str, path: str) -> str:
    return hashlib.sha256(f"{hub.secret}{method}{path}".encode()).hexdigest()


def _part(hub: "Hub", sha256: str, part: int) -> Any:
    return hub.store.blobs.folder / f"{sha256}-part-{part}"

"""The files and batches of an endpoint, in memory: each batch ends as scripted."""

import json
from collections.abc import Callable
from typing import Any

from tests.captioning.fault_server import FaultServer, Reply, Seen, completion, error


Line = dict[str, Any]
Ending = Callable[[list[Line]], dict[str, Any]]


def answered(request: Line, text: str | None = None, **more: Any) -> Line:
    """An output line with a caption that names the request."""
    body = completion(text or f"Caption of {request['custom_id']}.", **more)
    return {
        "id": "r",
        "custom_id": request["custom_id"],
        "response": {"status_code": 200, "body": body},
        "error": None,
    }


def refused(request: Line, status: int, message: str = "no") -> Line:
    """An error line as of an HTTP error."""
    body = {"error": {"message": message}}
    return {"custom_id": request["custom_id"], "response": {"status_code": status, "body": body}, "error": None}


def unanswered(request: Line, code: str = "batch_expired") -> Line:
    """An error line of a request that was not worked on."""
    return {"custom_id": request["custom_id"], "response": None, "error": {"code": code, "message": "late"}}


def complete(lines: list[Line]) -> dict[str, Any]:
    """All answered, in the opposite order."""
    return {"status": "completed", "output": [answered(line) for line in reversed(lines)]}


class BatchEndpoint(FaultServer):
    """
    Batches end as `endings` say, one each, then completely; `looks` times they are `in_progress` before.

    An ending is a dictionary: `status`, `output` and `errors` (lines, or bytes as they are), `problems` of the batch.
    """

    def __init__(self, *endings: Ending, looks: int = 1):
        super().__init__(route=self.serve)
        self.endings, self.looks = list(endings), looks
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, list[Reply]] = {}

    def requests_of(self, batch: str) -> list[Line]:
        """Lines of the file of a batch."""
        return [json.loads(line) for line in self.files[self.batches[batch]["input_file_id"]].splitlines()]

    def serve(self, seen: Seen) -> Reply:
        """Answer one request; a fault for `METHOD /path` comes first, and one that cuts the answer carries it out."""
        path = seen.path.removeprefix("/v1").partition("?")[0]
        fault = next(iter(self.faults.get(f"{seen.method} {path}", [])), None)
        if fault is not None:
            self.faults[f"{seen.method} {path}"].pop(0)
            if not fault.cut:
                return fault
        reply = self._answer(seen, path)
        return fault or reply

    def _answer(self, seen: Seen, path: str) -> Reply:
        if path == "/files":
            return self._json({"id": self._store(seen), "object": "file", "purpose": "batch"})
        if path == "/batches" and seen.method == "POST":
            return self._json(self._create(seen.body))
        if path == "/batches":
            return self._json({"object": "list", "data": list(self.batches.values()), "has_more": False})
        if path.startswith("/batches/"):
            return self._json(self._look(path.rpartition("/")[2]))
        if path.endswith("/content"):
            return Reply(self.files[path.split("/")[2]], kind="application/octet-stream")
        return error(404)

    def _store(self, seen: Seen) -> str:
        boundary = seen.headers["content-type"].partition("boundary=")[2].encode()
        (part,) = (part for part in seen.body.split(b"--" + boundary) if b'name="file"' in part)
        name = f"file-{len(self.files)}"
        self.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return name

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {**body, "id": name, "object": "batch", "status": "validating", "looks": 0}
        return self.batches[name]

    def _look(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        batch["looks"] += 1
        if batch["looks"] <= self.looks:
            return {**batch, "status": "in_progress"}
        if "ending" not in batch:
            ending = (self.endings.pop(0) if self.endings else complete)(self.requests_of(name))
            batch |= {"ending": True, "status": ending["status"]}
            for kind, field in (("output", "output_file_id"), ("errors", "error_file_id")):
                if kind in ending:
                    batch[field] = f"{kind}-{name}"
                    lines = ending[kind]
                    data = (
                        lines if isinstance(lines, bytes) else b"".join(json.dumps(x).encode() + b"\n" for x in lines)
                    )
                    self.files[batch[field]] = data
            if "problems" in ending:
                batch["errors"] = {"object": "list", "data": ending["problems"]}
        return batch

    @staticmethod
    def _json(value: Any) -> Reply:
        return Reply(json.dumps(value).encode())

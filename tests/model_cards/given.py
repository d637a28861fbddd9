"""Facts that only a person knows, for cards of what the tests make."""

from typing import Any


COMMON: dict[str, Any] = {
    "revision": "v1.0",
    "license": "llama2",
    "language": "en",
    "sources": ["vicuna", "sharegpt4v-captions", "coco", "sam"],
    "limits": ["It has seen four pictures of noise."],
}
TRAINED = {
    **COMMON,
    "base_model": "owner/base",
    "datasets": ["owner/talk"],
    "hardware": "2 cores of a processor",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}
GIVEN: dict[str, dict[str, Any]] = {
    "model": TRAINED,
    "captioner": TRAINED,
    "adapter": {**TRAINED, "base_model_revision": "a" * 40},
    "dataset": {**COMMON, "license": "cc-by-nc-4.0", "sources": ["sharegpt4v-captions"]},
    "metric": {"revision": "v1.0"},
}
FOLDER = {"metric": "mme"}  # of others, their own name


def repo_of(kind: str) -> str:
    """Name of a repository on the Hub."""
    return f"owner/{FOLDER.get(kind, 'tiny-' + kind)}"

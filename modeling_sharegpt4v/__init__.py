"""
The ShareGPT4V model as the Hub runs it.

Names resolve on first use, so `import modeling_sharegpt4v` costs nothing and its image helpers need no torch.
The files `configuration_`, `modeling_`, `processing_` and `images_sharegpt4v.py` travel inside every saved
checkpoint; the others (`composition.py`, and `convert_weights.py` with the two files it reads and writes by) do not.
"""

import importlib
from typing import Any


_EXPORTS = {
    "ShareGPT4VConfig": "configuration_sharegpt4v",
    "ShareGPT4VModel": "modeling_sharegpt4v",
    "ShareGPT4VForConditionalGeneration": "modeling_sharegpt4v",
    "ShareGPT4VProcessor": "processing_sharegpt4v",
    "chat_template_path": "processing_sharegpt4v",
    "to_rgb": "images_sharegpt4v",
    "open_image": "images_sharegpt4v",
    "compose": "composition",
    "build_processor": "composition",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)

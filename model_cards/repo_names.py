"""Names of repositories on the Hub, told from places on a machine."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_repo_id(name: Any) -> bool:
    """
    Whether a name can be one on the Hub, with its owner.

    Args:
        name (`Any`): A name.

    Returns:
        `bool`: `False` for paths and bare names.
    """
    if not isinstance(name, str) or name.count("/") != 1 or name.startswith((".", "~")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def on_the_hub(names: Any) -> list[str]:
    """
    Of the names that a run was given, those that others can load.

    Args:
        names (`Any`): A name, a list of them, or nothing.

    Returns:
        `list[str]`: All of them, or none if one is a folder of this machine.
    """
    listed = [names] if isinstance(names, str) else list(names or [])
    return listed if all(is_repo_id(name) and not Path(name).exists() for name in listed) else []

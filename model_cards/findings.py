"""What a check of a card finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """
    Something wrong or doubtful.

    Args:
        file (`str`): Relative to the checked folder.
        rule (`str`): Short name of the rule.
        message (`str`): What is there, and what to do.
        level (`str`, defaults to `"error"`): `error` keeps a folder from being published; `warning` does not.
    """

    file: str
    rule: str
    message: str
    level: Literal["error", "warning"] = "error"

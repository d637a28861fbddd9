"""
The two row types of this project, and the only place where their columns are spelled.

- A *caption row* is one image with one detailed caption and where both come from.
- A *conversation row* is what trains a model: a list of images, and messages in which `<image>` does not occur,
  because the chat template puts the images in front of the first question.
"""

from typing import Any

from datasets import Features, Image, List, Value

from .constants import CAPTION_INSTRUCTION as CAPTION_INSTRUCTION  # both are part of the schema
from .constants import IMAGE_TOKEN as IMAGE_TOKEN


ROLES = ("user", "assistant")

CAPTION_FEATURES = Features(
    {
        "id": Value("string"),
        "image": Image(),
        "source": Value("string"),
        "caption": Value("string"),
        "captioner": Value("string"),
        "prompt_id": Value("string"),
        "license": Value("string"),
        "sha256": Value("string"),
    }
)
CONVERSATION_FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "images": List(Image()),
        "messages": List({"role": Value("string"), "content": Value("string")}),
    }
)


def with_paths(features: Features) -> Features:
    """
    The same columns with images as paths: for repositories that must not redistribute the images.

    Args:
        features (`Features`): `CAPTION_FEATURES` or `CONVERSATION_FEATURES`.

    Returns:
        `Features`: `image` is a text, `images` a list of texts, relative to the root of all images.
    """
    plain = {"image": Value("string"), "images": List(Value("string"))}
    return Features({name: plain.get(name, feature) for name, feature in features.items()})


def validate_caption(row: dict[str, Any]) -> None:
    """
    Check one caption row.

    Args:
        row (`dict`): Row with the columns of `CAPTION_FEATURES`.

    Raises:
        `ValueError`: The row breaks the schema; the message says how.
    """
    _check_columns(row, CAPTION_FEATURES)
    if row["image"] is None:
        raise ValueError("`image` is missing.")
    _check_text("caption", row["caption"])


def validate_conversation(row: dict[str, Any]) -> None:
    """
    Check one conversation row: roles alternate from user to assistant and end with the assistant.

    Args:
        row (`dict`): Row with the columns of `CONVERSATION_FEATURES`.

    Raises:
        `ValueError`: The row breaks the schema; the message says how.
    """
    _check_columns(row, CONVERSATION_FEATURES)
    if not isinstance(row["images"], list):
        raise ValueError(f"`images` must be a list, got {type(row['images']).__name__}.")
    if any(image is None for image in row["images"]):
        raise ValueError("`images` holds an empty entry.")
    if not isinstance(row["messages"], list):
        raise ValueError(f"`messages` must be a list, got {type(row['messages']).__name__}.")
    if not row["messages"] or len(row["messages"]) % 2:
        raise ValueError(f"`messages` must be pairs of user and assistant, got {len(row['messages'])} messages.")
    for index, message in enumerate(row["messages"]):
        expected = ROLES[index % 2]
        if not isinstance(message, dict) or message.get("role") != expected:
            got = message.get("role") if isinstance(message, dict) else message
            raise ValueError(f"Message {index} must be of role {expected!r}, got {got!r}.")
        _check_text(f"content of message {index}", message.get("content"))


def check_encodable(name: str, text: str) -> None:
    """
    Check that a text can be stored: Parquet holds UTF-8, and JSON's escapes can spell what UTF-8 cannot.

    Args:
        name (`str`): What the error calls it.
        text (`str`): The text.

    Raises:
        `ValueError`: It holds half a surrogate pair; bytes that are no UTF-8 are read as one, too.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"The {name} holds half a surrogate pair or bytes that are no UTF-8.") from error


def _check_columns(row: dict[str, Any], features: Features) -> None:
    if missing := sorted(set(features) - set(row)):
        raise ValueError(f"The row lacks the columns {missing}.")
    if unknown := sorted(set(row) - set(features)):
        raise ValueError(f"The row has unknown columns {unknown}.")
    if not row["id"]:
        raise ValueError("`id` is empty.")
    for name, value in row.items():
        if isinstance(value, str):
            check_encodable(name, value)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"The {name} is empty.")
    if IMAGE_TOKEN in text:
        raise ValueError(f"The {name} contains {IMAGE_TOKEN!r}; the images go into their own column.")
    check_encodable(name, text)

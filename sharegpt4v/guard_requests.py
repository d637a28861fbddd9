"""Chat requests as the guard passes them on: known fields only, rebuilt from what was checked."""

from dataclasses import dataclass
from typing import Any

from .guard_images import ImageReader, Refused


ROLES = ("system", "developer", "user", "assistant")
MAX_MESSAGES, MAX_IMAGES, MAX_TOKENS = 200, 16, 4096
# Whether a value of a field is usable. What a client could use to choose templates, files or code stays out.
NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2), "top_p": (0, 1), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2),
}  # fmt: skip
COUNTS = {"max_tokens": MAX_TOKENS, "max_completion_tokens": MAX_TOKENS, "seed": 2**63 - 1, "n": 1}
IGNORED = ("user", "store", "metadata", "n", "presence_penalty")  # no effect on the answer here
FIELDS = ("model", "messages", "stream", "stream_options", "stop", *NUMBERS, *COUNTS, *IGNORED)


@dataclass(frozen=True)
class ServedModel:
    """
    A model by its two names.

    Args:
        name (`str`): What clients call it.
        inner (`str`): What the server behind calls it, a folder for instance.
        image_token (`str`, defaults to `"<image>"`): What stands for an image in its prompts, so not in texts.
    """

    name: str
    inner: str
    image_token: str = "<image>"


async def check_request(body: Any, served: ServedModel, reader: ImageReader) -> dict[str, Any]:
    """
    The request that is sent on.

    Args:
        body (`Any`): Parsed JSON of the client.
        served (`ServedModel`): The model.
        reader (`ImageReader`): Reads its images.

    Returns:
        `dict`: Built anew of checked values.

    Raises:
        `Refused`: With what is wrong and where.
    """
    if not isinstance(body, dict):
        raise Refused("The body must be a JSON object.")
    unknown = sorted(set(body) - set(FIELDS))
    if unknown:
        raise Refused(f"Fields that are not served: {', '.join(unknown)[:200]}.")
    if body.get("model") != served.name:
        raise Refused(f"The model is called {served.name}.", 404)
    checked: dict[str, Any] = {"model": served.inner}
    for name, value in body.items():
        if value is not None and name not in ("model", "messages"):
            _check_option(name, value)
            if name not in IGNORED:
                checked[name] = value
    checked["messages"] = await _check_messages(body.get("messages"), served, reader)
    return checked


def _check_option(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in NUMBERS:
        least, most = NUMBERS[name]
        fits = number and least <= value <= most
        wanted = f"a number from {least} to {most}"
    elif name in COUNTS:
        least = 0 if name == "seed" else 1
        fits = number and isinstance(value, int) and least <= value <= COUNTS[name]
        wanted = f"a whole number from {least} to {COUNTS[name]}"
    elif name == "stop":
        texts = [value] if isinstance(value, str) else value
        fits = isinstance(texts, list) and len(texts) <= 4 and all(isinstance(one, str) and one for one in texts)
        wanted = "a text, or up to four"
    elif name == "stream_options":
        fits = value in ({}, {"include_usage": True}, {"include_usage": False})
        wanted = "an object with include_usage"
    else:
        fits, wanted = name != "stream" or isinstance(value, bool), "true or false"
    if not fits:
        raise Refused(f"{name}: must be {wanted}.")


async def _check_messages(messages: Any, served: ServedModel, reader: ImageReader) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise Refused(f"messages: must be a list of 1 to {MAX_MESSAGES} messages.")
    checked, images = [], 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Refused(f"{where}.role: must be one of {', '.join(ROLES)}.")
        odd = sorted(set(message) - {"role", "content", "name"})
        if odd:
            raise Refused(f"{where}: fields that are not served: {', '.join(odd)[:200]}.")
        role = "system" if message["role"] == "developer" else message["role"]
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise Refused(f"{where}.content: must be a text or a list of parts.")
        parts = []
        for place, part in enumerate(content):
            parts.append(await _check_part(part, f"{where}.content[{place}]", served, reader))
            images += parts[-1]["type"] == "image_url"
            if images > MAX_IMAGES:
                raise Refused(f"There are more than {MAX_IMAGES} images.")
        checked.append({"role": role, "content": parts})
    return checked


async def _check_part(part: Any, where: str, served: ServedModel, reader: ImageReader) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise Refused(f"{where}.text: must be a text.")
        if served.image_token in text:
            raise Refused(
                f"{where}.text: {served.image_token} stands for an image; send it as a part of type image_url."
            )
        return {"type": "text", "text": text}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str):
            raise Refused(f"{where}.image_url.url: must be a text.")
        return {"type": "image_url", "image_url": {"url": await reader.read(url, f"{where}.image_url.url")}}
    raise Refused(f"{where}.type: must be text or image_url.")

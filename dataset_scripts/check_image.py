"""
What a worker process does with one image: read it, decode it completely, and say what it is.

Every worker imports this module anew, so it stays clear of `datasets` and torch.
"""

import hashlib
import re
from dataclasses import dataclass

import imagehash

from modeling_sharegpt4v.images_sharegpt4v import open_image

from .archives import Located, read_located


ADDRESS = re.compile(r"<\S+ object at 0x[0-9a-f]+>")  # Pillow names the stream it reads


@dataclass(frozen=True, slots=True)
class Check:
    """
    Outcome for one image: `problem` is empty for a good one. `phash` is the 64-bit perceptual hash in hexadecimal.
    """

    problem: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    phash: str = ""


def check_image(located: Located) -> Check:
    """
    Decode an image completely, as training will.

    Args:
        located (`Located`): Where its bytes are.

    Returns:
        `Check`: Sizes in pixels of the upright image and its hashes, or the problem.
    """
    try:
        data = read_located(located)
        image = open_image(data)
        return Check("", hashlib.sha256(data).hexdigest(), *image.size, str(imagehash.phash(image)))
    except (OSError, ValueError, MemoryError) as error:
        return Check(problem=describe(error))


def crashed(located: Located) -> Check:
    """
    Outcome for an image that ended the process which decoded it.

    Args:
        located (`Located`): Where its bytes are.

    Returns:
        `Check`: With that problem.
    """
    return Check(problem=f"decoding {located.file} ended the worker process (crash or out of memory)")


def check_named(item: tuple[str, Located]) -> tuple[str, Located, Check]:
    """
    Check an image that has a name; see [`check_image`].

    Args:
        item (`tuple[str, Located]`): Name, and where its bytes are.

    Returns:
        `tuple[str, Located, Check]`: The same, and the outcome.
    """
    return (*item, check_image(item[1]))


def crashed_named(item: tuple[str, Located]) -> tuple[str, Located, Check]:
    """
    Outcome for an image with a name that ended the process; see [`crashed`].

    Args:
        item (`tuple[str, Located]`): Name, and where its bytes are.

    Returns:
        `tuple[str, Located, Check]`: The same, and the outcome.
    """
    return (*item, crashed(item[1]))


def describe(error: BaseException) -> str:
    """
    Reason of a failed reading in one line.

    Args:
        error (`BaseException`): What was raised; the cause says more than its wrapper.

    Returns:
        `str`: Text without line breaks and without addresses of memory, the same in every run.
    """
    cause = error.__cause__ or error
    text = ADDRESS.sub("", f"{type(cause).__name__}: {cause}")
    return " ".join(text.split())

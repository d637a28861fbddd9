"""What a worker process does with one image: read it, decode it completely, and say what it is."""

import hashlib
from dataclasses import dataclass

import imagehash

from modeling_sharegpt4v.images_sharegpt4v import open_image

from .archives import Located, read_located


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
    except (OSError, ValueError, MemoryError) as error:
        return Check(problem=describe(error))
    return Check("", hashlib.sha256(data).hexdigest(), *image.size, str(imagehash.phash(image)))


def crashed(located: Located) -> Check:
    """
    Outcome for an image that ended the process which decoded it.

    Args:
        located (`Located`): Where its bytes are.

    Returns:
        `Check`: With that problem.
    """
    return Check(problem=f"decoding {located.file} ended the worker process (crash or out of memory)")


def describe(error: BaseException) -> str:
    """
    Reason of a failed reading in one line.

    Args:
        error (`BaseException`): What was raised; the cause says more than its wrapper.

    Returns:
        `str`: Text without line breaks.
    """
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())

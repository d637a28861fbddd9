"""What a job would do, before anything is spent: the exact request of an image, and the estimate of the whole."""

import hashlib
import io
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from dataset_scripts.archives import read_located

from .estimate import Estimate, Measured, estimate_job
from .job import CaptionJob
from .payload import chat_body, encode_image
from .plan import PlannedImage, read_facts, read_plan
from .prompts import Prompt
from .store import read_rows
from .transport import STREAMED


SAMPLE = 64  # images whose sizes are looked at
ROWS = 1000  # earlier answers that are measured


def preview(job: CaptionJob, image: bytes, source: str, whole: bool = False) -> dict[str, Any]:
    """
    The request that an image leads to.

    Args:
        job (`CaptionJob`): The job.
        image (`bytes`): Its file.
        source (`str`): Its source.
        whole (`bool`, defaults to `False`): Whether the image itself is shown, too.

    Returns:
        `dict`: For an endpoint address, headers (without the key) and body; for a model of our own its input as text.

    Raises:
        `ValueError`: It is no image.
        `OSError`: There is no such model.
    """
    digest = hashlib.sha256(image).hexdigest()
    prompt = job.prompt_for(source, digest)
    facts = {"image_sha256": digest, "prompt_id": prompt.id, "prompt_sha256": prompt.sha256, "model": job.model}
    if job.endpoint is None:
        return {**facts, "input": _rendered(job, prompt), "sampling": job.sampling}
    picture = encode_image(image, job.endpoint)
    body = chat_body(picture, prompt, job.endpoint)
    if job.endpoint.stream:
        body |= STREAMED
    if not whole:
        shown = f"data:image/jpeg;base64,... ({len(picture.data)} bytes, {picture.width}x{picture.height} pixels)"
        body["messages"][0]["content"][0]["image_url"]["url"] = shown
    headers = {"content-type": "application/json"}
    if job.endpoint.api_key_env:
        headers["authorization"] = f"Bearer (value of {job.endpoint.api_key_env})"
    url = f"{job.endpoint.base_url.rstrip('/')}/chat/completions"
    return {**facts, "method": "POST", "url": url, "headers": headers, "body": body}


def estimate(out: Path, job: CaptionJob, images: int) -> Estimate:
    """
    Tokens, cost and time of what is left of a job that asks an endpoint.

    Args:
        out (`Path`): Folder of the planned job.
        job (`CaptionJob`): The job.
        images (`int`): Images that are left.

    Returns:
        `Estimate`: By the sizes of a sample of the images, or by earlier answers where there are enough.

    Raises:
        `ValueError`: The job has no endpoint, or no plan.
    """
    facts = read_facts(out)
    if job.endpoint is None or facts is None:
        raise ValueError(f"{out} is no planned job that asks an endpoint.")
    sample = _sample(out, facts["shards"])
    prompts = [job.prompt_for(planned.source, planned.sha256).text for planned in sample]
    sizes = [size for planned in sample if (size := _size(planned)) is not None]
    return estimate_job(job.endpoint, images, prompts, sizes, _measured(out, job, facts["shards"]), job.concurrency)


def _rendered(job: CaptionJob, prompt: Prompt) -> str:
    from transformers import AutoProcessor  # seconds, and only a model of our own needs it

    engine = job.engine
    if engine is None:
        raise ValueError("The job has no model of its own.")
    processor = AutoProcessor.from_pretrained(engine.model, trust_remote_code=engine.trust_remote_code)
    content = [{"type": "image"}, {"type": "text", "text": prompt.text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _sample(out: Path, shards: int) -> list[PlannedImage]:
    chosen = random.Random(0).sample(range(shards), min(shards, SAMPLE))
    each = -(-SAMPLE // len(chosen))
    return [planned for shard in chosen for planned in islice(read_plan(out, shard), each)]


def _size(planned: PlannedImage) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(read_located(planned.located))) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):  # it will get its row; here it only counts for sizes
        return None


def _measured(out: Path, job: CaptionJob, shards: int) -> Measured:
    measured = Measured()
    for row in islice(_answers(out, job, shards), ROWS):
        measured.add(row.prompt_tokens or 0, row.completion_tokens or 0, row.seconds)
    return measured


def _answers(out: Path, job: CaptionJob, shards: int) -> Iterator[Any]:
    for number in range(shards):
        for row in read_rows(out, number):
            same = (row.model, row.sampling) == (job.model, job.sampling_hash)
            if same and row.prompt_tokens is not None and row.completion_tokens is not None:
                yield row

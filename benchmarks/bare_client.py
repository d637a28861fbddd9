"""
The least that captions a folder: `python benchmarks/bare_client.py FOLDER URL CONCURRENCY OUTPUT`.

Reads, resizes and encodes every file as the pipeline does and asks `AsyncOpenAI`; no plan, no limits, no retries, no
store. Answers are written at the end, since an end before it would lose them all.
"""

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common  # noqa: F401  the packages of the repository win over benchmarks of the same name
import openai

from captioning.endpoint_config import EndpointConfig
from captioning.payload import chat_body, encode_image
from captioning.prompts import load_prompts


async def main(folder: Path, url: str, concurrency: int) -> dict[str, str]:
    """Caption every file of a folder; captions by file name."""
    config, prompts = EndpointConfig(model="m", base_url=url), load_prompts()
    prompt = prompts.for_image("other", "")
    client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0)
    decoders, room = ThreadPoolExecutor(min(8, os.cpu_count() or 1)), asyncio.Semaphore(concurrency)
    loop, captions = asyncio.get_running_loop(), {}

    async def ask(path: Path) -> None:
        async with room:
            picture = await loop.run_in_executor(decoders, lambda: encode_image(path.read_bytes(), config))
            completion = await client.chat.completions.create(**chat_body(picture, prompt, config))
            captions[path.name] = completion.choices[0].message.content

    await asyncio.gather(*(ask(path) for path in sorted(folder.iterdir())))
    await client.close()
    return captions


if __name__ == "__main__":
    found = asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    Path(sys.argv[4]).write_text(json.dumps(found), encoding="utf-8")

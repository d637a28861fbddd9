"""The Croissant description of a dataset, completed by what is known once it has a name on the Hub."""

import json
from pathlib import Path
from typing import Any

from .licences import CC_BY_NC


HUB = "https://huggingface.co"


def complete_croissant(file: Path, facts: dict[str, Any]) -> None:
    """
    Add name, address and licence; what its build wrote of files and columns stays.

    Args:
        file (`Path`): `croissant.json`; nothing is done where there is none.
        facts (`dict`): Of the dataset's card.
    """
    if not file.is_file():
        return
    described = json.loads(file.read_text(encoding="utf-8"))
    link = str(facts["license_link"] or "")
    if not link.startswith("https://"):
        link = CC_BY_NC if facts["license"] == "cc-by-nc-4.0" else facts["license_name"] or facts["license"]
    described |= {"name": facts["repo_id"].split("/")[1], "url": f"{HUB}/datasets/{facts['repo_id']}", "license": link}
    file.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

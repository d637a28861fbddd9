"""Facts for cards that another package knows: the figures of an evaluation, as `evaluation` has them for the Hub."""

from pathlib import Path
from typing import Any


def evaluation_facts(path: Path, repo_id: str) -> dict[str, Any]:
    """
    The fact `evaluation` of a card.

    Args:
        path (`Path`): `results.json` of an evaluation, or a folder that may have one.
        repo_id (`str`): Name of the model on the Hub.

    Returns:
        `dict`: `evaluation` with `results`, `model_index`, `eval_results` (texts by benchmark) and `left_out` (reasons
            by benchmark); empty where the folder has none.

    Raises:
        `FileNotFoundError`: The file is absent.
    """
    if path.is_dir() and not (path / "results.json").is_file():
        return {}
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    from evaluation.card_metadata import eval_result_entries, model_index
    from evaluation.results import read_results

    results = read_results(path if path.is_dir() else path.parent)
    index, left_out = model_index(results, repo_id.split("/")[-1])
    entries, _ = eval_result_entries(results)
    texts = {
        name: yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True)
        for name, found in entries.items()
    }
    reasons = {one.benchmark: one.reason for one in left_out}
    return {"evaluation": {"results": results, "model_index": index, "eval_results": texts, "left_out": reasons}}

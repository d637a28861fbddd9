"""What a recipe names, loaded: model and processor, a projector from elsewhere, rows."""

import json
import logging
from pathlib import Path

import torch
from datasets import Dataset, Image, List, load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor, compose
from modeling_sharegpt4v.checkpoint_files import read_shapes, read_tensors

from .recipes import RunArguments


logger = logging.getLogger(__name__)

PROJECTOR = "multi_modal_projector."
CONVERT = "One as LLaVA publishes it is converted by `python -m modeling_sharegpt4v.convert_projector`."


def load_model(run: RunArguments) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Load the model that a run starts from, or join it from an LLM and a tower.

    Args:
        run (`RunArguments`): The run.

    Returns:
        `tuple[PreTrainedModel, ProcessorMixin]`: With the projector that the run names, if it names one; classes of
            ours but for the stage `any_model`.

    Raises:
        `ValueError`: The model is stored in pickles, or the projector does not fit.
    """
    if run.stage == "any_model":
        model = AutoModelForImageTextToText.from_pretrained(run.model, dtype=run.dtype, use_safetensors=True)
        return model, AutoProcessor.from_pretrained(run.model)
    if run.vision_tower is None:
        _refuse_pickles(Path(run.model))
        model = ShareGPT4VForConditionalGeneration.from_pretrained(run.model, dtype=run.dtype)
        processor = ShareGPT4VProcessor.from_pretrained(run.model)
    else:
        model, processor = compose(run.vision_tower, run.model, dtype=run.dtype)
    if run.projector_from is not None:
        take_projector(model, run.projector_from)
    return model, processor


def take_projector(model: ShareGPT4VForConditionalGeneration, source: str) -> None:
    """
    Replace the projector of a model by a trained one.

    Args:
        model (`ShareGPT4VForConditionalGeneration`): Changed in place.
        source (`str`): Folder or Hub id of a model of this architecture, or a safetensors file.

    Raises:
        `ValueError`: There is no projector, or its shapes are others than the model's.
    """
    projector = model.model.multi_modal_projector
    tensors: dict[str, torch.Tensor] = {}
    for file in _weight_files(source):
        names = [name for name in read_shapes(file) if PROJECTOR in name]
        tensors |= {name.partition(PROJECTOR)[2]: tensor.clone() for name, tensor in read_tensors(file, names)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    if found != expected:
        raise ValueError(
            f"The projector of {source} does not fit: expected {expected}, got {found or 'no projector at all'}. "
            f"{CONVERT}"
        )
    projector.load_state_dict(tensors)
    logger.info("The projector is that of %s.", source)


def load_rows(run: RunArguments) -> Dataset:
    """
    Load the rows of a run, with images as they are stored: the collator decodes them as the processor does.

    Args:
        run (`RunArguments`): The run.

    Returns:
        `Dataset`: Conversation or caption rows.
    """
    rows = load_dataset(run.dataset, run.dataset_config, split=run.dataset_split)
    stored = {"image": Image(decode=False), "images": List(Image(decode=False))}
    for name, feature in stored.items():
        if name in rows.column_names:  # the trainer says what is missing
            rows = rows.cast_column(name, feature)
    return rows


def describe_data(run: RunArguments, samples: int) -> str:
    """
    Say how many samples there are, and what was left out when they were built.

    Args:
        run (`RunArguments`): The run.
        samples (`int`): Rows of the loaded split.

    Returns:
        `str`: One line.
    """
    name = "/".join(filter(None, (run.dataset, run.dataset_config, run.dataset_split)))
    line = f"Training on {samples} samples of {name}."
    build = Path(run.dataset, run.dataset_config or "", "build.json")
    facts = json.loads(build.read_text(encoding="utf-8")) if build.is_file() else {}
    if facts.get("rows_left_out"):
        total = facts["coverage"]["total"]
        line += f" It was built with {total['found']} of {total['expected']} images; "
        line += f"{facts['rows_left_out']} rows are left out."
    return line


def _refuse_pickles(folder: Path) -> None:
    # An LLM beside a tower may be one: transformers reads it with `weights_only`, and Vicuna is published in no other.
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and (pickles := sorted(folder.glob("*.bin"))):
        raise ValueError(
            f"{folder} has its weights in pickles ({pickles[0].name}) and not in safetensors, which are the only ones "
            "that training opens. Convert it by `python -m modeling_sharegpt4v.convert_weights import`."
        )


def _weight_files(source: str) -> list[Path]:
    place = Path(source)
    if place.is_file() or place.is_dir():
        files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
        if not files or files[0].suffix != ".safetensors":
            raise ValueError(f"{place} has no safetensors file to take a projector from. {CONVERT}")
        return files
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return [Path(cached_file(source, SAFE_WEIGHTS_NAME))]
    places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    return [Path(cached_file(source, file)) for file in {file for name, file in places.items() if PROJECTOR in name}]

"""
Published checkpoints into a folder that loads here and natively, and back into the layouts that other code reads.

```bash
python -m modeling_sharegpt4v.convert_weights import --model ShareGPT4V-7B \
    --vision-tower ShareGPT4V-7B_Pretrained_vit-large336-l12 --output sharegpt4v-7b
python -m modeling_sharegpt4v.convert_weights export --model sharegpt4v-7b --layout llava-hf --output plain
```

`import` reads ShareGPT4V, LLaVA-1.5, their training checkpoints and llava-hf, in `.bin` files or safetensors.
`export` writes LLaVA's own layout (`llava`, the tower in the folder `vision_tower` of it) or `llava-hf`, which plain
transformers loads without remote code.

Why an untuned tower is refused: ShareGPT4V trains the later half of its vision tower (blocks 12 to 22 of 24,
[paper](https://huggingface.co/papers/2311.12793), section 3.4) and publishes it in a repository of its own. A loader
that takes OpenAI's CLIP instead, as loaders of LLaVA do, finds every tensor in the right shape and gives a model that
works and is wrong. So nothing is looked up by name here, and a tower that shows signs of never having been trained is
accepted only with `--allow-untuned-tower`.

Every output holds `conversion.json`: sizes and hashes of all files that went in and came out, and what was dropped.
"""

import argparse
import logging as python_logging
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CLIPImageProcessorPil, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging
from transformers.utils.hub import convert_file_size_to_int

from .checkpoint_files import (
    ShardWriter,
    complete_folder,
    describe_files,
    load_tokenizer,
    read_json,
    set_rows,
    stream_tensors,
    write_json,
)
from .composition import IMAGE_TOKEN, PAD_TOKEN, add_image_and_pad_tokens, build_processor
from .configuration_sharegpt4v import NATIVE_ARCHITECTURE
from .processing_sharegpt4v import NATIVE_PROCESSOR
from .published_layouts import (
    EMBEDDING,
    HEAD,
    TOWER,
    VISION_FIELDS,
    Source,
    check_tensors,
    check_tower,
    export_name,
    llava_fields,
    open_source,
    read_config,
    read_image_aspect_ratio,
)


logger = logging.get_logger(__name__)
MANIFEST = "conversion.json"
DTYPES = ("keep", "bfloat16", "float16", "float32")
SMALL_FILES = {".json", ".model", ".jinja"}
TOKENIZER_FIELDS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def import_checkpoint(
    model: Path,
    output: Path,
    vision_tower: Path | None = None,
    tokenizer: Path | None = None,
    reference_tower: Path | None = None,
    allow_untuned_tower: bool = False,
    dtype: Literal["keep", "bfloat16", "float16", "float32"] = "keep",
    max_shard_size: str = "5GB",
) -> None:
    """
    Convert a published checkpoint into a folder that loads with and without remote code.

    The tokenizer gets `<image>` and `<pad>`; where they need new rows in the embeddings and the head, these are the
    mean of the rows before. Everything else keeps its numbers.

    Args:
        model (`Path`): Folder of the checkpoint.
        output (`Path`): Folder to write; must not exist or be empty.
        vision_tower (`Path`, *optional*): Folder of the tower, for layouts that keep it apart.
        tokenizer (`Path`, *optional*): Folder of the tokenizer, if it is not in `model`.
        reference_tower (`Path`, *optional*): Folder of OpenAI's tower, to prove that the model's own was tuned.
        allow_untuned_tower (`bool`, defaults to `False`): Accept an untuned tower for ShareGPT4V.
        dtype (`str`, defaults to `"keep"`): Type of the written weights; `keep` leaves each as it is.
        max_shard_size (`str`, defaults to `"5GB"`): Upper bound of one file, and about the memory needed.

    Raises:
        `ValueError`: The checkpoint cannot be converted faithfully; the message says why.
    """
    with complete_folder(output) as folder:
        source = open_source(model, vision_tower)
        check_tower(source, reference_tower, allow_untuned_tower)
        config = read_config(source)
        meta_model = check_tensors(source, config)
        tokenizer, text = tokenizer or model, config.get_text_config()
        vocabulary = text.vocab_size
        processor, added = _build_processor(source, config, tokenizer)

        writer = ShardWriter(folder, convert_file_size_to_int(max_shard_size))
        for name, tensor in stream_tensors(source.tensors):
            if name in (EMBEDDING, HEAD):
                tensor = set_rows(tensor, text.vocab_size)
            if dtype != "keep":
                tensor = tensor.to(getattr(torch, dtype))
            if name == EMBEDDING:
                config.dtype = str(tensor.dtype).removeprefix("torch.")
            writer.add(name, tensor)
        written = writer.finish()

        config.architectures = [NATIVE_ARCHITECTURE]
        custom_object_save(meta_model, folder)
        config.save_pretrained(folder)
        _generation_config(source, config).save_pretrained(folder)
        processor.save_pretrained(folder)
        if (tokenizer / "tokenizer.model").is_file():
            shutil.copyfile(tokenizer / "tokenizer.model", folder / "tokenizer.model")
        facts: dict[str, Any] = {"vocabulary": {"size": vocabulary, "added_tokens": added}}
        facts["tokenizer_files"] = _read_fields(tokenizer) if added else {}
        _write_manifest(folder, "import", source, written, facts, tokenizer)
    logger.info("Wrote %d tensors to %s", written, output)


def _build_processor(source: Source, config: PreTrainedConfig, folder: Path) -> tuple[Any, dict[str, int]]:
    # By the model type of the original layouts, transformers would choose another class of tokenizer, or none.
    options = {} if source.layout == "llava-hf" else {"config": config.text_config}
    tokenizer = load_tokenizer(folder, config.text_config.vocab_size, **options)
    known = tokenizer.get_vocab()
    add_image_and_pad_tokens(tokenizer)
    _set_tokens(config, tokenizer)
    processor = build_processor(config, tokenizer, read_image_aspect_ratio(source))
    added = {token: index for token, index in tokenizer.get_vocab().items() if token not in known}
    return processor, dict(sorted(added.items(), key=lambda item: item[1]))


def _set_tokens(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    vision = config.vision_config
    keeps_class_token = config.vision_feature_select_strategy == "full" and vision.model_type.startswith("clip")
    config.image_seq_length = (vision.image_size // vision.patch_size) ** 2 + keeps_class_token
    config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config.pad_token_id = config.text_config.pad_token_id = tokenizer.pad_token_id
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))


def _generation_config(source: Source, config: PreTrainedConfig) -> GenerationConfig:
    path = source.folder / "generation_config.json"
    fields = read_json(path) if path.is_file() else {}
    for name in ("bos_token_id", "eos_token_id"):
        fields.setdefault(name, getattr(config.text_config, name))
    if not fields.get("do_sample"):
        # Vicuna's has them without sampling: they have no effect, and transformers refuses to save them.
        fields = {n: v for n, v in fields.items() if n not in ("temperature", "top_p", "top_k", "_from_model_config")}
    return GenerationConfig.from_dict(fields | {"pad_token_id": config.pad_token_id})


def _read_fields(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: read_json(folder / name) for name in TOKENIZER_FIELDS if (folder / name).is_file()}


def _write_manifest(
    folder: Path, command: str, source: Source, written: int, facts: dict[str, Any], tokenizer: Path | None = None
) -> None:
    files = {}
    for role, place in {"model": source.folder, "vision_tower": source.tower, "tokenizer": tokenizer}.items():
        if place is not None and not (role == "tokenizer" and place == source.folder):
            weights = {stored.file for stored in source.tensors.values() if stored.file.parent == place}
            files[role] = describe_files(weights | {p for p in place.iterdir() if p.suffix in SMALL_FILES}, place)
    declared = source.fields.get("mm_vision_tower")
    if declared and Path(declared).is_absolute():
        declared = Path(declared).name  # a folder of the machine it was trained on
    manifest = {
        "tool": f"sharegpt4v {_tool_version()}",
        "command": command,
        "layout": source.layout,
        "vision_tower": {"origin": "folder" if source.tower else "inside", "declared": declared},
        **facts,
        "tensors_in": len(source.tensors) + len(source.dropped),
        "tensors_out": written,
        "dropped": source.dropped,
        "source_files": files,
        "output_files": describe_files({path for path in folder.rglob("*") if path.is_file()}, folder),
    }
    write_json(folder / MANIFEST, manifest)


def _tool_version() -> str:
    try:
        return metadata.version("sharegpt4v")
    except metadata.PackageNotFoundError:  # a clone that is not installed
        project = Path(__file__).parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]


def _read_manifest(folder: Path) -> dict[str, Any]:
    return read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}


def export_checkpoint(
    model: Path, output: Path, layout: Literal["llava", "llava-hf"], max_shard_size: str = "5GB"
) -> None:
    """
    Convert a model of ours into a layout that other code reads.

    - `llava`: as LLaVA's own code expects it. LLM and projector in `output`, without the rows and tokens that `import`
      added, and the tower in `output/vision_tower`; the configuration names it relatively, and LLaVA's code resolves
      that from the folder it is started in.
    - `llava-hf`: one folder for [`~transformers.LlavaForConditionalGeneration`], without remote code.

    Args:
        model (`Path`): Folder of the model, as `import` or a training run left it.
        output (`Path`): Folder to write; must not exist or be empty.
        layout (`str`): `llava` or `llava-hf`.
        max_shard_size (`str`, defaults to `"5GB"`): Upper bound of one file, and about the memory needed.

    Raises:
        `ValueError`: The model is not one of ours, or the layout cannot express it.
    """
    with complete_folder(output) as folder:
        source = open_source(model)
        if source.layout != "llava-hf":
            raise ValueError(f"{model} is in an original layout already. Convert it with `import` first.")
        config = read_config(source)
        check_tensors(source, config)
        size = convert_file_size_to_int(max_shard_size)
        writer = tower_writer = ShardWriter(folder, size)
        vocabulary, removed = config.get_text_config().vocab_size, set[str]()
        if layout == "llava":
            vocabulary, removed = _original_vocabulary(source, config)
            _write_llava_files(source, config, vocabulary, removed, folder)
            tower_writer = ShardWriter(folder / "vision_tower", size)
        else:
            _write_llava_hf_files(source, folder)
        for name, tensor in stream_tensors(source.tensors):
            if name in (EMBEDDING, HEAD):
                tensor = set_rows(tensor, vocabulary)
            (tower_writer if name.startswith(TOWER) else writer).add(export_name(name, layout), tensor)
        written = writer.finish()
        if tower_writer is not writer:
            written += tower_writer.finish()
        facts = {"vocabulary": {"size": vocabulary, "removed_tokens": sorted(removed)}}
        _write_manifest(folder, f"export {layout}", source, written, facts)
    logger.info("Wrote %d tensors to %s", written, output)


def _write_llava_hf_files(source: Source, folder: Path) -> None:
    for path in source.folder.iterdir():
        if path.suffix in (".jinja", ".model") or path.name in ("tokenizer.json", "generation_config.json"):
            shutil.copyfile(path, folder / path.name)
        elif path.name in ("config.json", "processor_config.json", "preprocessor_config.json", *TOKENIZER_FIELDS):
            fields = _without_remote_code(read_json(path))
            if path.name == "config.json":
                fields["architectures"] = [NATIVE_ARCHITECTURE]
            elif "processor_class" in fields:
                fields["processor_class"] = NATIVE_PROCESSOR
            write_json(folder / path.name, fields)


def _without_remote_code(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {name: _without_remote_code(value) for name, value in fields.items() if name != "auto_map"}


def _original_vocabulary(source: Source, config: PreTrainedConfig) -> tuple[int, set[str]]:
    recorded = _read_manifest(source.folder).get("vocabulary", {})
    if recorded.get("added_tokens") and recorded["size"] <= config.text_config.vocab_size:
        return recorded["size"], set(recorded["added_tokens"])
    tokens = {t["content"]: t["id"] for t in read_json(source.folder / "tokenizer.json")["added_tokens"]}
    removed = {token: index for token, index in tokens.items() if token in (IMAGE_TOKEN, PAD_TOKEN)}
    if not removed:
        return config.text_config.vocab_size, set()
    vocabulary = min(removed.values())
    if later := [token for token, index in tokens.items() if index > vocabulary and token not in removed]:
        raise ValueError(
            f"`{IMAGE_TOKEN}` cannot be cut from the vocabulary of {source.folder}: {later[:3]} follow it."
        )
    return vocabulary, set(removed)


def _write_llava_files(
    source: Source, config: PreTrainedConfig, vocabulary: int, removed: set[str], folder: Path
) -> None:
    fields = llava_fields(config, vocabulary, read_image_aspect_ratio(source))
    write_json(folder / "config.json", fields)
    generation = _generation_config(source, config).to_diff_dict() | {"pad_token_id": fields["pad_token_id"]}
    write_json(folder / "generation_config.json", generation)
    _write_original_tokenizer(source.folder, removed, folder)

    tower, vision = folder / "vision_tower", config.vision_config
    tower.mkdir()
    tower_fields = {name: getattr(vision, name) for name in sorted(VISION_FIELDS)}
    tower_fields |= {"architectures": ["CLIPVisionModel"], "model_type": vision.model_type}
    write_json(tower / "config.json", tower_fields | {"torch_dtype": fields["torch_dtype"]})
    square = {"height": vision.image_size, "width": vision.image_size}
    CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=square).save_pretrained(tower)


def _write_original_tokenizer(model: Path, removed: set[str], folder: Path) -> None:
    recorded = _read_manifest(model).get("tokenizer_files")
    has_model = (model / "tokenizer.model").is_file()
    if has_model:
        shutil.copyfile(model / "tokenizer.model", folder / "tokenizer.model")
    else:
        logger.warning("%s has no tokenizer.model, which LLaVA's own code needs: add the one of its LLM.", model)
    if not (has_model and recorded):
        tokens = read_json(model / "tokenizer.json")
        tokens["added_tokens"] = [token for token in tokens["added_tokens"] if token["content"] not in removed]
        write_json(folder / "tokenizer.json", tokens)
    for name, fields in (recorded or _tokenizer_fields_without(removed, model)).items():
        write_json(folder / name, fields)


def _tokenizer_fields_without(removed: set[str], model: Path) -> dict[str, dict[str, Any]]:
    ours = ("processor_class", "extra_special_tokens", "is_local", "local_files_only", "backend")
    fields = _without_remote_code(read_json(model / "tokenizer_config.json"))
    fields = {n: v for n, v in fields.items() if n not in ours and not (isinstance(v, str) and v in removed)}
    if fields.get("tokenizer_class") == "LlamaTokenizer":
        fields["legacy"] = False  # dropped when transformers 5 saves, and true by default in older versions
    return {"tokenizer_config.json": fields}


def build_parser() -> argparse.ArgumentParser:
    """
    Parser of the command line.

    Returns:
        `argparse.ArgumentParser`: Its result has the field `command` and the arguments of that command's function.
    """
    parser = argparse.ArgumentParser(
        prog="python -m modeling_sharegpt4v.convert_weights",
        description="Convert published ShareGPT4V and LLaVA checkpoints, and export to their layouts.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("import", "export"):
        options = commands.add_parser(command)
        options.add_argument("--model", type=Path, required=True, help="Folder of the checkpoint.")
        options.add_argument("--output", type=Path, required=True, help="Folder to write; new or empty.")
        options.add_argument("--max-shard-size", default="5GB", help="Upper bound of one weight file.")
        if command == "export":
            options.add_argument("--layout", choices=("llava", "llava-hf"), required=True, help="Layout to write.")
            continue
        options.add_argument("--vision-tower", type=Path, help="Folder of the tower, if it is not in the checkpoint.")
        options.add_argument("--tokenizer", type=Path, help="Folder of the tokenizer, if it is not in the checkpoint.")
        options.add_argument("--reference-tower", type=Path, help="Folder of OpenAI's tower, to prove the tuning.")
        options.add_argument("--allow-untuned-tower", action="store_true", help="Accept an untuned tower.")
        options.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="Type of the written weights.")
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv (`list[str]`, *optional*): Arguments, those of the process by default.

    Returns:
        `int`: Exit status, 1 if the conversion was refused.
    """
    arguments = vars(build_parser().parse_args(argv))
    # transformers' verbosity governs its own modules only, and this one runs as `__main__`.
    python_logging.basicConfig(level=python_logging.INFO, format="%(levelname)s %(message)s")
    try:
        if arguments.pop("command") == "import":
            import_checkpoint(**arguments)
        else:
            export_checkpoint(**arguments)
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

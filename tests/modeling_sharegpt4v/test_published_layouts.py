"""What is refused about files, towers and layouts; whole conversions are in `test_convert_weights.py`."""

import json

import pytest
import torch

from modeling_sharegpt4v.checkpoint_files import (
    ShardWriter,
    complete_folder,
    find_weight_files,
    load_tokenizer,
    read_shapes,
    read_tensors,
    scan_tensors,
    set_rows,
)
from modeling_sharegpt4v.convert_weights import export_checkpoint, import_checkpoint
from modeling_sharegpt4v.published_layouts import check_tower, export_name, live_name, open_source, read_config
from tests.original_checkpoints import (
    LLAVA,
    OPENAI_NAME,
    TUNED_FOLDER,
    TUNED_NAME,
    VOCABULARY,
    equal,
    expected_tensors,
    llava_hf_tensors,
    llm_tensors,
    load_native,
    nameless_copy,
    openai_name,
    read_all,
    save_bin,
    share4v_config,
    tower_config,
    tower_tensors,
    tuned_from,
    whole_clip,
    write_model,
    write_tokenizer,
    write_tower,
)
from tests.tiny import tiny_model, tiny_siglip


def inside(tower: dict) -> dict:
    return {f"model.vision_tower.vision_tower.{name}": value for name, value in tower.items()}


@pytest.mark.parametrize("layout", ["llava", "llava-hf"])
def test_names_return_from_every_layout(layout):
    live = dict(expected_tensors(llm_tensors(layers=2), tower_tensors()))
    for name in live:
        published = export_name(name, layout)
        if published.startswith("vision_model."):  # in a folder of its own
            published = f"vision_tower.{published}"
        assert live_name(published) == name == live_name(name)
    llava_hf = set(llava_hf_tensors(llm_tensors(layers=2), tower_tensors()))
    assert layout == "llava" or {export_name(name, layout) for name in live} == llava_hf


def test_absent_weights_and_shards_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no weights"):
        find_weight_files(tmp_path)
    save_bin(llm_tensors(layers=1), tmp_path, shards=2)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 shards .*pytorch_model-00002-of-00002\.bin"):
        find_weight_files(tmp_path)


def test_an_index_cannot_leave_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({}, tmp_path / "other.bin")
    index = {"weight_map": {"a": "../other.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside of its folder"):
        find_weight_files(folder)


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors"):
        read_shapes(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        read_shapes(tmp_path / "model.safetensors")


def test_two_tensors_of_one_name_are_refused(tmp_path):
    torch.save({"lm_head.weight": torch.ones(1), "language_model.lm_head.weight": torch.ones(1)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"are both lm_head\.weight"):
        scan_tensors([tmp_path / "a.bin"], live_name)


def test_shards_keep_shared_and_transposed_tensors(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": table, "b": table, "c": table.T, "d": table[1:]}, tmp_path / "pytorch_model.bin")
    writer = ShardWriter(tmp_path, max_shard_size=60)
    for name, tensor in read_tensors(tmp_path / "pytorch_model.bin", ["a", "b", "c", "d"]):
        writer.add(name, tensor)
    assert writer.finish() == 4
    written = read_all(tmp_path)
    assert all(torch.equal(written[name], value) for name, value in {"a": table, "b": table, "c": table.T}.items())
    assert torch.equal(written["d"], table[1:])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (12 * 3 + 8)
    assert len(set(index["weight_map"].values())) == len(list(tmp_path.glob("*.safetensors"))) == 4


def test_rows_are_cut_or_grown_by_their_mean():
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16)
    assert torch.equal(set_rows(table, 1), table[:1])
    assert torch.equal(set_rows(table, 3)[2], torch.tensor([2.0, 4.0], dtype=torch.bfloat16))


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), complete_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with complete_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


@pytest.mark.parametrize("absent", ["tokenizer.model", "tokenizer_config.json"])
def test_an_incomplete_tokenizer_is_refused(tmp_path, absent):
    write_tokenizer(tmp_path)
    (tmp_path / absent).unlink()
    with pytest.raises(ValueError, match="no complete tokenizer.*--tokenizer"):
        load_tokenizer(tmp_path, VOCABULARY)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    llm = llm_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        llm[name] = llm[name][:300].clone()
    model = write_model(tmp_path / "model", llm, share4v_config(vocab_size=300))
    with pytest.raises(ValueError, match="has 384 tokens, the model 300"):
        import_checkpoint(model, tmp_path / "ours", vision_tower=write_tower(tmp_path / TUNED_FOLDER))


def test_a_tower_by_name_is_never_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tower(tmp_path / OPENAI_NAME)  # where a loader that resolves names would find it
    model = write_model(tmp_path / "model", config=share4v_config(mm_vision_tower=OPENAI_NAME))
    with pytest.raises(ValueError, match="no vision tower"):
        open_source(model)
    absolute = write_model(tmp_path / "next", config=share4v_config(mm_vision_tower=str(tmp_path / OPENAI_NAME)))
    with pytest.raises(ValueError, match="no vision tower"):
        open_source(absolute)


def test_a_tower_inside_can_be_proved_untuned(tmp_path):
    reference = write_tower(tmp_path / "openai")
    model = write_model(tmp_path / "model", llm_tensors() | inside(tower_tensors()))
    check_tower(open_source(model))
    with pytest.raises(ValueError, match="equal those of"):
        check_tower(open_source(model), reference)


def test_a_reference_of_another_size_is_refused(tmp_path):
    tower = tower_tensors()
    del tower["vision_model.encoder.layers.23.mlp.fc1.bias"]
    reference = write_tower(tmp_path / "openai", tower)
    model = write_model(tmp_path / "model", llm_tensors() | inside(tower_tensors()))
    with pytest.raises(ValueError, match="has other tensors"):
        check_tower(open_source(model), reference)


def test_a_tower_inside_needs_a_known_origin(tmp_path):
    config = share4v_config(mm_vision_tower="laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    model = write_model(tmp_path / "model", llm_tensors() | inside(tower_tensors()), config)
    with pytest.raises(ValueError, match="is not OpenAI's"):
        read_config(open_source(model))


def test_a_tower_that_is_no_clip_is_refused(tmp_path):
    tower = write_tower(tmp_path / TUNED_FOLDER, config=tower_config(model_type="siglip_vision_model"))
    with pytest.raises(ValueError, match="must be a CLIP, got the type 'siglip_vision_model'"):
        read_config(open_source(write_model(tmp_path / "model"), tower))


def test_export_refuses_what_a_layout_cannot_express(tmp_path):
    with pytest.raises(ValueError, match="original layout already"):
        export_checkpoint(
            write_model(tmp_path / "a", llm_tensors() | inside(tower_tensors())), tmp_path / "out", "llava"
        )
    model, processor = tiny_model(tiny_siglip())
    model.save_pretrained(tmp_path / "siglip")
    processor.save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="vision tower must be 'clip_vision_model', got 'siglip_vision_model'"):
        export_checkpoint(tmp_path / "siglip", tmp_path / "out", "llava")
    processor.tokenizer.add_tokens(["<late>"])
    processor.tokenizer.save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="<late>"):
        export_checkpoint(tmp_path / "siglip", tmp_path / "out", "llava")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_ours_survives_llava_hf(tmp_path, tied):
    model, processor = tiny_model(tiny_siglip(), image_aspect_ratio="crop", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "hf", "llava-hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "again")
    for name in ("again", "hf"):
        assert equal(load_native(tmp_path / name).state_dict(), model.state_dict())
    assert equal(read_all(tmp_path / "again"), read_all(tmp_path / "ours"))
    assert not json.loads((tmp_path / "again" / "processor_config.json").read_text())["image_processor"]["do_pad"]


def test_settings_for_sampling_go_where_nothing_samples(tmp_path):
    model, tower = write_model(tmp_path / "model"), write_tower(tmp_path / TUNED_FOLDER)
    fields = {"_from_model_config": True, "eos_token_id": 2, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (model / "generation_config.json").write_text(json.dumps(fields | {"pad_token_id": 0}))
    import_checkpoint(model, tmp_path / "ours", vision_tower=tower)
    written = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    del written["transformers_version"]
    assert written == {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": VOCABULARY + 1}


def test_dtype_is_that_of_every_tensor_and_of_the_configuration(tmp_path):
    model, tower = write_model(tmp_path / "model"), write_tower(tmp_path / TUNED_FOLDER)
    import_checkpoint(model, tmp_path / "ours", vision_tower=tower, dtype="float16")
    assert {tensor.dtype for tensor in read_all(tmp_path / "ours").values()} == {torch.float16}
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float16"


def test_manifest_names_no_folder_of_the_training_machine(tmp_path):
    config = share4v_config(mm_vision_tower="/data/someone/vit-large336-l12")
    model, tower = write_model(tmp_path / "model", config=config), write_tower(tmp_path / TUNED_FOLDER)
    import_checkpoint(model, tmp_path / "ours", vision_tower=tower)
    manifest = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert manifest["vision_tower"]["declared"] == "vit-large336-l12"


@pytest.mark.parametrize("tower", [whole_clip, openai_name, nameless_copy])
@pytest.mark.parametrize("config", [{"mm_vision_tower": OPENAI_NAME}, {**LLAVA, "mm_vision_tower": TUNED_NAME}])
def test_untuned_tower_is_refused(tmp_path, tower, config, caplog):
    model = write_model(tmp_path / "model", config=share4v_config(**config))
    folder = tower(tmp_path / "clip")
    with pytest.raises(ValueError, match="looks untuned"):
        import_checkpoint(model, tmp_path / "ours", vision_tower=folder)
    assert not (tmp_path / "ours").exists()
    import_checkpoint(model, tmp_path / "ours", vision_tower=folder, allow_untuned_tower=True)
    assert "The vision tower is untuned" in caplog.text


def test_reference_tower_decides(tmp_path, caplog):
    original = tower_tensors(dtype=torch.float32)
    reference = write_tower(tmp_path / "openai", original)
    untuned = write_tower(tmp_path / "untuned", {n: v.bfloat16() for n, v in original.items()})
    tuned = write_tower(tmp_path / "tuned", tuned_from(original), tower_config(_name_or_path=OPENAI_NAME))
    model = write_model(tmp_path / "model")
    with pytest.raises(ValueError, match="blocks 12 to 22 equal those of"):
        import_checkpoint(model, tmp_path / "ours", vision_tower=untuned, reference_tower=reference)
    import_checkpoint(model, tmp_path / "ours", vision_tower=tuned, reference_tower=reference)
    assert "never trains" not in caplog.text
    other = tuned_from(original)
    for block in (11, 23):
        other[f"vision_model.encoder.layers.{block}.mlp.fc1.bias"] += 1
    tower = write_tower(tmp_path / "other", other)
    import_checkpoint(model, tmp_path / "next", vision_tower=tower, reference_tower=reference)
    assert "2 tensors that ShareGPT4V never trains differ" in caplog.text

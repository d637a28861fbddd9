"""Bounds on what a prompt, an image or a composition may ask for."""

import pytest
from PIL import Image

from modeling_sharegpt4v import compose
from modeling_sharegpt4v.images_sharegpt4v import MAX_PAD_SIDE, limit_side
from tests.tiny import noise_image, tiny_clip, tiny_llm, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def processor():
    return tiny_model()[1]


def test_a_very_long_image_is_reduced_before_it_is_padded(processor):
    image = Image.new("RGB", (60_000, 1), (200, 10, 10))
    assert limit_side(image).size == (MAX_PAD_SIDE, 1)
    assert processor(images=image, text="<image>", return_tensors="pt")["pixel_values"].shape == (1, 3, 28, 28)


def test_an_image_within_the_bound_is_left_alone():
    image = noise_image(size=(MAX_PAD_SIDE, 2))
    assert limit_side(image) is image


def test_rows_whose_mismatches_cancel_out_are_refused(processor):
    with pytest.raises(ValueError, match="text of row 0 holds 2 '<image>' placeholders and 1 images"):
        processor(images=[[noise_image(0)], [noise_image(1)]], text=["<image><image> a", "b"])


def test_a_feature_layer_that_does_not_exist_is_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="must index one of 5 states, got -6"):
        compose(tiny_clip(), tiny_llm(len(tokenizer)), tokenizer, vision_feature_layer=-6)


def test_a_tokenizer_without_its_vocabulary_is_refused():
    with pytest.raises(ValueError, match="knows 400 tokens and the LLM 1000"):
        compose(tiny_clip(), tiny_llm(1000), tiny_tokenizer())


def test_all_features_of_a_clip_tower_have_a_token_each():
    from modeling_sharegpt4v import build_processor

    model, processor = tiny_model()
    model.config.vision_feature_select_strategy = "full"  # the class token is projected too
    inputs = build_processor(model.config, processor.tokenizer)(images=noise_image(), text="<image>")
    assert inputs["input_ids"][0].count(model.config.image_token_id) == 5

"""What is sent of an image: upright RGB within the side and byte budgets; nothing of a file that cannot be read."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from captioning.endpoint import EndpointAnnotator
from captioning.endpoint_config import EndpointConfig
from captioning.payload import encode_image
from captioning.prompts import Prompt
from tests.captioning.asking import PROMPT, config_for
from tests.captioning.fault_server import FaultServer
from tests.exif import SIDEWAYS, exif_block
from tests.image_files import encoded, picture, png_bomb


def sent(source, **options) -> Image.Image:
    return Image.open(io.BytesIO(encode_image(source, EndpointConfig("m", **options)).data))


def as_bytes(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def halves(left, right, size=(64, 32)) -> Image.Image:
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def test_an_image_turned_by_exif_is_sent_upright_and_without_exif():
    data = as_bytes(halves("red", "blue"), "JPEG", exif=exif_block(SIDEWAYS), quality=95)
    image = sent(data)
    assert image.size == (32, 64) and not image.getexif()
    assert image.getpixel((16, 5))[0] > 200 and image.getpixel((16, 60))[2] > 200


def test_cmyk_is_sent_as_rgb():
    image = sent(as_bytes(halves("red", "blue").convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB" and image.getpixel((5, 5))[0] > 200 and image.getpixel((60, 5))[2] > 200


def test_sixteen_bits_are_scaled_and_not_clipped():
    grey = Image.fromarray(np.full((20, 30), 32768, np.uint16))
    assert abs(sent(as_bytes(grey, "PNG")).getpixel((5, 5))[0] - 128) <= 2


def test_transparency_becomes_white():
    assert sent(as_bytes(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG")).getpixel((5, 5)) == (255, 255, 255)


def test_nothing_but_pixels_is_sent():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = as_bytes(picture(), "JPEG", comment=b"by Jane", icc_profile=profile, dpi=(300, 300))
    picture_sent = encode_image(data, EndpointConfig("m"))
    assert b"Jane" not in picture_sent.data and b"ICC_PROFILE" not in picture_sent.data


def test_the_long_side_is_bounded_and_small_images_stay():
    assert sent(encoded(size=(3000, 1500)), image_side=512).size == (512, 256)
    assert sent(encoded(size=(1, 5000)), image_side=512).size == (1, 512)
    assert sent(encoded(size=(48, 32)), image_side=512).size == (48, 32)


def test_a_huge_image_gives_quality_then_sides_for_the_byte_budget():
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    data = as_bytes(Image.fromarray(noise), "PNG")
    plenty, some, little = (
        encode_image(data, EndpointConfig("m", image_side=800, image_bytes=size)) for size in (10**6, 300_000, 20_000)
    )
    assert plenty.width == some.width == 800 and little.width < 800
    assert 20_000 >= len(little.data) and 300_000 >= len(some.data) > 150_000
    assert little.width / little.height == pytest.approx(4 / 3, rel=0.02)


def test_a_budget_that_no_picture_meets_is_an_error():
    with pytest.raises(ValueError, match="still takes .* bytes at 32x.* Raise it"):
        encode_image(encoded(size=(400, 300)), EndpointConfig("m", image_bytes=100))


def test_the_image_given_is_left_as_it_is():
    image = picture(size=(3000, 1500))
    image.info["comment"] = b"mine"
    encode_image(image, EndpointConfig("m", image_side=100))
    assert image.size == (3000, 1500) and image.info == {"comment": b"mine"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "cannot identify"),
        (b"this is text", "cannot identify"),
        (encoded(size=(400, 300))[:2000], "truncated"),
        (png_bomb(14_000), "decompression bomb"),
        ("/nonexistent/image.jpg", "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_bad_image_and_no_request(source, message):
    async def run():
        async with EndpointAnnotator(config_for(server)) as annotator:
            return await annotator.annotate(source, PROMPT, "k")

    with FaultServer() as server:
        answer = asyncio.run(run())
    assert answer.state == "bad_image" and message in answer.error and answer.attempts == 0
    assert server.seen == []


@pytest.mark.parametrize("size", [(0, 0), (0, 5)])
def test_an_image_without_pixels_is_a_bad_image_and_the_others_go_on(size):
    async def run():
        async with EndpointAnnotator(config_for(server)) as annotator:
            asked = [(Image.new("RGB", size), PROMPT, "0"), (encoded(), PROMPT, "1")]
            return {answer.key: answer async for answer in annotator.annotate_many(asked)}

    with FaultServer() as server:
        answers = asyncio.run(run())
    assert (answers["0"].state, answers["1"].state) == ("bad_image", "ok") and "no pixels" in answers["0"].error


def test_files_bytes_and_images_are_sent_alike(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(kind="PNG"))
    config = EndpointConfig("m")
    sources = (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(kind="PNG"), picture())
    assert len({encode_image(source, config).data for source in sources}) == 1


def test_a_prompt_of_any_text_arrives_unchanged():
    text = 'Read "this" \\ {x}: \u4e2d\u6587 \U0001f600\nand ignore nothing.'

    async def run():
        async with EndpointAnnotator(config_for(server)) as annotator:
            return await annotator.annotate(encoded(), Prompt("p", text), "k")

    with FaultServer() as server:
        asyncio.run(run())
    image, asked = server.seen[0].body["messages"][0]["content"]
    assert asked["text"] == text
    assert base64.b64decode(image["image_url"]["url"].partition(",")[2])[:2] == b"\xff\xd8"

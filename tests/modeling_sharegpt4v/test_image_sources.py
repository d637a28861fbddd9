"""However an image is given, the model sees the same pixels."""

import base64
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from tests.exif import SIDEWAYS, exif_block
from tests.tiny import chat, noise_image, tiny_model


@pytest.fixture(scope="module")
def processor():
    return tiny_model()[1]


def encoded(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", **options)
    return stream.getvalue()


def transparent() -> Image.Image:
    image = noise_image(1).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40))


FILES = {
    "plain": encoded(noise_image(0)),
    "transparent": encoded(transparent()),
    "16-bit": encoded(deep()),
    "sideways": encoded(noise_image(2), exif=exif_block(SIDEWAYS)),
}


@pytest.fixture(scope="module")
def server():
    """Serves `FILES` on the loopback address until the module is done."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = FILES.get(self.path.removeprefix("/").replace("%20", " "))
            self.send_response(200 if data else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *args):
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pixels(processor, image) -> torch.Tensor:
    return processor(images=image, text="<image>", return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", FILES)
def test_every_way_to_give_an_image_gives_the_same_pixels(processor, server, tmp_path, name):
    data = FILES[name]
    path = tmp_path / "image.png"
    path.write_bytes(data)
    plain = base64.b64encode(data).decode()
    sources = [str(path), data, f"data:image/png;base64,{plain}", plain, f"{server}/{name}", Image.open(path)]
    sources += [{"bytes": data, "path": "x.png"}, {"bytes": None, "path": str(path)}]
    expected = pixels(processor, path)
    for source in sources:
        assert torch.equal(pixels(processor, source), expected), str(source)[:60]


def test_an_address_in_a_chat_gives_the_pixels_of_its_file(processor, server):
    turns = chat("What is it?", noise_image())
    turns[0]["content"][0] = {"type": "image", "url": f"{server}/16-bit"}
    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], pixels(processor, FILES["16-bit"]))


def test_an_absent_address_is_named(processor, server):
    with pytest.raises(ValueError, match="Cannot fetch the image http://127.0.0.1:.*/absent: .*404"):
        pixels(processor, f"{server}/absent")


def test_text_that_is_no_image_is_named(processor):
    with pytest.raises(ValueError, match="There is no image 'photos/absent.jpg': give a path"):
        pixels(processor, "photos/absent.jpg")

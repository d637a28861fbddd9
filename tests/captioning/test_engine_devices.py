"""Workers in processes of their own share one queue of requests."""

import itertools
import multiprocessing

import pytest
import torch

from captioning.engine import load_engine
from captioning.engine_devices import caption_on_devices
from captioning.engine_requests import CaptionRequest
from tests.tiny import noise_image, tiny_model


OPTIONS = {"dtype": torch.float32, "slots": 2, "max_length": 128, "loop_guard": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model, processor = tiny_model()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def endless():
    for index in itertools.count():
        yield CaptionRequest(str(index), noise_image(index), "What?", 3 + index % 9)


def test_two_workers_write_what_one_engine_writes(folder):
    asked = [*itertools.islice(endless(), 12), CaptionRequest("bad", b"no image", "What?")]
    found = {one.key: one for one in caption_on_devices(folder, iter(asked), ["cpu", "cpu"], **OPTIONS)}
    assert found.pop("bad").state == "bad_image"
    assert found == {one.key: one for one in load_engine(folder, **OPTIONS).caption(asked[:-1])}


@pytest.mark.slow
def test_workers_of_endless_requests_can_be_left(folder):
    results = caption_on_devices(folder, endless(), ["cpu"], **OPTIONS)
    assert len(list(itertools.islice(results, 20))) == 20
    results.close()


def test_the_error_of_a_worker_is_raised_with_its_device(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)The worker on cpu failed.*absent"):
        list(caption_on_devices(str(tmp_path / "absent"), endless(), ["cpu"], **OPTIONS))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_noticed(folder):
    results = caption_on_devices(folder, endless(), ["cpu"], **OPTIONS)
    next(results)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(RuntimeError, match="The worker on cpu ended with exit code -9"):
        list(results)


def test_requests_that_cannot_be_sent_are_an_error(folder):
    def broken():
        yield CaptionRequest("r", noise_image(), "What?", 3)
        raise OSError("the disk is gone")

    with pytest.raises(RuntimeError, match="(?s)cannot be read.*the disk is gone"):
        list(caption_on_devices(folder, broken(), ["cpu"], **OPTIONS))


def test_no_device_is_an_error(folder):
    with pytest.raises(ValueError, match="`devices` is empty"):
        next(caption_on_devices(folder, endless(), []))

"""Fixtures of several test files, and the network that no test gets."""

import pytest

from tests.fault_world import World
from tests.network import ATTEMPTS, forbid_network


LONGEST = (
    "tests/trainers",
    "tests/captioning",
    "share_captioner",
    "tests/model_cards",
    "tests/modeling",
    "tests/eval",
)
forbid_network()


@pytest.fixture(autouse=True)
def offline():
    """Fail a test that tried to leave this machine, also if whoever tried went on."""
    ATTEMPTS.clear()
    yield
    assert not ATTEMPTS, f"Tests are offline: {ATTEMPTS}"


def pytest_collection_modifyitems(items):
    """Put the folders whose files take longest first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: next((place for place, name in enumerate(LONGEST) if name in str(item.path)), 99))


@pytest.fixture
def world(tmp_path, capsys):
    """Nine records with their images, and the commands that use them."""
    return World(tmp_path, capsys)

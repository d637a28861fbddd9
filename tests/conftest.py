"""Fixtures of several test files, and the network that no test gets."""

import pytest

from tests.fault_world import World
from tests.network import ATTEMPTS, forbid_network


forbid_network()


@pytest.fixture(autouse=True)
def offline():
    """Fail a test that tried to leave this machine, also if whoever tried went on."""
    ATTEMPTS.clear()
    yield
    assert not ATTEMPTS, f"Tests are offline: {ATTEMPTS}"


@pytest.fixture
def world(tmp_path, capsys):
    """Nine records with their images, and the commands that use them."""
    return World(tmp_path, capsys)

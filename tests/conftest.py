"""Fixtures of several test files."""

import pytest

from tests.fault_world import World


@pytest.fixture
def world(tmp_path, capsys):
    """Nine records with their images, and the commands that use them."""
    return World(tmp_path, capsys)

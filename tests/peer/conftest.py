"""Fixtures for the tests of peers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncipc import Peer
from tests.peer.support import echoing, socket_path


@pytest.fixture
def path() -> Iterator[Path]:
    with socket_path() as path:
        yield path


@pytest.fixture
def peer() -> Peer:
    return echoing()

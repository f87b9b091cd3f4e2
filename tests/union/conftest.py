"""Where the tests of the union take place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from tests.require import need
from tests.union.calls import UMASK


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(UMASK)
    yield
    os.umask(before)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory."""
    need.root()
    root = tmp_path / "memory"
    root.mkdir()
    perform("tmpfs", "tmpfs", [], root)
    try:
        yield root
    finally:
        umount(root, lazy=True)

"""What every test leaves behind is taken away, also when it failed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.removetree import remove_tree
from layerfs.linux.umount import umount

pytest_plugins = ["tests.fusekit", "tests.hosts.plugin", "tests.zfskit"]


def pytest_configure() -> None:
    """A shell lets what it starts in the background ignore interrupts, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Mounts below ``tmp_path`` first, then the tree: some are deeper than pytest itself can remove."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    scratch: Path = request.getfixturevalue("tmp_path")
    yield
    for entry in reversed(list(mounts_below(scratch))):
        umount(Path(entry.mount_point.decode("utf-8", "surrogateescape")), lazy=True)
    remove_tree(scratch)

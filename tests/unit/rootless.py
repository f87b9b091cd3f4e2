"""What overlay alone does in a user namespace. Run by ``test_overlay_rootless.py``, inside one; what every
driver does there is asked by ``tests/conformance/test_rootless.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.userns import in_user_namespace
from layerfs.overlay.driver import OverlayDriver
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.entries import directory, file, opaque
from layerfs.testing.model import read_items
from layerfs_drivers.overlay import DRIVER
from tests.overlaykit import unmounted


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    assert in_user_namespace()
    DRIVER.probe(tmp_path / "home", tmp_path / "run")
    with unmounted(tmp_path):
        driver = OverlayDriver.open(tmp_path / "home", tmp_path / "run", read_only=False)
        make_layer(driver, BASE, [directory(b"e"), file(b"e/x", b"x")])
        yield driver


def test_marks_are_those_of_the_user(driver: OverlayDriver) -> None:
    make_layer(driver, OTHER, [opaque(b"e"), file(b"e/new", b"")], BASE)
    assert os.getxattr(driver.layout.diff(OTHER) / "e", "user.overlay.opaque") == b"y"
    (mount,) = driver.mounts(BASE)
    assert mount.options[-1] == "userxattr"
    assert driver.status()["marks"].startswith("user.overlay.")


def test_attributes_that_are_called_like_marks_are_kept(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        os.setxattr(root / "e", "user.overlay.mine", b"kept")
    with driver.diff(TOP, BASE) as tar:
        (entry,) = (entry for entry, _ in read_items(tar) if entry.name == b"e/")
    assert entry.xattrs == {b"user.overlay.mine": b"kept"}

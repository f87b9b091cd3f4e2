"""A label given to a mount is the label of every file in it."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from layerfs.driver import CreateOptions
from layerfs.ids import parse_graph_id
from layerfs_drivers.overlay import DRIVER
from tests.require import need

pytestmark = pytest.mark.host("selinux")

LABEL = "u:object_r:container"


def test_overlay_mounts_carry_the_label(tmp_path: Path) -> None:
    need.overlay(tmp_path)
    need.selinux()
    driver = DRIVER.open(tmp_path / "home", tmp_path / "run", {})
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    tar.seek(0)
    base, top = parse_graph_id("base"), parse_graph_id("top")
    driver.create(base, None)
    driver.apply_diff(base, None, tar)
    driver.create_read_write(top, base, options=CreateOptions(label=LABEL))
    root = driver.get(top, label=LABEL)
    try:
        assert os.getxattr(root / "file", "security.selinux").rstrip(b"\0") == LABEL.encode()
        (root / "new").touch()
        assert os.getxattr(root / "new", "security.selinux").rstrip(b"\0") == LABEL.encode()
    finally:
        driver.put(top)
    assert driver.capabilities.labels

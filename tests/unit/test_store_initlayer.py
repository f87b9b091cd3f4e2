"""The default init layer: what the field puts there, inside the root whatever the image holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.errors import SystemFailure
from layerfs.store.initlayer import default_init

DIRECTORIES = ("dev/pts", "dev/shm", "proc", "sys")
FILES = (".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    root.mkdir()
    return root


def test_what_it_makes(root: Path) -> None:
    mask = os.umask(0o077)
    try:
        default_init(root)
    finally:
        os.umask(mask)
    for name in DIRECTORIES:
        assert (root / name).stat().st_mode & 0o7777 == 0o755
    for name in FILES:
        assert (root / name).is_file()
        assert (root / name).stat().st_size == 0
    assert os.readlink(root / "etc/mtab") == "/proc/mounts"
    default_init(root)


def test_what_is_there_stays(root: Path) -> None:
    (root / "etc").mkdir(mode=0o700)
    (root / "etc/hosts").write_text("127.0.0.1\n")
    (root / "etc/mtab").write_text("mine")
    (root / "etc/resolv.conf").symlink_to("/run/absent")
    (root / "sys").mkdir(mode=0o555)
    default_init(root)
    assert (root / "etc/hosts").read_text() == "127.0.0.1\n"
    assert (root / "etc/mtab").read_text() == "mine"
    assert os.readlink(root / "etc/resolv.conf") == "/run/absent"
    assert (root / "etc").stat().st_mode & 0o7777 == 0o700
    assert (root / "sys").stat().st_mode & 0o7777 == 0o555


@pytest.mark.parametrize("target", ["{outside}", "../outside", "/../../{outside}"])
def test_links_of_the_image_lead_nowhere_else(root: Path, tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "etc").symlink_to(target.format(outside=outside))
    (root / "dev").mkdir()
    (root / "dev/console").symlink_to(outside / "console")
    try:
        default_init(root)
    except SystemFailure as error:
        assert "init layer" in str(error)
    assert list(outside.iterdir()) == []


def test_a_link_inside_the_root_is_followed(root: Path) -> None:
    (root / "usr/etc").mkdir(parents=True)
    (root / "etc").symlink_to("/usr/etc")
    default_init(root)
    assert (root / "usr/etc/hosts").is_file()


def test_an_image_with_a_file_where_a_directory_belongs(root: Path) -> None:
    (root / "etc").write_text("")
    with pytest.raises(SystemFailure, match="init layer"):
        default_init(root)

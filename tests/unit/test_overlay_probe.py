"""Whether overlay can work in a place, and what is said where it cannot."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import NotSupported
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import mounts_below
from layerfs.overlay.probe import probe
from layerfs.overlay.ways import ByKernel
from layerfs_drivers.overlay import DRIVER
from tests.overlaykit import unmounted
from tests.require import need


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    need.overlay(tmp_path)
    (tmp_path / "place").mkdir()
    with unmounted(tmp_path):
        yield tmp_path / "place"


def test_a_good_place_is_left_as_it_was(place: Path) -> None:
    DRIVER.probe(place / "not" / "there" / "yet", place / "run")
    (place / "home").mkdir()
    DRIVER.probe(place / "home", place / "run")
    assert os.listdir(place) == ["home"] and os.listdir(place / "home") == []
    assert mounts_below(place) == []


def test_a_place_on_tmpfs(place: Path) -> None:
    perform("tmpfs", "tmpfs", (), place)
    DRIVER.probe(place / "home", place / "run")


def test_a_place_on_an_overlay_is_not_for_the_kernel(place: Path, tmp_path: Path) -> None:
    """As in a container whose own root is an overlay."""
    directories = {name: tmp_path / name for name in ("lowerdir", "upperdir", "workdir")}
    for directory in directories.values():
        directory.mkdir()
    perform("overlay", "overlay", [f"{key}={path}" for key, path in directories.items()], place)
    with pytest.raises(NotSupported, match=r"no overlay in .*place \(overlay\): ") as caught:
        probe(place / "home", ByKernel())
    assert caught.value.hint.startswith("overlay does not work upon overlay; put the store on ext4")
    assert os.listdir(place) == []


def test_a_file_system_without_xattrs_is_refused(place: Path) -> None:
    perform("ramfs", "ramfs", (), place)
    with pytest.raises(NotSupported, match=r"\(ramfs\): no trusted.overlay.opaque can be set") as caught:
        DRIVER.probe(place / "home", place / "run")
    assert "ext4" in caught.value.hint
    assert os.listdir(place) == []


def test_a_place_that_cannot_be_written_is_refused(place: Path) -> None:
    perform("tmpfs", "tmpfs", ("ro",), place)
    with pytest.raises(NotSupported, match="Read-only file system"):
        DRIVER.probe(place / "home", place / "run")


def test_a_full_place_says_nothing_of_what_it_can(place: Path) -> None:
    perform("tmpfs", "tmpfs", ("nr_inodes=20",), place)
    works = []
    for used in range(19, 0, -1):
        for number in range(used):
            (place / str(number)).touch()
        try:
            probe(place / "home", ByKernel())
        except OSError as error:
            assert error.errno == errno.ENOSPC
        else:
            works.append(used)
        for number in range(used):
            (place / str(number)).unlink()
        assert os.listdir(place) == []
    assert works and 19 not in works


def test_who_may_not_mount_is_told_how_to(place: Path) -> None:
    code = f"""
from pathlib import Path
from layerfs.errors import NotSupported
from layerfs_drivers.overlay import DRIVER
try:
    DRIVER.probe(Path({str(place)!r}), Path({str(place)!r}))
except NotSupported as error:
    print(error, error.hint)
"""
    command = [need.tool("setpriv"), "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "CAP_SYS_ADMIN" in done.stdout and "unshare --user --map-root-user" in done.stdout


def test_opening_a_new_home_tries_it_first(place: Path) -> None:
    perform("ramfs", "ramfs", (), place)
    with pytest.raises(NotSupported):
        DRIVER.open(place / "home", place / "run", {})
    assert os.listdir(place) == []

"""Limits of containers on overlay, kept by project quota: on real xfs and ext4 file systems.

What writes has no CAP_SYS_RESOURCE, as root in a container has none: ext4 lets whoever has it past.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import CreateOptions
from layerfs.errors import InvalidOption, NotSupported
from layerfs.linux import quota
from layerfs.overlay.driver import OverlayDriver
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.entries import file
from tests.overlaykit import overlay
from tests.require import need
from tests.unit.test_quota import FULL, MIB, MKFS, make_and_mount, run, write

pytestmark = pytest.mark.host("here", "overlay-6.1")


@pytest.fixture(params=["xfs", "ext4"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OverlayDriver]:
    """A driver where limits can be set, with one layer of 4 MiB."""
    with overlay(tmp_path, make_and_mount(MKFS[request.param], tmp_path, "prjquota")) as driver:
        if reason := driver.capabilities.no_limits_because:
            need.missing("project-quota", reason)
        make_layer(driver, BASE, [file(b"big", os.urandom(4 * MIB)), file(b"small", b"s")])
        yield driver


def limited(size: int | None = None, inodes: int | None = None) -> CreateOptions:
    return CreateOptions(size=size, inodes=inodes)


def test_it_is_told_that_limits_can_be_kept(driver: OverlayDriver) -> None:
    able = driver.capabilities
    assert able.size_limit and able.inode_limit and not able.no_limits_because
    assert driver.status()["limits"].startswith("project quota")


def test_a_size_limit_concerns_what_the_layer_itself_holds(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE, options=limited(size=2 * MIB))
    driver.create_read_write(OTHER, BASE)
    with mounted(driver, TOP) as root, mounted(driver, OTHER) as other:
        assert (root / "big").stat().st_size == 4 * MIB
        assert write(root / "fits", MIB) == ""
        assert write(root / "grows", 4 * MIB).strip().endswith(FULL)
        (root / "grows").unlink()
        assert run("touch", str(root / "big")).strip().endswith(FULL), "copying it up would be too much"
        assert write(other / "free", 8 * MIB) == ""
    used = driver.usage(TOP)
    assert MIB <= used.bytes <= 2 * MIB


def test_an_inode_limit_is_exact(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE, options=limited(inodes=10))
    with mounted(driver, TOP) as root:
        complaints = run("touch", *(str(root / f"new{number}") for number in range(12)))
        assert len([name for name in os.listdir(root) if name.startswith("new")]) == 9, "the root counts"
        assert complaints.count("cannot touch") == 3 and complaints.strip().endswith(FULL)
        (root / "new0").unlink()
        assert run("touch", str(root / "again")) == ""


def test_a_limited_container_works_like_any_other(driver: OverlayDriver) -> None:
    """Nothing that overlay does within a layer crosses from one project to another (EXDEV)."""
    driver.create_read_write(TOP, BASE, options=limited(size=64 * MIB, inodes=1000))
    with mounted(driver, TOP) as root:
        (root / "big").chmod(0o600)
        (root / "big").rename(root / "moved")
        (root / "d").mkdir()
        (root / "small").rename(root / "d" / "small")
        os.link(root / "moved", root / "d" / "linked")
        (root / "d" / "small").unlink()
        (root / "d").rename(root / "e")
    assert {change.path for change in driver.changes(TOP, BASE) if change.path} == {
        b"big",
        b"e",
        b"e/linked",
        b"moved",
        b"small",
    }


def test_a_limit_goes_with_its_layer(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE, options=limited(size=MIB))
    project = quota.project_of(driver.layout.home / TOP)
    driver.remove(TOP)
    driver.create_read_write(TOP, BASE)
    assert project and quota.project_of(driver.layout.home / TOP) == 0
    with mounted(driver, TOP) as root:
        assert write(root / "free", 8 * MIB) == ""
    driver.create_read_write(OTHER, BASE, options=limited(size=16 * MIB))
    used = quota.usage(driver.layout.home / OTHER)
    assert used and used.size_limit == 16 * MIB


def test_a_removal_that_was_cut_short_frees_the_limit_at_the_next_open(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE, options=limited(size=MIB))
    left = driver.layout.detach(TOP)
    assert left is not None
    OverlayDriver.open(driver.layout.home, driver.layout.runroot, read_only=False)
    assert not left.exists()


def test_projects_of_living_layers_differ(driver: OverlayDriver) -> None:
    for id in (TOP, OTHER):
        driver.create_read_write(id, BASE, options=limited(size=MIB))
    assert len({quota.project_of(driver.layout.home / id) for id in (TOP, OTHER)}) == 2


@pytest.mark.parametrize("options", [limited(size=0), limited(size=-1), limited(inodes=0)])
def test_a_limit_of_nothing_is_refused(tmp_path: Path, options: CreateOptions) -> None:
    with overlay(tmp_path) as driver:
        with pytest.raises(InvalidOption):
            driver.create_read_write(TOP, None, options=options)
        assert list(driver.ids()) == []


def test_where_limits_cannot_be_kept_it_says_what_is_missing(tmp_path: Path) -> None:
    home = make_and_mount(["mkfs.ext4", "-q", "-O", "^quota"], tmp_path)
    with overlay(tmp_path, home) as driver:
        able = driver.capabilities
        assert not able.size_limit and not able.inode_limit
        assert "project quota" in able.no_limits_because
        with pytest.raises(NotSupported) as caught:
            driver.create_read_write(TOP, None, options=limited(size=MIB))
        assert caught.value.hint == able.no_limits_because
        assert list(driver.ids()) == []

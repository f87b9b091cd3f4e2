"""Size limits of btrfs: the admin's quota, and quota groups that come and go with their layers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import CreateOptions
from layerfs.errors import InvalidOption, NotSupported
from layerfs.ids import GraphID
from layerfs.naivediff import NaiveDiff
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.conformance.limits import fill
from layerfs.testing.entries import directory, file
from tests.btrfskit import btrfs, hidden, open_in, qgroups, wait_for_cleaner
from tests.filesystems import file_system

pytestmark = pytest.mark.host("here", "overlay-6.1")  # older kernels leave quota groups behind

MIB = 1 << 20
LIMIT = 8 * MIB


@pytest.fixture
def disk() -> Iterator[Path]:
    with file_system("btrfs", size=512 * MIB) as root:
        yield root


@pytest.fixture
def driver(disk: Path) -> NaiveDiff:
    """Upon a file system whose admin has switched quota on."""
    btrfs("quota", "enable", disk)
    driver = open_in(disk)
    wait_for_cleaner(disk)  # of what probing made
    make_layer(driver, BASE, [directory(b"d"), file(b"image", os.urandom(2 * LIMIT))])
    return driver


def limited(driver: NaiveDiff, id: GraphID = TOP, parent: GraphID = BASE) -> None:
    driver.create_read_write(id, parent, options=CreateOptions(size=LIMIT))


def test_quota_stays_off_unless_the_option_says_otherwise(disk: Path) -> None:
    driver = open_in(disk)
    assert not driver.capabilities.size_limit
    make_layer(driver, BASE, [file(b"f", b"")])
    with pytest.raises(NotSupported) as caught:
        limited(driver)
    assert "quota is off" in caught.value.hint
    driver.remove(BASE)
    assert subprocess.run(["btrfs", "qgroup", "show", str(disk)], capture_output=True).returncode != 0
    assert open_in(disk, quota="enable").capabilities.size_limit
    assert driver.capabilities.size_limit
    assert "0/5" in qgroups(disk)


def test_a_limit_is_upon_the_layers_own_bytes_not_the_images(driver: NaiveDiff) -> None:
    limited(driver)
    with mounted(driver, TOP) as root:
        assert (root / "image").stat().st_size > LIMIT
        assert LIMIT // 2 < fill(root / "new", 2 * LIMIT) <= LIMIT


def test_a_layer_upon_a_limited_one_has_a_limit_only_if_told(driver: NaiveDiff, disk: Path) -> None:
    limited(driver)
    driver.create_read_write(OTHER, TOP)
    assert qgroups(disk)[f"0/{driver.metadata(OTHER)['id']}"] is None
    with mounted(driver, OTHER) as root:
        assert fill(root / "new", 2 * LIMIT) == 2 * LIMIT
    assert driver.metadata(TOP)["limit"] == str(LIMIT)
    assert "limit" not in driver.metadata(OTHER)


def test_a_limit_comes_back_after_quota_was_switched_off_and_on(driver: NaiveDiff, disk: Path) -> None:
    limited(driver)
    btrfs("quota", "disable", disk)
    with mounted(driver, TOP) as root:
        (root / "small").touch()
    btrfs("quota", "enable", disk)
    btrfs("quota", "rescan", "-w", disk)
    with mounted(driver, TOP) as root:
        assert fill(root / "new", 2 * LIMIT) <= LIMIT


def test_a_removed_id_does_not_leave_its_limit_to_the_next(driver: NaiveDiff, disk: Path) -> None:
    limited(driver)
    driver.remove(TOP)
    driver.create_read_write(TOP, BASE)
    assert "limit" not in driver.metadata(TOP)
    with mounted(driver, TOP) as root:
        assert fill(root / "new", 2 * LIMIT) == 2 * LIMIT


def test_quota_groups_go_with_their_layers(driver: NaiveDiff, disk: Path) -> None:
    before = qgroups(disk)
    for number in range(5):
        id = GraphID(f"layer-{number}")
        limited(driver, id)
        with mounted(driver, id) as root:
            btrfs("subvolume", "create", root / "nested")
            (root / "f").write_bytes(os.urandom(MIB))
        assert len(list(driver.changes(id, BASE))) == 3
        driver.remove(id)
    wait_for_cleaner(disk)
    open_in(disk)
    assert qgroups(disk) == before
    assert hidden(driver.proto.home, but=[".limits"]) == []
    assert os.listdir(driver.proto.home / ".limits") == []


def test_what_a_dead_process_left_of_quota_groups_is_swept(driver: NaiveDiff, disk: Path) -> None:
    before = qgroups(disk)
    limited(driver)
    number = driver.metadata(TOP)["id"]
    (driver.proto.home / TOP).rename(driver.proto.home / ".removing-abc")
    (driver.proto.home / f".qgroup-{number}").touch()
    open_in(disk)
    wait_for_cleaner(disk)
    open_in(disk)
    assert qgroups(disk) == before
    assert hidden(driver.proto.home, but=[".limits"]) == []


@pytest.mark.host("overlay-6.1")  # later kernels leave none
def test_a_quota_group_left_without_its_subvolume_is_a_leak(driver: NaiveDiff, disk: Path) -> None:
    before = qgroups(disk)
    limited(driver)
    assert driver.leaks() == []
    number = driver.metadata(TOP)["id"]
    driver.remove(TOP)
    wait_for_cleaner(disk)
    assert f"0/{number}" in qgroups(disk)
    (driver.proto.home / f".qgroup-{number}").unlink()
    assert driver.leaks() == [], "nothing tells that it is ours"
    (driver.proto.home / f".qgroup-{number}").touch()
    [leak] = driver.leaks()
    assert (leak.kind, leak.what) == ("qgroup", f"0/{number}")
    assert driver.leaks(remove=True) == [leak]
    assert driver.leaks() == [] and qgroups(disk) == before
    assert hidden(driver.proto.home, but=[".limits"]) == []


def test_a_note_of_a_subvolume_that_is_still_there_takes_nothing_from_it(
    driver: NaiveDiff, disk: Path
) -> None:
    limited(driver)
    group = f"0/{driver.metadata(TOP)['id']}"
    (driver.proto.home / f".qgroup-{driver.metadata(TOP)['id']}").touch()
    assert driver.leaks(remove=True) == []
    open_in(disk)
    assert qgroups(disk)[group] == LIMIT


def test_the_admins_quota_groups_are_left_alone(driver: NaiveDiff, disk: Path) -> None:
    btrfs("subvolume", "create", disk / "admins")
    btrfs("qgroup", "create", "1/100", disk)
    btrfs("qgroup", "limit", "-e", "50M", disk / "admins")
    before = qgroups(disk)
    limited(driver)
    driver.remove(TOP)
    wait_for_cleaner(disk)
    open_in(disk)
    assert qgroups(disk) == before


def test_space_comes_back_when_files_and_layers_go(driver: NaiveDiff) -> None:
    for _ in range(3):
        limited(driver)
        with mounted(driver, TOP) as root:
            for _ in range(3):
                assert fill(root / "f", LIMIT // 2) == LIMIT // 2
                (root / "f").unlink()
        driver.remove(TOP)


@pytest.mark.parametrize("size", [0, -1])
def test_a_limit_of_nothing_is_refused(driver: NaiveDiff, size: int) -> None:
    with pytest.raises(InvalidOption):
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=size))
    assert not driver.exists(TOP)


def test_inodes_cannot_be_limited_and_it_says_so(driver: NaiveDiff) -> None:
    with pytest.raises(NotSupported) as caught:
        driver.create_read_write(TOP, BASE, options=CreateOptions(inodes=10))
    assert "not inodes" in caught.value.hint
    assert "not inodes" in driver.capabilities.no_limits_because

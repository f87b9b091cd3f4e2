"""Layers as subvolumes: nested ones, removal, processes that die."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.errors import InvalidOption, LayerfsError, MountBusy, NotSupported, SystemFailure
from layerfs.ids import GraphID
from layerfs.linux.mount import perform
from layerfs.linux.opened import opened
from layerfs.linux.removetree import remove_tree
from layerfs.linux.umount import umount
from layerfs.naivediff import NaiveDiff
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted, tree_of
from layerfs.testing.entries import directory, file, tar_stream
from layerfs.testing.model import apply, changes, read_items
from layerfs_drivers.btrfs import DRIVER, _ioctl
from tests.btrfskit import btrfs, hidden, open_in, subvolumes, wait_for_cleaner
from tests.filesystems import file_system
from tests.require import need

SOMETHING = [directory(b"d"), file(b"d/f", b"f" * 100_000)]


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    with file_system("btrfs") as root:
        yield root


@pytest.fixture
def where(disk: Path) -> Iterator[Path]:
    """An empty directory; in the end none of its subvolumes is left."""
    where = disk / "test"
    where.mkdir()
    yield where
    driver = open_in(where)
    for id in driver.ids():
        driver.remove(id)
    assert subvolumes(disk) == []
    remove_tree(where)


@pytest.fixture
def driver(where: Path) -> NaiveDiff:
    driver = open_in(where)
    make_layer(driver, BASE, SOMETHING)
    driver.create_read_write(TOP, BASE)
    return driver


def test_a_parent_is_found_while_another_layer_is_removed(
    driver: NaiveDiff, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_layer(driver, GraphID("a"), SOMETHING)
    look = _ioctl.subvolume_info

    def removed_before(fd: int) -> _ioctl.SubvolumeInfo:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/a"):
            driver.remove(GraphID("a"))
        return look(fd)

    monkeypatch.setattr(_ioctl, "subvolume_info", removed_before)
    # Without the host's root every layer is looked at.
    monkeypatch.setattr("layerfs_drivers.btrfs.driver.is_host_root", lambda: False)
    assert driver.parent(TOP) == BASE
    assert not driver.exists(GraphID("a"))


# Sealed layers


def test_a_filled_layer_is_frozen(driver: NaiveDiff) -> None:
    writes: list[Callable[[], None]] = [
        (driver.proto.home / BASE / "new").touch,
        lambda: (driver.proto.home / BASE).chmod(0o700),
    ]
    for write in writes:
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(LayerfsError):
        driver.apply_diff(BASE, None, tar_stream([file(b"more", b"")]))
    with mounted(driver, BASE) as root, pytest.raises(OSError):
        (root / "new").touch()


def test_a_layer_that_was_not_filled_to_its_end_is_not_frozen_and_can_be_removed(driver: NaiveDiff) -> None:
    driver.create(OTHER, BASE)
    with pytest.raises(LayerfsError):
        driver.apply_diff(OTHER, BASE, tar_stream([file(b"a", b""), file(b"../escape", b"")]))
    with mounted(driver, OTHER) as root:
        (root / "still").touch()
    driver.remove(OTHER)


def test_reading_in_a_container_parts_nothing_from_its_image(driver: NaiveDiff) -> None:
    with mounted(driver, TOP) as root:
        os.utime(root / "d" / "f", ns=(0, 1))
        (root / "d" / "f").read_bytes()
        os.listdir(root / "d")
        assert (root / "d" / "f").stat().st_atime_ns == 0


def test_metadata_tells_the_subvolume_and_the_parent(driver: NaiveDiff) -> None:
    facts = driver.metadata(TOP)
    assert facts["parent"] == BASE
    assert facts["subvolume"] == str(driver.proto.home / TOP)
    assert f"Subvolume ID: \t\t{facts['id']}\n" in btrfs("subvolume", "show", driver.proto.home / TOP)
    assert "parent" not in driver.metadata(BASE)


def test_what_a_layer_stands_upon_is_found_without_a_look_at_the_others(
    driver: NaiveDiff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(driver.proto), "ids", lambda _: pytest.fail("all layers are listed"))
    assert (driver.parent(TOP), driver.parent(BASE)) == (BASE, None)


def test_what_a_layer_stands_upon_is_told(driver: NaiveDiff) -> None:
    assert (driver.parent(TOP), driver.parent(BASE)) == (BASE, None)
    driver.remove(BASE)
    assert driver.parent(TOP) is None


def test_a_name_that_the_ioctl_could_not_hold_is_refused(where: Path) -> None:
    with opened(where, os.O_RDONLY) as fd:
        for make in (_ioctl.create_subvolume, _ioctl.destroy):
            with pytest.raises(OSError) as caught:
                make(fd, "x" * 256)
            assert caught.value.errno == errno.ENAMETOOLONG
        with pytest.raises(OSError) as caught:
            _ioctl.create_snapshot(fd, "x" * 5000, fd)
        assert caught.value.errno == errno.ENAMETOOLONG
    assert os.listdir(where) == []


def test_ten_layers_deep(driver: NaiveDiff) -> None:
    parent = BASE
    for number in range(10):
        items = [file(b"%d" % number, b"x"), file(b"d/same", b"%d" % number)]
        parent = make_layer(driver, GraphID(f"layer-{number}"), items, parent)
        below = GraphID(f"layer-{number - 1}") if number else BASE
        found = [str(change) for change in driver.changes(parent, below)]
        assert found == [f"A /{number}", "C /d", ("C" if number else "A") + " /d/same"]
    with mounted(driver, parent, read_only=True) as root:
        assert (root / "d" / "same").read_bytes() == b"9"
        assert len(os.listdir(root)) == 11


# Nested subvolumes


def nest(root: Path) -> None:
    """Two subvolumes, one in the other, in a layer that is mounted at ``root``."""
    btrfs("subvolume", "create", root / "d" / "outer")
    (root / "d" / "outer" / "file").write_bytes(b"in a subvolume")
    btrfs("subvolume", "create", root / "d" / "outer" / "inner")
    (root / "d" / "outer" / "inner" / "file").write_bytes(b"deeper")
    btrfs("subvolume", "snapshot", "-r", root / "d" / "outer" / "inner", root / "frozen")
    btrfs("property", "set", root / "d" / "outer", "ro", "true")


def test_what_lies_in_nested_subvolumes_is_part_of_the_layer(driver: NaiveDiff) -> None:
    below = tree_of(driver, BASE)
    with mounted(driver, TOP) as root:
        nest(root)
    nested = tree_of(driver, TOP)
    assert list(driver.changes(TOP, BASE)) == changes(nested, below)
    with driver.diff(TOP, BASE) as tar:
        tree = apply(below, list(read_items(tar)))
    assert tree.nodes[b"d/outer/inner/file"].content == b"deeper"
    assert tree.nodes[b"frozen/file"].content == b"deeper"


def test_a_layer_upon_one_with_nested_subvolumes_has_them_too(driver: NaiveDiff) -> None:
    with mounted(driver, TOP) as root:
        nest(root)
    driver.create_read_write(OTHER, TOP)
    assert tree_of(driver, OTHER) == tree_of(driver, TOP)
    assert list(driver.changes(OTHER, TOP)) == []
    with mounted(driver, OTHER) as root:
        (root / "d" / "outer" / "inner" / "file").write_bytes(b"changed")
    assert [str(change) for change in driver.changes(OTHER, TOP)] == [
        "C /d",
        "C /d/outer",
        "C /d/outer/inner",
        "C /d/outer/inner/file",
    ]
    with mounted(driver, TOP, read_only=True) as root:
        assert (root / "d" / "outer" / "inner" / "file").read_bytes() == b"deeper"


def test_nested_subvolumes_go_with_their_layer(driver: NaiveDiff, disk: Path) -> None:
    with mounted(driver, TOP) as root:
        nest(root)
        with opened(root, os.O_RDONLY) as fd:
            for number in range(300):  # more than one answer of the kernel holds
                _ioctl.create_subvolume(fd, f"many-{number}")
    driver.remove(TOP)
    assert subvolumes(disk) == [f"test/home/{BASE}"]


def test_a_subvolume_nested_deeper_than_a_path_can_tell_is_removed(driver: NaiveDiff, disk: Path) -> None:
    with mounted(driver, TOP) as root, opened(root, os.O_RDONLY) as fd:
        for _ in range(25):
            os.mkdir("x" * 250, dir_fd=fd)
            below = os.open("x" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.dup2(below, fd)
            os.close(below)
        _ioctl.create_subvolume(fd, "deep")
    assert len(list(driver.changes(TOP, BASE))) == 27  # the root, 25 directories and the subvolume
    driver.remove(TOP)
    assert subvolumes(disk) == [f"test/home/{BASE}"]


def test_a_mount_in_a_layer_is_named_and_not_deleted_through(driver: NaiveDiff, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    target = driver.proto.home / TOP / "d"
    perform("bind", str(tmp_path), ("bind",), target)
    try:
        with pytest.raises(MountBusy, match="somebody mounted"):
            driver.remove(TOP)
    finally:
        umount(target)
    assert (tmp_path / "precious").exists()
    driver.remove(TOP)


# Processes that die


def killed(work: Callable[[], object]) -> bool:
    """Run ``work`` in another process; whether it killed itself on the way."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_in_a_diff_leaves_nothing(driver: NaiveDiff, where: Path) -> None:
    def work() -> None:
        tar = driver.diff(TOP, BASE)
        tar.read(1)
        die()

    assert killed(work)
    assert [name.split("-")[0] for name in hidden(driver.proto.home)] == [".view", ".view"]
    open_in(where)
    assert hidden(driver.proto.home) == []


def test_what_a_living_process_reads_is_not_swept(driver: NaiveDiff, where: Path) -> None:
    with mounted(driver, TOP) as root:
        (root / "big").write_bytes(os.urandom(3_000_000))
    with driver.diff(TOP, BASE) as tar:
        start = tar.read(10)
        assert not killed(lambda: open_in(where))
        open_in(where)
        rest = tar.read()
    with driver.diff(TOP, BASE) as tar:
        assert tar.read() == start + rest
    assert hidden(driver.proto.home) == []


STEPS = [name for name, _ in inspect.getmembers(_ioctl, inspect.isfunction) if not name.startswith("_")]


def dying_after(count: int, work: Callable[[], object]) -> Callable[[], object]:
    """``work``, ended by SIGKILL after so many ioctls."""

    def dying() -> None:
        left = count
        for name in STEPS:
            call = getattr(_ioctl, name)

            def counted(*args: object, call: Callable[..., object] = call, **named: object) -> object:
                nonlocal left
                result = call(*args, **named)
                left -= 1
                if left < 0:
                    die()
                return result

            setattr(_ioctl, name, counted)
        work()

    return dying


@pytest.mark.parametrize("what", ["create", "remove", "changes"])
def test_a_process_can_be_killed_between_any_two_steps(
    driver: NaiveDiff, where: Path, disk: Path, what: str
) -> None:
    with mounted(driver, TOP) as root:
        nest(root)
    works: dict[str, Callable[[], object]] = {
        "create": lambda: open_in(where).create_read_write(OTHER, TOP),
        "remove": lambda: open_in(where).remove(OTHER),
        "changes": lambda: list(open_in(where).changes(OTHER, BASE)),
    }
    count = 0
    while True:
        if what != "create":
            driver.create_read_write(OTHER, TOP if what == "remove" else BASE)
        was_killed = killed(dying_after(count, works[what]))
        again = open_in(where)
        assert hidden(again.proto.home) == []
        assert set(again.ids()) - {OTHER} == {BASE, TOP}
        assert tree_of(again, TOP).nodes.keys() >= {b"d/outer/inner/file", b"frozen/file"}
        if what == "changes" and was_killed:
            assert again.exists(OTHER)
        again.remove(OTHER)
        assert not any(OTHER in path for path in subvolumes(disk))
        if not was_killed:
            break
        count += 1
    assert count > 3


# Where it works


def test_another_file_system_is_named(tmp_path: Path) -> None:
    need.root()
    with pytest.raises(NotSupported, match=r"is on \w+, not on btrfs") as caught:
        DRIVER.probe(tmp_path / "not" / "there", tmp_path / "run")
    assert "mkfs.btrfs" in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_probing_leaves_nothing_behind(where: Path, disk: Path) -> None:
    DRIVER.probe(where / "not" / "there", where / "run")
    assert os.listdir(where) == []
    assert subvolumes(disk) == []


def test_a_place_that_cannot_be_written_is_refused(where: Path) -> None:
    btrfs("subvolume", "create", where / "closed")
    btrfs("property", "set", where / "closed", "ro", "true")
    try:
        with pytest.raises(NotSupported, match="Read-only") as caught:
            DRIVER.probe(where / "closed" / "home", where / "run")
        assert caught.value.hint
    finally:
        btrfs("subvolume", "delete", where / "closed")


def test_options_are_refused_by_name(where: Path) -> None:
    for options in ({"size": "1"}, {"quota": "yes"}):
        with pytest.raises(InvalidOption, match=next(iter(options))):
            DRIVER.open(where / "home", where / "run", options)


def test_status_tells_the_file_system_and_its_quota(driver: NaiveDiff, disk: Path) -> None:
    status = driver.status()
    assert f"uuid: {status['file system']}" in btrfs("filesystem", "show", disk)
    assert status["quota"].startswith("quota is off")
    assert "btrfs quota enable" in driver.capabilities.no_limits_because


def test_a_full_disk_is_told_as_such(where: Path) -> None:
    with file_system("btrfs", size=128 << 20) as small:
        driver = open_in(small)
        driver.create(BASE, None)
        with pytest.raises(SystemFailure) as caught:
            driver.apply_diff(BASE, None, tar_stream([file(b"big", os.urandom(200 << 20))]))
        assert caught.value.errno == errno.ENOSPC
        driver.remove(BASE)
        wait_for_cleaner(small)
        make_layer(driver, BASE, [file(b"big", os.urandom(20 << 20))])

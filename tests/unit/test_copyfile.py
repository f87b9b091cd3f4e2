"""Copying files and trees: what a user of the vfs driver must find in a copy, and how holes survive."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.copyfile import DataCopier
from layerfs.linux.copytree import copy_tree
from layerfs.linux.diskusage import disk_usage
from layerfs.linux.removetree import remove_tree
from layerfs.testing.entries import ACL, CAP_NET_RAW, DAY
from layerfs.testing.model import differences, read_tree
from tests.require import need

MIB = 1 << 20


@pytest.fixture(autouse=True)
def as_root() -> None:
    need.root()


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A second file system, so that nothing can be shared with the first."""
    path = tmp_path / "other"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def copy(source: Path, target: Path, copier: DataCopier | None = None) -> None:
    with source.open("rb") as one, target.open("w+b") as two:
        (copier or DataCopier()).copy(one.fileno(), two.fileno(), source.stat().st_size)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(64 * MIB)
        file.write(b"middle" * 1000)
        file.truncate(256 * MIB)


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * MIB + 17])
def test_a_copy_holds_the_same_bytes(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(os.urandom(size))
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_holes_stay_holes(tmp_path: Path) -> None:
    make_sparse(tmp_path / "a")
    copy(tmp_path / "a", tmp_path / "b")
    copied = (tmp_path / "b").stat()
    assert copied.st_size == 256 * MIB
    assert copied.st_blocks * 512 <= MIB
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_holes_stay_holes_on_another_file_system(tmp_path: Path, other_file_system: Path) -> None:
    make_sparse(tmp_path / "a")
    copy(tmp_path / "a", other_file_system / "b")
    copied = (other_file_system / "b").stat()
    assert copied.st_size == 256 * MIB
    assert copied.st_blocks * 512 <= MIB
    with (other_file_system / "b").open("rb") as file:
        assert file.read(5) == b"start"
        file.seek(64 * MIB)
        assert file.read(6) == b"middle"


def test_files_the_kernel_will_not_copy_by_itself_are_read(tmp_path: Path) -> None:
    # procfs files have no size and take neither FICLONE nor, since Linux 5.12, copy_file_range.
    copier = DataCopier()
    with Path("/proc/version").open("rb") as source, (tmp_path / "v").open("w+b") as target:
        copier.copy(source.fileno(), target.fileno(), 20)
    assert (tmp_path / "v").read_bytes() == Path("/proc/version").read_bytes()[:20]


def test_one_copier_serves_several_file_systems(tmp_path: Path, other_file_system: Path) -> None:
    copier = DataCopier()
    (tmp_path / "a").write_bytes(b"text" * 5000)
    copy(tmp_path / "a", other_file_system / "b", copier)
    copy(other_file_system / "b", tmp_path / "c", copier)
    copy(tmp_path / "c", tmp_path / "d", copier)
    assert (tmp_path / "d").read_bytes() == b"text" * 5000


def furnish(root: Path) -> None:
    """One of everything that a root file system can hold."""
    root.mkdir(mode=0o750)
    (root / "plain").write_bytes(b"plain")
    (root / "setuid").write_bytes(b"su")
    os.chown(root / "setuid", 1000, 2000)
    os.setxattr(root / "setuid", "security.capability", CAP_NET_RAW)
    (root / "setuid").chmod(0o6755)
    (root / "closed").mkdir()
    (root / "closed" / "twin").write_bytes(b"one file")
    (root / "other").mkdir()
    os.link(root / "closed" / "twin", root / "other" / "twin")
    os.symlink("nowhere", root / "link")
    os.link(root / "link", root / "link-twin", follow_symlinks=False)
    os.setxattr(root / "link", "trusted.note", b"on a symlink", follow_symlinks=False)
    os.chown(root / "link", 5, 6, follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o622)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    (root / "acl").mkdir()
    (root / "acl" / "inner").write_bytes(b"")
    os.setxattr(root / "acl", "system.posix_acl_default", ACL)
    os.setxattr(root / "acl", "system.posix_acl_access", ACL)
    os.setxattr(root / "acl", "user.note", b"\0\xff")
    (root / os.fsdecode(b"\xff\n:")).write_bytes(b"odd name")
    (root / "closed").chmod(0o000)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o3777)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(number, DAY + number), follow_symlinks=False)
    os.utime(root, ns=(0, 77))


def test_a_tree_is_copied_exactly(tmp_path: Path) -> None:
    furnish(tmp_path / "a")
    copy_tree(tmp_path / "a", tmp_path / "b")
    assert differences(read_tree(tmp_path / "b"), read_tree(tmp_path / "a")) == []


def test_a_tree_is_copied_exactly_to_another_file_system(tmp_path: Path, other_file_system: Path) -> None:
    furnish(tmp_path / "a")
    os.removexattr(tmp_path / "a" / "acl", "user.note")  # tmpfs has no user.* before Linux 6.6
    copy_tree(tmp_path / "a", other_file_system / "b")
    expected = read_tree(tmp_path / "a")
    assert differences(read_tree(other_file_system / "b"), expected) == []


def test_access_times_are_copied(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"")
    os.utime(tmp_path / "a" / "f", ns=(123, DAY))
    copy_tree(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "f").stat().st_atime_ns == 123


def test_a_default_acl_of_the_place_does_not_get_into_the_copy(tmp_path: Path) -> None:
    furnish(tmp_path / "a")
    (tmp_path / "shared").mkdir()
    os.setxattr(tmp_path / "shared", "system.posix_acl_default", ACL)
    copy_tree(tmp_path / "a", tmp_path / "shared" / "b")
    assert differences(read_tree(tmp_path / "shared" / "b"), read_tree(tmp_path / "a")) == []


def make_deep(root: Path, depth: int) -> None:
    """Directories below ``root``, far beyond PATH_MAX and the number of files one may open."""
    root.mkdir()
    here = os.open(root, os.O_PATH)
    for _ in range(depth):
        os.mkdir("directory", dir_fd=here)
        inner = os.open("directory", os.O_PATH, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def measured_depth(root: Path) -> int:
    here, depth = os.open(root, os.O_PATH), 0
    while True:
        try:
            inner = os.open("directory", os.O_PATH, dir_fd=here)
        except FileNotFoundError:
            break
        os.close(here)
        here, depth = inner, depth + 1
    os.stat("bottom", dir_fd=here)
    os.close(here)
    return depth


def test_depth_is_no_limit(tmp_path: Path) -> None:
    make_deep(tmp_path / "a", 3000)
    copy_tree(tmp_path / "a", tmp_path / "b")
    assert measured_depth(tmp_path / "b") == 3000
    for name in ("a", "b"):  # too deep for what pytest removes old directories with
        remove_tree(tmp_path / name)


def test_an_error_names_the_path_at_fault(tmp_path: Path) -> None:
    (tmp_path / "a" / "d").mkdir(parents=True)
    (tmp_path / "a" / "d" / "f").write_bytes(b"")
    os.setxattr(tmp_path / "a" / "d" / "f", "trusted.big", b"x" * 3000)
    (tmp_path / "ram").mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path / "ram"], check=True)
    try:
        with pytest.raises(OSError, match="a/d/f"):
            copy_tree(tmp_path / "a", tmp_path / "ram" / "b")
    finally:
        subprocess.run(["umount", tmp_path / "ram"], check=True)


def test_the_usage_of_a_tree_in_use_can_be_measured(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    worker = os.fork()
    if worker == 0:
        try:
            for number in range(3000):
                place = tmp_path / "tree" / str(number % 7)
                with contextlib.suppress(OSError):
                    (place / "x").mkdir(parents=True)
                    (place / "x" / "f").write_bytes(b"")
                    (place / "x" / "f").unlink()
                    (place / "x").rmdir()
                    place.rmdir()
        finally:
            os._exit(0)
    while os.waitpid(worker, os.WNOHANG) == (0, 0):
        assert disk_usage(tmp_path / "tree")[1] >= 1

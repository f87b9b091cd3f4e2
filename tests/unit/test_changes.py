"""The changeset of two trees, as users of ``docker diff`` know it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.archive.changes import walk_changes
from layerfs.testing.entries import ACL, directory, fifo, file, hard_link, symlink
from layerfs.testing.model import EMPTY, apply, changes, read_tree
from tests.require import need
from tests.unpackkit import fresh

BASE = [
    directory(b"d", mode=0o750),
    file(b"d/a", b"12345"),
    directory(b"d/sub"),
    file(b"d/sub/deep", b""),
    file(b"d.txt", b""),
    file(b"f", b"12345", xattrs={b"user.x": b"1"}),
    symlink(b"l", b"f"),
    fifo(b"p"),
    file(b"h1", b"linked"),
    hard_link(b"h2", b"h1"),
    hard_link(b"d/h3", b"h1"),
]


@pytest.fixture(autouse=True)
def root_user() -> None:
    need.root()


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return fresh(tmp_path / "parent", apply(EMPTY, BASE))


@pytest.fixture
def root(tmp_path: Path, parent: Path) -> Path:
    """An exact copy of the parent."""
    copy = tmp_path / "root"
    subprocess.run(["cp", "-a", parent, copy], check=True)
    return copy


def shown(root: Path, parent: Path | None) -> list[str]:
    return [f"{change.kind.value} {os.fsdecode(change.path)}" for change in walk_changes(root, parent)]


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, 1_600_000_000_123_456_790))


def _same_size_and_time(path: Path) -> None:
    times = path.stat()
    path.write_bytes(b"54321")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")
    os.utime(path, ns=(0, 1_600_000_000_123_456_789), follow_symlinks=False)
    _keep_root(path)


def _keep_root(path: Path) -> None:
    os.utime(path.parent, ns=(0, 0))


def _link(path: Path, name: Path) -> None:
    os.link(path, name)
    _keep_root(path)


def _unlink(path: Path) -> None:
    path.unlink()
    _keep_root(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    _keep_root(path)


def _to_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")
    _keep_root(path)


def _to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "new").write_bytes(b"")
    _keep_root(path)


EDITS: list[tuple[Callable[[Path], object], list[str]]] = [
    (lambda r: None, []),
    (lambda r: r.chmod(0o700), ["C "]),
    (lambda r: (r / "f").chmod(0o600), ["C f"]),
    (lambda r: os.chown(r / "f", 1, 0), ["C f"]),
    (lambda r: _touch(r / "f"), ["C f"]),
    (lambda r: os.setxattr(r / "f", "user.x", b"2"), ["C f"]),
    (lambda r: os.removexattr(r / "f", "user.x"), ["C f"]),
    (lambda r: os.setxattr(r / "d", "system.posix_acl_default", ACL), ["C d"]),
    (lambda r: _same_size_and_time(r / "f"), ["C f"]),
    (lambda r: _same_size_and_time(r / "d/a"), ["C d", "C d/a"]),
    (lambda r: _touch(r / "d/sub"), ["C d", "C d/sub"]),
    (lambda r: _relink(r / "l"), ["C l"]),
    (lambda r: _unlink(r / "f"), ["D f"]),
    (lambda r: _to_file(r / "d"), ["C d", "C h1", "C h2"]),
    (lambda r: _to_directory(r / "f"), ["C f", "A f/new"]),
    (lambda r: shutil.rmtree(r / "d/sub"), ["C d", "D d/sub"]),
    (lambda r: _unlink(r / "h1"), ["C d", "C d/h3", "D h1", "C h2"]),
    (lambda r: _link(r / "f", r / "f2"), ["C f", "A f2"]),
    (lambda r: (r / "h1").write_bytes(b"other!"), ["C d", "C d/h3", "C h1", "C h2"]),
    (lambda r: _socket(r / "sock"), ["A sock"]),
]


@pytest.mark.parametrize(("edit", "expected"), EDITS)
def test_an_edit(root: Path, parent: Path, edit: Callable[[Path], object], expected: list[str]) -> None:
    edit(root)
    assert shown(root, parent) == expected
    assert list(walk_changes(root, parent)) == changes(read_tree(root), read_tree(parent))


def test_a_first_layer_adds_everything(parent: Path) -> None:
    assert shown(parent, None) == [f"A {name}" for name in (
        "d", "d/a", "d/h3", "d/sub", "d/sub/deep", "d.txt", "f", "h1", "h2", "l", "p",
    )]  # fmt: skip
    parent.chmod(0o700)
    assert shown(parent, None)[0] == "C "


def test_the_same_tree_has_no_changes(parent: Path) -> None:
    """Also when its files cannot be read: inode and change time say enough."""
    assert shown(parent, parent) == []


def test_deleting_and_making_anew_lists_what_is_gone(root: Path, parent: Path) -> None:
    shutil.rmtree(root / "d")
    (root / "d").mkdir()
    (root / "d" / "new").write_bytes(b"")
    found = shown(root, parent)
    assert [line for line in found if " d" in line] == ["C d", "D d/a", "D d/h3", "A d/new", "D d/sub"]


def test_names_sort_by_component(tmp_path: Path) -> None:
    tree = apply(EMPTY, [file(name, b"") for name in (b"a-b", b"a/z", b"a.b", b"\xff", b"a/b/c", b"\x01")])
    found = [change.path for change in walk_changes(fresh(tmp_path / "root", tree), None)]
    assert found == [b"\x01", b"a", b"a/b", b"a/b/c", b"a/z", b"a-b", b"a.b", b"\xff"]


def test_links_out_of_a_tree_are_not_followed(tmp_path: Path, root: Path, parent: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"")
    shutil.rmtree(root / "d")
    (root / "d").symlink_to(tmp_path / "outside")
    assert "C d" in shown(root, parent)
    assert not any("secret" in line for line in shown(root, parent))


def test_a_nest_deeper_than_a_path_can_name(tmp_path: Path) -> None:
    root = fresh(tmp_path / "root")
    fd = os.open(root, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("n" * 100, dir_fd=fd)
        below = os.open("n" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert len(shown(root, fresh(tmp_path / "empty"))) == 61
    subprocess.run(["rm", "-r", root], check=True)


def test_a_huge_hole_is_not_read(tmp_path: Path) -> None:
    """Reading 8 TiB of zeros would not end."""
    trees = [tmp_path / "parent", tmp_path / "root"]
    for tree in trees:
        tree.mkdir()
        with (tree / "lastlog").open("wb") as sparse:
            sparse.truncate(8 << 40)
            sparse.seek(1 << 40)
            sparse.write(b"entry")
        os.utime(tree / "lastlog", ns=(1, 1))
        os.utime(tree, ns=(1, 1))
    assert list(walk_changes(trees[1], trees[0])) == []
    with (trees[1] / "lastlog").open("r+b") as sparse:
        sparse.seek(2 << 40)
        sparse.write(b"more")
    os.utime(trees[1] / "lastlog", ns=(1, 1))
    assert [change.path for change in walk_changes(trees[1], trees[0])] == [b"lastlog"]

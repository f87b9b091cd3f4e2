"""What a container does to its root file system, found again as changes and carried elsewhere as a tar."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.archive.entry import Entry
from layerfs.archive.names import normalise
from layerfs.driver import Driver
from layerfs.errors import Conflict, LayerfsError, SystemFailure
from layerfs.ids import GraphID
from layerfs.linux.xattr import HOSTS_OWN
from layerfs.testing.conformance.base import (
    BASE,
    OTHER,
    TOP,
    Base,
    assert_same,
    case_id,
    each,
    graph_id,
    make_layer,
    mounted,
    tree_of,
)
from layerfs.testing.entries import (
    ACL,
    CAP_NET_RAW,
    DAY,
    device,
    directory,
    fifo,
    file,
    hard_link,
    symlink,
    tar_stream,
)
from layerfs.testing.model import Tree, apply, changes, diff, order, read_items
from layerfs.testing.privilege import fit, is_root_of_host, xattr

BELOW = [
    directory(b"etc"),
    file(b"etc/motd", b"hello\n"),
    file(b"etc/shadow", b"secret", mode=0o640, gid=42),
    directory(b"bin"),
    file(b"bin/su", b"#!", mode=0o4755),
    file(b"bin/ping", b"#!", mode=0o755, xattrs={b"security.capability": CAP_NET_RAW}),
    directory(b"tree"),
    directory(b"tree/one"),
    file(b"tree/one/a", b"a"),
    file(b"tree/one/b", b"b"),
    directory(b"tree/two/deep"),
    file(b"tree/two/deep/c", b"c"),
    file(b"twin", b"one file"),
    hard_link(b"tree/twin", b"twin"),
    hard_link(b"zwilling", b"twin"),
    symlink(b"link", b"etc/motd"),
    fifo(b"pipe"),
    device(b"null", 1, 3),
    directory(b"empty"),
    directory(b"shared", mode=0o775, xattrs={b"system.posix_acl_default": ACL}),
    file(b"attributed", b"", xattrs={b"user.one": b"1", b"user.two": b"2"}),
    file(b"restricted", b"", mode=0o775, xattrs={b"system.posix_acl_access": ACL}),
    directory(b"tmp", mode=0o1777),
    directory(b"group", mode=0o2775, gid=50),
]

Edit = Callable[[Path], object]


def _append(path: Path) -> None:
    with path.open("ab") as out:
        out.write(b"more")


def _restore_time(path: Path, edit: Edit) -> None:
    """Do ``edit`` such that the time of ``path`` does not tell."""
    before = path.stat()
    edit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _make_socket(path: Path) -> None:
    """As bind(2) makes it, but a path may be longer than its 108 bytes."""
    os.mknod(path, stat.S_IFSOCK | 0o755)


def _make_device(path: Path, mode: int, major: int, minor: int) -> None:
    """A FIFO where no device can be made."""
    if is_root_of_host():
        os.mknod(path, mode, os.makedev(major, minor))
    else:
        os.mkfifo(path, stat.S_IMODE(mode))


def _in_turn(*edits: Edit) -> Edit:
    def edit(root: Path) -> None:
        for one in edits:
            one(root)

    return edit


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def _remove_xattrs(path: Path) -> None:
    for name in os.listxattr(path):
        if os.fsencode(name) not in HOSTS_OWN:
            os.removexattr(path, name)


def _remove_everything(root: Path) -> None:
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sort_differently(root: Path) -> None:
    """Directories whose paths are in another order than the components of their paths."""
    for name in ("a", "a-b", "a.b", "ab", "a\x7f"):
        (root / name).mkdir()
        (root / name / "f").write_bytes(b"")


def _replace(path: Path, content: bytes) -> None:
    """As editors and package managers do: a new file, renamed over the old."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.rename(path)


def _exchange(root: Path) -> None:
    (root / "etc/motd").rename(root / "etc/x")
    (root / "etc/shadow").rename(root / "etc/motd")
    (root / "etc/x").rename(root / "etc/shadow")


def _remade(path: Path, make: Edit) -> None:
    shutil.rmtree(path)
    make(path)


def _make_files(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_bytes(name.encode())


def _file_for_directory(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"now a file")


def _directory_for_file(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"")


def _unlink_while_open(root: Path) -> None:
    with (root / "etc/motd").open("r+b") as out:
        (root / "etc/motd").unlink()
        out.write(b"lost")
        out.flush()
        (root / "etc/motd").write_bytes(b"another")


def _write_through_second_name(root: Path) -> None:
    (root / "twin").unlink()
    os.link(root / "zwilling", root / "twin")
    _append(root / "twin")


EDITS: dict[str, dict[str, Edit]] = {
    "files": {
        "write a new file": lambda r: (r / "etc/new").write_bytes(b"new"),
        "append to a file": lambda r: _append(r / "etc/motd"),
        "overwrite keeping size and time": lambda r: _restore_time(
            r / "etc/motd", lambda p: p.write_bytes(b"HELLO\n")
        ),
        "truncate": lambda r: os.truncate(r / "etc/motd", 2),
        "grow by a hole": lambda r: os.truncate(r / "etc/motd", 300_000),
        "replace by rename": lambda r: _replace(r / "etc/motd", b"replaced"),
        "unlink a file": lambda r: (r / "etc/motd").unlink(),
        "unlink a symlink": lambda r: (r / "link").unlink(),
        "unlink what is open": _unlink_while_open,
    },
    "trees": {
        "remove a tree": lambda r: shutil.rmtree(r / "tree"),
        "remove a tree in a tree": lambda r: shutil.rmtree(r / "tree/two"),
        "remove everything": _remove_everything,
        "make directories": lambda r: (r / "new/and/deep").mkdir(parents=True),
        "make a tree": _in_turn(
            lambda r: (r / "new/dir").mkdir(parents=True), lambda r: (r / "new/dir/f").write_bytes(b"x")
        ),
    },
    "renames": {
        "rename a file": lambda r: (r / "etc/motd").rename(r / "etc/issue"),
        "rename a file elsewhere": lambda r: (r / "etc/motd").rename(r / "bin/motd"),
        "rename over a file": lambda r: (r / "etc/motd").rename(r / "etc/shadow"),
        "rename a directory": lambda r: shutil.move(r / "tree/one", r / "tree/uno"),
        "rename a directory and fill its place": _in_turn(
            lambda r: shutil.move(r / "tree/one", r / "one"),
            lambda r: (r / "tree/one").mkdir(),
            lambda r: (r / "tree/one/z").write_bytes(b""),
        ),
        "rename a directory over an empty one": _in_turn(
            lambda r: (r / "empty").rmdir(), lambda r: shutil.move(r / "tree", r / "empty")
        ),
        "rename a directory into its sibling": lambda r: shutil.move(r / "tree/one", r / "tree/two/one"),
        "rename a directory there and back": _in_turn(
            lambda r: shutil.move(r / "tree/two", r / "elsewhere"),
            lambda r: shutil.move(r / "elsewhere", r / "tree/two"),
        ),
        "rename one of several names": lambda r: (r / "twin").rename(r / "etc/twin"),
        "rename a symlink, a fifo, a device": _in_turn(
            lambda r: (r / "link").rename(r / "etc/link"),
            lambda r: (r / "pipe").rename(r / "etc/pipe"),
            lambda r: (r / "null").rename(r / "etc/null"),
        ),
        "rename a new file over a lower one": _in_turn(
            lambda r: (r / "new").write_bytes(b"new"), lambda r: (r / "new").rename(r / "twin")
        ),
        "exchange two files": _exchange,
    },
    "attributes": {
        "change a mode": lambda r: (r / "etc/shadow").chmod(0o600),
        "set setuid": lambda r: (r / "etc/motd").chmod(0o6711),
        "drop setuid, sticky and setgid": _in_turn(
            lambda r: (r / "bin/su").chmod(0o755),
            lambda r: (r / "tmp").chmod(0o777),
            lambda r: (r / "group").chmod(0o775),
        ),
        "inherit a group": _in_turn(
            lambda r: (r / "group/f").write_bytes(b""), lambda r: (r / "group/d").mkdir()
        ),
        "change the mode of a directory": lambda r: (r / "etc").chmod(0o1777),
        "change an owner": lambda r: os.chown(r / "bin/su", 5, 6),
        "change the owner of a symlink": lambda r: os.chown(r / "link", 5, 6, follow_symlinks=False),
        "touch a file": lambda r: os.utime(r / "etc/motd", ns=(1, DAY + 1)),
        "touch a directory": lambda r: os.utime(r / "etc", ns=(1, DAY + 1)),
        "touch a symlink": lambda r: os.utime(r / "link", ns=(1, DAY + 1), follow_symlinks=False),
        "set an xattr": lambda r: os.setxattr(r / "etc/motd", "user.note", b"\0\xff"),
        "set an xattr of a directory": lambda r: os.setxattr(r / "etc", xattr(b"trusted.note"), b""),
        "change an xattr": lambda r: os.setxattr(r / "attributed", "user.one", b"one"),
        "remove an xattr": lambda r: os.removexattr(r / "attributed", "user.two"),
        "drop a capability": lambda r: os.removexattr(r / "bin/ping", "security.capability"),
        "set an ACL": lambda r: os.setxattr(r / "etc/motd", "system.posix_acl_access", ACL),
        "drop an ACL": lambda r: os.removexattr(r / "restricted", "system.posix_acl_access"),
        "drop a default ACL": lambda r: os.removexattr(r / "shared", "system.posix_acl_default"),
        "change a mode that an ACL masks": lambda r: (r / "restricted").chmod(0o750),
        "inherit an ACL": _in_turn(
            lambda r: (r / "shared/f").write_bytes(b""), lambda r: (r / "shared/d").mkdir()
        ),
    },
    "attributes of what is no file": {
        "set xattrs": _in_turn(
            lambda r: os.setxattr(r / "link", "trusted.note", b"l", follow_symlinks=False),
            lambda r: os.setxattr(r / "pipe", "trusted.note", b"p"),
            lambda r: os.setxattr(r / "null", "trusted.note", b"n"),
        ),
    },
    "links": {
        "symlink": lambda r: (r / "new").symlink_to("/etc/motd"),
        "retarget a symlink": _in_turn(
            lambda r: (r / "link").unlink(), lambda r: (r / "link").symlink_to("etc/shadow")
        ),
        "link a new name": lambda r: os.link(r / "etc/motd", r / "motd"),
        "link two new names": _in_turn(
            lambda r: (r / "b").write_bytes(b""),
            lambda r: os.link(r / "b", r / "a"),
            lambda r: os.link(r / "b", r / "empty/c"),
        ),
        "write to a file with several names": lambda r: _append(r / "twin"),
        "unlink one of several names": lambda r: (r / "twin").unlink(),
        "unlink a name and link it anew": _write_through_second_name,
        "chmod a file with several names": lambda r: (r / "tree/twin").chmod(0o600),
    },
    "special files": {
        "make a fifo": lambda r: os.mkfifo(r / "etc/pipe"),
        "make devices": _in_turn(
            lambda r: _make_device(r / "zero", stat.S_IFCHR | 0o666, 1, 5),
            lambda r: _make_device(r / "disk", stat.S_IFBLK | 0o660, 259, 70_000),
        ),
        "change a device": _in_turn(
            lambda r: (r / "null").unlink(),
            lambda r: _make_device(r / "null", stat.S_IFCHR | 0o600, 1, 5),
        ),
        "bind a socket": lambda r: _make_socket(r / "etc/sock"),
        "unlink a fifo and a device": lambda r: _unlink(r / "pipe", r / "null"),
        "replace a file by a socket": _in_turn(
            lambda r: (r / "etc/motd").unlink(), lambda r: _make_socket(r / "etc/motd")
        ),
    },
    "one type for another": {
        "file for directory": lambda r: _file_for_directory(r / "tree"),
        "file for a deep directory": lambda r: _file_for_directory(r / "tree/two"),
        "directory for file": lambda r: _directory_for_file(r / "etc/motd"),
        "directory for symlink": lambda r: _directory_for_file(r / "link"),
        "directory for device": lambda r: _directory_for_file(r / "null"),
        "device for directory": _in_turn(
            lambda r: shutil.rmtree(r / "tree/one"),
            lambda r: _make_device(r / "tree/one", stat.S_IFBLK | 0o600, 7, 1),
        ),
        "directory for file and back": _in_turn(
            lambda r: _directory_for_file(r / "etc/motd"), lambda r: _file_for_directory(r / "etc/motd")
        ),
        "file for directory and back": _in_turn(
            lambda r: _file_for_directory(r / "tree"), lambda r: _directory_for_file(r / "tree")
        ),
        "symlink for directory": _in_turn(
            lambda r: shutil.rmtree(r / "tree"), lambda r: (r / "tree").symlink_to("etc")
        ),
        "fifo for file": _in_turn(lambda r: (r / "etc/motd").unlink(), lambda r: os.mkfifo(r / "etc/motd")),
    },
    "made anew": {
        "delete and make a file anew": _in_turn(
            lambda r: (r / "etc/motd").unlink(), lambda r: (r / "etc/motd").write_bytes(b"new\n")
        ),
        "delete and make a tree anew": lambda r: _remade(r / "tree", Path.mkdir),
        "delete a tree and make part of it anew": lambda r: _remade(
            r / "tree",
            _in_turn(lambda p: (p / "one").mkdir(parents=True), lambda p: (p / "one/b").write_bytes(b"b")),
        ),
        "delete a deep tree and make it anew": lambda r: _remade(
            r / "tree/two", lambda p: (p / "deep").mkdir(parents=True)
        ),
        "make and delete": _in_turn(
            lambda r: (r / "etc/x").write_bytes(b""), lambda r: (r / "etc/x").unlink()
        ),
    },
    "the whole": {
        "change the root": _in_turn(lambda r: r.chmod(0o1711), lambda r: os.chown(r, 3, 4)),
        "touch the root": lambda r: os.utime(r, ns=(0, 12345)),
        "odd names": lambda r: [
            (r / os.fsdecode(name)).write_bytes(name)
            for name in (
                b"\xff\n",
                b"a:b,c",
                b"back\\slash",
                b"x" * os.pathconf(r, "PC_NAME_MAX"),
                "\u2713".encode(),
                b" ",
                b"-",
            )
        ],
        "sort order": _sort_differently,
        "nothing": lambda r: None,
        "only read": lambda r: [p.read_bytes() for p in r.rglob("*") if p.is_file()],
    },
}
"""What is done in a root file system made of :data:`BELOW`."""

EDIT = {name: edit for group in EDITS.values() for name, edit in group.items()}

COMMITS: dict[str, list[Edit]] = {
    "trees deleted and made anew at several depths": [
        lambda r: _remade(r / "tree/two/deep", lambda p: _make_files(p, "new")),
        lambda r: _remade(r / "tree/two", lambda p: _make_files(p / "deep", "newer")),
        lambda r: _remade(r / "tree", lambda p: _make_files(p / "two/deep", "c")),
        lambda r: shutil.rmtree(r / "tree/two"),
        lambda r: _make_files(r / "tree/two/deep", "back"),
    ],
    "a file is a directory, and a file again": [
        lambda r: _directory_for_file(r / "etc/motd"),
        lambda r: _make_files(r / "etc/motd/deep", "a", "b"),
        lambda r: _file_for_directory(r / "etc/motd"),
        lambda r: (r / "etc/motd").unlink(),
        lambda r: _make_files(r / "etc/motd", "inside"),
    ],
    "a directory is a file, a symlink, and a directory again": [
        lambda r: _file_for_directory(r / "tree"),
        EDIT["rename over a file"],
        _in_turn(lambda r: (r / "tree").unlink(), lambda r: (r / "tree").symlink_to("bin")),
        _in_turn(lambda r: (r / "tree").unlink(), lambda r: _make_files(r / "tree/one", "b", "z")),
    ],
    "names of one file come and go": [
        lambda r: _append(r / "twin"),
        lambda r: os.link(r / "zwilling", r / "etc/third"),
        lambda r: (r / "zwilling").unlink(),
        lambda r: os.link(r / "tree/twin", r / "zwilling"),
        lambda r: (r / "tree/twin").chmod(0o4711),
        lambda r: (r / "etc/third").rename(r / "third"),
        lambda r: _unlink(r / "twin", r / "tree/twin", r / "third"),
    ],
    "names of a new file are made in different containers": [
        lambda r: (r / "a").write_bytes(b"one file"),
        lambda r: os.link(r / "a", r / "etc/b"),
        lambda r: os.link(r / "etc/b", r / "tree/one/c"),
        lambda r: _append(r / "a"),
        lambda r: _replace(r / "etc/b", b"another file"),
    ],
    "what lies below is renamed, time and again": [
        lambda r: shutil.move(r / "tree/one", r / "tree/uno"),
        lambda r: (r / "tree/uno/a").rename(r / "tree/two/a"),
        lambda r: shutil.move(r / "tree", r / "baum"),
        lambda r: (r / "twin").rename(r / "baum/drilling"),
        lambda r: shutil.move(r / "baum", r / "tree"),
    ],
    "attributes come and go": [
        EDIT["set setuid"],
        lambda r: os.chown(r / "etc/motd", 5, 6),
        _in_turn(EDIT["set an xattr"], EDIT["drop a capability"]),
        EDIT["set an ACL"],
        lambda r: _remove_xattrs(r / "etc/motd"),
        lambda r: (r / "etc").chmod(0o1777),
    ],
    "nothing, and nothing again": [
        EDIT["nothing"],
        EDIT["only read"],
        EDIT["append to a file"],
        EDIT["nothing"],
    ],
    "everything goes, and something comes": [
        _remove_everything,
        EDIT["nothing"],
        lambda r: _make_files(r / "tree/two/deep", "c"),
        EDIT["make devices"],
        _remove_everything,
    ],
}
"""What one container after the other does, each upon the commit of the one before; the first upon
:data:`BELOW`."""


def carried(tree: Tree) -> Tree:
    """``tree`` without what no tar can hold."""
    return Tree({path: node for path, node in tree.nodes.items() if not stat.S_ISSOCK(node.mode)})


def facts(entry: Entry) -> tuple[object, ...]:
    """What an entry says, but for how a link repeats its target's attributes."""
    plain = (normalise(entry.name), entry.type, entry.linkname, entry.size)
    if entry.type.value == "hard link":
        return plain
    return (*plain, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.device, dict(entry.xattrs))


class Edits(Base):
    @pytest.fixture
    def base(self, driver: Driver) -> Tree:
        """A writable layer upon :data:`BELOW`, and what it looks like."""
        make_layer(driver, BASE, fit(BELOW))
        driver.create_read_write(TOP, BASE)
        return tree_of(driver, BASE)

    def edit(self, driver: Driver, edit: Edit, id: GraphID = TOP) -> Tree:
        with mounted(driver, id) as root:
            edit(root)
        return tree_of(driver, id)

    @pytest.mark.parametrize("group", EDITS)
    def test_edits_are_found_and_carried_elsewhere(self, driver: Driver, group: str) -> None:
        """The changeset, its tar, the tar's size, and the tree that the tar makes."""
        if group == "attributes of what is no file":
            self.need_host("trusted.* attributes are the only ones that any file can have")
        make_layer(driver, BASE, fit(BELOW))
        below = tree_of(driver, BASE)

        def check(name: str, edit: Edit) -> None:
            container, layer = case_id(name, "container"), case_id(name)
            driver.create_read_write(container, BASE)
            edited = self.edit(driver, edit, container)
            assert list(driver.changes(container, BASE)) == changes(edited, below)
            with driver.diff(container, BASE) as tar:
                data = tar.read()
            items = list(read_items(io.BytesIO(data)))
            assert [facts(entry) for entry, _ in items] == [facts(entry) for entry, _ in diff(edited, below)]
            assert_same(apply(below, items), carried(edited))
            assert driver.diff_size(container, BASE) == sum(len(content) for _, content in items)
            driver.create(layer, BASE)
            driver.apply_diff(layer, BASE, io.BytesIO(data))
            assert_same(tree_of(driver, layer), carried(edited))

        each(EDITS[group], check)
        assert_same(tree_of(driver, BASE), below)

    def test_a_diff_is_the_same_every_time(self, driver: Driver, base: Tree) -> None:
        for name in ("rename a directory", "link two new names", "set an ACL", "odd names"):
            self.edit(driver, EDIT[name])
        with driver.diff(TOP, BASE) as tar:
            first = tar.read()
        with driver.diff(TOP, BASE) as tar:
            assert tar.read() == first
        driver.create(OTHER, BASE)
        with driver.diff(TOP, BASE) as tar:
            driver.apply_diff(OTHER, BASE, tar)
        with driver.diff(OTHER, BASE) as tar:
            assert tar.read() == first

    def test_a_change_that_was_taken_back_is_none(self, driver: Driver, base: Tree) -> None:
        def there_and_back(root: Path) -> None:
            times = {path: path.lstat().st_mtime_ns for path in (root, root / "etc", root / "etc/motd")}
            (root / "etc/motd").chmod(0o600)
            (root / "etc/motd").chmod(0o644)
            _append(root / "etc/motd")
            (root / "etc/motd").write_bytes(b"hello\n")
            (root / "etc/x").write_bytes(b"")
            (root / "etc/x").unlink()
            (root / "etc").chmod(0o700)
            (root / "etc").chmod(0o755)
            for path, time in times.items():
                os.utime(path, ns=(time, time))

        edited = self.edit(driver, there_and_back)
        assert_same(edited, base)
        assert list(driver.changes(TOP, BASE)) == []
        with driver.diff(TOP, BASE) as tar:
            assert list(read_items(tar)) == []

    def test_the_diff_of_a_whole_layer(self, driver: Driver, base: Tree) -> None:
        with driver.diff(BASE, None) as tar:
            items = list(read_items(tar))
        assert_same(apply(Tree({b"": base.nodes[b""]}), items), base)
        make_layer(driver, OTHER, items)
        assert_same(tree_of(driver, OTHER), base)

    def test_a_stream_closed_early_holds_nothing(self, driver: Driver, base: Tree) -> None:
        self.edit(driver, lambda r: (r / "big").write_bytes(b"x" * 5_000_000))
        tar = driver.diff(TOP, BASE)
        tar.read(1000)
        tar.close()
        driver.remove(TOP)

    def test_a_stream_read_to_its_end_holds_nothing(self, driver: Driver, base: Tree) -> None:
        tar = driver.diff(TOP, BASE)
        while tar.read(4096):
            pass
        driver.remove(TOP)
        tar.close()

    def test_a_name_like_a_mark_hides_nothing(self, driver: Driver, base: Tree) -> None:
        """A container may call a file ``.wh.etc``, unless the driver refuses that; a tar could only mean a
        whiteout by it."""

        def edit(root: Path) -> None:
            with contextlib.suppress(PermissionError):
                (root / ".wh.etc").write_bytes(b"")

        self.edit(driver, edit)
        items = []
        with contextlib.suppress(LayerfsError), driver.diff(TOP, BASE) as tar:
            items = list(read_items(tar))
        assert b"etc/motd" in apply(base, items).nodes

    def test_containers_upon_the_commits_of_others(self, driver: Driver) -> None:
        """Edit, take the diff, make a layer of it, go on upon that."""
        make_layer(driver, BASE, fit(BELOW))
        below = tree_of(driver, BASE)

        def check(name: str, edits: list[Edit]) -> None:
            parent, parent_tree = BASE, below
            for number, edit in enumerate(edits):
                container, layer = case_id(name, f"container {number}"), case_id(name, f"commit {number}")
                driver.create_read_write(container, parent)
                edited = self.edit(driver, edit, container)
                assert list(driver.changes(container, parent)) == changes(edited, parent_tree)
                driver.create(layer, parent)
                with driver.diff(container, parent) as tar:
                    driver.apply_diff(layer, parent, tar)
                assert_same(tree_of(driver, layer), edited)
                driver.remove(container)
                parent, parent_tree = layer, edited

        each(COMMITS, check)
        assert_same(tree_of(driver, BASE), below)

    def test_a_diff_of_what_is_written_to_is_of_some_moment(self, driver: Driver, base: Tree) -> None:
        """Or a typed error: never a crash, nor a tar that is broken or lacks what was there all along."""
        stop = threading.Event()

        def write(root: Path) -> None:
            for number in itertools.count():
                busy = root / f"busy-{number % 5}"
                _make_files(busy / "deep", "f")
                (busy / "deep" / "f").write_bytes(b"x" * (number % 7 * 1000))
                (busy / "deep" / "f").rename(busy / "g")
                _append(root / "etc" / "shadow")
                if number % 3:
                    shutil.rmtree(busy)
                if stop.is_set():
                    return

        with mounted(driver, TOP) as root, ThreadPoolExecutor(1) as pool:
            (root / "etc" / "settled").write_bytes(b"settled")
            (root / "etc" / "motd").unlink()
            writing = pool.submit(write, root)
            try:
                for _ in range(5):
                    with contextlib.suppress(Conflict, SystemFailure):
                        paths = [change.path for change in driver.changes(TOP, BASE)]
                        assert {b"etc", b"etc/settled", b"etc/motd"} <= set(paths)
                        assert paths == sorted(set(paths), key=order)
                    with contextlib.suppress(Conflict, SystemFailure):
                        assert driver.diff_size(TOP, BASE) >= len(b"settled")
                    data = b""
                    with contextlib.suppress(Conflict, SystemFailure), driver.diff(TOP, BASE) as tar:
                        data = tar.read()
                    if data:
                        seen = apply(base, read_items(io.BytesIO(data))).nodes
                        assert seen[b"etc/settled"].content == b"settled" and b"etc/motd" not in seen
            finally:
                stop.set()
            writing.result()
        edited = tree_of(driver, TOP)
        assert list(driver.changes(TOP, BASE)) == changes(edited, base)

    def test_two_streams_of_one_layer_do_not_disturb_one_another(self, driver: Driver, base: Tree) -> None:
        self.edit(driver, lambda r: (r / "big").write_bytes(os.urandom(300_000)))
        with driver.diff(TOP, BASE) as one, driver.diff(TOP, BASE) as two, driver.diff(BASE, None) as three:
            first = second = third = b""
            while chunk := one.read(10_000):
                first += chunk
                second += two.read(10_000)
                third += three.read(10_000)
        assert first == second and len(first) > 300_000
        assert third and b"secret" in third

    def test_sockets_of_a_writable_layer_are_there_in_its_child(self, driver: Driver, base: Tree) -> None:
        """No tar holds one, but an init layer may."""
        self.edit(
            driver, _in_turn(lambda r: _make_socket(r / "etc/one"), lambda r: _make_socket(r / "etc/two"))
        )
        driver.create_read_write(OTHER, TOP)
        edited = self.edit(driver, lambda r: (r / "etc/two").unlink(), OTHER)
        assert stat.S_ISSOCK(edited.nodes[b"etc/one"].mode)
        assert [change.path for change in driver.changes(OTHER, TOP)] == [b"etc", b"etc/two"]
        with driver.diff(OTHER, TOP) as tar:
            assert [entry.name for entry, _ in read_items(tar)] == [b"etc/", b"etc/.wh.two"]

    def test_a_container_upon_an_init_layer(self, driver: Driver, base: Tree) -> None:
        """What the init layer holds is no part of the container's changes."""
        init, container = graph_id("c-init"), graph_id("c")
        driver.create_read_write(init, BASE)
        with mounted(driver, init) as root:
            (root / "etc/hosts").write_bytes(b"")
            (root / "dev").mkdir()
        driver.create_read_write(container, init)
        with mounted(driver, container) as root:
            (root / "etc/mine").write_bytes(b"")
        assert [change.path for change in driver.changes(container, init)] == [b"etc", b"etc/mine"]
        assert tree_of(driver, container).nodes.keys() >= {b"etc/hosts", b"dev", b"etc/mine"}

    def test_an_applied_layer_and_a_written_one_are_told_alike(self, driver: Driver, base: Tree) -> None:
        items = [file(b"etc/motd", b"new\n"), directory(b"new"), file(b"new/f", b"")]
        driver.create(OTHER, BASE)
        driver.apply_diff(OTHER, BASE, tar_stream(items))

        def by_hand(root: Path) -> None:
            etc = (root / "etc").stat().st_mtime_ns
            top = root.stat().st_mtime_ns
            (root / "etc/motd").write_bytes(b"new\n")
            (root / "new").mkdir(mode=0o755)
            (root / "new").chmod(0o755)
            (root / "new/f").write_bytes(b"")
            (root / "new/f").chmod(0o644)
            for path in ("etc/motd", "new/f", "new"):
                os.utime(root / path, ns=(DAY, DAY))
            os.utime(root / "etc", ns=(etc, etc))
            os.utime(root, ns=(top, top))

        self.edit(driver, by_hand)
        with driver.diff(TOP, BASE) as one, driver.diff(OTHER, BASE) as two:
            assert one.read() == two.read()

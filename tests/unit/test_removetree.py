"""Removing trees: everything beneath a name goes, nothing else does, whoever works in the tree meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.removetree import remove_at, remove_tree
from tests.require import need
from tests.unit.test_register_cost import traced


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A directory that must be as it was at the end of the test."""
    path = tmp_path / "precious"
    (path / "d").mkdir(parents=True)
    (path / "f").write_bytes(b"")
    path.chmod(0o750)
    yield path
    assert sorted(os.listdir(path)) == ["d", "f"]
    assert path.stat().st_mode & 0o777 == 0o750


def make_deep(root: Path, depth: int) -> None:
    """A nest whose innermost directory no path can name."""
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT, dir_fd=here))
        os.mkdir("directory", dir_fd=here)
        os.mkdir("sister", dir_fd=here)
        inner = os.open("directory", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def make_tree(root: Path, *, width: int = 8) -> None:
    for one, two in itertools.product(range(width), repeat=2):
        (root / f"d{one}" / f"d{two}").mkdir(parents=True)
        (root / f"d{one}" / f"d{two}" / "f").write_bytes(b"")


def test_a_symlink_is_not_followed(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(precious)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    (tmp_path / "link").symlink_to(precious)
    remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()


def test_no_mount_is_crossed(tmp_path: Path, precious: Path) -> None:
    need.root()
    (tmp_path / "tree" / "d" / "mnt").mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, tmp_path / "tree" / "d" / "mnt"], check=True)
    try:
        with pytest.raises(OSError, match="mounted"):
            remove_tree(tmp_path / "tree")
    finally:
        subprocess.run(["umount", tmp_path / "tree" / "d" / "mnt"], check=True)
    assert (precious / "f").exists()
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_what_is_gone_is_no_error(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
    remove_tree(tmp_path / "no" / "where")


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 64, 65, 3000])
def test_depth_is_no_limit_and_no_descriptor_is_left_open(tmp_path: Path, depth: int) -> None:
    make_deep(tmp_path / "tree", depth)
    before = os.listdir("/proc/self/fd")
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []
    assert os.listdir("/proc/self/fd") == before


REMOVING = """
import sys
from pathlib import Path
from layerfs.linux.removetree import remove_tree
base = Path(sys.argv[1])
print("now", file=sys.stderr, flush=True)
remove_tree(base / "tree")
print("done", file=sys.stderr, flush=True)
"""


def test_a_file_costs_one_system_call(tmp_path: Path) -> None:
    made = []
    for files in (10, 60):
        where = tmp_path / str(files)
        for directory, number in itertools.product(range(20), range(files)):
            (where / "tree" / f"d{directory}").mkdir(parents=True, exist_ok=True)
            (where / "tree" / f"d{directory}" / f"f{number}").write_bytes(b"")
        made.append(traced(REMOVING, where))
        assert not (where / "tree").exists()
    assert made[1] - made[0] == {"unlinkat": 20 * 50}


def test_a_failure_of_one_thread_is_told_and_no_descriptor_is_left_open(tmp_path: Path) -> None:
    need.root()
    make_tree(tmp_path / "tree", width=12)
    held = tmp_path / "tree" / "d7" / "d7"
    subprocess.run(["mount", "--bind", held, held], check=True)
    before = os.listdir("/proc/self/fd")
    try:
        with pytest.raises(OSError, match="mounted"):
            remove_tree(tmp_path / "tree")
    finally:
        subprocess.run(["umount", held], check=True)
    assert os.listdir("/proc/self/fd") == before
    assert not [thread for thread in threading.enumerate() if thread.name == "layerfs-remove"]
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_a_name_in_an_open_directory(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "stays").mkdir()
    fd = os.open(tmp_path, os.O_PATH)
    try:
        for name in (b"tree", b"file", b"nothing"):
            remove_at(fd, name)
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == ["stays"]


def test_a_user_can_remove_directories_without_rights_upon_them(tmp_path: Path) -> None:
    need.root()
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "f").write_bytes(b"")
    for path in (tree / "a" / "b" / "f", tree / "a" / "b", tree / "a", tree, tmp_path):
        os.chown(path, 12345, 12345)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    (tree / "a" / "b").chmod(0o000)
    (tree / "a").chmod(0o100)
    child = os.fork()
    if child == 0:
        os.setgid(12345)
        os.setuid(12345)
        try:
            remove_tree(tree)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert not tree.exists()


def test_several_can_remove_one_tree_together(tmp_path: Path) -> None:
    for _ in range(5):
        make_tree(tmp_path / "tree")
        make_deep(tmp_path / "tree" / "deep", 100)
        failed: list[BaseException] = []

        def work(failed: list[BaseException] = failed) -> None:
            try:
                remove_tree(tmp_path / "tree")
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert not (tmp_path / "tree").exists()


@contextlib.contextmanager
def moving(work: Path, precious: Path) -> Iterator[None]:
    """Another process that moves directories of ``work/tree`` about, and puts links to ``precious`` there."""
    child = os.fork()
    if child == 0:
        for turn in itertools.count():
            where = work / "tree" / f"d{turn % 3}"
            with contextlib.suppress(OSError):
                os.rename(where, work / f"aside{turn % 3}")
                os.symlink(precious, where)
            with contextlib.suppress(OSError):
                os.unlink(where)
            with contextlib.suppress(OSError):
                os.rename(work / f"aside{turn % 3}", where / f"d{turn % 7}" if turn % 2 else where)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_directories_that_another_process_moves_and_swaps_for_links(tmp_path: Path, precious: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with moving(work, precious):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            make_tree(work / "new", width=3)
            make_deep(work / "new" / "d0" / "deep", 40)
            (work / "new").rename(work / "tree")
            while (work / "tree").exists():
                with contextlib.suppress(OSError):
                    remove_tree(work / "tree")
    remove_tree(work)
    assert os.listdir(tmp_path) == ["precious"]

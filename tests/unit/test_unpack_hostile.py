"""Whatever a tar says and whatever others do to the tree meanwhile, nothing outside the root is touched."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.names import normalise
from layerfs.archive.unpack import unpack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.errors import ArchiveError, EntryRefused, MalformedArchive, PathEscape, SystemFailure
from layerfs.testing.entries import device, directory, file, hard_link, opaque, symlink, tar_stream, whiteout
from layerfs.testing.model import EMPTY, Item, Tree, apply, differences, read_tree
from tests.require import need
from tests.unpackkit import applied, fresh

OUTSIDE = [
    directory(b"dir", mode=0o700),
    file(b"dir/secret", b"mine"),
    file(b"target", b"mine"),
    file(b"x", b"mine"),
]


@pytest.fixture(autouse=True)
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that must be found as it was left."""
    need.root()
    before = apply(EMPTY, OUTSIDE)
    place = fresh(tmp_path / "outside", before)
    yield place
    assert not differences(read_tree(place), before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fresh(tmp_path / "root")


UP = b"../outside"

ESCAPES: dict[str, list[Item]] = {
    "dots": [file(b"../outside/target", b"theirs")],
    "dots in the middle": [directory(b"a"), file(b"a/../../outside/target", b"theirs")],
    "dots that would stay inside": [directory(b"a"), file(b"a/../b", b"theirs")],
    "dots at the end": [directory(b"a/..")],
    "a link out, then a file through it": [symlink(b"l", UP), file(b"l/target", b"theirs")],
    "an absolute link": [symlink(b"l", b"/tmp"), file(b"l/target", b"theirs")],
    "a link to the root of the host": [symlink(b"l", b"/"), file(b"l/etc/new", b"theirs")],
    "a chain of links": [
        symlink(b"a", b"b"),
        symlink(b"b", b"c/.."),
        symlink(b"c", b".."),
        file(b"a/x", b"theirs"),
    ],
    "a link that climbs one too high": [
        directory(b"d/e"),
        symlink(b"d/e/l", b"../../.."),
        file(b"d/e/l/x", b"theirs"),
    ],
    "a link that leads to itself": [symlink(b"l", b"l"), file(b"l/x", b"theirs")],
    "links that lead to each other": [symlink(b"a", b"b/x"), symlink(b"b", b"a/x"), file(b"a/x", b"theirs")],
    "a directory through a link": [symlink(b"l", UP), directory(b"l/new")],
    "a device through a link": [symlink(b"l", UP), device(b"l/null", 1, 3)],
    "a link through a link": [symlink(b"l", UP), symlink(b"l/new", b"x")],
    "a hard link through a link": [symlink(b"l", UP), file(b"f", b""), hard_link(b"l/new", b"f")],
    "a hard link out": [hard_link(b"f", b"../outside/target")],
    "a hard link out through a link": [symlink(b"l", UP), hard_link(b"f", b"l/target")],
    "a whiteout with dots": [whiteout(b"../outside/target")],
    "a whiteout of the parent": [file(b".wh...", b"")],
    "a whiteout of the directory": [file(b"a/.wh..", b"")],
    "a whiteout of nothing": [file(b"a/.wh.", b"")],
    "a whiteout through a link": [symlink(b"l", UP), whiteout(b"l/target")],
    "an opaque mark with dots": [opaque(b"../outside")],
    "an opaque mark through a link": [symlink(b"l", UP), opaque(b"l")],
}


@pytest.mark.parametrize("whiteouts", WhiteoutFormat)
@pytest.mark.parametrize("story", ESCAPES)
def test_an_escape_is_refused(root: Path, story: str, whiteouts: WhiteoutFormat) -> None:
    items = ESCAPES[story]
    with pytest.raises(PathEscape) as caught:
        unpack(tar_stream(items), root, whiteouts=whiteouts)
    assert caught.value.entry.rstrip(b"/") == items[-1][0].name.rstrip(b"/")


HARMLESS: dict[str, list[Item]] = {
    "a leading slash": [file(b"/outside/target", b"theirs")],
    "many slashes and dots": [file(b".//.///outside/./target", b"theirs")],
    "a link out that is replaced": [symlink(b"l", UP), file(b"l", b"theirs")],
    "a link out that becomes a directory": [symlink(b"l", UP), directory(b"l"), file(b"l/target", b"theirs")],
    "a directory that becomes a link out": [directory(b"l"), file(b"l/target", b"theirs"), symlink(b"l", UP)],
    "a hard link to a link out": [
        symlink(b"l", b"../outside/target"),
        hard_link(b"h", b"l"),
        file(b"h", b"theirs"),
    ],
    "attributes of a link out": [symlink(b"l", b"../outside/target", uid=1234)],
    "an opaque root": [opaque(b""), whiteout(b"outside")],
    "names like marks": [file(b".whiteout", b""), file(b".wh", b""), directory(b"a.wh.b")],
}


@pytest.mark.parametrize("story", HARMLESS)
def test_what_only_looks_like_an_escape(root: Path, story: str) -> None:
    applied(root, *HARMLESS[story])
    assert not differences(read_tree(root), apply(EMPTY, HARMLESS[story]))


LINKED = [
    symlink(b"l", UP),
    symlink(b"f", b"../outside/target"),
    directory(b"d"),
    symlink(b"d/l", b"../../outside"),
]


@pytest.mark.parametrize(
    "items",
    [
        [file(b"l/target", b"theirs")],
        [file(b"f", b"theirs")],
        [directory(b"l", uid=1234)],
        [directory(b"d/l"), file(b"d/l/dir/secret", b"theirs")],
        [whiteout(b"l/target"), whiteout(b"f")],
        [opaque(b"l")],
        [opaque(b"")],
        [whiteout(b"d"), file(b"d/l/x", b"theirs")],
        [file(b"d", b"theirs")],
    ],
)
def test_links_out_that_the_parent_tree_holds(root: Path, items: list[Item]) -> None:
    """A container may have left them; they are neither followed nor refused."""
    applied(root, *LINKED)
    applied(root, *items)
    assert not differences(read_tree(root), apply(apply(EMPTY, LINKED), items))


def test_names_as_long_as_linux_takes(root: Path) -> None:
    longest = b"n" * 255
    items = [file(longest, b""), file(b"/".join([b"d" * 250] * 15), b"")]
    applied(root, *items)
    assert not differences(read_tree(root), apply(EMPTY, items))
    applied(root, whiteout(longest))
    assert not (root / os.fsdecode(longest)).exists()


@pytest.mark.parametrize(
    "name", [b"n" * 256, b".wh." + b"n" * 256, b"/".join([b"d"] * 2049), b"d/" * 100_000]
)
def test_names_longer_than_linux_takes(root: Path, name: bytes) -> None:
    with pytest.raises(EntryRefused) as caught:
        applied(root, file(name, b""))
    assert caught.value.entry == name
    assert len(str(caught.value)) < 6000
    assert "longer than" in str(caught.value)


def test_a_path_that_grows_through_links(root: Path) -> None:
    deep = b"/".join([b"d" * 200] * 15)
    links = [symlink(b"/".join([b"l"] * n), deep) for n in range(1, 4)]
    with pytest.raises(EntryRefused):
        applied(root, *links, file(b"l/l/l/f", b""))


def test_a_name_with_a_nul() -> None:
    with pytest.raises(MalformedArchive):
        normalise(b"a\0b")


def test_a_nest_deeper_than_descriptors_and_stack_reach(root: Path) -> None:
    nest = b"d/" * 2000
    applied(root, file(nest + b"f", b"x"), file(b"d/e", b"x"))
    applied(root, whiteout(nest + b"f"), file(nest + b"g", b"x"))
    applied(root, file(b"d/d", b"in place of it"))
    assert (root / "d" / "d").read_bytes() == b"in place of it"


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([symlink(b"l", b"l"), file(b"l/x", b"")], "through too many symbolic links, at last l -> l"),
        ([symlink(b"l", b"/x"), file(b"l/x", b"")], "through an absolute symbolic link, l -> /x"),
        ([hard_link(b"h", b"/")], "h: hard link to the root"),
        ([symlink(b"l", b"")], "l: a symbolic link without a target"),
    ],
)
def test_the_reason_is_told(root: Path, items: list[Item], why: str) -> None:
    with pytest.raises(ArchiveError, match=re.escape(why)):
        applied(root, *items)


def test_no_descriptor_is_left_open(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    applied(root, *[file(b"%d/%d/f" % (n, n), b"") for n in range(200)])
    for items in ESCAPES.values():
        with contextlib.suppress(ArchiveError):
            applied(root, *items)
    assert len(os.listdir("/proc/self/fd")) == before


STORM = [
    *[
        item
        for n in range(20)
        for item in (file(b"d/sub/target", b"%d" % n), file(b"d/sub/dir/secret", b"theirs"))
    ],
    file(b"d/sub/new", b"theirs"),
    whiteout(b"d/sub/x"),
    directory(b"d/sub/dir", mode=0o777, uid=1234),
    hard_link(b"d/sub/hard", b"d/sub/new"),
    symlink(b"d/sub/soft", b"new"),
    opaque(b"d/sub"),
    file(b"d/sub/dir", b"a file in place of it"),
]


@contextlib.contextmanager
def swapping(root: Path, outside: Path) -> Iterator[None]:
    """Another process that swaps ``d`` and ``d/sub`` for links out of the root, and back, all the time."""
    child = os.fork()
    if not child:
        for turn in itertools.count():
            where = root / "d" if turn % 2 else root / "d" / "sub"
            aside = root / f"aside{turn}"
            with contextlib.suppress(OSError):
                os.rename(where, aside)
                os.symlink(outside, where)
            with contextlib.suppress(OSError):
                os.unlink(where)
            with contextlib.suppress(OSError):
                os.rename(aside, where)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_directories_that_another_process_swaps_for_links(tmp_path: Path, outside: Path) -> None:
    """``outside`` itself holds what the links would lead to."""
    below: Tree = apply(EMPTY, [*OUTSIDE[2:], file(b"d/sub/x", b""), file(b"d/sub/target", b"")])
    root = fresh(tmp_path / "root", below)
    rounds = 0
    with swapping(root, outside):
        end = time.monotonic() + 3
        while time.monotonic() < end:
            rounds += 1
            with contextlib.suppress(ArchiveError, SystemFailure):
                unpack(tar_stream(STORM), root, whiteouts=WhiteoutFormat.APPLY)
    assert rounds

"""Deletion marks mean the same carried out, as overlay's marks, and in any order."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.unpack import unpack
from layerfs.archive.whiteout import (
    Mark,
    MarkKind,
    WhiteoutFormat,
    escape_xattr,
    mark_of,
    unescape_xattr,
    whiteout_path,
)
from layerfs.errors import ArchiveError, EntryRefused, PathEscape
from layerfs.testing.entries import directory, file, hard_link, opaque, symlink, tar_stream, whiteout
from layerfs.testing.model import EMPTY, Item, apply, differences, read_tree
from tests.require import need
from tests.unpackkit import applied, fresh, names, upper


@pytest.mark.parametrize(
    ("path", "mark"),
    [
        (b"a/.wh.b", Mark(MarkKind.WHITEOUT, b"a/b")),
        (b".wh.b", Mark(MarkKind.WHITEOUT, b"b")),
        (b".wh....", Mark(MarkKind.WHITEOUT, b"...")),
        (b"a/.wh..wh..opq", Mark(MarkKind.OPAQUE, b"a")),
        (b".wh..wh..opq", Mark(MarkKind.OPAQUE, b"")),
        (b".wh..wh.aufs", Mark(MarkKind.INTERNAL, b".wh..wh.aufs")),
        (b".wh..wh.plnk/.wh.x", Mark(MarkKind.INTERNAL, b".wh..wh.plnk/.wh.x")),
        (b"a.wh.b", None),
        (b"a/b", None),
        (b"", None),
    ],
)
def test_what_a_name_stands_for(path: bytes, mark: Mark | None) -> None:
    assert mark_of(path) == mark


@pytest.mark.parametrize("name", [b".wh.", b"a/.wh..", b".wh..."])
def test_a_whiteout_must_name_something_in_its_directory(name: bytes) -> None:
    with pytest.raises(PathEscape) as caught:
        mark_of(name, b"./" + name)
    assert caught.value.entry == b"./" + name


def test_nothing_lies_beneath_a_whiteout() -> None:
    with pytest.raises(EntryRefused):
        mark_of(b".wh.a/b")


def test_a_whiteout_path_stands_for_its_path() -> None:
    for path in (b"a", b"a/b/c", b"x" * 255):
        assert mark_of(whiteout_path(path)) == Mark(MarkKind.WHITEOUT, path)


def test_xattrs_of_overlayfs_in_an_image_survive_on_overlay() -> None:
    for whiteouts, name in (
        (WhiteoutFormat.OVERLAY, b"trusted.overlay.opaque"),
        (WhiteoutFormat.OVERLAY, b"trusted.overlay.overlay.opaque"),
        (WhiteoutFormat.OVERLAY_USER, b"user.overlay.opaque"),
    ):
        escaped = escape_xattr(name, whiteouts)
        assert escaped != name
        assert unescape_xattr(escaped, whiteouts) == name
        assert unescape_xattr(whiteouts.xattr_prefix + b"origin", whiteouts) is None
    for whiteouts in WhiteoutFormat:
        assert escape_xattr(b"user.x", whiteouts) == unescape_xattr(b"user.x", whiteouts) == b"user.x"
    assert escape_xattr(b"user.overlay.opaque", WhiteoutFormat.OVERLAY) == b"user.overlay.opaque"


LOWER = [
    directory(b"d", mode=0o750, uid=3),
    file(b"d/x", b"lower"),
    directory(b"d/sub", mode=0o711),
    file(b"d/sub/y", b"lower"),
    file(b"f", b"lower"),
    directory(b"e/g"),
    file(b"e/g/z", b"lower"),
    symlink(b"l", b"d"),
]

STORIES: dict[str, list[Item]] = {
    "hide a file and make a directory of its name": [whiteout(b"f"), directory(b"f"), file(b"f/new", b"")],
    "hide a directory and make it anew": [whiteout(b"d"), directory(b"d"), file(b"d/new", b"")],
    "hide a directory and make a file in it": [whiteout(b"d"), file(b"d/sub/new", b"")],
    "hide a name and make it": [whiteout(b"d/x"), file(b"d/x", b"upper")],
    "an opaque directory": [opaque(b"d"), file(b"d/new", b""), file(b"d/sub/new", b"")],
    "an opaque directory that is listed": [opaque(b"d"), directory(b"d", uid=9), directory(b"d/sub")],
    "an opaque directory that is not there": [opaque(b"n/m"), file(b"n/f", b"")],
    "an opaque root": [opaque(b""), file(b"d/new", b""), directory(b"e")],
    "whiteouts inside an opaque directory": [opaque(b"d"), whiteout(b"d/x"), whiteout(b"d/sub")],
    "whiteouts of nothing": [whiteout(b"n"), whiteout(b"d/n"), whiteout(b"f/n"), whiteout(b"n/n/n")],
    "a whiteout through a link of the parent": [whiteout(b"l/x"), whiteout(b"d/sub/y")],
    "a whiteout in a hidden directory": [whiteout(b"d"), whiteout(b"d/x"), whiteout(b"e/g/z")],
    "a linked file with a whiteout": [file(b"a", b"1"), whiteout(b"f"), whiteout(b"a")],
}


@pytest.mark.parametrize("story", STORIES)
def test_marks_mean_the_same_in_any_order_and_on_overlay(tmp_path: Path, story: str) -> None:
    need.overlay(tmp_path)
    below = apply(EMPTY, LOWER)
    for number, items in enumerate(itertools.permutations(STORIES[story])):
        expected = apply(below, items)
        root = fresh(tmp_path / f"applied{number}", below)
        applied(root, *items)
        assert not differences(read_tree(root), expected)

        here = tmp_path / f"overlay{number}"
        here.mkdir()
        lower = upper(here / "lower", LOWER)
        layer = upper(here / "upper", items, [lower])
        with merged(here, layer, lower) as seen:
            assert not differences(read_tree(seen), expected)


@contextlib.contextmanager
def merged(here: Path, layer: Path, lower: Path) -> Iterator[Path]:
    """What overlayfs shows of two layers; a root that is opaque ends the stack, as the driver does it."""
    target, empty = here / "merged", here / "empty"
    target.mkdir()
    empty.mkdir()
    opaque_root = "trusted.overlay.opaque" in os.listxattr(layer)
    layers = f"{layer}:{empty}" if opaque_root else f"{layer}:{lower}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={layers}", target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


def test_marks_on_disk_are_as_few_as_can_be(tmp_path: Path) -> None:
    need.root()
    lower = upper(tmp_path / "lower", LOWER)
    items = [
        whiteout(b"f"),
        whiteout(b"n"),
        whiteout(b"q/n"),
        opaque(b"d"),
        whiteout(b"d/x"),
        whiteout(b"e/g/z"),
    ]
    layer = upper(tmp_path / "upper", items, [lower])
    assert names(layer) == {"f", "d", "e", "e/g", "e/g/z"}
    for name in ("f", "e/g/z"):
        status = os.lstat(layer / name)
        assert stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
    assert os.getxattr(layer / "d", "trusted.overlay.opaque") == b"y"
    assert not names(upper(tmp_path / "alone", items[:3]))


def test_marks_for_an_ordinary_users_overlay(tmp_path: Path) -> None:
    need.root()
    lower = upper(tmp_path / "lower", LOWER)
    layer = tmp_path / "upper"
    layer.mkdir()
    carried = file(b"n", b"", xattrs={b"user.overlay.opaque": b"y"})
    unpack(
        tar_stream([opaque(b"d"), whiteout(b"f"), carried]),
        layer,
        whiteouts=WhiteoutFormat.OVERLAY_USER,
        lower=[lower],
    )
    assert os.getxattr(layer / "d", "user.overlay.opaque") == b"y"
    assert os.listxattr(layer / "n") == ["user.overlay.overlay.opaque"]
    assert os.lstat(layer / "f").st_rdev == 0


def test_a_whiteout_hides_what_any_of_the_layers_below_has(tmp_path: Path) -> None:
    need.root()
    one = upper(tmp_path / "one", [file(b"a", b""), file(b"b", b""), file(b"d/c", b"")])
    two = upper(tmp_path / "two", [whiteout(b"b"), opaque(b"d")], [one])
    three = upper(tmp_path / "three", [whiteout(b"a"), whiteout(b"b"), whiteout(b"d/c")], [two, one])
    assert names(three) == {"a"}


def test_aufs_keeps_marks_as_files(tmp_path: Path) -> None:
    need.root()
    items = [whiteout(b"a"), whiteout(b"n"), opaque(b"d"), whiteout(b"f"), file(b"f/new", b"")]
    below = [file(b"a", b""), directory(b"f"), file(b"f/old", b""), file(b"d/x", b"")]
    lower = upper(tmp_path / "below", below, whiteouts=WhiteoutFormat.AUFS)
    root = upper(tmp_path / "root", items, [lower], whiteouts=WhiteoutFormat.AUFS)
    assert names(root) == {".wh.a", "d", "d/.wh..wh..opq", "f", "f/.wh..wh..opq", "f/new"}


def test_aufs_does_not_merge_past_a_file(tmp_path: Path) -> None:
    """It takes directories of all layers for one, whatever else has the name in between."""
    need.root()
    bottom = upper(tmp_path / "bottom", [file(b"d/old", b"")], whiteouts=WhiteoutFormat.AUFS)
    middle = upper(tmp_path / "middle", [file(b"d", b"")], whiteouts=WhiteoutFormat.AUFS)
    top = upper(tmp_path / "top", [directory(b"d")], [middle, bottom], whiteouts=WhiteoutFormat.AUFS)
    assert names(top) == {"d", "d/.wh..wh..opq"}


def test_aufs_cannot_mark_a_name_that_is_too_long(tmp_path: Path) -> None:
    need.root()
    lower = upper(tmp_path / "lower", [file(b"d/" + b"n" * 252, b"")], whiteouts=WhiteoutFormat.AUFS)
    with pytest.raises(EntryRefused, match="File name too long"):
        upper(tmp_path / "root", [whiteout(b"d/" + b"n" * 252)], [lower], whiteouts=WhiteoutFormat.AUFS)


def test_a_link_to_a_mark_is_refused(tmp_path: Path) -> None:
    need.root()
    root = fresh(tmp_path / "root")
    with pytest.raises(ArchiveError):
        applied(root, whiteout(b"a"), hard_link(b"b", b".wh.a"))

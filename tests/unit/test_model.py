"""The reference itself, against layers whose meaning was worked out by hand from the OCI image-spec."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from layerfs.archive.changes import ChangeKind
from layerfs.errors import EntryRefused, PathEscape
from layerfs.testing.entries import (
    DAY,
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    symlink,
    tar_stream,
    whiteout,
)
from layerfs.testing.model import (
    EMPTY,
    Item,
    Tree,
    apply,
    changes,
    diff,
    differences,
    read_items,
    read_tree,
    write_tree,
)
from tests.require import need

LOWER = [directory(b"d", mode=0o700, mtime_ns=7), file(b"d/x", b"x"), file(b"d/y", b"y"), file(b"f", b"f")]


def upon_lower(*items: Item) -> Tree:
    return apply(apply(EMPTY, LOWER), items)


def names(tree: Tree) -> set[bytes]:
    return set(tree.nodes) - {b""}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], {b"d", b"d/x", b"d/y", b"f"}),
        ([whiteout(b"d/x")], {b"d", b"d/y", b"f"}),
        ([whiteout(b"d")], {b"f"}),
        ([whiteout(b"d"), directory(b"d")], {b"d", b"f"}),
        ([directory(b"d"), whiteout(b"d")], {b"d", b"f"}),
        ([opaque(b"d"), file(b"d/z")], {b"d", b"d/z", b"f"}),
        ([file(b"d/z"), opaque(b"d")], {b"d", b"d/z", b"f"}),
        ([opaque(b"")], set()),
        ([opaque(b"n")], {b"d", b"d/x", b"d/y", b"f", b"n"}),
        ([file(b"d")], {b"d", b"f"}),
        ([file(b"d"), directory(b"d")], {b"d", b"f"}),
        ([directory(b"d")], {b"d", b"d/x", b"d/y", b"f"}),
        ([file(b"f/z")], {b"d", b"d/x", b"d/y", b"f", b"f/z"}),
        ([file(b"d/z"), file(b"d"), directory(b"d")], {b"d", b"f"}),
        ([whiteout(b"no/such")], {b"d", b"d/x", b"d/y", b"f"}),
        ([symlink(b"s", b"d"), file(b"s/z")], {b"d", b"d/x", b"d/y", b"d/z", b"f", b"s"}),
        ([symlink(b"s", b"d"), whiteout(b"s/x")], {b"d", b"d/y", b"f", b"s"}),
        (
            [file(b".wh..wh.plnk/1", b"p"), hard_link(b"p", b".wh..wh.plnk/1")],
            {b"d", b"d/x", b"d/y", b"f", b"p"},
        ),
    ],
)
def test_what_a_layer_leaves(items: Sequence[Item], expected: set[bytes]) -> None:
    assert names(upon_lower(*items)) == expected


def test_an_unlisted_directory_keeps_what_it_had() -> None:
    tree = upon_lower(file(b"d/z", b""), opaque(b"d"))
    assert (stat.S_IMODE(tree.nodes[b"d"].mode), tree.nodes[b"d"].mtime_ns) == (0o700, 7)


def test_an_unlisted_directory_whose_forerunner_is_hidden_is_plain() -> None:
    tree = upon_lower(file(b"d/z", b""), whiteout(b"d"))
    assert (stat.S_IMODE(tree.nodes[b"d"].mode), tree.nodes[b"d"].mtime_ns) == (0o755, 0)


def test_hard_links_are_one_file() -> None:
    tree = upon_lower(file(b"a", b"same"), hard_link(b"b", b"a"), file(b"c", b"same"))
    assert tree.links()[b"a"] == {b"a", b"b"}
    assert tree.links()[b"c"] == {b"c"}


def test_replacing_one_name_leaves_the_others() -> None:
    tree = upon_lower(file(b"a", b"1"), hard_link(b"b", b"a"), file(b"a", b"2"))
    assert (tree.nodes[b"a"].content, tree.nodes[b"b"].content) == (b"2", b"1")


@pytest.mark.parametrize("target", [b"/", b"/d", b"..", b"x/../.."])
def test_nothing_is_made_through_a_link_out_of_the_layer(target: bytes) -> None:
    with pytest.raises(PathEscape):
        upon_lower(symlink(b"s", target), file(b"s/z", b""))


def test_links_name_what_the_layer_itself_made() -> None:
    with pytest.raises(EntryRefused):
        upon_lower(hard_link(b"z", b"f"))


@pytest.mark.parametrize("name", [b".wh..wh.aufs", b".wh..wh.orph/1", b"d/.wh..wh.plnk/1"])
def test_of_the_files_of_aufs_only_pseudo_links_can_be_linked_to(name: bytes) -> None:
    with pytest.raises(EntryRefused):
        upon_lower(file(name, b"p"), hard_link(b"p", name))


def letters(tree: Tree, below: Tree | None) -> list[str]:
    return [f"{change.kind.value} {change.path.decode()}" for change in changes(tree, below)]


def test_changes_name_every_directory_above() -> None:
    below = apply(EMPTY, [file(b"a/b/c", b"1"), file(b"z", b"")])
    assert letters(apply(below, [file(b"a/b/c", b"2")]), below) == ["C a", "C a/b", "C a/b/c"]
    assert letters(apply(below, [whiteout(b"a/b")]), below) == ["C a", "D a/b"]
    assert letters(apply(below, [file(b"a/n/m", b"")]), below) == ["C a", "A a/n", "A a/n/m"]
    assert letters(below, below) == []
    assert letters(below, None) == ["A a", "A a/b", "A a/b/c", "A z"]


def test_changes_of_type_and_of_links() -> None:
    below = apply(EMPTY, [file(b"d/x", b""), file(b"f", b""), hard_link(b"g", b"f")])
    assert letters(apply(below, [file(b"d", b"")]), below) == ["C d"]
    assert letters(apply(below, [file(b"f/x", b"")]), below) == ["C f", "A f/x", "C g"]
    assert letters(apply(below, [whiteout(b"f")]), below) == ["D f", "C g"]


def test_the_root_is_listed_when_it_differs_itself() -> None:
    below = apply(EMPTY, [file(b"f", b"")])
    assert letters(apply(below, [directory(b"./", mode=0o700)]), below) == ["C "]


def test_changes_are_sorted_by_component() -> None:
    items = [directory(name) for name in (b"a.b", b"a", b"a/x", b"a-b", b"ab")]
    assert [change.path for change in changes(apply(EMPTY, items), EMPTY)] == [
        b"a",
        b"a/x",
        b"a-b",
        b"a.b",
        b"ab",
    ]


def test_a_diff_leads_from_the_parent_to_the_layer() -> None:
    below = apply(EMPTY, LOWER)
    tree = upon_lower(whiteout(b"d/x"), file(b"a", b"1"), hard_link(b"d/y", b"a"), directory(b"f"))
    entries = [entry.name for entry, _ in diff(tree, below)]
    assert entries == [b"a", b"d/", b"d/.wh.x", b"d/y", b"f/"]
    assert apply(below, diff(tree, below)) == tree
    assert ChangeKind.DELETED in {change.kind for change in changes(tree, below)}


def test_a_tree_survives_a_real_directory(tmp_path: Path) -> None:
    need.root()
    items = [
        directory(b"./", mode=0o711, mtime_ns=3),
        directory(b"d", mode=0o1777, uid=5, mtime_ns=DAY),
        file(b"d/f", b"content", mode=0o4755, gid=6, xattrs={b"user.x": b"\0"}),
        hard_link(b"g", b"d/f"),
        symlink(b"s", b"no/where"),
        fifo(b"p"),
        device(b"n", 1, 3),
    ]
    tree = apply(EMPTY, items)
    write_tree(tree, tmp_path)
    assert differences(read_tree(tmp_path), tree) == []
    os.utime(tmp_path / "d", ns=(0, 0))
    assert len(differences(read_tree(tmp_path), tree)) == 1


def test_a_tar_reads_back_as_it_was_written() -> None:
    items = [directory(b"d/"), file(b"d/\xff", b"x", xattrs={b"user.x": b"\xff\n"}, mtime_ns=-1)]
    assert [(entry.name, content) for entry, content in read_items(tar_stream(items))] == [
        (entry.name, content) for entry, content in items
    ]

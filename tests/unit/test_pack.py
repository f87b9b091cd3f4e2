"""A changeset becomes a tar: the same bytes for equal trees, and the tree itself when applied again."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from layerfs.archive.changes import Change, ChangeKind, walk_changes
from layerfs.archive.pack import content_size, pack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.archive.writer import TarWriter
from layerfs.errors import Conflict, EntryRefused
from layerfs.testing.entries import device, directory, fifo, file, hard_link, symlink, whiteout
from layerfs.testing.model import EMPTY, Tree, apply, diff, differences, read_items, read_tree
from tests.require import need
from tests.unpackkit import applied, fresh, upper

BASE = [directory(b"d"), file(b"d/gone", b""), directory(b"g"), file(b"g/gone", b""), file(b"f", b"1")]
LAYER = [
    directory(b"./", mode=0o700),
    whiteout(b"d/gone"),
    whiteout(b"g"),
    file(b"d/big", bytes(range(256)) * 5000, mode=0o4755, uid=1 << 21),
    file(b"d/" + b"long" * 60, b"x", xattrs={b"user.x": b"\0=\xff\n", b"trusted.t": b""}),
    hard_link(b"a", b"d/big"),
    symlink(b"\xe9", b"\xff/target"),
    fifo(b"p", mode=0o622),
    device(b"null", 1, 3),
    directory(b"f", mode=0o1777),
]


@pytest.fixture(autouse=True)
def root_user() -> None:
    need.root()


def packed(root: Path, parent: Path | None) -> bytes:
    with pack(root, walk_changes(root, parent)) as stream:
        return stream.read()


def written(tree: Tree, parent: Tree) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for entry, content in diff(tree, parent):
        writer.add(entry, [content] if content else [])
    writer.close()
    return out.getvalue()


def test_the_bytes_are_those_of_the_model(tmp_path: Path) -> None:
    below = apply(EMPTY, BASE)
    tree = apply(below, LAYER)
    root, parent = fresh(tmp_path / "root", tree), fresh(tmp_path / "parent", below)
    tar = packed(root, parent)
    assert tar == written(tree, below)
    assert tar == packed(root, parent)
    applied(parent, *read_items(io.BytesIO(tar)))
    assert not differences(read_tree(parent), tree)


def test_other_tools_read_it(tmp_path: Path) -> None:
    tree = apply(EMPTY, LAYER[1:])  # bsdtar does not set the time of the root
    tar = tmp_path / "layer.tar"
    tar.write_bytes(packed(fresh(tmp_path / "root", tree), None))
    for tool, arguments in (("tar", ["--xattrs", "--xattrs-include=*"]), ("bsdtar", ["--xattrs"])):
        need.tool(tool)
        there = tmp_path / tool
        there.mkdir()
        command = [tool, "-xpf", str(tar), "-C", str(there), "--numeric-owner", *arguments]
        subprocess.run(command, check=True)
        os.utime(there, ns=(0, 0))
        assert not differences(read_tree(there), tree), tool


def test_holes_are_no_content(tmp_path: Path) -> None:
    one, two = fresh(tmp_path / "one"), fresh(tmp_path / "two")
    (one / "f").write_bytes(bytes(1 << 20))
    with (two / "f").open("wb") as stream:
        stream.truncate(1 << 20)
    for root in (one, two):
        os.utime(root / "f", ns=(0, 0))
        os.utime(root, ns=(0, 0))
    assert (two / "f").stat().st_blocks == 0
    assert packed(one, None) == packed(two, None)


def test_sockets_are_left_out_but_what_they_replaced_is_gone(tmp_path: Path) -> None:
    tree = apply(EMPTY, BASE)
    root, parent = fresh(tmp_path / "root", tree), fresh(tmp_path / "parent", tree)
    (root / "f").unlink()
    for name in ("f", "new"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(root / name))
    entries = [entry.name for entry, _ in read_items(io.BytesIO(packed(root, parent)))]
    assert entries == [b"./", b".wh.f"]


def test_a_name_that_would_be_a_whiteout_is_refused(tmp_path: Path) -> None:
    root = fresh(tmp_path / "root", apply(EMPTY, [directory(b"d")]))
    (root / "d" / ".wh.x").write_bytes(b"")
    with pytest.raises(EntryRefused) as caught:
        packed(root, None)
    assert caught.value.entry == b"d/.wh.x"


def test_a_file_that_shrinks_or_vanishes_meanwhile(tmp_path: Path) -> None:
    root = fresh(tmp_path / "root", apply(EMPTY, [file(b"a", bytes(4 << 20)), file(b"b", b"")]))
    found = list(walk_changes(root, None))
    with pack(root, found) as stream:
        stream.read(1 << 20)
        os.truncate(root / "a", 100)
        with pytest.raises(Conflict, match="a shrank"):
            stream.read()
    (root / "b").unlink()
    with pack(root, found[1:]) as stream, pytest.raises(Conflict, match="b vanished"):
        stream.read()


def test_a_file_that_grows_meanwhile_is_taken_as_it_was(tmp_path: Path) -> None:
    root = fresh(tmp_path / "root", apply(EMPTY, [file(b"a", bytes(4 << 20))]))
    with pack(root, list(walk_changes(root, None))) as stream:
        tar = stream.read(1 << 20)
        with (root / "a").open("ab") as more:
            more.write(b"x" * 10_000)
        tar += stream.read()
    assert [entry.size for entry, _ in read_items(io.BytesIO(tar))] == [4 << 20]


def test_what_is_swapped_for_a_link_is_not_read_through_it(tmp_path: Path) -> None:
    root = fresh(
        tmp_path / "root", apply(EMPTY, [directory(b"d"), file(b"d/f", b"inside"), file(b"g", b"inside")])
    )
    outside = fresh(tmp_path / "outside", apply(EMPTY, [file(b"f", b"secret")]))
    found = list(walk_changes(root, None))
    os.rename(root / "d", root / "aside")
    (root / "d").symlink_to(outside)
    (root / "g").unlink()
    (root / "g").symlink_to(outside / "f")
    with pytest.raises(Conflict):
        pack(root, [change for change in found if change.path == b"d/f"]).read()
    ((entry, content),) = read_items(pack(root, [change for change in found if change.path == b"g"]))
    assert content == b"" and entry.linkname == os.fsencode(outside / "f")


def test_a_fifo_in_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    root = fresh(tmp_path / "root")
    os.mkfifo(root / "f")
    with (
        pack(root, [Change(b"f", ChangeKind.ADDED)]) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        assert [member.isfifo() for member in tar] == [True]


def test_an_upper_directory_keeps_overlays_affairs_to_itself(tmp_path: Path) -> None:
    carried = {b"trusted.overlay.opaque": b"carried by the image", b"user.x": b"1"}
    lower = upper(tmp_path / "lower", [file(b"below", b"lower"), hard_link(b"below2", b"below")])
    layer = upper(tmp_path / "upper", [directory(b"d", xattrs=carried), file(b"d/f", b"upper")], [lower])
    os.setxattr(layer / "d", "trusted.overlay.origin", b"x")
    os.setxattr(layer / "d", "trusted.overlay.impure", b"y")
    changes = [Change(name, ChangeKind.ADDED) for name in (b"below", b"below2", b"d", b"d/f")]
    with pack(layer, changes, unescape=WhiteoutFormat.OVERLAY, lower=[lower]) as stream:
        entries = {entry.name: (entry, content) for entry, content in read_items(stream)}
    assert dict(entries[b"d/"][0].xattrs) == carried
    assert entries[b"below"][1] == b"lower"
    assert entries[b"below2"][0].linkname == b"below"
    assert content_size(layer, changes, unescape=WhiteoutFormat.OVERLAY, lower=[lower]) == 10


def test_content_size_counts_a_linked_file_once(tmp_path: Path) -> None:
    root = fresh(
        tmp_path / "root", apply(EMPTY, [file(b"a", bytes(1000)), hard_link(b"b", b"a"), symlink(b"c", b"a")])
    )
    assert content_size(root, walk_changes(root, None)) == 1000


def test_a_stream_that_is_closed_early_holds_nothing_open(tmp_path: Path) -> None:
    root = fresh(tmp_path / "root", apply(EMPTY, [file(b"a", bytes(4 << 20))]))
    before = len(os.listdir("/proc/self/fd"))
    stream = pack(root, walk_changes(root, None))
    stream.read(1000)
    stream.close()
    assert len(os.listdir("/proc/self/fd")) == before

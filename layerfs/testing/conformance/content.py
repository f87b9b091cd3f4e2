"""Layers applied upon layers: what the root file system holds then, and reading it back."""

from __future__ import annotations

import errno
import io
import os
from typing import BinaryIO

import pytest

from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.names import normalise
from layerfs.driver import Driver
from layerfs.errors import ArchiveError, EntryRefused, LayerfsError, PathEscape, TruncatedArchive
from layerfs.testing.conformance.base import (
    BASE,
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
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    sparse_tar_stream,
    symlink,
    tar_bytes,
    tar_stream,
    whiteout,
)
from layerfs.testing.model import EMPTY, Item, Tree, apply, changes
from layerfs.testing.privilege import fit, is_root_of_host, mapped_ids

LOWER = [
    directory(b"./", mode=0o755, mtime_ns=11),
    directory(b"d", mode=0o750, uid=1, gid=2, mtime_ns=22, xattrs={b"user.mark": b"lower"}),
    directory(b"d/e", mtime_ns=33),
    file(b"d/e/deep", b"deep"),
    file(b"d/one", b"one"),
    file(b"d/two", b"two"),
    file(b"f", b"file"),
    symlink(b"l", b"d"),
    fifo(b"p"),
    directory(b"gone"),
    file(b"gone/x", b"x"),
]
"""What the layers of :data:`STORIES` are applied upon."""

STORIES: dict[str, dict[str, list[Item]]] = {
    "replacing": {
        "file replaces file": [file(b"f", b"new", mode=0o600, uid=3)],
        "file replaces directory": [file(b"d", b"now a file")],
        "directory replaces file": [directory(b"f"), file(b"f/inside", b"")],
        "unlisted directory replaces file": [file(b"f/inside", b"")],
        "symlink replaces directory": [symlink(b"d", b"gone")],
        "directory replaces symlink": [directory(b"l"), file(b"l/inside", b"")],
        "file below what was a symlink": [file(b"l/inside", b"")],
        "directory replaces fifo": [file(b"p/inside", b"")],
        "fifo replaces file": [fifo(b"f")],
        "device replaces directory": [device(b"d", 1, 3)],
    },
    "directories": {
        "directory is given other attributes": [directory(b"d", mode=0o1777, uid=9, mtime_ns=44)],
        "unlisted parents keep their attributes": [file(b"d/e/new", b"new"), file(b"d/new", b"new")],
        "unlisted parents of nothing": [file(b"x/y/z", b"new")],
        "a parent is listed after its child": [file(b"n/c", b""), directory(b"n", mode=0o700, mtime_ns=5)],
    },
    "whiteouts": {
        "whiteout of a file": [whiteout(b"d/one")],
        "whiteout of a directory": [whiteout(b"d")],
        "whiteout of a symlink": [whiteout(b"l")],
        "whiteout of everything": [whiteout(name) for name in (b"d", b"f", b"l", b"p", b"gone")],
        "whiteout of nothing": [whiteout(b"nothing"), whiteout(b"no/where/x"), whiteout(b"d/nothing")],
        "whiteout below a file": [whiteout(b"f/x")],
        "whiteout before a new file": [whiteout(b"f"), file(b"f", b"new")],
        "whiteout after a new file": [file(b"f", b"new"), whiteout(b"f")],
        "whiteout before a new directory": [whiteout(b"d"), directory(b"d"), file(b"d/new", b"")],
        "whiteout after a new directory": [directory(b"d"), file(b"d/new", b""), whiteout(b"d")],
        "whiteout of an unlisted directory": [file(b"d/new", b""), whiteout(b"d")],
        "whiteout deep inside what is whited out": [whiteout(b"d/e/deep"), whiteout(b"d")],
        "whiteout whose directory is new": [directory(b"gone"), whiteout(b"gone/x"), file(b"gone/y", b"")],
    },
    "opaque marks": {
        "opaque before its content": [opaque(b"d"), file(b"d/new", b"")],
        "opaque after its content": [file(b"d/new", b""), opaque(b"d")],
        "opaque and listed": [directory(b"d", mode=0o711), file(b"d/new", b""), opaque(b"d")],
        "opaque with a directory of the same name": [opaque(b"d"), file(b"d/e/new", b"")],
        "opaque root": [opaque(b""), file(b"only", b"this")],
        "opaque of what is new": [opaque(b"new/dir")],
        "opaque of a file": [opaque(b"f")],
        "opaque and whiteout": [opaque(b"d"), whiteout(b"d/one"), file(b"d/two", b"mine")],
    },
    "the same path twice": {
        "twice the same file": [file(b"f", b"first"), file(b"f", b"second", mode=0o600)],
        "file, then directory": [file(b"d", b"file"), directory(b"d"), file(b"d/new", b"")],
        "file, then unlisted directory": [file(b"d", b"file"), file(b"d/new", b"")],
        "directory, file, directory": [file(b"d/mine", b""), file(b"d", b""), directory(b"d")],
    },
    "links": {
        "links to one file": [file(b"a", b"same"), hard_link(b"b", b"a"), hard_link(b"d/e/c", b"./a")],
        "a link replaces a lower file": [file(b"a", b"same"), hard_link(b"f", b"a")],
        "a link to a symlink": [symlink(b"s", b"d"), hard_link(b"t", b"s")],
        "a link to itself": [file(b"a", b"same"), hard_link(b"a", b"a")],
        "the first of two links is replaced": [file(b"a", b"1"), hard_link(b"b", b"a"), file(b"a", b"2")],
        "through a link of the same layer": [symlink(b"s", b"d"), file(b"s/new", b""), directory(b"s/sub")],
        "through a link up and down": [directory(b"d"), symlink(b"d/up", b"../q"), file(b"d/up/new", b"")],
        "whiteout through a link": [symlink(b"s", b"d"), whiteout(b"s/one")],
    },
    "names": {
        "names with dots and slashes": [file(b"/abs", b"1"), file(b"././/d/./x", b"2"), directory(b"./y/")],
        "files of aufs itself": [
            directory(b".wh..wh.plnk"),
            file(b".wh..wh.plnk/8.1", b"pseudo"),
            hard_link(b"d/linked", b".wh..wh.plnk/8.1"),
            file(b".wh..wh.aufs", b"internal"),
            directory(b".wh..wh.orph"),
        ],
    },
}
"""Each a layer upon :data:`LOWER`, called by what happens in it."""

REFUSED: dict[str, list[Item]] = {
    "dots in a name": [file(b"../x", b"")],
    "dots inside a name": [file(b"d/../../x", b"")],
    "dots in a link target": [file(b"a", b""), hard_link(b"b", b"../a")],
    "through an absolute link": [symlink(b"s", b"/"), file(b"s/x", b"")],
    "through a climbing link": [symlink(b"s", b"../../.."), file(b"s/x", b"")],
    "through a loop of links": [symlink(b"s", b"t"), symlink(b"t", b"s"), file(b"s/x", b"")],
    "whiteout through a climbing link": [symlink(b"s", b".."), whiteout(b"s/x")],
    "link to a file of the layer below": [hard_link(b"x", b"f")],
    "link to nothing": [hard_link(b"x", b"nothing")],
    "link to a directory": [directory(b"new"), hard_link(b"x", b"new")],
    "whiteout of dots": [whiteout(b"d/..")],
    "whiteout without a name": [whiteout(b"d/")],
    "the root as a file": [file(b".", b"")],
    "an overlong name": [file(b"n" * 256, b"")],
}

ODD_NAMES = [
    b"space and\ttab",
    b"new\nline",
    b"back\\slash",
    b"colon:comma,quote\"'",
    b"\xff\xfe\x80",
    "\u00e9 \u6f22\u5b57 \U0001f40b".encode(),
    b"-rf",
    b"a=b",
    b"...",
    b"~",
    b"x" * 101,
    b"y" * 255,
    b"%s%n",
    b"trailing ",
]


class Content(Base):
    def applied(self, driver: Driver, *layers: list[Item]) -> Tree:
        """The tree of a chain of layers, on the driver."""
        parent = None
        for number, items in enumerate(layers):
            parent = make_layer(driver, graph_id(f"layer-{number}"), items, parent)
        assert parent is not None
        return tree_of(driver, parent)

    @pytest.mark.parametrize("group", STORIES)
    def test_layers_upon_another(self, driver: Driver, group: str) -> None:
        """The tree, the changeset, and the tree of a third layer upon it: what a layer hides stays hidden
        there, and can come back."""
        third = [file(b"d/back", b"again"), file(b"gone/back", b"again"), directory(b"f")]
        make_layer(driver, BASE, LOWER)
        below = apply(EMPTY, LOWER)

        def check(name: str, items: list[Item]) -> None:
            items = fit(items)
            expected = apply(below, items)
            layer = make_layer(driver, case_id(name), items, BASE)
            assert_same(tree_of(driver, layer), expected)
            assert list(driver.changes(layer, BASE)) == changes(expected, below)
            above = make_layer(driver, case_id(name, "above"), third, layer)
            assert_same(tree_of(driver, above), apply(expected, third))

        each(STORIES[group], check)
        assert_same(tree_of(driver, BASE), below)

    def test_trees_deleted_and_made_anew_at_several_depths(self, driver: Driver) -> None:
        first = [file(b"a/b/c/d", b"1"), file(b"a/b/x", b"1"), file(b"a/y", b"1")]
        second = [whiteout(b"a/b/c"), file(b"a/b/c/new", b"2")]
        third = [whiteout(b"a/b"), file(b"a/b/c/newer", b"3")]
        fourth = [whiteout(b"a"), directory(b"a/b/c")]
        expected = EMPTY
        for items in (first, second, third, fourth):
            expected = apply(expected, items)
        assert_same(self.applied(driver, first, second, third, fourth), expected)

    def test_layers_that_have_to_be_refused(self, driver: Driver) -> None:
        make_layer(driver, BASE, LOWER)

        def check(name: str, items: list[Item]) -> None:
            layer = case_id(name)
            driver.create(layer, BASE)
            with pytest.raises(ArchiveError) as caught:
                driver.apply_diff(layer, BASE, tar_stream(items))
            assert caught.value.entry
            driver.remove(layer)

        each(REFUSED, check)
        assert list(driver.ids()) == [BASE]
        assert_same(tree_of(driver, BASE), apply(EMPTY, LOWER))

    def test_an_escape_is_called_one(self, driver: Driver) -> None:
        driver.create(BASE, None)
        with pytest.raises(PathEscape):
            driver.apply_diff(BASE, None, tar_stream([symlink(b"s", b"/tmp"), file(b"s/x", b"")]))

    def test_a_truncated_tar_is_refused(self, driver: Driver) -> None:
        data = tar_bytes([file(b"a", b"x" * 5000)])
        driver.create(BASE, None)
        with pytest.raises(TruncatedArchive):
            driver.apply_diff(BASE, None, io.BytesIO(data[:2000]))

    def test_the_tar_is_read_to_its_end(self, driver: Driver) -> None:
        tar = io.BytesIO(tar_bytes([file(b"a", b"12345")]) + bytes(30_000))
        driver.create(BASE, None)
        assert driver.apply_diff(BASE, None, tar) == 5
        assert tar.read() == b""

    def test_modes_owners_and_times_are_exact(self, driver: Driver) -> None:
        items = []
        for number, mode in enumerate((0o000, 0o644, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777)):
            items.append(file(b"f%o" % mode, b"", mode=mode, uid=number, gid=4_000_000_000 + number))
            items.append(directory(b"d%o" % mode, mode=mode, uid=number, mtime_ns=10**18 + number))
            items.append(file(b"d%o/inside" % mode, b"", mtime_ns=number))
        items = fit(items)
        assert_same(self.applied(driver, items), apply(EMPTY, items))

    def test_files_of_every_type(self, driver: Driver) -> None:
        everything = [
            fifo(b"pipe", mode=0o622),
            device(b"null", 1, 3, mode=0o666),
            device(b"disk", 259, 70_000, block=True, mode=0o660),
            symlink(b"dangling", b"no/where"),
            symlink(b"absolute", b"/etc/passwd"),
            symlink(b"long", b"t/" * 500 + b"end", uid=5),
        ]
        items = fit(everything)
        assert_same(self.applied(driver, items), apply(EMPTY, items))

    def test_extended_attributes_capabilities_and_acls(self, driver: Driver) -> None:
        everything = [
            file(b"ping", b"#!", mode=0o755, uid=1, xattrs={b"security.capability": CAP_NET_RAW}),
            file(b"acl", b"", mode=0o775, xattrs={b"system.posix_acl_access": ACL}),
            directory(b"shared", mode=0o2775, xattrs={b"system.posix_acl_default": ACL}),
            file(b"shared/plain", b"", mode=0o600),
            directory(b"shared/sub"),
            file(b"many", b"", xattrs={b"user.%d" % n: bytes([n]) * n for n in range(20)}),
            file(b"binary", b"", xattrs={b"user.\xc3\xbc\n": b"\0\xff=\n", b"trusted.t": b""}),
        ]
        items = fit(everything)
        assert_same(self.applied(driver, items), apply(EMPTY, items))

    def test_what_a_directory_bequeaths_does_not_reach_later_layers(self, driver: Driver) -> None:
        lower = [
            directory(b"shared", mode=0o2775, gid=7, xattrs={b"system.posix_acl_default": ACL}),
        ]
        upper = [file(b"shared/file", b"", mode=0o640), file(b"shared/unlisted/file", b"")]
        assert_same(self.applied(driver, lower, upper), apply(apply(EMPTY, lower), upper))

    def test_attributes_of_overlayfs_that_an_image_carries(self, driver: Driver) -> None:
        """An image of a host with containers in it: they mean nothing to the layer."""
        lower = [directory(b"d"), file(b"d/below", b"")]
        upper = [
            directory(b"d", xattrs={b"trusted.overlay.opaque": b"y", b"trusted.overlay.origin": b"x"}),
            file(b"d/new", b"", xattrs={b"trusted.overlay.metacopy": b""}),
        ]
        upper = fit(upper)  # the overlayfs of a user namespace has its own in user.*
        expected = apply(apply(EMPTY, lower), upper)
        assert b"d/below" in expected.nodes
        assert_same(self.applied(driver, lower, upper), expected)

    def test_what_only_root_of_the_host_may_make_is_refused_by_name(self, driver: Driver) -> None:
        if is_root_of_host():
            pytest.skip("root of the host may make everything")
        for item in (
            device(b"null", 1, 3),
            device(b"disk", 8, 0, block=True),
            file(b"trusted", b"", xattrs={b"trusted.t": b""}),
            file(b"foreign", b"", uid=mapped_ids()),
            directory(b"foreign", gid=mapped_ids()),
        ):
            driver.create(BASE, None)
            with pytest.raises(EntryRefused) as caught:
                driver.apply_diff(BASE, None, tar_stream([item]))
            assert normalise(caught.value.entry) == item[0].name
            assert caught.value.hint
            driver.remove(BASE)

    def test_odd_names(self, driver: Driver) -> None:
        items = [item for name in ODD_NAMES for item in (directory(name), file(name + b"/" + name, name))]
        assert_same(self.applied(driver, items), apply(EMPTY, items))
        hidden = [whiteout(name + b"/" + name) for name in ODD_NAMES if len(name) < 200]
        make_layer(driver, TOP, hidden, graph_id("layer-0"))
        assert_same(tree_of(driver, TOP), apply(apply(EMPTY, items), hidden))

    def test_paths_longer_than_the_kernel_takes_at_once(self, driver: Driver) -> None:
        name = b"/".join([b"n" * 200] * 15) + b"/end"
        items = [file(name, b"deep")]
        assert_same(self.applied(driver, items), apply(EMPTY, items))

    def test_directories_of_many_files(self, driver: Driver) -> None:
        items = [file(b"many/%d" % number, b"%d" % number) for number in range(1000)]
        assert_same(self.applied(driver, items), apply(EMPTY, items))

    def test_links_survive_a_second_layer(self, driver: Driver) -> None:
        lower = [file(b"a", b"same"), hard_link(b"b", b"a"), hard_link(b"c", b"a")]
        upper = [file(b"c", b"other")]
        assert_same(self.applied(driver, lower, upper), apply(apply(EMPTY, lower), upper))

    def test_files_of_a_layer_can_be_read_by_name(self, driver: Driver) -> None:
        make_layer(driver, BASE, LOWER)
        upper = [file(b"d/one", b"upper"), symlink(b"s", b"d"), file(b"s/via", b"link"), file(b"new\n", b"n")]
        make_layer(driver, TOP, upper, BASE)
        with driver.files(TOP) as open_file:
            for name, content in ((b"d/one", b"upper"), (b"s/via", b"link"), (b"new\n", b"n")):
                with open_file(name) as stream:
                    assert stream.read() == content
        driver.remove(TOP)

    def test_only_files_within_the_layer_can_be_read(self, driver: Driver) -> None:
        items = [directory(b"dir"), fifo(b"pipe"), file(b"file", b""), symlink(b"out", b"/etc/hostname")]
        make_layer(driver, BASE, items)
        with driver.files(BASE) as open_file:
            for name in (b"nothing", b"dir", b"pipe", b"out", b"dir/../file", b"../file"):
                try:
                    with open_file(name) as stream:
                        # Dots that stay inside are harmless; whatever opens must be the layer's own.
                        assert name.endswith(b"../file") and stream.read() == b""
                except LayerfsError:
                    pass

    def test_content_that_is_replaced_is_told_before(self, driver: Driver) -> None:
        told: dict[int, bytes] = {}

        def displaced(number: int, content: BinaryIO) -> None:
            told[number] = content.read()

        items = [
            file(b"a", b"first"),
            directory(b"d"),
            file(b"d/x", b"in a directory"),
            file(b"a", b"second"),
            file(b"d", b"now a file"),
            file(b"b", b"stays"),
        ]
        driver.create(BASE, None)
        driver.apply_diff(BASE, None, tar_stream(items), displaced=displaced)
        assert told == {0: b"first", 2: b"in a directory"}
        assert_same(tree_of(driver, BASE), apply(EMPTY, items))

    def test_sparse_files_come_out_whole(self, driver: Driver) -> None:
        """Whether the tar holds them dense or in pieces."""
        pieces = {0: b"start", 1_000_000: b"middle" * 1000, 3_000_000: b"end"}
        content = bytearray(4_000_000)
        for offset, data in pieces.items():
            content[offset : offset + len(data)] = data
        dense = [file(b"sparse", bytes(content))]
        make_layer(driver, BASE, dense)
        driver.create(TOP, None)
        assert driver.apply_diff(TOP, None, sparse_tar_stream(b"sparse", len(content), pieces)) == len(
            content
        )
        for id in (BASE, TOP):
            assert_same(tree_of(driver, id), apply(EMPTY, dense))

    def test_an_overlay_whiteout_in_an_image_does_not_hide_anything(self, driver: Driver) -> None:
        """A 0/0 character device: a driver may be unable to hold it, but must not take it for a mark."""
        make_layer(driver, BASE, LOWER)
        driver.create(TOP, BASE)
        entry = Entry(b"f", EntryType.CHARDEV, 0o600, device=(0, 0))
        try:
            driver.apply_diff(TOP, BASE, tar_stream([(entry, b"")]))
        except ArchiveError as error:
            assert error.entry == b"f"
        else:
            with mounted(driver, TOP, read_only=True) as root:
                try:
                    assert os.lstat(root / "f").st_rdev == 0
                except OSError as error:
                    assert error.errno != errno.ENOENT

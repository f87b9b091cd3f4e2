"""Hypothesis strategies for layers.

Names come from a small alphabet, so that entries meet: the interesting layers are those that make a
path twice, replace a directory by a file, or hide what another layer made. Now and then a name is odd. What
a user namespace does not allow has a stand-in there (:mod:`layerfs.testing.privilege`).

::

    @given(chain=strategies.chains())
    def test_driver_agrees_with_the_model(chain): ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from hypothesis import strategies as st

from layerfs.archive.entry import NO_XATTRS, Entry, EntryType
from layerfs.errors import ArchiveError
from layerfs.testing.actions import ACTIONS, Action
from layerfs.testing.entries import ACL, CAP_NET_RAW, DAY, hard_link, opaque, symlink, whiteout
from layerfs.testing.model import EMPTY, Item, Layer, apply, parent_of
from layerfs.testing.privilege import fit

PLAIN = (b"a", b"b", b"c")
ODD = (
    b"sp ace",
    b"co:lon,comma",
    b"back\\slash",
    b"new\nline",
    b"\xff\xfe",
    "gr\u00fc\u00dfe \u2713".encode(),
    b"..a",
    b"-rf",
    b"a=1",
    b"l" * 120,
    b"m" * 255,
)


def components() -> st.SearchStrategy[bytes]:
    """One name; four out of five are plain."""
    plain = st.sampled_from(PLAIN)
    return st.one_of(plain, plain, plain, plain, st.sampled_from(ODD))


def paths(most: int = 3) -> st.SearchStrategy[bytes]:
    """A path of up to ``most`` components."""
    return st.lists(components(), min_size=1, max_size=most).map(b"/".join)


# Built once: building a strategy takes longer than drawing from it.
_COMPONENTS = components()
_PATHS = paths()
_MODES = st.sampled_from((0o644, 0o755, 0o600, 0o000, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777))
_IDS = st.sampled_from((0, 1000, 65534, 2_097_152, 4_000_000_000))
_TIMES = st.sampled_from((0, 1, DAY, DAY + 1, 1_000_000_000, 5_000_000_000_000_000_000, -1, -1_500_000_000))
_CONTENTS = st.sampled_from((b"", b"one\n", b"two\n", b"a block and more" * 300))
_DEVICES = st.sampled_from(((1, 3), (259, 70_000), (8, 0)))
_SPECIAL = st.sampled_from((EntryType.FIFO, EntryType.CHARDEV, EntryType.BLOCKDEV))
_SPELLINGS = st.sampled_from((b"", b"", b"", b"./", b"/", b".//"))
"""What may stand before a name in a tar without a meaning."""
_INSIDE = st.one_of(paths(2), paths(1).map(lambda path: b"../" + path))
_TARGETS = st.one_of(_INSIDE, _INSIDE, st.sampled_from((b"/a", b"..", b".", b"nowhere/at/all", b"/")))


def _xattrs(kind: EntryType) -> st.SearchStrategy[Mapping[bytes, bytes]]:
    """Mostly none. ``user.*`` and ACLs only where the kernel takes them: xattr(7)."""
    value = st.sampled_from((b"", b"value", b"\0\xff\n=", b"v" * 300))
    known: list[st.SearchStrategy[tuple[bytes, bytes]]] = [st.tuples(st.just(b"trusted.layerfs"), value)]
    if kind in (EntryType.FILE, EntryType.DIRECTORY):
        known.append(st.tuples(st.sampled_from((b"user.one", "user.\u00fc".encode())), value))
        known.append(st.just((b"system.posix_acl_access", ACL)))
        known.append(st.tuples(st.just(b"trusted.overlay.opaque"), st.just(b"y")))
    if kind is EntryType.FILE:
        known.append(st.just((b"security.capability", CAP_NET_RAW)))
    if kind is EntryType.DIRECTORY:
        known.append(st.just((b"system.posix_acl_default", ACL)))
    some = st.lists(st.one_of(known), min_size=1, max_size=2).map(dict)
    none = st.just(NO_XATTRS)
    return st.one_of(none, none, none, some)


_XATTRS = {kind: _xattrs(kind) for kind in EntryType}


def _described(draw: st.DrawFn, name: bytes, kind: EntryType) -> Entry:
    xattrs = draw(_XATTRS[kind])
    entry = Entry(
        name=name,
        type=kind,
        mode=draw(_MODES),
        uid=draw(_IDS),
        gid=draw(_IDS),
        mtime_ns=draw(_TIMES),
        xattrs=xattrs,
    )
    # The group bits of the mode are the mask of an ACL; a tar that says otherwise has no one meaning.
    return attrs.evolve(entry, mode=0o775) if b"system.posix_acl_access" in xattrs else entry


def _directory(draw: st.DrawFn, path: bytes, own: Sequence[bytes]) -> Item:
    return _described(draw, b"" if draw(_SELDOM) else path, EntryType.DIRECTORY), b""


def _file(draw: st.DrawFn, path: bytes, own: Sequence[bytes]) -> Item:
    content = draw(_CONTENTS)
    return attrs.evolve(_described(draw, path, EntryType.FILE), size=len(content)), content


def _special(draw: st.DrawFn, path: bytes, own: Sequence[bytes]) -> Item:
    kind = draw(_SPECIAL)
    device = (0, 0) if kind is EntryType.FIFO else draw(_DEVICES)
    return attrs.evolve(_described(draw, path, kind), device=device), b""


def _symlink(draw: st.DrawFn, path: bytes, own: Sequence[bytes]) -> Item:
    return symlink(path, draw(_TARGETS), uid=draw(_IDS), mtime_ns=draw(_TIMES))


def _hard_link(draw: st.DrawFn, path: bytes, own: Sequence[bytes]) -> Item:
    return hard_link(path, draw(st.sampled_from(own)) if own else draw(_PATHS))


def _whiteout(draw: st.DrawFn, path: bytes, own: Sequence[bytes]) -> Item:
    return whiteout(path)


def _opaque(draw: st.DrawFn, path: bytes, own: Sequence[bytes]) -> Item:
    return opaque(b"" if draw(_SELDOM) else path)


_KINDS = st.sampled_from(
    (
        _directory,
        _directory,
        _file,
        _file,
        _special,
        _symlink,
        _hard_link,
        _hard_link,
        _whiteout,
        _whiteout,
        _opaque,
    )
)
_ACTIONS = st.sampled_from(sorted(ACTIONS))
_SELDOM = st.sampled_from((False, False, False, False, True))
_NEARNESS = st.sampled_from(("same", "same", "inside", "above", "fresh", "fresh"))


def _path(draw: st.DrawFn, known: Sequence[bytes]) -> bytes:
    """A path; most often one that has to do with a ``known`` one."""
    nearness = draw(_NEARNESS)
    if nearness == "fresh" or not known:
        return draw(_PATHS)
    near = draw(st.sampled_from(known))
    if nearness == "inside" and near.count(b"/") < 4:
        return near + b"/" + draw(_COMPONENTS)
    return (parent_of(near) if nearness == "above" else near) or draw(_COMPONENTS)


@st.composite
def any_layers(draw: st.DrawFn, most: int = 12, known: Sequence[bytes] = ()) -> list[Item]:
    """Entries as they come: many of these layers have to be refused. ``known``: paths of the layers below."""
    items: list[Item] = []
    paths = list(known)
    files: list[bytes] = []
    for _ in range(draw(st.integers(0, most))):
        path = _path(draw, paths)
        entry, content = draw(_KINDS)(draw, path, files)
        paths.append(path)
        if entry.name == path and entry.type is not EntryType.DIRECTORY:  # no mark
            files.append(path)
        spelled = draw(_SPELLINGS) + entry.name
        items.append((attrs.evolve(entry, name=spelled or b"./"), content))
    return fit(items)


@st.composite
def layers(draw: st.DrawFn, most: int = 12, known: Sequence[bytes] = ()) -> list[Item]:
    """A layer that can be applied."""
    items: list[Item] = []
    layer = Layer()
    for entry, content in draw(any_layers(most, known)):
        try:
            layer.add(entry, content)
        except ArchiveError:
            layer = Layer()  # the refused entry may have left something behind
            for kept in items:
                layer.add(*kept)
        else:
            items.append((entry, content))
    return items


@st.composite
def chains(draw: st.DrawFn, most: int = 4) -> list[list[Item]]:
    """Layers upon one another, the first first."""
    chain: list[list[Item]] = []
    tree = EMPTY
    for _ in range(draw(st.integers(1, most))):
        items = draw(layers(16, sorted(tree.nodes.keys() - {b""})))
        tree = apply(tree, items)
        chain.append(items)
    return chain


@st.composite
def actions(draw: st.DrawFn, most: int = 10, known: Sequence[bytes] = ()) -> list[Action]:
    """What a container does in a tree that has the paths ``known``."""
    paths = list(known)
    found: list[Action] = []
    for _ in range(draw(st.integers(0, most))):
        action = Action(draw(_ACTIONS), _path(draw, paths), _path(draw, paths))
        paths += [action.path, action.other]
        found.append(action)
    return found

"""Other ways to mark deletions: the same calls have the same answers, and what is written means the same.

Compared are the dialect that kernel overlay reads (which is compared with the kernel itself elsewhere), that
of aufs, and the form that overlay has where no device can be made.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.archive.whiteout import META, OPAQUE, PREFIX
from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from layerfs.testing.model import EMPTY, Layer, Node, Tree, parent_of, read_tree
from layerfs.union.aufs import Aufs
from layerfs.union.dialect import Dialect
from layerfs.union.overlay import Overlay
from layerfs.union.union import Union
from layerfs.union.work import Work
from tests.properties.profile import LONG
from tests.require import need
from tests.union.calls import LATE_NS, OnKernel, OnUnion, answer, everything, paths_of
from tests.union.steps import make_layers, some_steps, to_aufs

ROUNDS = 2000 if LONG else 60
STEPS = 120


class NoDevices(Overlay):
    """As where no device can be made."""

    def attach(self, work: Work) -> None:
        super().attach(work)
        self._devices = False


class Side:
    """One of the two unions that are compared."""

    def __init__(self, base: Path, layers: list[Path], dialect: Callable[[], Dialect]) -> None:
        self.base = base
        self.layers = layers
        self._dialect = dialect
        for part in ("upper", "work", "merged"):
            (base / part).mkdir()

    @contextlib.contextmanager
    def union(self) -> Iterator[OnUnion]:
        dialect = self._dialect()
        union = Union(self.layers, self.base / "upper", self.base / "work", dialect=dialect, volatile=True)
        try:
            yield OnUnion(union)
        finally:
            union.close()


def _sides(base: Path, seed: int, dialect: Callable[[], Dialect]) -> tuple[Side, Side]:
    rng = random.Random(f"layers {seed}")
    (base / "one").mkdir()
    (base / "two").mkdir()
    layers = make_layers(rng, base / "one", rng.choice((1, 2, 3)))
    copies = layers
    if dialect is Aufs:
        copies = [
            Path(shutil.copytree(layer, base / "two" / layer.name, copy_function=_link)) for layer in layers
        ]
        for copy in copies:
            to_aufs(copy)
    return Side(base / "one", layers, Overlay), Side(base / "two", copies, dialect)


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _run(base: Path, seed: int, dialect: Callable[[], Dialect]) -> Side:
    """The side with ``dialect``, everything compared, and its tree."""
    one, two = _sides(base, seed, dialect)
    with one.union() as ours, two.union() as theirs:
        for step in some_steps(random.Random(f"steps {seed}"), STEPS, lambda: paths_of(theirs)):
            here, there = answer(ours, step), answer(theirs, step)
            assert here == there, (seed, step)
        for slot in range(3):
            ours.close(slot)
            theirs.close(slot)
        tree = everything(theirs)
        assert _without_links_of_directories(tree) == _without_links_of_directories(everything(ours)), seed
    with two.union() as again:
        assert everything(again) == tree, seed
    return two


def _without_links_of_directories(tree: dict[bytes, Any]) -> dict[bytes, Any]:
    return {
        path: value if value[0][0][2] != "4" else (value[0][2:], *value[1:]) for path, value in tree.items()
    }


def as_layer(top: Path) -> Layer:
    """A branch with the marks of aufs, as the model has layers."""
    layer = Layer()
    for path, node in read_tree(top).nodes.items():
        directory, name = parent_of(path), path.rpartition(b"/")[2]
        if name == OPAQUE:
            layer.opaque.add(directory)
        elif name.startswith(PREFIX):
            assert not name.startswith(META)
            hidden = name.removeprefix(PREFIX)
            layer.hidden.add(directory + b"/" + hidden if directory else hidden)
        else:
            layer.made[path] = node
            if not node.is_directory:
                layer.hidden.add(path)
    return layer


def _told(node: Node) -> tuple[Any, ...]:
    mtime = node.mtime_ns if node.mtime_ns < LATE_NS else "lately"
    content = node.target or node.content
    return oct(node.mode), node.uid, node.gid, os.makedev(*node.device), mtime, content, dict(node.xattrs)


def _seen(union: OnUnion) -> dict[bytes, tuple[Any, ...]]:
    seen = {}
    for path, ((mode, _, uid, gid, rdev, _, mtime), content, xattrs) in everything(union).items():
        seen[path] = (
            mode,
            uid,
            gid,
            rdev,
            mtime,
            b"" if isinstance(content, list | None) else content,
            xattrs,
        )
    return seen


def test_aufs(memory: Path) -> None:
    for seed in range(ROUNDS):
        base = Path(tempfile.mkdtemp(dir=memory))
        side = _run(base, seed, Aufs)
        expected: Tree = EMPTY
        for layer in reversed([side.base / "upper", *side.layers]):
            expected = as_layer(layer).upon(expected)
        with side.union() as union:
            assert _seen(union) == {path: _told(node) for path, node in expected.nodes.items()}, seed
        shutil.rmtree(base)


def test_overlay_without_devices(memory: Path) -> None:
    """The kernel understands the upper directory as one of its lower ones (Linux 6.7)."""
    for seed in range(ROUNDS):
        base = Path(tempfile.mkdtemp(dir=memory))
        side = _run(base, seed, NoDevices)
        assert not [path for path in (side.base / "upper").rglob("*") if _is_device_mark(path)]
        with side.union() as union:
            tree = everything(union)
        need.overlay(base)
        (base / "empty").mkdir()
        lower = ":".join(str(path) for path in [side.base / "upper", *side.layers, base / "empty"])
        perform("overlay", "overlay", [f"lowerdir={lower}"], side.base / "merged")
        try:
            there = everything(OnKernel(os.fsencode(side.base / "merged")))
        finally:
            umount(side.base / "merged", lazy=True)
        assert _without_links_of_directories(there) == _without_links_of_directories(tree), seed
        shutil.rmtree(base)


def _is_device_mark(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


@pytest.mark.parametrize("name", [b".wh.x", b".wh..wh..opq", b".wh..wh.plnk"])
def test_names_that_aufs_keeps_for_itself_cannot_be_made(memory: Path, name: bytes) -> None:
    for part in ("lower", "upper", "work"):
        (memory / part).mkdir()
    union = Union([memory / "lower"], memory / "upper", memory / "work", dialect=Aufs())
    calls = OnUnion(union)
    try:
        assert answer(calls, ("mkdir", name, 0o755)) == "EPERM"
        calls.mkdir(b"d", 0o755)
        assert answer(calls, ("rename", b"d", name, 0)) == "EPERM"
        assert answer(calls, ("status", name)) == "ENOENT"
        assert answer(calls, ("mkdir", b"n" * 252, 0o755)) == "ENAMETOOLONG"  # no room for a whiteout's name
    finally:
        union.close()

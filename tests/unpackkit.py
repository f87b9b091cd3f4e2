"""What the tests of unpacking share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from layerfs.archive.unpack import Unpacked, unpack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.testing.entries import tar_stream
from layerfs.testing.model import EMPTY, Item, Tree, read_tree, write_tree


def fresh(path: Path, tree: Tree = EMPTY) -> Path:
    """A new directory that holds ``tree``."""
    path.mkdir()
    write_tree(tree, path)
    return path


def applied(root: Path, *items: Item) -> Unpacked:
    """Apply a layer of ``items`` upon the tree in ``root``."""
    return unpack(tar_stream(items), root, whiteouts=WhiteoutFormat.APPLY)


def upper(
    path: Path,
    items: Iterable[Item],
    lower: Sequence[Path] = (),
    whiteouts: WhiteoutFormat = WhiteoutFormat.OVERLAY,
) -> Path:
    """A new layer directory ``path`` that holds a layer of ``items``."""
    path.mkdir()
    unpack(tar_stream(items), path, whiteouts=whiteouts, lower=lower)
    return path


def displacements(root: Path, *items: Item) -> dict[int, bytes]:
    """Apply ``items`` and tell what content was displaced, by number of entry."""
    told: dict[int, bytes] = {}

    def displaced(number: int, content: BinaryIO) -> None:
        assert number not in told
        told[number] = content.read()

    unpack(tar_stream(items), root, whiteouts=WhiteoutFormat.APPLY, displaced=displaced)
    return told


def names(root: Path) -> set[str]:
    """Every path below ``root``."""
    return {os.fsdecode(path) for path in read_tree(root).nodes if path}

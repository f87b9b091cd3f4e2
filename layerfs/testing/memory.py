"""A driver that keeps its layers in memory, for tests of what stands upon drivers.

It passes the conformance suite but for what no such driver can do: its layers end with the object, and
what it shows read-only is not protected.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs

from layerfs.archive.changes import Change
from layerfs.archive.entry import EntryType
from layerfs.archive.names import normalise
from layerfs.archive.writer import TarWriter
from layerfs.driver import (
    NO_OPTIONS,
    Capabilities,
    CreateOptions,
    Displaced,
    FileOpener,
    Mount,
    Usage,
)
from layerfs.errors import (
    LayerExists,
    LayerNotFound,
    MountBusy,
    NotSupported,
    SystemFailure,
    show,
    translated,
)
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.removetree import remove_tree
from layerfs.testing import model
from layerfs.testing.model import EMPTY, Layer, Tree


@attrs.define
class _Kept:
    tree: Tree
    parent: GraphID | None
    count: int = 0
    read_only: bool = False


class MemoryDriver:
    """A :class:`~layerfs.driver.Driver`. ``get`` writes the tree out below ``scratch``; the last ``put``
    takes it back in."""

    name = "memory"
    capabilities = Capabilities(no_limits_because="layers in memory have no limits", rootless=True)

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._layers: dict[GraphID, _Kept] = {}
        self._lock = threading.RLock()

    # Life

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        with self._lock:
            if parse_graph_id(id) in self._layers:
                raise LayerExists(f"layer {id} is there already")
            self._layers[id] = _Kept(self._tree(parent) if parent is not None else EMPTY, parent)

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        if options.size is not None or options.inodes is not None:
            raise NotSupported(f"cannot limit layer {id}: {self.capabilities.no_limits_because}")
        self.create(id, parent)

    def remove(self, id: GraphID, /) -> None:
        with self._lock:
            kept = self._layers.get(id)
            if kept is not None and kept.count:
                raise MountBusy(f"layer {id} is in use {kept.count} times")
            self._layers.pop(id, None)
            remove_tree(self._scratch / "described" / parse_graph_id(id))

    def mounted(self, id: GraphID, /) -> int:
        kept = self._layers.get(id)
        return kept.count if kept is not None else 0

    def exists(self, id: GraphID, /) -> bool:
        return id in self._layers

    def ids(self) -> Iterator[GraphID]:
        with self._lock:
            return iter(sorted(self._layers))

    # Use

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        """A bind mount of the tree as it is now; what is written there is lost."""
        with self._lock:
            where = self._scratch / "described" / parse_graph_id(id)
            remove_tree(where)
            self._write(self._tree(id), where)
        return [Mount("bind", str(where), ("bind", "ro") if read_only else ("bind",))]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        with self._lock:
            kept = self._kept(id)
            if not kept.count:
                self._write(kept.tree, self._target(id))
                kept.read_only = read_only
            elif kept.read_only and not read_only:
                raise MountBusy(f"layer {id} is in use read-only")
            kept.count += 1
            return self._target(id)

    def put(self, id: GraphID, /) -> None:
        with self._lock:
            kept = self._layers.get(id)
            if kept is None or not kept.count:
                return
            kept.tree = self._tree(id)
            kept.count -= 1
            if not kept.count:
                remove_tree(self._target(id))

    def usage(self, id: GraphID, /) -> Usage:
        with self._lock:
            files = list(model.files(self._tree(id)))
        return Usage(sum(len(node.content) for node in files), len(files))

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        return {"names": str(len(self._kept(id).tree.nodes))}

    def status(self) -> Mapping[str, str]:
        return {"layers": str(len(self._layers))}

    def flush(self) -> None:
        """Nothing of it outlives the process."""

    def cleanup(self) -> None:
        """Nothing is held."""

    # Changes

    def changes(self, id: GraphID, parent: GraphID | None, /) -> Iterator[Change]:
        with self._lock:
            return iter(model.changes(self._tree(id), self._parent_tree(parent)))

    def diff(self, id: GraphID, parent: GraphID | None, /) -> BinaryIO:
        out = io.BytesIO()
        with self._lock:
            items = model.diff(self._tree(id), self._parent_tree(parent))
        writer = TarWriter(out.write)
        for entry, content in items:
            writer.add(entry, [content])
        writer.close()
        out.seek(0)
        return out

    def diff_size(self, id: GraphID, parent: GraphID | None, /) -> int:
        with self._lock:
            items = model.diff(self._tree(id), self._parent_tree(parent))
        return sum(len(content) for _, content in items)

    def apply_diff(
        self,
        id: GraphID,
        parent: GraphID | None,
        tar: BinaryIO,
        /,
        *,
        displaced: Displaced | None = None,
    ) -> int:
        self._kept(id)
        items = list(model.read_items(tar))
        layer = Layer()
        made = [layer.add(entry, content) for entry, content in items]
        with self._lock:
            kept = self._kept(id)
            kept.tree = layer.upon(kept.tree)
        for number, ((entry, content), node) in enumerate(zip(items, made, strict=True)):
            gone = node is not None and model.find(kept.tree, normalise(entry.name)) is not node
            if gone and entry.type is EntryType.FILE and displaced is not None:
                displaced(number, io.BytesIO(content))
        return sum(len(content) for _, content in items)

    @contextlib.contextmanager
    def files(self, id: GraphID, /) -> Iterator[FileOpener]:
        with self._lock:
            tree = self._tree(id)

        def open_file(name: bytes) -> BinaryIO:
            node = model.find(tree, name)
            if node is None or not node.is_file:
                raise SystemFailure(f"cannot open {show(name)}: no such file")
            return io.BytesIO(node.content)

        yield open_file

    def _kept(self, id: GraphID) -> _Kept:
        kept = self._layers.get(id)
        if kept is None:
            raise LayerNotFound(f"no layer {id}")
        return kept

    def _tree(self, id: GraphID) -> Tree:
        """As it is now: what is written out may have been changed there."""
        kept = self._kept(id)
        if not kept.count or kept.read_only:
            return kept.tree
        with translated(f"read layer {id}"):
            return model.read_tree(self._target(id))

    def _parent_tree(self, parent: GraphID | None) -> Tree | None:
        return self._tree(parent) if parent is not None else None

    def _target(self, id: GraphID) -> Path:
        return self._scratch / "mounts" / parse_graph_id(id)

    def _write(self, tree: Tree, where: Path) -> None:
        where.mkdir(mode=0o700, parents=True)
        model.write_tree(tree, where)

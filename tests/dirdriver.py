"""The least driver there can be, as somebody else would write one: plain directories, no mounts, no counts.

It needs no privilege and nothing of the kernel, so the store is tested with it wherever tests run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from layerfs.driver import (
    NO_OPTIONS,
    Capabilities,
    CreateOptions,
    Driver,
    Mount,
    Option,
    Usage,
    parse_options,
)
from layerfs.errors import LayerExists, LayerNotFound, NotSupported, translated
from layerfs.ids import GraphID
from layerfs.linux.copytree import copy_tree
from layerfs.linux.removetree import remove_tree
from layerfs.naivediff import NaiveDiff


@attrs.frozen
class DirProto:
    home: Path
    capabilities: Capabilities = attrs.field(factory=Capabilities)
    name: str = "dir"

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        with translated(f"create layer {id}"):
            if self.exists(id):
                raise LayerExists(f"layer {id} is there already")
            if parent is not None:
                copy_tree(self._existing(parent), self.home / id)
            else:
                (self.home / id).mkdir()
                os.utime(self.home / id, ns=(0, 0))

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        if options.size is not None or options.inodes is not None:
            raise NotSupported("plain directories have no limits")
        self.create(id, parent)

    def remove(self, id: GraphID, /) -> None:
        with translated(f"remove layer {id}"):
            remove_tree(self.home / id)

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        return [Mount("bind", str(self._existing(id)), ("bind",))]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        return self._existing(id)

    def put(self, id: GraphID, /) -> None:
        pass

    def mounted(self, id: GraphID, /) -> int:
        return 0  # nothing is mounted, and nobody counts

    def exists(self, id: GraphID, /) -> bool:
        return (self.home / id).is_dir()

    def ids(self) -> Iterator[GraphID]:
        return iter([GraphID(name) for name in sorted(os.listdir(self.home))])

    def usage(self, id: GraphID, /) -> Usage:
        found = [path.lstat() for path in self._existing(id).rglob("*")]
        return Usage(sum(stat.st_blocks * 512 for stat in found), len(found))

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        return {"root": str(self._existing(id))}

    def status(self) -> Mapping[str, str]:
        return {}

    def flush(self) -> None: ...

    def cleanup(self) -> None:
        pass

    def _existing(self, id: GraphID) -> Path:
        if not self.exists(id):
            raise LayerNotFound(f"no layer {id}")
        return self.home / id


@attrs.frozen
class DirOptions:
    depth: int | None = attrs.field(default=None, converter=attrs.converters.optional(int))


@attrs.frozen
class DirInfo:
    name: str = "dir"
    priority: int = 1
    summary: str = "plain directories"
    options: tuple[Option, ...] = (Option("depth", "most layers in a chain"),)

    def probe(self, home: Path, runroot: Path) -> None:
        pass

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        parsed: DirOptions = parse_options(DirOptions, options, self.name)
        if not read_only:
            home.mkdir(mode=0o700, exist_ok=True)
        return NaiveDiff(DirProto(home, Capabilities(max_depth=parsed.depth), self.name))


DRIVER = DirInfo()

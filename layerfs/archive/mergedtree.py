"""The tree that a union file system shows of a stack of layer directories, looked up without a mount.

Rules: a name is taken from the first layer that has it; directories of one name merge until a layer has
something else there, a whiteout, or an opaque mark. The kernel does not look for the mark on the root of a
layer; here it counts there, too, as the drivers end the stack at such a layer.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from layerfs.archive.marks import Marks, until_opaque
from layerfs.archive.names import split


@attrs.frozen
class Found:
    """One name of the merged tree and the layer (0 is the topmost) that it is taken from."""

    layer: int
    host: bytes
    """Where it lies on the host."""
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def inode(self) -> Inode:
        return self.layer, self.status.st_ino


Inode = tuple[int, int]
"""Layer and inode number: what hard links have in common."""


class MergedTree:
    """The merged tree of ``layers``, topmost first. They must not change meanwhile.

    Memory follows the number of directories looked at.
    """

    def __init__(self, layers: Sequence[Path], marks: Marks) -> None:
        self._roots = [os.fsencode(layer) for layer in layers]
        self._marks = marks
        self._merging: dict[bytes, tuple[int, ...]] = {b"": tuple(range(len(until_opaque(layers, marks))))}

    def lookup(self, path: bytes) -> Found | None:
        """What is visible at ``path``; None when nothing is."""
        if not path:
            return Found(0, self._roots[0], os.lstat(self._roots[0])) if self._roots else None
        return self._lookup(self._layers_of(split(path)[0]), path)

    def names(self, directory: bytes) -> set[bytes]:
        """The names visible in a directory. It is read from every layer that has it."""
        decided: set[bytes] = set()
        visible: set[bytes] = set()
        for layer in self._layers_of(directory):
            here = self._marks.scan(self._host(layer, directory))
            visible.update(name for name, hides in here.items() if name not in decided and not hides)
            decided.update(here)
        return visible

    def files_below(self, directory: bytes) -> Iterator[tuple[bytes, Found]]:
        """Everything but directories that is visible beneath a directory, with its path."""
        pending = [directory]
        while pending:
            here = pending.pop()
            for name in self.names(here):
                path = here + b"/" + name
                found = self.lookup(path)
                if found is not None and found.is_directory:
                    pending.append(path)
                elif found is not None:
                    yield path, found

    def links(self, files: Mapping[Inode, tuple[bytes, int]]) -> dict[Inode, frozenset[bytes]]:
        """All visible names of some files. ``files``: one name and the link count of each.

        The one lookup that may have to read a whole layer, as no file knows its names. It starts
        beside the known names, where the others usually are, and ends with the last one found.
        """
        per_layer: dict[int, dict[int, tuple[bytes, int]]] = defaultdict(dict)
        for (layer, number), file in files.items():
            per_layer[layer][number] = file
        found: dict[Inode, frozenset[bytes]] = {}
        for layer, wanted in per_layer.items():
            counts = {number: count for number, (_, count) in wanted.items()}
            names = _names_of(self._roots[layer], counts, {split(path)[0] for path, _ in wanted.values()})
            for number, paths in names.items():
                inode = (layer, number)
                found[inode] = frozenset(path for path in paths if self._is_taken_from(inode, path))
        return found

    def _is_taken_from(self, inode: Inode, path: bytes) -> bool:
        found = self.lookup(path)
        return found is not None and found.inode == inode

    def _layers_of(self, directory: bytes) -> tuple[int, ...]:
        """The layers that ``directory`` merges, topmost first; none when it is no directory."""
        known = directory
        missing: list[bytes] = []
        while known not in self._merging:
            missing.append(known)
            known = split(known)[0]
        for path in reversed(missing):
            self._lookup(self._merging[split(path)[0]], path)
            self._merging.setdefault(path, ())
        return self._merging[directory]

    def _lookup(self, layers: Iterable[int], path: bytes) -> Found | None:
        top: Found | None = None
        merging: list[int] = []
        for layer in layers:
            host = self._host(layer, path)
            sight = self._marks.find(host)
            if sight.status is not None:
                found = Found(layer, host, sight.status)
                top = top or found
                if found.is_directory:
                    merging.append(layer)
            if sight.hides:
                break
        if merging:
            self._merging[path] = tuple(merging)
        return top

    def _host(self, layer: int, path: bytes) -> bytes:
        return self._roots[layer] + b"/" + path if path else self._roots[layer]


def _names_of(root: bytes, counts: Mapping[int, int], start: Collection[bytes]) -> dict[int, set[bytes]]:
    """The names below ``root`` of the inodes in ``counts``, which says how many each has."""
    names: dict[int, set[bytes]] = {number: set() for number in counts}
    missing = sum(counts.values())
    pending = [b"", *start]
    seen: set[bytes] = set()
    while pending and missing > 0:
        directory = pending.pop()
        if directory in seen:
            continue
        seen.add(directory)
        with os.scandir(root + b"/" + directory) as entries:
            for entry in entries:
                path = directory + b"/" + entry.name if directory else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.inode() in names:
                    names[entry.inode()].add(path)
                    missing -= 1
    return names

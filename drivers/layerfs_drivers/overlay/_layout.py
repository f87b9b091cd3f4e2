"""The home of the overlay driver: which file lies where, and how it comes and goes.

::

    home/                     0700
    home/.empty/              the second lower directory of a mount that has but one layer
    home/.removing-ID-XXXX/   a layer on its way out; it is no layer any more
    home/ID/
    home/ID/lower             ids of the layers below, nearest first, one a line; may be empty
    home/ID/diff/             what the layer itself holds; the root carries the image's attributes
    home/ID/work/             overlay's scratch: there as long as the layer may be written
    runroot/mnt/ID/           where it is mounted
    runroot/counts/           how often

``lower`` names all layers below, so that a mount reads one file and follows no chain. It is there
once the layer is whole: a directory without it is a layer whose creation did not finish. Mount
points lie apart, so that a home that is read-only, or shared by several hosts, is never written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import attrs

from layerfs.errors import LayerExists, LayerNotFound, StoreDamaged
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.removetree import remove_tree

_REMOVING = ".removing-"


@attrs.frozen
class Layout:
    """``home`` and ``runroot`` of one driver."""

    home: Path
    runroot: Path

    @property
    def empty(self) -> Path:
        return self.home / ".empty"

    @property
    def counts(self) -> Path:
        return self.runroot / "counts"

    def layer(self, id: GraphID) -> Path:
        return self.home / parse_graph_id(id)

    def diff(self, id: GraphID) -> Path:
        return self.layer(id) / "diff"

    def work(self, id: GraphID) -> Path:
        return self.layer(id) / "work"

    def mount_point(self, id: GraphID) -> Path:
        return self.runroot / "mnt" / parse_graph_id(id)

    def make(self, *, read_only: bool) -> None:
        """Make what every layer relies on, and finish the removals that a dead process left."""
        for directory in (self.runroot, self.counts, self.runroot / "mnt"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if read_only:
            return
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.empty.mkdir(mode=0o755, exist_ok=True)
        for name in os.listdir(self.home):
            if name.startswith(_REMOVING):
                # What cannot be swept now is no layer any more and does no harm; the next open tries again.
                with contextlib.suppress(OSError):
                    remove_tree(self.home / name)

    def exists(self, id: GraphID) -> bool:
        return self.layer(id).is_dir()

    def require(self, id: GraphID) -> None:
        if not self.exists(id):
            raise LayerNotFound(f"no layer {id} in {self.home}")

    def ids(self) -> Iterator[GraphID]:
        if not self.home.exists():
            return
        for name in sorted(os.listdir(self.home)):
            if not name.startswith("."):
                yield GraphID(name)

    def claim(self, id: GraphID) -> Path:
        """Make the directory of a new layer, with nothing in it."""
        directory = self.layer(id)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise LayerExists(f"layer {id} is there already") from None
        return directory

    def ancestors(self, id: GraphID) -> list[GraphID]:
        """The layers below ``id``, nearest first."""
        self.require(id)
        try:
            text = (self.layer(id) / "lower").read_text(encoding="ascii")
        except FileNotFoundError:
            raise StoreDamaged(
                f"layer {id} has no file 'lower': its creation did not finish", hint="remove the layer"
            ) from None
        return [GraphID(line) for line in text.splitlines()]

    def write_ancestors(self, id: GraphID, ancestors: list[GraphID]) -> None:
        """Write ``lower``, and all that makes the layer, so that a loss of power keeps it."""
        directory = self.layer(id)
        new = directory / "lower.new"
        with new.open("w", encoding="ascii") as file:
            file.writelines(f"{ancestor}\n" for ancestor in ancestors)
            file.flush()
            os.fsync(file.fileno())
        new.rename(directory / "lower")
        for made in (directory, self.home):
            _sync_directory(made)

    def is_writable(self, id: GraphID) -> bool:
        return self.work(id).is_dir()

    def seal(self, id: GraphID) -> None:
        """Make a layer read-only from now on."""
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.work(id))

    def remove(self, id: GraphID) -> None:
        """The layer is gone at once; its files are when this returns."""
        gone = self.home / f"{_REMOVING}{id[:150]}-{secrets.token_hex(8)}"
        try:
            self.layer(id).rename(gone)
        except FileNotFoundError:
            return
        remove_tree(gone)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems cannot sync a directory, and say so.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)

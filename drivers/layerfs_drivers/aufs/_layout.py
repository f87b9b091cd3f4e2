"""The home of the aufs driver: that of Docker's and containers/storage's aufs drivers, and ``work``.

::

    home/layers/ID            the ids of all layers below, nearest first, one a line
    home/diff/ID/             what the layer itself holds; the root carries the image's attributes
    home/work/ID/             scratch room, there as long as the layer may be written
    home/mnt/                 where Docker mounts; only ever removed from here
    home/.removing-XXXX/      a layer on its way out; it is no layer any more
    runroot/mnt/ID/           where it is mounted
    runroot/counts/           how often

``layers/ID`` is written last, and appears whole. Of what Docker left nothing may be written, as it has no
``work``: which of its layers were containers only its own database knows.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import LayerExists, LayerNotFound, StoreDamaged
from layerfs.ids import GraphID, parse_graph_id
from layerfs.values import frozen

_PARTS = ("layers", "diff", "work")
_REMOVING = ".removing-"


@frozen
class Layout:
    """``home`` and ``runroot`` of one driver."""

    home: Path
    runroot: Path

    @property
    def counts(self) -> Path:
        return self.runroot / "counts"

    def diff(self, id: GraphID) -> Path:
        return self.home / "diff" / parse_graph_id(id)

    def work(self, id: GraphID) -> Path:
        return self.home / "work" / parse_graph_id(id)

    def mount_point(self, id: GraphID) -> Path:
        return self.runroot / "mnt" / parse_graph_id(id)

    def dockers_mount_point(self, id: GraphID) -> Path:
        return self.home / "mnt" / parse_graph_id(id)

    def _layers(self, id: GraphID) -> Path:
        return self.home / "layers" / parse_graph_id(id)

    def make(self, *, read_only: bool) -> None:
        """Make what every layer relies on."""
        directories = [self.runroot, self.counts, self.runroot / "mnt"]
        if not read_only:
            directories += [self.home, *(self.home / part for part in _PARTS)]
        for directory in directories:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def leftovers(self) -> list[Path]:
        """What removals that did not finish left; no layers any more."""
        return [self.home / name for name in os.listdir(self.home) if name.startswith(_REMOVING)]

    def exists(self, id: GraphID) -> bool:
        return any((self.home / part / parse_graph_id(id)).exists() for part in _PARTS)

    def require(self, id: GraphID) -> None:
        if not self.exists(id):
            raise LayerNotFound(f"no layer {id} in {self.home}")

    def ids(self) -> Iterator[GraphID]:
        names: set[str] = set()
        for part in _PARTS:
            with contextlib.suppress(FileNotFoundError):
                names.update(os.listdir(self.home / part))
        for name in sorted(names):
            if not name.startswith("."):
                yield GraphID(name)

    def claim(self, id: GraphID) -> None:
        """Begin a new layer."""
        if self.exists(id):
            raise LayerExists(f"layer {id} is there already")
        try:
            self.work(id).mkdir(mode=0o700)
        except FileExistsError:
            raise LayerExists(f"layer {id} is there already") from None

    def ancestors(self, id: GraphID) -> list[GraphID]:
        """The layers below ``id``, nearest first."""
        self.require(id)
        try:
            lines = self._layers(id).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            lines = None
        if lines is None or not self.diff(id).is_dir():
            raise StoreDamaged(
                f"layer {id} is not whole: its creation, or its removal, did not finish",
                hint="remove the layer",
            )
        return [parse_graph_id(line) for line in lines if line]

    def write_ancestors(self, id: GraphID, ancestors: list[GraphID]) -> None:
        """Write ``layers/ID``, and see that a loss of power will not take the layer away again.

        Syncing a new file makes what was made before it durable as well, on every file system that keeps a
        journal: one wait for the disk, where each directory would cost another.
        """
        new = self._layers(id).with_name(f".{id}")
        with new.open("w", encoding="utf-8") as file:
            file.writelines(f"{ancestor}\n" for ancestor in ancestors)
            file.flush()
            new.rename(self._layers(id))
            os.fsync(file.fileno())

    def is_writable(self, id: GraphID) -> bool:
        return self.work(id).is_dir()

    def seal(self, id: GraphID) -> None:
        """Make a layer read-only from now on."""
        from layerfs.linux.removetree import remove_tree

        remove_tree(self.work(id))

    def detach(self, id: GraphID) -> Path | None:
        """Make the layer vanish at once. The answer is where its files are now, to be removed without
        hurry: what a dead process leaves there the next open removes. None: there is no such layer."""
        if not self.exists(id):
            return None
        gone = self.home / f"{_REMOVING}{os.urandom(16).hex()}"
        gone.mkdir(mode=0o700)
        self._layers(id).unlink(missing_ok=True)
        for part in (self.diff(id), self.work(id)):
            with contextlib.suppress(FileNotFoundError):
                part.rename(gone / part.parent.name)
        try:
            self.dockers_mount_point(id).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
        return gone

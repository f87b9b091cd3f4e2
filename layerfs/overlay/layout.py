"""The home of stacked layers: which file lies where, and how it comes and goes.

::

    home/                     0700
    home/.empty/              the second lower directory of an overlay mount that has but one layer
    home/.without-kernel      why the kernel cannot mount it here, so that FUSE does; usually not there
    home/.removing/XXXX/      a layer on its way out; it is no layer any more
    runroot/mnt/ID/           where it is mounted
    runroot/counts/           how often
    runroot/log/ID            what the process said that serves it, or served it last, over FUSE

and, in a home of overlay (:data:`PER_LAYER`)::

    home/ID/
    home/ID/lower             how many layers lie below, and their ids, nearest first, one a line
    home/ID/diff/             what the layer itself holds; the root carries the image's attributes
    home/ID/work/             overlay's scratch: there as long as the layer may be written

``lower`` names all layers below, so that a mount reads one file and follows no chain. It is written last:
a layer where it is missing, or shorter than it says, is one whose creation did not finish. Mount
points lie apart, so that a home that is read-only, or shared by several hosts, is never written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from layerfs.errors import LayerExists, LayerNotFound, StoreDamaged
from layerfs.ids import GraphID, parse_graph_id
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

_REMOVING = ".removing"
_REASON = ".without-kernel"


class Shape(Protocol):
    """Where in a home the parts of a layer lie."""

    def make(self, home: Path) -> None:
        """Make what every layer relies on."""

    def names(self, home: Path) -> Iterable[str]:
        """What may be a layer; names that begin with a dot are none."""

    def exists(self, home: Path, id: GraphID) -> bool: ...

    def places(self, home: Path, id: GraphID) -> Sequence[Path]:
        """Directories of the layer alone. The first is what a limit applies to."""

    def diff(self, home: Path, id: GraphID) -> Path: ...

    def work(self, home: Path, id: GraphID) -> Path: ...

    def claim(self, home: Path, id: GraphID) -> None:
        """Make the beginning of a new layer; FileExistsError if there is one."""

    def below(self, home: Path, id: GraphID) -> list[str] | None:
        """The ids below, nearest first; None when the layer is not whole."""

    def write_below(self, home: Path, id: GraphID, ids: Sequence[GraphID], *, durable: bool) -> None:
        """Make the layer whole; ``durable``: afterwards a loss of power does not take it away again."""

    def detach(self, home: Path, id: GraphID, gone: Path) -> None:
        """Move all of the layer to ``gone``, which is not there yet. FileNotFoundError: there is nothing."""


class _PerLayer:
    """One directory for each layer."""

    def make(self, home: Path) -> None:
        (home / ".empty").mkdir(mode=0o755, exist_ok=True)

    def names(self, home: Path) -> Iterable[str]:
        return os.listdir(home)

    def exists(self, home: Path, id: GraphID) -> bool:
        return (home / id).is_dir()

    def places(self, home: Path, id: GraphID) -> Sequence[Path]:
        return (home / id,)

    def diff(self, home: Path, id: GraphID) -> Path:
        return home.joinpath(id, "diff")

    def work(self, home: Path, id: GraphID) -> Path:
        return home / id / "work"

    def claim(self, home: Path, id: GraphID) -> None:
        (home / id).mkdir(mode=0o700)

    def below(self, home: Path, id: GraphID) -> list[str] | None:
        try:
            count, *ids = (home / id / "lower").read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return None
        # What follows the last line break is empty.
        return ids[:-1] if ids and count == str(len(ids) - 1) else None

    def write_below(self, home: Path, id: GraphID, ids: Sequence[GraphID], *, durable: bool) -> None:
        """Syncing a new file makes the directories that lead to it durable as well, on every file system
        that can hold an upper directory: one wait for the disk, where each directory would cost another."""
        with (home / id / "lower").open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in (len(ids), *ids))
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def detach(self, home: Path, id: GraphID, gone: Path) -> None:
        (home / id).rename(gone)


PER_LAYER = _PerLayer()


@frozen
class Layout:
    """``home`` and ``runroot`` of one driver."""

    home: Path
    runroot: Path
    shape: Shape = PER_LAYER

    @property
    def empty(self) -> Path:
        return self.home / ".empty"

    @property
    def counts(self) -> Path:
        return self.runroot / "counts"

    def places(self, id: GraphID) -> Sequence[Path]:
        """Directories of the layer alone. The first is what a limit applies to."""
        return self.shape.places(self.home, parse_graph_id(id))

    def diff(self, id: GraphID) -> Path:
        return self.shape.diff(self.home, parse_graph_id(id))

    def work(self, id: GraphID) -> Path:
        return self.shape.work(self.home, parse_graph_id(id))

    @property
    def mount_points(self) -> Path:
        return self.runroot / "mnt"

    def mount_point(self, id: GraphID) -> Path:
        return self.mount_points / parse_graph_id(id)

    def log(self, id: GraphID) -> Path:
        return self.runroot / "log" / parse_graph_id(id)

    def reason(self) -> str:
        """Why the kernel cannot mount layers here; empty as long as nothing speaks against it."""
        for place in (self.home, self.runroot):
            try:
                return (place / _REASON).read_text(encoding="utf-8", errors="surrogateescape")
            except (FileNotFoundError, NotADirectoryError):
                continue
        return ""

    def set_reason(self, reason: str, *, read_only: bool) -> None:
        """Remember it, for every process and over boots; a home that is not written, till the next one."""
        file = (self.runroot if read_only else self.home) / _REASON
        if not reason:
            file.unlink(missing_ok=True)
        elif reason != self.reason():
            # One write: who reads meanwhile finds all of it, or nothing, and then finds out by himself.
            file.write_text(reason, encoding="utf-8", errors="surrogateescape")

    def make(self, *, read_only: bool) -> None:
        """Make what every layer relies on."""
        for directory in (self.runroot, self.counts, self.runroot / "mnt"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if read_only:
            return
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.home / _REMOVING).mkdir(mode=0o700, exist_ok=True)
        self.shape.make(self.home)

    def leftovers(self) -> list[Path]:
        """What removals that did not finish left; no layers any more."""
        return [self.home / _REMOVING / name for name in os.listdir(self.home / _REMOVING)]

    def exists(self, id: GraphID) -> bool:
        return self.shape.exists(self.home, parse_graph_id(id))

    def require(self, id: GraphID) -> None:
        if not self.exists(id):
            raise LayerNotFound(f"no layer {id} in {self.home}")

    def ids(self) -> Iterator[GraphID]:
        if not self.home.exists():
            return
        for name in sorted(self.shape.names(self.home)):
            if not name.startswith("."):
                yield GraphID(name)

    def claim(self, id: GraphID) -> Path:
        """Begin a new layer. The answer is the directory that a limit applies to."""
        try:
            self.shape.claim(self.home, parse_graph_id(id))
        except FileExistsError:
            raise LayerExists(f"layer {id} is there already") from None
        return self.places(id)[0]

    def ancestors(self, id: GraphID) -> list[GraphID]:
        """The layers below ``id``, nearest first."""
        self.require(id)
        ids = self.shape.below(self.home, parse_graph_id(id))
        if ids is None:
            raise StoreDamaged(
                f"layer {id} is not whole: its creation, or its removal, did not finish",
                hint="remove the layer",
            )
        return [GraphID(ancestor) for ancestor in ids]

    def below(self, id: GraphID) -> list[Path]:
        """The directories of the layers below ``id``, nearest first. There may be hundreds."""
        diff, home = self.shape.diff, self.home
        return [diff(home, ancestor) for ancestor in self.ancestors(id)]

    def write_ancestors(self, id: GraphID, ancestors: list[GraphID], *, durable: bool) -> None:
        """Make the layer whole; ``durable``: see that a loss of power will not take it away again."""
        self.shape.write_below(self.home, parse_graph_id(id), ancestors, durable=durable)

    def is_writable(self, id: GraphID) -> bool:
        return self.work(id).is_dir()

    def seal(self, id: GraphID) -> None:
        """Make a layer read-only from now on."""
        from layerfs.linux.removetree import remove_tree

        remove_tree(self.work(id))

    def detach(self, id: GraphID) -> Path | None:
        """Make the layer vanish at once. The answer is where its files are now, to be removed without
        hurry: what a dead process leaves there the next open removes. None: there is no such layer."""
        gone = self.home / _REMOVING / os.urandom(16).hex()
        try:
            self.shape.detach(self.home, parse_graph_id(id), gone)
        except FileNotFoundError:
            return None
        return gone

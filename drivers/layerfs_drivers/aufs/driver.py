"""The aufs driver itself.

What reads or writes archives is imported where it is needed: mounting a container should not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.driver import (
    NO_OPTIONS,
    Capabilities,
    CopyOnWrite,
    CreateOptions,
    Displaced,
    FileOpener,
    Mount,
    Usage,
)
from layerfs.errors import DepthExceeded, MountBusy, NotSupported, ReadOnly, translated
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.mount import release
from layerfs.linux.mountinfo import holders, mounts_below
from layerfs.mountcount import MountCount, mount_layer
from layerfs.values import frozen
from layerfs_drivers.aufs._layout import Layout
from layerfs_drivers.aufs._mounts import MOST_LAYERS, Stack, Way, stack
from layerfs_drivers.aufs._probe import way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from layerfs.archive.changes import Change

_FORMAT = WhiteoutFormat.AUFS
_NO_LIMITS = "a layer lies in several directories of this layout, and a project quota limits one"
_LIMITS_HINT = "use overlay on xfs or ext4 with project quotas, or btrfs"


@frozen
class AufsDriver:
    """A :class:`layerfs.driver.Driver` upon aufs, or upon FUSE in its place.

    A layer can be written as long as it has a work directory: a writable layer always, a read-only one
    until ``apply_diff`` has filled it. Layers are not independent of their parents: a directory that a layer
    does not list, but goes through, takes its attributes from the parent, and a union shows the topmost.
    """

    layout: Layout
    read_only: bool
    name: str = "aufs"
    capabilities: Capabilities = Capabilities(
        copy_on_write=CopyOnWrite.FILE,
        native_diff=True,
        no_limits_because=f"{_NO_LIMITS}; {_LIMITS_HINT}",
        max_depth=MOST_LAYERS,
        rootless=True,
    )

    @classmethod
    def open(cls, home: Path, runroot: Path, *, read_only: bool) -> AufsDriver:
        layout = Layout(Path(os.path.abspath(home)), Path(os.path.abspath(runroot)))
        layout.make(read_only=read_only)
        driver = cls(layout, read_only)
        if not read_only:
            driver._sweep()
        return driver

    @functools.cached_property
    def way(self) -> Way:
        """What stacks the layers here."""
        return way(self.layout.home)

    # Layers come and go

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        from layerfs.archive.layerroot import make_root

        with self._writing(f"create layer {id}"):
            below = [] if parent is None else [parent, *self.layout.ancestors(parent)]
            if len(below) >= MOST_LAYERS:
                raise DepthExceeded(
                    f"layer {id} would be number {len(below) + 1} of a chain; aufs stacks {MOST_LAYERS}",
                    hint="build the image with fewer layers",
                )
            self.layout.claim(id)
            make_root(self.layout.diff(id), self.layout.diff(below[0]) if below else None, _FORMAT)
            self.layout.write_ancestors(id, below)

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        if options.size is not None or options.inodes is not None:
            raise NotSupported(f"cannot limit layer {id}: {_NO_LIMITS}", hint=_LIMITS_HINT)
        self.create(id, parent)

    def remove(self, id: GraphID, /) -> None:
        from layerfs.linux.removetree import remove_tree

        with self._writing(f"remove layer {id}"):
            target = self.layout.mount_point(id)
            with self._counts.unused(id, target):
                self._refuse_foreign_mounts(id)
                release(target)
                gone = self.layout.detach(id)
            if gone is not None:
                remove_tree(gone)

    def _refuse_foreign_mounts(self, id: GraphID) -> None:
        for directory in (self.layout.diff(id), self.layout.dockers_mount_point(id)):
            for entry in mounts_below(directory):
                where = Path(os.fsdecode(entry.mount_point))
                raise MountBusy(
                    f"layer {id} cannot be removed: somebody mounted {entry.fstype} at {where}",
                    holders=[str(holder) for holder in holders(where)],
                    hint="unmount it first",
                )

    def _sweep(self) -> None:
        """Finish the removals of processes that died. One that is still at work is only helped."""
        leftovers = self.layout.leftovers()
        if leftovers:
            from layerfs.linux.removetree import remove_tree

            for leftover in leftovers:
                # No layer any more, so what cannot be removed now does no harm; the next open tries again.
                with contextlib.suppress(OSError):
                    remove_tree(leftover)

    def mounted(self, id: GraphID, /) -> int:
        return self._counts.count(parse_graph_id(id))

    def exists(self, id: GraphID, /) -> bool:
        return self.layout.exists(id)

    def ids(self) -> Iterator[GraphID]:
        with translated("list the layers"):
            return iter(self.layout.ids())

    # Mounts

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        """One mount, of aufs or by FUSE. A layer that is filled is mounted read-only, however it is asked
        for. A label has no effect."""
        with translated(f"mount layer {id}"):
            return [self._stack(id, read_only=read_only).mount(self.way, id)]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        target = self.layout.mount_point(id)
        with translated(f"mount layer {id}"):
            stacked = self._stack(id, read_only=read_only)
            mount = stacked.mount(self.way, id)
            self._counts.get(
                id, target, lambda: mount_layer(id, [mount], target), read_only=stacked.upper is None
            )
        return target

    def put(self, id: GraphID, /) -> None:
        target = self.layout.mount_point(id)
        with translated(f"unmount layer {id}"):
            self._counts.put(id, target, lambda: release(target))

    def _stack(self, id: GraphID, *, read_only: bool) -> Stack:
        self.layout.require(id)
        if not read_only:
            self._refuse_when_read_only(f"mount layer {id} writable")
        writable = not read_only and self.layout.is_writable(id)
        return stack(self.layout, id, read_only=not writable)

    # Changes

    def changes(self, id: GraphID, parent: GraphID | None, /) -> Iterator[Change]:
        from layerfs.archive.upperdiff import upper_changes

        with translated(f"compare layer {id} with its parent"):
            return iter(upper_changes(self.layout.diff(id), self._below(id), whiteouts=_FORMAT))

    def diff(self, id: GraphID, parent: GraphID | None, /) -> BinaryIO:
        from layerfs.archive.upperdiff import upper_diff

        with translated(f"pack layer {id}"):
            return upper_diff(self.layout.diff(id), self._below(id), whiteouts=_FORMAT)

    def diff_size(self, id: GraphID, parent: GraphID | None, /) -> int:
        from layerfs.archive.upperdiff import upper_diff_size

        with translated(f"measure the changes of layer {id}"):
            return upper_diff_size(self.layout.diff(id), self._below(id), whiteouts=_FORMAT)

    def apply_diff(
        self,
        id: GraphID,
        parent: GraphID | None,
        tar: BinaryIO,
        /,
        *,
        displaced: Displaced | None = None,
    ) -> int:
        from layerfs.archive.unpack import unpack

        with self._writing(f"fill layer {id}"):
            below = self._below(id)
            done = unpack(tar, self.layout.diff(id), whiteouts=_FORMAT, displaced=displaced, lower=below)
            self.layout.seal(id)
            return done.size

    @contextlib.contextmanager
    def files(self, id: GraphID, /) -> Iterator[FileOpener]:
        """Read from the layer's own directory: no mount is needed, and what lies below is not seen."""
        from layerfs.archive.layerfile import open_layer_file

        self.layout.require(id)
        with translated(f"read layer {id}"):
            fd = os.open(self.layout.diff(id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield lambda name: open_layer_file(fd, name)
        finally:
            os.close(fd)

    def _below(self, id: GraphID) -> list[Path]:
        return [self.layout.diff(ancestor) for ancestor in self.layout.ancestors(id)]

    # Facts

    def usage(self, id: GraphID, /) -> Usage:
        from layerfs.linux.diskusage import disk_usage

        self.layout.require(id)
        with translated(f"measure layer {id}"):
            return Usage(*disk_usage(self.layout.diff(id)))

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        """``branches`` (topmost first, joined with colons) and ``merged``."""
        with translated(f"look at layer {id}"):
            return {
                "branches": ":".join(str(path) for path in (self.layout.diff(id), *self._below(id))),
                "merged": str(self.layout.mount_point(id)),
            }

    def status(self) -> Mapping[str, str]:
        from layerfs.linux.backing import file_system

        return {
            "home": str(self.layout.home),
            "backing file system": file_system(self.layout.home),
            "mounted by": self.way.value,
            "native diff": "yes: from the upper directory alone",
            "most layers": str(MOST_LAYERS),
        }

    def flush(self) -> None:
        from layerfs.linux.syncfs import syncfs

        with translated(f"flush {self.layout.home}"):
            syncfs(self.layout.home)

    def cleanup(self) -> None:
        """Nothing is held between calls."""

    @property
    def _counts(self) -> MountCount:
        return MountCount(self.layout.counts)

    def _refuse_when_read_only(self, doing: str) -> None:
        if self.read_only:
            raise ReadOnly(f"cannot {doing}: {self.layout.home} is opened read-only", errno=errno.EROFS)

    @contextlib.contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        self._refuse_when_read_only(doing)
        with translated(doing):
            yield

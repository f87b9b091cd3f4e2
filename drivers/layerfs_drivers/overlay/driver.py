"""The overlay driver itself.

What reads or writes archives is imported where it is needed: mounting a container should not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from layerfs.archive.overlaymarks import Marks
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.driver import (
    NO_OPTIONS,
    Capabilities,
    CopyOnWrite,
    CreateOptions,
    Displaced,
    FileOpener,
    Leak,
    Mount,
    Usage,
)
from layerfs.errors import (
    DepthExceeded,
    MountBusy,
    MountFailed,
    ReadOnly,
    translated,
)
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.mount import perform_all, release, takes_single_layers
from layerfs.linux.mountinfo import holders, mounts_below
from layerfs.linux.userns import in_user_namespace
from layerfs.mountcount import MountCount
from layerfs.values import frozen
from layerfs_drivers.overlay._layout import Layout
from layerfs_drivers.overlay._mounts import MOST_LAYERS, Stack, stack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from layerfs.archive.changes import Change
    from layerfs_drivers.overlay._limits import Limits

_KEPT_BY = {"ext4": "project quota; ext4 holds nobody to it who has CAP_SYS_RESOURCE over the host"}


@frozen
class OverlayDriver:
    """A :class:`layerfs.driver.Driver` upon overlayfs.

    A layer can be written as long as it has a work directory: a writable layer always, a read-only one
    until ``apply_diff`` has filled it. Layers are not independent of their parents: a directory that a layer
    does not list, but goes through, takes its attributes from the parent, and overlay shows the topmost.
    """

    layout: Layout
    format: WhiteoutFormat
    read_only: bool
    name: str = "overlay"

    @classmethod
    def open(cls, home: Path, runroot: Path, *, read_only: bool) -> OverlayDriver:
        layout = Layout(Path(os.path.abspath(home)), Path(os.path.abspath(runroot)))
        layout.make(read_only=read_only)
        # Nobody may set trusted.* without privilege over the host (userxattr: Linux 5.11).
        format = WhiteoutFormat.OVERLAY_USER if in_user_namespace() else WhiteoutFormat.OVERLAY
        driver = cls(layout, format, read_only)
        if not read_only:
            driver._sweep()
        return driver

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        missing = self._limits.missing
        return Capabilities(
            copy_on_write=CopyOnWrite.FILE,
            native_diff=True,
            size_limit=not missing,
            inode_limit=not missing,
            no_limits_because=missing,
            labels=_takes_labels(),
            max_depth=MOST_LAYERS,
            rootless=True,
        )

    @functools.cached_property
    def _limits(self) -> Limits:
        from layerfs_drivers.overlay._limits import Limits

        return Limits(self.layout.home)

    # Layers come and go

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        self._create(id, parent, NO_OPTIONS)

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        self._create(id, parent, options)

    def _create(self, id: GraphID, parent: GraphID | None, options: CreateOptions) -> None:
        from layerfs_drivers.overlay._root import make_root

        with self._writing(f"create layer {id}"):
            below = [] if parent is None else [parent, *self.layout.ancestors(parent)]
            if len(below) >= MOST_LAYERS:
                raise DepthExceeded(
                    f"layer {id} would be number {len(below) + 1} of a chain; overlay stacks {MOST_LAYERS}",
                    hint="build the image with fewer layers",
                )
            self._limits.check(options)
            directory = self.layout.claim(id)
            # Before anything is in it: what is made in a directory inherits its project.
            self._limits.set(directory, options)
            make_root(self.layout.diff(id), self.layout.diff(below[0]) if below else None, self.format)
            self.layout.work(id).mkdir(mode=0o700)
            self.layout.write_ancestors(id, below)

    def remove(self, id: GraphID, /) -> None:
        with self._writing(f"remove layer {id}"):
            target = self.layout.mount_point(id)
            with self._counts.unused(id, target):
                self._refuse_foreign_mounts(id)
                release(target)
                gone = self.layout.detach(id)
            if gone is not None:
                self._limits.remove(gone)

    def _refuse_foreign_mounts(self, id: GraphID) -> None:
        for entry in mounts_below(self.layout.layer(id)):
            where = Path(os.fsdecode(entry.mount_point))
            raise MountBusy(
                f"layer {id} cannot be removed: somebody mounted {entry.fstype} at {where}",
                holders=[str(holder) for holder in holders(where)],
                hint="unmount it first",
            )

    def _sweep(self) -> None:
        """Finish the removals of processes that died. One that is still at work is only helped."""
        for leftover in self.layout.leftovers():
            # No layer any more, so what cannot be removed now does no harm; the next open tries again.
            with contextlib.suppress(OSError):
                self._limits.remove(leftover)

    def mounted(self, id: GraphID, /) -> int:
        return self._counts.count(parse_graph_id(id))

    def exists(self, id: GraphID, /) -> bool:
        return self.layout.exists(id)

    def ids(self) -> Iterator[GraphID]:
        with translated("list the layers"):
            return iter(self.layout.ids())

    # Mounts

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        """One overlay mount. A layer that is filled is mounted read-only, however it is asked for."""
        with translated(f"mount layer {id}"):
            return [self._mount(self._stack(id, read_only=read_only), label)]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        """As the contract says. A label has no effect on a host without SELinux."""
        target = self.layout.mount_point(id)
        with translated(f"mount layer {id}"):
            stacked = self._stack(id, read_only=read_only)
            mount = self._mount(stacked, label if _takes_labels() else "")
            self._counts.get(id, target, lambda: _perform(id, mount, target), read_only=stacked.upper is None)
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
        return stack(self.layout, id, self._marks, read_only=not writable)

    def _mount(self, stacked: Stack, label: str) -> Mount:
        return stacked.mount(user_xattrs=self.format is WhiteoutFormat.OVERLAY_USER, label=label)

    # Changes

    def changes(self, id: GraphID, parent: GraphID | None, /) -> Iterator[Change]:
        from layerfs.archive.overlaydiff import upper_changes

        with translated(f"compare layer {id} with its parent"):
            return iter(upper_changes(self.layout.diff(id), self._below(id), whiteouts=self.format))

    def diff(self, id: GraphID, parent: GraphID | None, /) -> BinaryIO:
        from layerfs.archive.overlaydiff import upper_diff

        with translated(f"pack layer {id}"):
            return upper_diff(self.layout.diff(id), self._below(id), whiteouts=self.format)

    def diff_size(self, id: GraphID, parent: GraphID | None, /) -> int:
        from layerfs.archive.overlaydiff import upper_diff_size

        with translated(f"measure the changes of layer {id}"):
            return upper_diff_size(self.layout.diff(id), self._below(id), whiteouts=self.format)

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
            done = unpack(
                tar,
                self.layout.diff(id),
                whiteouts=self.format,
                displaced=displaced,
                lower=self._below(id),
            )
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
        """Of a layer with limits, what counts against them: its few files of management as well."""
        from layerfs.linux.diskusage import disk_usage

        self.layout.require(id)
        with translated(f"measure layer {id}"):
            limited = self._limits.usage(self.layout.layer(id))
            return limited or Usage(*disk_usage(self.layout.diff(id)))

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        """``lowerdir`` (joined with colons, unescaped), ``upperdir``, ``workdir``, ``merged``."""
        with translated(f"look at layer {id}"):
            facts = {
                "lowerdir": ":".join(str(path) for path in self._below(id)),
                "upperdir": str(self.layout.diff(id)),
                "workdir": str(self.layout.work(id)) if self.layout.is_writable(id) else "",
                "merged": str(self.layout.mount_point(id)),
            }
            return {key: value for key, value in facts.items() if value}

    def status(self) -> Mapping[str, str]:
        from layerfs_drivers.overlay._backing import file_system

        user = self.format is WhiteoutFormat.OVERLAY_USER
        backing = file_system(self.layout.home)
        return {
            "home": str(self.layout.home),
            "backing file system": backing,
            "mount api": "fsconfig lowerdir+" if takes_single_layers() else "mount(2)",
            "native diff": "yes: from the upper directory alone",
            "marks": "user.overlay.* (userxattr)" if user else "trusted.overlay.*",
            "limits": self._limits.missing or _KEPT_BY.get(backing, "project quota"),
            "most layers": str(MOST_LAYERS),
        }

    def flush(self) -> None:
        from layerfs.linux.syncfs import syncfs

        with translated(f"flush {self.layout.home}"):
            syncfs(self.layout.home)

    def cleanup(self) -> None:
        """Nothing is held between calls."""

    def parent(self, id: GraphID, /) -> GraphID | None:
        return next(iter(self.layout.ancestors(id)), None)

    def leaks(self, *, remove: bool = False) -> Sequence[Leak]:
        with translated("look for mounts that nobody uses"):
            return self._counts.leaks(self.layout.mount_point(GraphID("x")).parent, remove=remove)

    @property
    def _counts(self) -> MountCount:
        return MountCount(self.layout.counts)

    @property
    def _marks(self) -> Marks:
        return Marks(self.format)

    def _refuse_when_read_only(self, doing: str) -> None:
        if self.read_only:
            raise ReadOnly(f"cannot {doing}: {self.layout.home} is opened read-only", errno=errno.EROFS)

    @contextlib.contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        self._refuse_when_read_only(doing)
        with translated(doing):
            yield


def _takes_labels() -> bool:
    return os.path.exists("/sys/fs/selinux/enforce")


def _perform(id: GraphID, mount: Mount, target: Path) -> None:
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        perform_all([mount], target)
    except OSError as error:
        with contextlib.suppress(OSError):
            target.rmdir()
        about = f" ({error.filename})" if error.filename not in (None, str(target)) else ""
        raise MountFailed(
            f"cannot mount layer {id} at {target}: {error.strerror}{about}", errno=error.errno or 0
        ) from error

"""A driver whose layers are directories that a union file system can stack: it has but to be told how they
lie and are marked, and how to mount them.

What reads or writes archives is imported where it is needed: mounting a container should not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from layerfs.archive.marks import Marks, marks_of
from layerfs.archive.whiteout import WhiteoutFormat, overlay_format
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
    NoSpace,
    NotSupported,
    ReadOnly,
    SystemFailure,
    translated,
)
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.mountinfo import holders, is_mount, mounts_below
from layerfs.linux.overlaymount import takes_single_layers
from layerfs.linux.umount import release
from layerfs.mountcount import MountCount
from layerfs.overlay.layout import PER_LAYER, Layout, Shape
from layerfs.overlay.stack import MOST_LAYERS, Stack, stack
from layerfs.overlay.ways import BY_KERNEL, ByKernel, Way
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from layerfs.archive.changes import Change
    from layerfs.overlay.limits import Limits

_KEPT_BY = {"ext4": "project quota; ext4 holds nobody to it who has CAP_SYS_RESOURCE over the host"}

_MARKS = {
    WhiteoutFormat.OVERLAY: "trusted.overlay.*",
    WhiteoutFormat.OVERLAY_USER: "user.overlay.* (userxattr)",
    WhiteoutFormat.AUFS: "files named .wh.*",
}


@frozen
class OverlayDriver:
    """A :class:`layerfs.driver.Driver` that stacks directories, by the kernel or over FUSE: overlay's, and
    with another layout and other marks aufs's.

    Either way the layers on disk are the same. With ``instead`` it mounts by that way what ``way`` cannot
    mount in this place: from the first mount that failed so, and until :meth:`open` finds that it can.

    A layer can be written as long as it has a work directory: a writable layer always, a read-only one
    until ``apply_diff`` has filled it. Layers are not independent of their parents: a directory that a layer
    does not list, but goes through, takes its attributes from the parent, and overlay shows the topmost.
    """

    layout: Layout
    format: WhiteoutFormat
    read_only: bool
    name: str = "overlay"
    way: Way = BY_KERNEL
    instead: Way | None = None
    most_layers: int = MOST_LAYERS
    no_limits_because: str = ""
    """Why a layer cannot be limited, whatever the host can do."""

    @classmethod
    def open(
        cls,
        home: Path,
        runroot: Path,
        *,
        read_only: bool,
        name: str = "overlay",
        way: Way = BY_KERNEL,
        instead: Way | None = None,
        shape: Shape = PER_LAYER,
        format: WhiteoutFormat | None = None,
        most_layers: int = MOST_LAYERS,
        no_limits_because: str = "",
    ) -> OverlayDriver:
        """``format``: None for overlay's own."""
        layout = Layout(Path(os.path.abspath(home)), Path(os.path.abspath(runroot)), shape)
        layout.make(read_only=read_only)
        driver = cls(
            layout, format or overlay_format(), read_only, name, way, instead, most_layers, no_limits_because
        )
        if not read_only:
            driver._sweep()
        driver._counts.sweep()
        if layout.reason():
            driver._refused()
        return driver

    @property
    def _mounts_by(self) -> Way:
        return self.instead if self.instead is not None and self.layout.reason() else self.way

    def _refused(self) -> bool:
        """Find out whether ``way`` can be used here, and remember the reason if not. What cannot be found out
        now, as on a disk that is full, leaves it at what was known."""
        from layerfs.overlay.probe import probe

        try:
            probe(self.layout.home, self.way, self.format)
        except NotSupported as error:
            self.remember(error)
            return True
        except (OSError, SystemFailure):
            return False
        self.layout.set_reason("", read_only=self.read_only)
        return False

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        with translated(f"look what limits {self.layout.home} can have"):
            missing = self._limits.missing
        return Capabilities(
            copy_on_write=CopyOnWrite.FILE,
            native_diff=True,
            size_limit=not missing,
            inode_limit=not missing,
            no_limits_because=missing,
            labels=_takes_labels() and isinstance(self._mounts_by, ByKernel),
            max_depth=self.most_layers,
            rootless=True,
        )

    @functools.cached_property
    def _limits(self) -> Limits:
        from layerfs.overlay.limits import Limits

        return Limits(self.layout.home, self.no_limits_because)

    def remember(self, refusal: NotSupported) -> None:
        """That ``way`` cannot be used here, and why."""
        self.layout.set_reason(f"{refusal}\n{refusal.hint}", read_only=self.read_only)

    # Layers come and go

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        self._create(id, parent, NO_OPTIONS, durable=False)

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        self._create(id, parent, options, durable=True)

    def _create(self, id: GraphID, parent: GraphID | None, options: CreateOptions, *, durable: bool) -> None:
        """``durable``: at once; a layer that is still to be filled waits for :meth:`flush`."""
        from layerfs.archive.layerroot import make_root

        with self._writing(f"create layer {id}"):
            below = [] if parent is None else [parent, *self.layout.ancestors(parent)]
            if len(below) >= self.most_layers:
                number, most = len(below) + 1, self.most_layers
                raise DepthExceeded(
                    f"layer {id} would be number {number} of a chain; {self.name} stacks {most}",
                    hint="build the image with fewer layers",
                )
            self._limits.check(options)
            directory = self.layout.claim(id)
            # Before anything is in it: what is made in a directory inherits its project.
            self._limits.set(directory, options)
            self.layout.work(id).mkdir(mode=0o700)
            make_root(self.layout.diff(id), self.layout.diff(below[0]) if below else None, self.format)
            self.layout.write_ancestors(id, below, durable=durable)

    def remove(self, id: GraphID, /) -> None:
        with self._writing(f"remove layer {id}"):
            target = self.layout.mount_point(id)
            with self._counts.unused(id, target):
                self._refuse_foreign_mounts(id)
                release(target)
                gone = self.layout.detach(id)
                self.layout.log(id).unlink(missing_ok=True)
            if gone is not None:
                self._limits.remove(gone)

    def _refuse_foreign_mounts(self, id: GraphID) -> None:
        for entry in chain.from_iterable(map(mounts_below, self.layout.places(id))):
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
            return [self._mount(self._mounts_by, self._stack(id, read_only=read_only), label)]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        """As the contract says. A label has no effect on a host without SELinux."""
        target = self.layout.mount_point(id)
        with translated(f"mount layer {id}"):
            stacked = self._stack(id, read_only=read_only)
            self._refuse_dead(id, target)
            self._counts.get(
                id,
                target,
                lambda lock: self._perform(id, stacked, label, target, lock),
                read_only=stacked.upper is None,
            )
        return target

    def _perform(self, id: GraphID, stacked: Stack, label: str, target: Path, lock: int) -> None:
        self.layout.require(id)  # it may have been removed before its turn came
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._try_ways(id, stacked, label, target, lock)

    def _try_ways(self, id: GraphID, stacked: Stack, label: str, target: Path, lock: int) -> None:
        label = label if _takes_labels() else ""
        way = self._mounts_by
        try:
            way.perform(self._mount(way, stacked, label), target, self.layout.log(id), [lock])
        except (OSError, SystemFailure) as error:
            if self.instead is not None and way is self.way and self._refused():
                return self._try_ways(id, stacked, label, target, lock)
            raise _failed(id, target, error) from error

    def put(self, id: GraphID, /) -> None:
        target = self.layout.mount_point(id)
        with translated(f"unmount layer {id}"):
            dead = self._death(id, target)
            self._counts.put(id, target, lambda: release(target))
        if dead:
            raise MountFailed(f"layer {id} was given back, but what was written last may be lost: {dead}")

    def _death(self, id: GraphID, target: Path) -> str:
        log = self.layout.log(id)
        if not log.exists():
            return ""
        from layerfs.fuse.process import death

        return death(target, log)

    def _process(self, id: GraphID) -> str:
        """Who serves the mount of the layer; empty when nobody needs to."""
        if not self.layout.log(id).exists():
            return ""
        from layerfs.linux.fuseserver import server_of

        target = self.layout.mount_point(id)
        server = server_of(target)
        try:
            return "" if server is None else self._death(id, target) or str(server.pid)
        except SystemFailure as error:
            return str(error)

    def _refuse_dead(self, id: GraphID, target: Path) -> None:
        dead = self._death(id, target)
        if dead:
            times = self._counts.count(id)
            raise MountFailed(
                f"layer {id} is mounted at {target}, but {dead}",
                hint=f"unmount it as often as it was mounted ({times}), then mount it again",
            )

    def _settle(self, id: GraphID) -> None:
        """Have the kernel hand over what was written to a mounted layer, so that it is on disk."""
        if not self.layout.log(id).exists():
            return
        from layerfs.linux.fuseserver import asked
        from layerfs.linux.syncfs import syncfs

        target = self.layout.mount_point(id)
        if is_mount(target):
            asked(target, lambda: syncfs(target))

    def _stack(self, id: GraphID, *, read_only: bool) -> Stack:
        self.layout.require(id)
        if not read_only:
            self._refuse_when_read_only(f"mount layer {id} writable")
        writable = not read_only and self.layout.is_writable(id)
        return stack(self.layout, id, self._marks, read_only=not writable)

    def _mount(self, way: Way, stacked: Stack, label: str) -> Mount:
        return way.mount(stacked, user_xattrs=self.format is WhiteoutFormat.OVERLAY_USER, label=label)

    # Changes

    def changes(self, id: GraphID, parent: GraphID | None, /) -> Iterator[Change]:
        from layerfs.archive.upperdiff import upper_changes

        with translated(f"compare layer {id} with its parent"):
            self._settle(id)
            return iter(upper_changes(self.layout.diff(id), self.layout.below(id), whiteouts=self.format))

    def diff(self, id: GraphID, parent: GraphID | None, /) -> BinaryIO:
        from layerfs.archive.upperdiff import upper_diff

        with translated(f"pack layer {id}"):
            self._settle(id)
            return upper_diff(self.layout.diff(id), self.layout.below(id), whiteouts=self.format)

    def diff_size(self, id: GraphID, parent: GraphID | None, /) -> int:
        from layerfs.archive.upperdiff import upper_diff_size

        with translated(f"measure the changes of layer {id}"):
            self._settle(id)
            return upper_diff_size(self.layout.diff(id), self.layout.below(id), whiteouts=self.format)

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
                lower=self.layout.below(id),
            )
            self.layout.seal(id)
            return done.size

    @contextlib.contextmanager
    def files(self, id: GraphID, /) -> Iterator[FileOpener]:
        """Read from the layer's own directory: no mount is needed, and what lies below is not seen."""
        from layerfs.archive.layerfile import layer_files

        self.layout.require(id)
        with layer_files(self.layout.diff(id)) as open_file:
            yield open_file

    # Facts

    def usage(self, id: GraphID, /) -> Usage:
        """Of a layer with limits, what counts against them: its few files of management as well."""
        from layerfs.linux.diskusage import disk_usage

        self.layout.require(id)
        with translated(f"measure layer {id}"):
            self._settle(id)
            limited = self._limits.usage(self.layout.places(id)[0])
            return limited or Usage(*disk_usage(self.layout.diff(id)))

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        """``lowerdir`` (joined with colons, unescaped), ``upperdir``, ``workdir``, ``merged``; over FUSE
        ``process``: who serves the mount, or how that ended."""
        with translated(f"look at layer {id}"):
            facts = {
                "lowerdir": ":".join(str(path) for path in self.layout.below(id)),
                "upperdir": str(self.layout.diff(id)),
                "workdir": str(self.layout.work(id)) if self.layout.is_writable(id) else "",
                "merged": str(self.layout.mount_point(id)),
                "process": self._process(id),
            }
            return {key: value for key, value in facts.items() if value}

    def status(self) -> Mapping[str, str]:
        from layerfs.linux.backing import file_system

        backing = file_system(self.layout.home)
        return {
            "home": str(self.layout.home),
            "backing file system": backing,
            **self._mounted_by(),
            "native diff": "yes: from the upper directory alone",
            "marks": _MARKS[self.format],
            "limits": self._limits.missing or _KEPT_BY.get(backing, "project quota"),
            "most layers": str(self.most_layers),
        }

    def _mounted_by(self) -> Mapping[str, str]:
        way = self._mounts_by
        told = {"mounted by": way.name}
        if way is not self.way:
            reason, _, mend = self.layout.reason().partition("\n")
            told["not by " + self.way.name] = reason
            told["mend"] = mend
        if isinstance(way, ByKernel):
            told["mount api"] = "fsconfig lowerdir+" if takes_single_layers() else "mount(2)"
        return {key: value for key, value in told.items() if value}

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
            return self._counts.leaks(self.layout.mount_points, remove=remove)

    @property
    def _counts(self) -> MountCount:
        return MountCount(self.layout.counts)

    @property
    def _marks(self) -> Marks:
        return marks_of(self.format)

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


def _failed(id: GraphID, target: Path, error: OSError | SystemFailure) -> SystemFailure:
    if isinstance(error, SystemFailure):
        message, hint = f"cannot mount layer {id}: {error}", error.hint
    else:
        about = f" ({error.filename})" if error.filename not in (None, str(target)) else ""
        message, hint = f"cannot mount layer {id} at {target}: {error.strerror}{about}", ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = hint or "make room; read-only it can be mounted as it is"
        return NoSpace(message, errno=error.errno, hint=hint)
    return MountFailed(message, errno=error.errno or 0, hint=hint)

"""The driver without a trick: every layer is a whole directory tree, copied from its parent.

It needs nothing of the kernel but extended attributes, so it is what every other driver is compared
with, and what is left where nothing else works. Where the file system shares extents between files (btrfs,
xfs with reflink) a layer costs little; elsewhere it costs as much as everything below it.

Home::

    <id>/                 the root of a layer
    .removing/<random>/   a layer being removed; swept when the driver is opened

Runroot::

    mounts/<id>/          where a layer in use is mounted (a bind mount, so that read-only is meant)
    counts/<id>           how often

``usage`` tells what the whole copy takes on disk, since that is what goes when the layer is removed.
Extents shared with the parent are counted as if they were not.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from layerfs.driver import (
    NO_OPTIONS,
    Capabilities,
    CreateOptions,
    Driver,
    Leak,
    Mount,
    Option,
    Usage,
    refuse_options,
)
from layerfs.errors import LayerExists, LayerNotFound, NotSupported, ReadOnly, translated
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.mount import perform_all
from layerfs.linux.umount import release
from layerfs.linux.userns import has_capability, in_user_namespace
from layerfs.mountcount import MountCount
from layerfs.naivediff import NaiveDiff
from layerfs.values import frozen

_REMOVING = ".removing"
_NO_LIMITS = "vfs keeps a layer as plain files, upon which no file system sets a limit by itself"
_LIMITS_HINT = "use overlay on xfs or ext4 with project quotas, or btrfs"


@frozen
class _Vfs:
    home: Path
    runroot: Path
    read_only: bool
    name: str = "vfs"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(no_limits_because=f"{_NO_LIMITS}; {_LIMITS_HINT}", rootless=True)

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        from layerfs.archive.emptyroot import make_unlisted
        from layerfs.linux.copytree import copy_tree

        with self._writing(f"create layer {id}"):
            root = self._root(id)
            if root.exists():
                raise LayerExists(f"layer {id} is there already")
            if parent is None:
                root.mkdir()
                make_unlisted(root)
            else:
                copy_tree(self._existing(parent), root)

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        if options.size is not None or options.inodes is not None:
            raise NotSupported(f"cannot limit layer {id}: {_NO_LIMITS}", hint=_LIMITS_HINT)
        self.create(id, parent)

    def remove(self, id: GraphID, /) -> None:
        from layerfs.linux.removetree import remove_tree

        with self._writing(f"remove layer {id}"):
            root, target = self._root(id), self._target(id)
            doomed = self.home / _REMOVING / os.urandom(16).hex()
            with self._counts.unused(id, target):
                release(target)
                with contextlib.suppress(FileNotFoundError):
                    root.rename(doomed)
            remove_tree(doomed)  # outside of every lock: it can take long

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        root = self._existing(id)
        if not read_only:
            self._refuse_read_only(f"mount layer {id} writable")
        return [Mount("bind", str(root), ("bind", "ro") if read_only else ("bind",))]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        mounts, target = self.mounts(id, read_only=read_only), self._target(id)

        def mount(_: int) -> None:
            self._existing(id)  # it may have been removed before its turn came
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            perform_all(mounts, target)

        with translated(f"mount layer {id}"):
            self._counts.get(id, target, mount, read_only=read_only)
        return target

    def put(self, id: GraphID, /) -> None:
        target = self._target(id)
        with translated(f"unmount layer {id}"):
            self._counts.put(id, target, lambda: release(target))

    def mounted(self, id: GraphID, /) -> int:
        return self._counts.count(parse_graph_id(id))

    def exists(self, id: GraphID, /) -> bool:
        return self._root(id).is_dir()

    def ids(self) -> Iterator[GraphID]:
        with translated("list layers"), contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.home)
            return iter([GraphID(name) for name in sorted(names) if not name.startswith(".")])
        return iter(())

    def usage(self, id: GraphID, /) -> Usage:
        from layerfs.linux.diskusage import disk_usage

        with translated(f"measure layer {id}"):
            return Usage(*disk_usage(self._existing(id)))

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        return {"root": str(self._existing(id))}

    def status(self) -> Mapping[str, str]:
        return {"home": str(self.home), "copies": "shared extents where the file system can, else whole"}

    def flush(self) -> None:
        from layerfs.linux.syncfs import syncfs

        with translated(f"flush {self.home}"):
            syncfs(self.home)

    def cleanup(self) -> None:
        """Nothing is held."""

    def leaks(self, *, remove: bool = False) -> Sequence[Leak]:
        with translated("look for mounts that nobody uses"):
            return self._counts.leaks(self.runroot / "mounts", remove=remove)

    @property
    def _counts(self) -> MountCount:
        return MountCount(self.runroot / "counts")

    def _root(self, id: GraphID) -> Path:
        return self.home / parse_graph_id(id)

    def _target(self, id: GraphID) -> Path:
        return self.runroot / "mounts" / parse_graph_id(id)

    def _existing(self, id: GraphID) -> Path:
        root = self._root(id)
        if not root.is_dir():
            raise LayerNotFound(f"no layer {id}")
        return root

    def _refuse_read_only(self, doing: str) -> None:
        if self.read_only:
            raise ReadOnly(f"cannot {doing}: {self.home} is opened read-only", errno=errno.EROFS)

    @contextlib.contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        self._refuse_read_only(doing)
        with translated(doing):
            yield


@frozen
class _VfsInfo:
    name: str = "vfs"
    priority: int = 0
    summary: str = "plain copies of whole trees: works anywhere, costs the most"
    options: tuple[Option, ...] = ()

    def probe(self, home: Path, runroot: Path) -> None:
        if not has_capability("CAP_SYS_ADMIN"):
            raise NotSupported("vfs needs the right to mount", hint="run as root, or in a user namespace")
        _probe_xattrs(home)

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        """A home that is there was tried out when it was made; a new one is tried out now."""
        refuse_options(options, self.name)
        if not read_only:
            with translated(f"open {home}"):
                if not home.exists():
                    self.probe(home, runroot)
                    home.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sweep(home)
        driver = _Vfs(home, runroot, read_only)
        with translated(f"look what is half mounted in {runroot}"):
            driver._counts.sweep()
        return NaiveDiff(driver)


def _sweep(home: Path) -> None:
    """Finish the removals that a dead process left. One that is still being done is done by both.

    What cannot be removed now is no layer any more and does no harm: the next sweep tries again.
    """
    removing = home / _REMOVING
    removing.mkdir(mode=0o700, exist_ok=True)
    for name in os.listdir(removing):
        from layerfs.linux.removetree import remove_tree

        with contextlib.suppress(OSError):
            remove_tree(removing / name)


def _probe_xattrs(home: Path) -> None:
    """Layers hold extended attributes (capabilities above all); without them they would be damaged."""
    import tempfile

    place = home
    while not place.exists():
        place = place.parent
    # Root of a user namespace may not set trusted attributes; tmpfs has user ones since Linux 6.6 only.
    namespace = "user" if in_user_namespace() else "trusted"
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=place) as scratch:
            os.setxattr(scratch, f"{namespace}.layerfs.probe", b"yes")
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise NotSupported(
                f"the file system of {place} has no extended attributes",
                hint="put the store on ext4, xfs, btrfs or tmpfs",
            ) from error
        raise NotSupported(f"{place} cannot be written: {error.strerror}") from error


DRIVER = _VfsInfo()

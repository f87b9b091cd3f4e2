"""A container's writable layer: made, mounted, looked at, committed, removed."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from layerfs.driver import CreateOptions, Mount, Usage
from layerfs.errors import (
    ContainerNotFound,
    DepthExceeded,
    InvalidID,
    LayerfsError,
    LayerNotFound,
    MountBusy,
    NameInUse,
    translated,
)
from layerfs.ids import ChainID, GraphID, init_id, new_mount_id
from layerfs.store import damaged, rows
from layerfs.store.announce import announce_container
from layerfs.store.core import Core
from layerfs.store.records import RWLayerInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from layerfs.archive.changes import Change
    from layerfs.store.initlayer import InitFunc
    from layerfs.store.layer import Layer


class RWLayer:
    """A container's writable layer. The handle holds nothing: the container stays until it is removed."""

    def __init__(self, core: Core, info: RWLayerInfo) -> None:
        self._core = core
        self.info = info

    @property
    def name(self) -> str:
        return self.info.name

    def mount(self, *, read_only: bool = False, options: Collection[str] = ()) -> Path:
        """The container's root file system, mounted. Counted across processes: each is given back by an
        :meth:`umount`. Raises :class:`MountBusy` for a writable mount of one that is mounted read-only.

        ``options``: what the mount is to forbid, of ``nodev``, ``nosuid``, ``noexec``. There is one mount, so
        it is forbidden to all who have it, until the last gives it back."""
        self._refuse_damaged()
        with self._doing("mount"):
            if options:
                from layerfs.store.restrictions import restricted

                return restricted(lambda: self._get(read_only), self.umount, options)
            return self._get(read_only)

    def _get(self, read_only: bool) -> Path:
        return self._core.driver.get(self.info.mount_id, read_only=read_only, label=self.info.options.label)

    def umount(self) -> None:
        """Give one :meth:`mount` back; the last one unmounts."""
        with self._doing("unmount"):
            self._core.driver.put(self.info.mount_id)

    @contextlib.contextmanager
    def mounted(self, *, read_only: bool = False, options: Collection[str] = ()) -> Iterator[Path]:
        """Mounted for the block."""
        root = self.mount(read_only=read_only, options=options)
        try:
            yield root
        finally:
            self.umount()

    def mounts(self, *, read_only: bool = False, options: Collection[str] = ()) -> Sequence[Mount]:
        """The mounts that :meth:`mount` would make, in order; makes none."""
        self._refuse_damaged()
        with self._doing("describe the mounts of"):
            mounts = self._core.driver.mounts(
                self.info.mount_id, read_only=read_only, label=self.info.options.label
            )
        if options:
            from layerfs.store.restrictions import described

            return described(mounts, options)
        return mounts

    def changes(self) -> Iterator[Change]:
        """What differs from the image, the init layer's files left out."""
        with self._doing("compare"):
            return self._core.driver.changes(self.info.mount_id, self._below)

    def diff(self) -> BinaryIO:
        """The changes as a tar, what :meth:`commit` registers. The caller closes it."""
        with self._doing("read the changes of"):
            return self._core.driver.diff(self.info.mount_id, self._below)

    def diff_size(self) -> int:
        """Bytes of file content in :meth:`diff`."""
        with self._doing("measure the changes of"):
            return self._core.driver.diff_size(self.info.mount_id, self._below)

    def usage(self) -> Usage:
        """What the writable layer itself takes on the disk."""
        with self._doing("measure"):
            return self._core.driver.usage(self.info.mount_id)

    def metadata(self) -> Mapping[str, str]:
        """What the driver tells of it: directories, devices, datasets."""
        with self._doing("describe"):
            return self._core.driver.metadata(self.info.mount_id)

    def commit(self) -> Layer:
        """The changes as a read-only layer upon the container's parent. The container stays as it is."""
        from layerfs.store.register import register

        self._core.writable()
        with self.diff() as tar:
            return register(self._core, tar, self.info.parent, None, compressed=False)

    def remove(self) -> None:
        """Remove the container and what was written in it. :class:`MountBusy` while it is mounted."""
        remove(self._core, self.name)

    @property
    def _below(self) -> GraphID | None:
        """What the writable layer stands upon for the driver."""
        if self.info.init_id is not None or self.info.parent is None:
            return self.info.init_id
        return rows.layer(self._core.db, self.info.parent).cache_id

    def _refuse_damaged(self) -> None:
        if self.info.parent is not None:
            damaged.refuse(self._core.db, self.info.parent)

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            with translated(f"{what} container {self.name}"):
                yield
        except LayerNotFound as error:
            if self._is_gone():
                raise ContainerNotFound(f"container {self.name} was removed") from error
            raise

    def _is_gone(self) -> bool:
        found = self._core.db.row(
            "SELECT 1 FROM containers WHERE mount_id = ? AND state = 'ready'", self.info.mount_id
        )
        return found is None

    def __repr__(self) -> str:
        return f"<RWLayer {self.name}>"


def create(
    core: Core,
    name: str | None,
    parent: ChainID | None,
    options: CreateOptions,
    init: InitFunc | None,
    image: str | None,
) -> RWLayer:
    """See :meth:`Store.create_rw`."""
    mount_id = new_mount_id()
    info = RWLayerInfo(
        name=_checked(name) if name is not None else _new_name(),
        mount_id=mount_id,
        init_id=None if init is None else init_id(mount_id),
        parent=parent,
        image=image,
        options=options,
        created_ns=time.time_ns(),
    )
    parent_id = _announce(core, info)
    try:
        with translated(f"create container {info.name}"):
            _make(core, info, parent_id, init)
        with core.db.transaction(sync=True):
            core.db.execute(
                "UPDATE containers SET state = 'ready', owner = NULL WHERE mount_id = ?", mount_id
            )
    except BaseException:
        _discard(core, info)
        raise
    return RWLayer(core, info)


def remove(core: Core, name: str) -> None:
    """See :meth:`Store.remove_rw`."""
    from layerfs.store.removal import remove_container

    owner = core.owner.id
    with core.db.transaction(sync=True):
        info = rows.container(core.db, name)
        core.db.execute(
            "UPDATE containers SET state = 'removing', owner = ? WHERE mount_id = ?", owner, info.mount_id
        )
    try:
        remove_container(core, info.mount_id, info.init_id, intact=True)
    except MountBusy as busy:
        raise MountBusy(
            f"container {name!r} is mounted: {busy}",
            holders=busy.holders,
            hint=f"give its mounts back first: layerfs umount {name}",
        ) from busy


def _announce(core: Core, info: RWLayerInfo) -> GraphID | None:
    """Take the name and say what is about to be made, so that it is found if we die or the power goes.
    Returns what the driver knows the parent by."""
    if core.abandoned:  # the name may be of a container that could not be made
        from layerfs.store.removal import let_go_of_abandoned

        let_go_of_abandoned(core)
    owner = core.owner.id
    if core.db.row("SELECT 1 FROM containers WHERE name = ? AND state = 'removing'", info.name):
        from layerfs.store.recovery import recover

        recover(core)  # who was removing it may have died
    with core.db.transaction(sync=True):
        below = None if info.parent is None else rows.layer(core.db, info.parent)
        _check_depth(core, info, below.depth if below else 0)
        if below is not None:
            damaged.refuse(core.db, below.chain_id)
        # One that is being removed may turn out to be mounted, and then it stays.
        taken = "name = ? AND (state != 'removing' OR owner IS NOT NULL)"
        if core.db.row(f"SELECT 1 FROM containers WHERE {taken}", info.name):
            raise NameInUse(
                f"a container named {info.name!r} exists", hint="choose another name, or remove it"
            )
        parent_id = below.cache_id if below else None
        announce_container(core.db, owner, info, parent_id)
    return parent_id


def _check_depth(core: Core, info: RWLayerInfo, depth: int) -> None:
    needed = depth + (1 if info.init_id is None else 2)
    limit = core.driver.capabilities.max_depth
    if limit is not None and needed > limit:
        raise DepthExceeded(f"driver {core.driver.name} stacks at most {limit} layers, this needs {needed}")


def _make(core: Core, info: RWLayerInfo, parent: GraphID | None, init: InitFunc | None) -> None:
    driver, label = core.driver, info.options.label
    if init is not None and info.init_id is not None:
        from layerfs.linux.fuseserver import watched

        driver.create_read_write(info.init_id, parent, options=CreateOptions(label=label))
        root = driver.get(info.init_id, label=label)
        try:
            with watched(root):
                init(root)
        finally:
            driver.put(info.init_id)
        parent = info.init_id
    driver.create_read_write(info.mount_id, parent, options=info.options)


def _discard(core: Core, info: RWLayerInfo) -> None:
    """Leave nothing. What cannot be removed now is left to a prune, or to whoever finds us dead."""
    from layerfs.store.removal import discard_container

    with contextlib.suppress(LayerfsError):
        discard_container(core, info.mount_id, info.init_id)


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", name):
        raise InvalidID(
            f"not a container name: {name!r}",
            hint="use 1 to 128 letters, digits, '_', '.' or '-', beginning with a letter or digit",
        )
    return name


def _new_name() -> str:
    return os.urandom(6).hex()

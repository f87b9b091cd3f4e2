"""Datasets of layers that are looked at: each mounted at one place, as long as anybody uses it.

zfs-fuse mounts a dataset once only, and the kernel's ZFS not at the same time read-only and writable. So
a dataset is mounted, writable, below the runroot, and all who use it make bind mounts of that::

    runroot/datasets/ID     the dataset of layer ID
    runroot/mounts/ID       a bind mount of it, counted: what ``get`` answers
    runroot/locks/ID        locked (flock(2)) by all who look at runroot/datasets/ID

Who looks holds the lock shared. Who leaves tries to get it alone: if that succeeds, nobody else looks, and
the dataset is unmounted unless the counted mount is there. A killed process loses its lock; what it left
mounted goes with the next call about that layer, or when a driver is opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from layerfs.driver import Leak
from layerfs.errors import MountBusy
from layerfs.ids import GraphID
from layerfs.linux import zfsfuse
from layerfs.linux.flock import lockers, open_locked
from layerfs.linux.mountinfo import is_mount
from layerfs.linux.umount import release
from layerfs.values import frozen

PATIENCE = 10.0
"""Seconds to wait for others to let go."""

_PAUSE = 0.02


def until_free(attempt: Callable[[], None]) -> None:
    """Make ``attempt`` until it raises no more :class:`MountBusy`, for some seconds."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except MountBusy:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


@frozen
class Shown:
    """The places of one runroot. ``mount`` puts the dataset of a layer at an existing directory."""

    runroot: Path
    mount: Callable[[GraphID, Path], None]

    @property
    def mount_points(self) -> Path:
        """The directory of the counted mounts."""
        return self.runroot / "mounts"

    def counted(self, id: GraphID) -> Path:
        return self.mount_points / id

    @contextlib.contextmanager
    def look(self, id: GraphID) -> Iterator[Path]:
        """Where the dataset of ``id`` is mounted during the block."""
        with self._lock(id, fcntl.LOCK_SH) as fd:
            place = self._place(id)
            deadline = time.monotonic() + PATIENCE
            while not is_mount(place):
                if _alone(fd):
                    self._mount_at(id, place)
                elif time.monotonic() >= deadline:
                    raise self._busy(id)
                else:
                    time.sleep(_PAUSE)
                # Not atomic: another may unmount in between.
                fcntl.flock(fd, fcntl.LOCK_SH)
            try:
                yield place
            finally:
                self._leave(fd, id)

    @contextlib.contextmanager
    def give_back(self, id: GraphID) -> Iterator[None]:
        """For taking the counted mount of ``id`` away in the block: the last one unmounts the dataset."""
        with self._lock(id, fcntl.LOCK_SH) as fd:
            try:
                yield
            finally:
                self._leave(fd, id)

    @contextlib.contextmanager
    def nobody(self, id: GraphID) -> Iterator[None]:
        """Nobody looks at ``id`` during the block, in which it is removed; nothing of it is mounted here.

        :class:`MountBusy`, naming who looks, when they do not stop.
        """
        with self._lock(id, fcntl.LOCK_SH) as fd:
            deadline = time.monotonic() + PATIENCE
            while not _alone(fd):
                if time.monotonic() >= deadline:
                    raise self._busy(id)
                time.sleep(_PAUSE)
            release(self.counted(id))
            self._unmount(id)
            yield
            self._lock_file(id).unlink(missing_ok=True)

    def now(self) -> list[GraphID]:
        """The layers that are being looked at, or were when a process was killed."""
        try:
            return [GraphID(name) for name in os.listdir(self.runroot / "datasets")]
        except FileNotFoundError:
            return []

    def sweep(self) -> None:
        """Unmount what killed processes left."""
        for id in self.now():
            self.tidy(id)

    def tidy(self, id: GraphID) -> None:
        """Unmount the dataset of ``id`` if a killed process left it."""
        if is_mount(self._place(id)):
            with self.give_back(id):
                pass

    def leaks(self, *, remove: bool) -> list[Leak]:
        """The datasets that are mounted and neither looked at nor counted."""
        found = []
        for id in sorted(self.now()):
            place = self._place(id)
            if is_mount(place):
                with self._lock(id, fcntl.LOCK_SH) as fd:
                    if _alone(fd) and is_mount(place) and not is_mount(self.counted(id)):
                        found.append(Leak("mount", str(place), "is mounted, but nobody looks at it"))
                        if remove:
                            self._unmount(id)
        return found

    def _place(self, id: GraphID) -> Path:
        return self.runroot / "datasets" / id

    def _lock_file(self, id: GraphID) -> Path:
        return self.runroot / "locks" / id

    @contextlib.contextmanager
    def _lock(self, id: GraphID, operation: int) -> Iterator[int]:
        file = self._lock_file(id)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = open_locked(file, operation)
        try:
            yield fd
        finally:
            # Closing is not enough when a child made meanwhile shares the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _mount_at(self, id: GraphID, place: Path) -> None:
        if is_mount(place):
            return
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.mount(id, place)
        except BaseException:
            with contextlib.suppress(OSError):
                place.rmdir()
            raise

    def _leave(self, fd: int, id: GraphID) -> None:
        if _alone(fd) and not is_mount(self.counted(id)):
            self._unmount(id)

    def _unmount(self, id: GraphID) -> None:
        place = self._place(id)
        if zfsfuse.is_in_use() and is_mount(place):
            zfsfuse.release(place)
        else:
            release(place)

    def _busy(self, id: GraphID) -> MountBusy:
        holders = lockers(self._lock_file(id))
        return MountBusy(
            f"layer {id} is being read or written" + (f" by {', '.join(holders)}" if holders else ""),
            holders=holders,
            hint="try again when that is done",
        )


def _alone(fd: int) -> bool:
    """Turn the lock into one that nobody shares; False, and no lock, when somebody has it too."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

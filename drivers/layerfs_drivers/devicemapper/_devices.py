"""Thin devices made active, and let go again.

A device is active as long as somebody uses it: it is set to go with its last user as soon as it is there.
What is killed in between leaves a mark behind. In the runroot::

    started/<device>      is being activated, and not yet set to go with its last user
    described/<device>    active because its mounts were asked for, until it is given back or removed
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from layerfs.errors import StoreDamaged, SystemFailure
from layerfs.linux import forks
from layerfs.values import frozen
from layerfs_drivers.devicemapper import _block, _ioctl
from layerfs_drivers.devicemapper._dmsetup import create
from layerfs_drivers.devicemapper._journal import Device, PoolRow

PATIENCE_S = 5.0
"""How long a device that nobody should use any more may still be used: a mount ends a little after its
last user, and udev looks at what is new."""


class Used(Exception):
    """Somebody has the device mounted, or open."""

    def __init__(self, number: tuple[int, int]) -> None:
        super().__init__(number)
        self.number = number
        """Its major and minor number."""


@frozen
class Devices:
    """Those of one pool. Whoever changes anything holds its lock, the descriptor ``lock``."""

    pool: PoolRow
    runroot: Path

    def name(self, device: Device) -> str:
        return self.pool.device_name(device.id)

    @contextlib.contextmanager
    def held(self, lock: int, device: Device) -> Iterator[Path]:
        """The node of the device, active during the block and then for as long as it is used."""
        fd = self.activate(lock, device)
        try:
            yield _block.node(self.name(device))
        finally:
            forks.close(fd)

    def activate(self, lock: int, device: Device) -> int:
        """A descriptor of the active device, which goes with its last user."""
        name = self.name(device)
        self._end_half_made(device)
        fd = _block.open_mapped(name)
        if fd is None:
            fd = self._start(lock, device)
            try:
                _ioctl.remove_deferred(name)
            except BaseException:
                forks.close(fd)
                raise
            self._unmark("started", name)
        return fd

    def _start(self, lock: int, device: Device) -> int:
        """Activate the device and open it."""
        name = self.name(device)
        self._mark("started", name)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                parameters = f"{_block.node(self.pool.name)} {device.id}"
                create(name, device.size, "thin", parameters, lock=lock)
            except OSError as error:
                if error.errno == errno.ENODATA:
                    raise StoreDamaged(
                        f"the thin pool {self.pool.name} has no device {device.id} any more, "
                        f"which held {device}"
                    ) from error
                # The name is taken by one that is about to go.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            fd = _block.open_mapped(name)
            if fd is not None:
                return fd
            if time.monotonic() > deadline:
                raise SystemFailure(f"device {name} is active, but has no node {_block.node(name)}")
            time.sleep(0.005)

    def _end_half_made(self, device: Device) -> None:
        """Whoever was activating it is dead."""
        if self._is_marked("started", self.name(device)):
            self.deactivate(device)

    def activate_alone(self, lock: int, device: Device) -> int:
        """A descriptor with which nobody else can mount the device (O_EXCL); :class:`Used` when somebody has.
        The device goes with it."""
        with self.held(lock, device) as node:
            try:
                fd = forks.own(lambda: os.open(node, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                number = os.stat(node).st_rdev
                raise Used((os.major(number), os.minor(number))) from None
            _ioctl.remove_deferred(self.name(device))
            return fd

    def deactivate(self, device: Device) -> None:
        """:class:`Used` when it is; then it goes with its last user."""
        name = self.name(device)
        mapped = _block.find_mapped(name)
        if mapped is not None:
            _ioctl.remove_deferred(name)
            if not _soon(lambda: _block.find_mapped(name) is None):
                raise Used(mapped.number)
        _block.forget_node(name)
        self._unmark("started", name)
        self._unmark("described", name)

    def delete(self, device: Device) -> None:
        """Deactivate a device and delete it from the pool."""
        self.deactivate(device)

        def deleted() -> bool:
            try:
                _ioctl.delete(self.pool.name, device.id)
            except OSError as error:
                # A device that is going has no name any more when the pool still has it open.
                if error.errno != errno.EBUSY:
                    raise
                return False
            return True

        if not _soon(deleted):
            raise SystemFailure(f"the thin pool {self.pool.name} does not let go of {device}")

    # What is active without a user of ours

    def describe(self, lock: int, device: Device) -> Path:
        """Activate a device until it is given back, for somebody who is going to mount it."""
        name = self.name(device)
        self._end_half_made(device)
        if not self._is_marked("described", name) or _block.find_mapped(name) is None:
            self._mark("described", name)
            fd = _block.open_mapped(name)
            if fd is None:
                fd = self._start(lock, device)
                self._unmark("started", name)
            else:
                _ioctl.cancel_removal(name)
            forks.close(fd)
        return _block.node(name)

    def is_described(self, device: Device) -> bool:
        return self._is_marked("described", self.name(device))

    def give_back(self, device: Device) -> None:
        """Let a device that was described go with its last user."""
        _ioctl.remove_deferred(self.name(device))
        self._unmark("described", self.name(device))

    def any_abandoned(self) -> bool:
        return bool(self._started())

    def let_abandoned_go(self) -> None:
        """What somebody was activating who was killed. Nobody can use it yet."""
        for name in self._started():
            self.let_go(name)

    def unused(self) -> list[str]:
        """The active ones that nobody uses, and whose mounts nobody asked for. What is on its way out counts
        as gone."""
        names = [mapped.name for mapped in _block.all_mapped() if mapped.name.startswith(f"{self.pool.tag}-")]
        return sorted(
            name
            for name in names
            if name != self.pool.name
            and (self._is_marked("started", name) or not self._is_marked("described", name))
            and not _soon(lambda name=name: _ioctl.users(name) or _block.find_mapped(name) is None, 0.2)  # type: ignore[misc]
        )

    def let_go(self, name: str) -> None:
        """Let a device go now, or with its last user."""
        _ioctl.remove_deferred(name)
        _block.forget_node(name)
        self._unmark("described", name)
        self._unmark("started", name)

    def resume_all(self) -> None:
        """A parent may have been left suspended, and everybody who uses it waits."""
        for mapped in _block.all_mapped():
            if mapped.name.startswith(f"{self.pool.tag}-") and mapped.suspended:
                _ioctl.resume(mapped.name)

    # Marks

    def _started(self) -> list[str]:
        try:
            return os.listdir(self.runroot / "started")
        except FileNotFoundError:
            return []

    def _is_marked(self, kind: str, name: str) -> bool:
        return (self.runroot / kind / name).exists()

    def _mark(self, kind: str, name: str) -> None:
        directory = self.runroot / kind
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / name).touch()

    def _unmark(self, kind: str, name: str) -> None:
        (self.runroot / kind / name).unlink(missing_ok=True)


def _soon(done: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True

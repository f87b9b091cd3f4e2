"""Block devices as sysfs tells of them: no process, no waiting."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from layerfs.values import frozen

BLKDISCARD = 0x1277
_MAPPER = Path("/dev/mapper")
_SYS = Path("/sys")


@frozen
class Mapped:
    """A device-mapper device that exists now."""

    name: str
    kernel_name: str
    """``dm-3``."""

    @property
    def number(self) -> tuple[int, int]:
        major, _, minor = (self._directory / "dev").read_text().partition(":")
        return int(major), int(minor)

    @property
    def suspended(self) -> bool:
        return (self._directory / "dm/suspended").read_text().strip() == "1"

    @property
    def below(self) -> list[Path]:
        """The nodes of the devices it lies upon."""
        return [Path("/dev") / name for name in sorted(os.listdir(self._directory / "slaves"))]

    @property
    def _directory(self) -> Path:
        return _SYS / "block" / self.kernel_name


def node(name: str) -> Path:
    return _MAPPER / name


def all_mapped() -> Iterator[Mapped]:
    for kernel_name in os.listdir(_SYS / "block"):
        if kernel_name.startswith("dm-"):
            try:
                name = (_SYS / "block" / kernel_name / "dm/name").read_text().rstrip("\n")
            except OSError:  # it went meanwhile
                continue
            yield Mapped(name, kernel_name)


def find_mapped(name: str) -> Mapped | None:
    """The device of that name; None when there is none now."""
    try:
        found = _mapped_of(os.stat(node(name)).st_rdev)
    except OSError:
        found = None
    if found is not None and found.name == name:
        return found
    return next((mapped for mapped in all_mapped() if mapped.name == name), None)


def open_mapped(name: str, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor of the device of that name, which keeps it from going away; None when there is none.

    Where no udev takes nodes away, that of a device that is gone may stand there still, and its number may
    be another device's by now: the name is looked at again when the device is held.
    """
    mapped = find_mapped(name)
    if mapped is None:
        return None
    try:
        make_node(name, os.makedev(*mapped.number))
        fd = os.open(node(name), flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return None
        raise
    found = _mapped_of(os.fstat(fd).st_rdev)
    if found is not None and found.name == name:
        return fd
    os.close(fd)
    return None


def has_udev() -> bool:
    """Whether udev makes nodes here; in containers and small systems none runs."""
    return os.path.exists("/run/udev/control")


def make_node(name: str, number: int) -> None:
    """Make the node of a device where no udev does it. dmsetup makes one, but takes it away again as soon as
    it is told to remove the device after use."""
    place = node(name)
    with contextlib.suppress(FileNotFoundError):
        if os.stat(place).st_rdev == number:
            return
    if not has_udev():
        place.unlink(missing_ok=True)
        os.mknod(place, 0o600 | stat.S_IFBLK, number)


def kernel_name(number: int) -> str:
    """``dm-3`` for a device's number."""
    return os.path.basename(os.readlink(_sys_of(number)))


def forget_node(name: str) -> None:
    """Take away the node of a device that is gone; with udev none is left."""
    if find_mapped(name) is None:
        node(name).unlink(missing_ok=True)


def discard(fd: int, size: int) -> None:
    """Give all blocks of a device back to what it lies upon."""
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", 0, size))


def _mapped_of(number: int) -> Mapped | None:
    directory = _sys_of(number)
    try:
        name = Path(directory, "dm/name").read_text().rstrip("\n")
        return Mapped(name, kernel_name(number))
    except OSError:
        return None


def _sys_of(number: int) -> str:
    return f"{_SYS}/dev/block/{os.major(number)}:{os.minor(number)}"

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

from layerfs.linux import forks
from layerfs.values import frozen
from layerfs_drivers.devicemapper import _ioctl

BLKDISCARD = 0x1277
_MAPPER = Path("/dev/mapper")
_SYS = Path("/sys")


@frozen
class Mapped:
    """A device-mapper device that exists now, or did a moment ago."""

    name: str
    number: tuple[int, int]

    @property
    def suspended(self) -> bool:
        try:
            return (self._directory / "dm/suspended").read_text().strip() == "1"
        except OSError:  # it went meanwhile
            return False

    @property
    def below(self) -> list[Path]:
        """The nodes of the devices it lies upon; none while it is half made."""
        try:
            return [Path("/dev") / name for name in sorted(os.listdir(self._directory / "slaves"))]
        except FileNotFoundError:
            return []

    @property
    def _directory(self) -> Path:
        return _directory_of(self.number)


def node(name: str) -> Path:
    return _MAPPER / name


def all_mapped() -> Iterator[Mapped]:
    for kernel_name in os.listdir(_SYS / "block"):
        if kernel_name.startswith("dm-"):
            directory = _SYS / "block" / kernel_name
            try:
                major, _, minor = (directory / "dev").read_text().partition(":")
                yield Mapped(_name(directory), (int(major), int(minor)))
            except OSError:  # it went meanwhile
                continue


def find_mapped(name: str) -> Mapped | None:
    """The device of that name; None when there is none now."""
    number = _ioctl.find(name)
    return None if number is None else Mapped(name, (os.major(number), os.minor(number)))


def open_mapped(name: str, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor of the device of that name, which keeps it from going away; None when there is none. It
    is closed with :func:`layerfs.linux.forks.close`.

    Where no udev takes nodes away, that of a device that is gone may stand there still, and its number may
    be another device's by now: the name is looked at again when the device is held.
    """
    mapped = find_mapped(name)
    if mapped is None:
        return None
    try:
        make_node(name, os.makedev(*mapped.number))
        fd = forks.own(lambda: os.open(node(name), flags | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return None
        raise
    number = os.fstat(fd).st_rdev
    with contextlib.suppress(OSError):
        if _name(_directory_of((os.major(number), os.minor(number)))) == name:
            return fd
    forks.close(fd)
    return None


def has_udev() -> bool:
    """Whether udev makes nodes here; in containers and small systems none runs."""
    return os.path.exists("/run/udev/control")


def make_node(name: str, number: int) -> None:
    """Make the node of a device where no udev does it, and nobody else did."""
    place = node(name)
    with contextlib.suppress(FileNotFoundError):
        if os.stat(place).st_rdev == number:
            return
    if not has_udev():
        place.unlink(missing_ok=True)
        os.mknod(place, 0o600 | stat.S_IFBLK, number)


def kernel_name(number: int) -> str:
    """``dm-3`` for a device's number."""
    return os.path.basename(os.readlink(_directory_of((os.major(number), os.minor(number)))))


def forget_node(name: str) -> None:
    """Take away the node of a device that is gone; with udev none is left."""
    if find_mapped(name) is None:
        node(name).unlink(missing_ok=True)


def discard(fd: int, size: int) -> None:
    """Give all blocks of a device back to what it lies upon."""
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", 0, size))


def _directory_of(number: tuple[int, int]) -> Path:
    return _SYS / "dev/block" / f"{number[0]}:{number[1]}"


def _name(directory: Path) -> str:
    return (directory / "dm/name").read_text().rstrip("\n")

"""A disk whose power can be cut after any write.

Every write to the disk goes through the kernel's dm-log-writes target (Linux 4.1; its log is described in
``Documentation/admin-guide/device-mapper/log-writes.rst``), which notes it on a second disk once the first
has it for certain: when the cache was flushed. :meth:`Disk.as_of` puts the first so many writes on a third,
without some of those that no flush had followed by then: a disk may write what is in its cache in any order.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator, Set
from pathlib import Path

import attrs

from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from tests.require import need
from tests.thinkit import dmsetup

SECTOR = 512
_SUPER = struct.Struct("<QQQI")  # magic, version, entries, bytes in a sector
_MAGIC = 0x6A736677736872
_ENTRY = struct.Struct("<QQQQ")  # sector, sectors, flags, bytes of text
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_NAME = "layerfs-power-cut"
_NO_DISCARD = {"ext4": ("-E", "nodiscard"), "xfs": ("-K",), "btrfs": ("-K",)}


@attrs.frozen
class Write:
    """One entry of the log."""

    sector: int
    sectors: int
    at: int
    """Where in the log its data is."""
    settles: bool
    """It was noted when it, and all that was noted before it, was on the disk for certain."""
    mark: str


@attrs.frozen
class Disk:
    """Made and used, and now read only."""

    kind: str
    size: int
    log: Path
    scratch: Path
    writes: list[Write]

    def mark(self, name: str) -> int:
        """How many writes came before the mark."""
        return next(number for number, write in enumerate(self.writes) if write.mark == name)

    def cached(self, count: int) -> range:
        """Which of the first ``count`` writes may be lost by then: they follow the last flush."""
        settled = [number for number in range(count) if self.writes[number].settles]
        return range(settled[-1] + 1 if settled else 0, count)

    @contextlib.contextmanager
    def as_of(self, count: int, lost: Set[int] = frozenset()) -> Iterator[Path]:
        """The file system as it comes up when the power goes after the first ``count`` writes, and of these
        the disk has ``lost`` some that were :meth:`cached`."""
        image, root = self.scratch / "replayed", self.scratch / "root"
        root.mkdir(exist_ok=True)
        try:
            self._replay(image, count, lost)
            subprocess.run(["mount", "-o", "loop", "-t", self.kind, image, root], check=True)
            try:
                yield root
            finally:
                for entry in reversed(mounts_below(root)):
                    umount(Path(os.fsdecode(entry.mount_point)))
        finally:
            image.unlink(missing_ok=True)

    def _replay(self, image: Path, count: int, lost: Set[int]) -> None:
        with image.open("w+b") as disk, self.log.open("rb") as log:
            disk.truncate(self.size)
            for number, write in enumerate(self.writes[:count]):
                if number in lost:
                    continue
                data = os.pread(log.fileno(), write.sectors * SECTOR, write.at)
                os.pwrite(disk.fileno(), data, write.sector * SECTOR)


@attrs.frozen
class Recording:
    """The disk while it is used, mounted at ``root``."""

    root: Path

    def mark(self, name: str) -> None:
        """Note in the log that we are here."""
        dmsetup("message", _NAME, "0", "mark", name)


@contextlib.contextmanager
def recorded(kind: str, scratch: Path, *, size: int, made: list[Disk]) -> Iterator[Recording]:
    """A fresh disk with a file system of ``kind``, to be used in the block; then it is in ``made``."""
    need.file_system(kind)
    need.tool("dmsetup")
    data, log, root = scratch / "data", scratch / "log", scratch / "recorded"
    root.mkdir()
    for file, length in ((data, size), (log, 8 * size)):
        with file.open("wb") as empty:
            empty.truncate(length)
    with _loop(data) as disk, _loop(log) as writes:
        dmsetup("create", _NAME, "--table", f"0 {size // SECTOR} log-writes {disk} {writes}")
        try:
            device = f"/dev/mapper/{_NAME}"
            subprocess.run([need.tool(f"mkfs.{kind}"), "-q", *_NO_DISCARD[kind], device], check=True)
            subprocess.run(["mount", "-t", kind, device, root], check=True)
            try:
                yield Recording(root)
            finally:
                umount(root)
        finally:
            dmsetup("remove", "--retry", _NAME)
    made.append(Disk(kind, size, log, scratch, list(_entries(log))))


@contextlib.contextmanager
def _loop(file: Path) -> Iterator[str]:
    done = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def _entries(log: Path) -> Iterator[Write]:
    with log.open("rb") as file:
        magic, version, entries, sector_size = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version, sector_size) == (_MAGIC, 1, SECTOR)
        at = SECTOR
        for _ in range(entries):
            file.seek(at)
            sector, sectors, flags, length = _ENTRY.unpack(file.read(_ENTRY.size))
            mark = file.read(length).rstrip(b"\0").decode() if flags & _MARK else ""
            at += SECTOR
            assert not flags & _DISCARD, "no data is logged for it; mkfs and mount were to make none"
            yield Write(sector, sectors, at, bool(flags & (_FLUSH | _FUA)), mark)
            at += sectors * SECTOR

"""Registers one huge layer in a process of its own, and prints as JSON the seconds and the most memory it
took.

    python -m benchmarks.huge ROOT RUNROOT DRIVER entries|size NUMBER

The tar is made while it is read, so that there is room for it.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from layerfs import open_store

_BLOCK = 1 << 20
_IN_A_DIRECTORY = 1_000


class Generated(io.RawIOBase):
    """A stream of pieces that are made when they are read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = next(self._pieces, b"")
        target = memoryview(buffer)
        piece, self._rest = self._rest[: len(target)], self._rest[len(target) :]
        target[: len(piece)] = piece
        return len(piece)


def entries(count: int) -> Iterator[bytes]:
    """Empty files, a thousand in a directory, directories among them."""
    for number in range(count):
        directory, within = divmod(number, _IN_A_DIRECTORY)
        member = tarfile.TarInfo(f"d{directory:05}" if within == 0 else f"d{directory:05}/f{within:03}")
        if within == 0:
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        yield member.tobuf()
    yield bytes(1024)


def one_file(size: int) -> Iterator[bytes]:
    """Whole mebibytes that do not repeat soon."""
    member = tarfile.TarInfo("huge")
    member.size = size // _BLOCK * _BLOCK
    yield member.tobuf()
    piece = bytes(range(256)) * (_BLOCK // 256)
    for number in range(size // _BLOCK):
        yield number.to_bytes(8, "little") + piece[8:]
    yield bytes(1024)


def _most_memory() -> int:
    """KiB. What getrusage(2) tells would begin with the most that the caller had: it outlives execve(2)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    root, runroot, driver, kind, number = sys.argv[1:]
    pieces = entries(int(number)) if kind == "entries" else one_file(int(number))
    with open_store(Path(root), runroot=Path(runroot), driver=driver) as store:
        layer = store.register(io.BufferedReader(Generated(pieces), _BLOCK))
        store.flush()
    told = {
        "memory_mib": _most_memory() >> 10,
        "diff_id": layer.diff_id,
        "size": layer.size,
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()

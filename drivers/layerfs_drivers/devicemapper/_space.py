"""What a thin pool tells of itself, and whether it has room for more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from layerfs.errors import NoSpace, StoreDamaged
from layerfs.values import frozen
from layerfs_drivers.devicemapper import _ioctl
from layerfs_drivers.devicemapper._journal import PoolRow

METADATA_BLOCK = 4096
_MIB = 1 << 20


@frozen
class PoolStatus:
    """In blocks; those of the metadata have 4096 bytes."""

    transaction_id: int
    metadata_used: int
    metadata_total: int
    data_used: int
    data_total: int
    mode: str
    """``rw``; ``ro``, ``out_of_data_space`` or ``Fail`` when it takes no new devices."""
    needs_check: bool

    @classmethod
    def of(cls, pool: str) -> PoolStatus:
        kind, told = _ioctl.status(pool)
        if kind != "thin-pool":
            raise StoreDamaged(f"device {pool} is no thin pool but {kind or 'empty'}")
        return cls.parse(told)

    @classmethod
    def parse(cls, told: str) -> PoolStatus:
        """``TX MU/MT DU/DT HELD-ROOT MODE DISCARD NO-SPACE [needs_check|-] LOW-WATER``"""
        words = told.split()
        if words[0] in ("Fail", "Error"):
            return cls(-1, 0, 0, 0, 0, "Fail", True)
        metadata, data = (word.partition("/") for word in words[1:3])
        return cls(
            transaction_id=int(words[0]),
            metadata_used=int(metadata[0]),
            metadata_total=int(metadata[2]),
            data_used=int(data[0]),
            data_total=int(data[2]),
            mode=words[4],
            needs_check="needs_check" in words[5:],
        )


def refuse_full(home: Path, row: PoolRow, status: PoolStatus, min_free: int) -> None:
    """:class:`NoSpace` before anything is made: a pool that runs full harms what is in it."""
    mend = "remove what is not needed (layerfs prune)"
    if not row.loop:
        mend += ", or extend the pool (lvextend)"
    if status.mode != "rw" or status.needs_check:
        flaw = "needs a check of its metadata" if status.needs_check else f"is in mode {status.mode}"
        raise NoSpace(f"the thin pool {row.name} {flaw}", hint=f"{mend}; see lvmthin(7) or thin_check(8)")
    spaces = [
        ("data", status.data_used, status.data_total, row.block_size),
        ("metadata", status.metadata_used, status.metadata_total, METADATA_BLOCK),
    ]
    if row.loop:
        host = os.statvfs(home)
        spaces.append(("file system below it", host.f_blocks - host.f_bavail, host.f_blocks, host.f_frsize))
    for what, used, total, block in spaces:
        free = total - used
        if free * 100 < min_free * total:
            raise NoSpace(
                f"the thin pool {row.name} has only {_in_mib(free * block)} of {_in_mib(total * block)} of "
                f"its {what} free, below min_free={min_free}%",
                errno=errno.ENOSPC,
                hint=mend,
            )


def _in_mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"

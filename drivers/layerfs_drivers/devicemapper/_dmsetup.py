"""The only door to dmsetup(8).

Messages and status lines are those of Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from layerfs.errors import CommandFailed, NoSpace, StoreDamaged
from layerfs.linux.command import run
from layerfs.values import frozen
from layerfs_drivers.devicemapper._block import has_udev

HINT = "install dmsetup (Debian: dmsetup, Fedora: device-mapper)"
MOST_DEVICES = 1 << 24
"""A device id has 24 bits."""

_SAID = {
    "File exists": errno.EEXIST,
    "No data available": errno.ENODATA,
    "Device or resource busy": errno.EBUSY,
    "No such device or address": errno.ENXIO,
    " not found": errno.ENXIO,  # said by the tool itself
    "No space left on device": errno.ENOSPC,
}
"""dmsetup ends with status 1 for every error; the kernel's reason stands in what it says."""


@frozen
class PoolStatus:
    """What a thin pool tells of itself. Blocks of metadata have 4096 bytes."""

    transaction_id: int
    metadata_used: int
    metadata_total: int
    data_used: int
    data_total: int
    mode: str
    """``rw``; ``ro``, ``out_of_data_space`` or ``Fail`` when it takes no new devices."""
    needs_check: bool

    @classmethod
    def parse(cls, line: str) -> PoolStatus:
        """``0 N thin-pool TX MU/MT DU/DT HELD-ROOT MODE DISCARD NO-SPACE [needs_check|-] LOW-WATER``"""
        words = line.split()
        if words[2:3] != ["thin-pool"]:
            raise StoreDamaged(f"not the status of a thin pool: {line.strip()!r}")
        if words[3] in ("Fail", "Error"):
            return cls(-1, 0, 0, 0, 0, "Fail", True)
        metadata, data = (word.partition("/") for word in words[4:6])
        return cls(
            transaction_id=int(words[3]),
            metadata_used=int(metadata[0]),
            metadata_total=int(metadata[2]),
            data_used=int(data[0]),
            data_total=int(data[2]),
            mode=words[7],
            needs_check="needs_check" in words[8:],
        )


def reason(error: CommandFailed) -> int:
    """The errno behind a failure of dmsetup, 0 when it told none that is known here."""
    return next((number for text, number in _SAID.items() if text in error.stderr), 0)


@frozen
class Dmsetup:
    """Runs the tool. ``lock``: a descriptor that holds the lock of the pool. The tool inherits it, so that
    the lock of a killed process lasts until what it began has been done or has failed."""

    lock: int | None = None

    # Any device

    def create(self, name: str, sectors: int, target: str) -> None:
        """EBUSY when the name is taken, ENODATA for a thin device that the pool does not have."""
        self._run(f"activate device {name}", "create", name, "--table", f"0 {sectors} {target}")

    def remove(self, name: str) -> None:
        """EBUSY when it is still used after some seconds, in which udev may have let go of it."""
        self._gone_is_fine(f"deactivate device {name}", "remove", "--retry", name)

    def remove_deferred(self, name: str) -> None:
        """Now, or else when its last user closes it."""
        self._gone_is_fine(f"deactivate device {name} after use", "remove", "--deferred", name)

    def cancel_removal(self, name: str) -> None:
        self._gone_is_fine(f"keep device {name} active", "message", name, "0", "@cancel_deferred_remove")

    def suspend(self, name: str) -> None:
        """Freezes its file system as well."""
        self._run(f"suspend device {name}", "suspend", name)

    def resume(self, name: str) -> None:
        self._gone_is_fine(f"resume device {name}", "resume", name)

    def table(self, name: str) -> str:
        return self._run(f"look at device {name}", "table", name)

    # A thin pool

    def create_thin(self, pool: str, id: int) -> None:
        """EEXIST when the pool has the id already."""
        self._message(pool, f"create_thin {id}")

    def create_snapshot(self, pool: str, id: int, origin: int) -> None:
        """EEXIST when the pool has the id already. The origin must not be written meanwhile."""
        self._message(pool, f"create_snap {id} {origin}")

    def delete(self, pool: str, id: int) -> None:
        """An id that the pool does not have is fine. EBUSY when the device is active."""
        try:
            self._message(pool, f"delete {id}")
        except CommandFailed as error:
            if reason(error) != errno.ENODATA:
                raise

    def set_transaction(self, pool: str, old: int, new: int) -> None:
        """Also writes out all metadata (drivers/md/dm-thin.c, pool_message)."""
        self._message(pool, f"set_transaction_id {old} {new}")

    def status(self, pool: str) -> PoolStatus:
        # Without flushing: the status of a pool that is full must not wait for it.
        return PoolStatus.parse(self._run(f"look at pool {pool}", "status", "--noflush", pool))

    def targets(self) -> Sequence[str]:
        """The kinds of devices that the kernel has loaded."""
        return [line.split()[0] for line in self._run("list targets", "targets").splitlines() if line]

    def _message(self, pool: str, message: str) -> None:
        self._run(f"do {message!r} in pool {pool}", "message", pool, "0", message)

    def _gone_is_fine(self, doing: str, *argv: str) -> None:
        try:
            self._run(doing, *argv)
        except CommandFailed as error:
            if reason(error) != errno.ENXIO:
                raise

    def _run(self, doing: str, *argv: str) -> str:
        try:
            return run(
                ["dmsetup", *argv],
                doing=doing,
                hint=HINT,
                environment=_environment(),
                keep=() if self.lock is None else (self.lock,),
            )
        except CommandFailed as error:
            if reason(error) == errno.ENOSPC:
                raise NoSpace(str(error), errno=errno.ENOSPC) from error
            raise


def _environment() -> dict[str, str]:
    """With udev the tool waits until udev has made the node; where none runs (containers, small systems) it
    would wait in vain, and makes the node itself when told so."""
    return {} if has_udev() else {"DM_DISABLE_UDEV": "1"}

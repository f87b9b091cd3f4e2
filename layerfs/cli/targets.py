"""Mounts at a place of the user's choice.

A layer has one counted mount, where its driver wants it. To mount it at a TARGET is to count once more
and to bind that mount there; the record kept here, under the runroot, tells a later ``umount`` which
bind to undo along with the count. A reboot takes binds and records alike.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from layerfs.errors import InvalidInput, MountBusy, MountFailed, SystemFailure, translated
from layerfs.linux.flock import FileLock
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import holders, mount_of
from layerfs.linux.umount import umount

_Bind = tuple[Path, Path]
"""The root that is shown, and the target that shows it."""


class Targets:
    """The binds of one layer, latest last. ``key`` is what the driver knows the layer by."""

    def __init__(self, runroot: Path, key: str) -> None:
        self._directory = runroot / "targets"
        self._record = self._directory / key

    def bind(self, root: Path, target: Path, *, read_only: bool) -> None:
        """Show the layer that is mounted at ``root`` at ``target``, too."""
        if not target.is_dir():
            raise InvalidInput(f"{target} is not a directory", hint=f"make it first: mkdir {target}")
        target = target.resolve()
        with translated(f"record the mount at {target}"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self._directory / ".lock"):
            # Recorded first: a record without its bind is harmless, a bind without its record leaks.
            before = self._read()
            self._write([*before, (root, target)])
            try:
                perform("bind", str(root), ("ro",) if read_only else (), target)
            except OSError as error:
                self._write(before)
                reason = error.strerror or str(error)
                raise MountFailed(f"cannot mount at {target}: {reason}", errno=error.errno or 0) from error

    def unbind(self) -> None:
        """Undo the latest bind that is still there, if any is."""
        if not self._record.exists():
            return
        with FileLock(self._directory / ".lock"):
            binds = self._read()
            while binds:
                root, target = binds[-1]
                there = _shows(target, root)
                if there:
                    _umount(target)
                binds.pop()
                self._write(binds)
                if there:
                    return

    def _read(self) -> list[_Bind]:
        try:
            text = self._record.read_bytes()
        except FileNotFoundError:
            return []
        paths = [Path(os.fsdecode(path)) for path in text.split(b"\0")]
        return list(zip(paths[::2], paths[1::2], strict=True))

    def _write(self, binds: list[_Bind]) -> None:
        if binds:
            paths = [os.fsencode(path) for bind in binds for path in bind]
            self._record.write_bytes(b"\0".join(paths))
        else:
            self._record.unlink(missing_ok=True)


def _shows(target: Path, root: Path) -> bool:
    """Whether ``target`` still shows ``root``: somebody may have unmounted it by hand."""
    try:
        shown, wanted = mount_of(target), mount_of(root)
    except FileNotFoundError:
        return False
    return (shown.device, shown.root) == (wanted.device, wanted.root)


def _umount(target: Path) -> None:
    try:
        with translated(f"unmount {target}"):
            umount(target)
    except SystemFailure as error:
        if error.errno != errno.EBUSY:
            raise
        busy = [str(holder) for holder in holders(target)]
        raise MountBusy(
            f"{target} is in use by {', '.join(busy) or 'a process that cannot be seen'}",
            holders=busy,
            hint="end what uses it, then unmount again",
        ) from error

"""Mounts at a place of the user's choice.

A layer has one counted mount, where its driver wants it. To mount it at a TARGET is to count once more
and to bind that mount there; the record kept here, under the runroot, tells a later ``umount`` which
bind to undo along with the count. A reboot takes binds and records alike.
"""

from __future__ import annotations

import os
from pathlib import Path

from layerfs.errors import InvalidInput, MountFailed, translated
from layerfs.linux import mount
from layerfs.linux.flock import FileLock


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
            self._write([*self._read(), target])
            try:
                mount.perform("bind", str(root), ("ro",) if read_only else (), target)
            except OSError as error:
                self._write(self._read()[:-1])
                reason = error.strerror or str(error)
                raise MountFailed(f"cannot mount at {target}: {reason}", errno=error.errno or 0) from error

    def unbind(self, root: Path) -> None:
        """Undo the latest bind that is still there, if any is."""
        if not self._record.exists():
            return
        with FileLock(self._directory / ".lock"), translated(f"unmount a target of {root}"):
            targets = self._read()
            undone = False
            while targets and not undone:
                if _same(targets[-1], root):
                    mount.umount(targets[-1])
                    undone = True
                targets.pop()
            self._write(targets)

    def _read(self) -> list[Path]:
        try:
            text = self._record.read_bytes()
        except FileNotFoundError:
            return []
        return [Path(os.fsdecode(line)) for line in text.split(b"\0") if line]

    def _write(self, targets: list[Path]) -> None:
        if targets:
            self._record.write_bytes(b"\0".join(os.fsencode(target) for target in targets))
        else:
            self._record.unlink(missing_ok=True)


def _same(target: Path, root: Path) -> bool:
    """Whether ``target`` still shows ``root``: somebody may have unmounted it by hand."""
    try:
        return os.path.samefile(target, root)
    except FileNotFoundError:
        return False

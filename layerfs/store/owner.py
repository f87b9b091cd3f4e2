"""Who works on a store: a file that the kernel unlocks when its process dies."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from layerfs.errors import translated
from layerfs.linux.flock import FileLock
from layerfs.store.metadata import Database


class Owner:
    """One opened store as an owner. It comes into being when it is first needed: a store that is only
    looked at, or whose containers are only mounted, has none."""

    def __init__(self, db: Database, directory: Path) -> None:
        self._db = db
        self._directory = directory
        self._guard = threading.Lock()
        self._id: str | None = None
        self._file: FileLock | None = None

    @property
    def id(self) -> str:
        """What rows refer to. The file is locked before the row exists, so a row whose file can be locked
        is a dead owner's."""
        with self._guard:
            if self._id is None:
                self._claim()
            assert self._id is not None
            return self._id

    def _claim(self) -> None:
        name = os.urandom(8).hex()
        file = FileLock(self._directory / name, unlink=True)
        with translated("claim a place among the owners of the store"):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            file.acquire()
        try:
            with self._db.transaction():
                self._db.insert(
                    "INSERT INTO owners (id, pid, created_ns) VALUES (?, ?, ?)",
                    name,
                    os.getpid(),
                    time.time_ns(),
                )
        except BaseException:
            file.release()
            raise
        self._id, self._file = name, file

    def close(self) -> None:
        """Give up everything that is held."""
        with self._guard:
            if self._id is None or self._file is None:
                return
            try:
                with self._db.transaction():
                    self._db.execute("DELETE FROM owners WHERE id = ?", self._id)
            finally:
                self._file.release()
                self._id = self._file = None


def all_owners(db: Database, directory: Path) -> set[str]:
    """Owners dead or alive. A process may be killed while it has a file and no row yet, or no more."""
    with translated("look who works on the store"):
        return {*(name for (name,) in db.rows("SELECT id FROM owners")), *os.listdir(directory)}


def dead_owners(db: Database, directory: Path) -> list[str]:
    """The owners whose process has died. A file without a row that nobody holds goes, but is no dead owner:
    one who is just claiming it comes back with another file of that name, and a row."""
    with translated("look who works on the store"):
        owners = [name for (name,) in db.rows("SELECT id FROM owners")]
        for name in {*os.listdir(directory)} - {*owners}:
            _is_alive(directory / name)
        return [name for name in owners if not _is_alive(directory / name)]


def sweep(directory: Path) -> None:
    """Remove the lock files in ``directory`` that no process holds."""
    with translated(f"remove lock files from {directory}"):
        for path in directory.iterdir():
            _is_alive(path)


def _is_alive(path: Path) -> bool:
    """Whether somebody holds the file; one that nobody holds is removed."""
    try:
        with FileLock(path, blocking=False, unlink=True):
            return False
    except BlockingIOError:
        return True

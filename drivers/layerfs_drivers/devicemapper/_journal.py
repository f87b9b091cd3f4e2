"""The journal: which thin device belongs to which layer, and what is being done to the pool.

One SQLite file. A row says what is about to be done before the pool is told, and that it is done
afterwards; each time it is on the disk when the method returns. Whoever changes it holds the lock of the
pool, so one operation at most is under way: a row in another state than ``ready``, found with the lock, is a
dead process's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import LayerfsError, NoSpace, NotSupported, ReadOnly, StoreDamaged, SystemFailure
from layerfs.linux.forks import held_off
from layerfs.values import frozen
from layerfs_drivers.devicemapper._ioctl import MOST_DEVICES

FILE_NAME = "journal.db"
VERSION = 1
"""``PRAGMA user_version``."""

SCHEMA = """
-- The pool and what is made in it: exactly one row once the home is set up.
CREATE TABLE pool (
    tag             TEXT NOT NULL,     -- random; the name of each of our devices begins with it
    name            TEXT NOT NULL,     -- device-mapper name of the pool
    loop            INTEGER NOT NULL,  -- 1: the pool lies on the files data and metadata beside this one
    block_size      INTEGER NOT NULL,  -- bytes in a data block of the pool
    fs              TEXT NOT NULL,     -- ext4 or xfs
    fs_uuid         TEXT NOT NULL,     -- of the base and so of every layer; '' until the base is made
    transaction_id  INTEGER NOT NULL,  -- the pool's, after the last operation that is done
    next_id         INTEGER NOT NULL   -- where the search for a device id begins
);

-- Every thin device that the pool has, or that may be in it.
--   creating: being made; to be deleted if its maker died
--   ready:    it is there
--   growing:  being given its size, which the row has already; to be finished
--   removing: being deleted; to be finished
-- While a device is made or removed the pool has either transaction_id or the next one.
CREATE TABLE devices (
    id              INTEGER PRIMARY KEY,  -- of the thin device, 24 bits
    layer           TEXT UNIQUE,          -- NULL: the base, upon which what has no parent is made
    parent          TEXT,                 -- layer; NULL: none
    size            INTEGER NOT NULL,     -- bytes
    read_only       INTEGER NOT NULL,     -- 1: a read-only layer, 0: a writable one
    filled          INTEGER NOT NULL,     -- 1: a read-only layer that never changes again
    state           TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'growing', 'removing'))
);
CREATE UNIQUE INDEX devices_unfinished ON devices (state != 'ready') WHERE state != 'ready';
"""

_BUSY_TIMEOUT_S = 60.0


@frozen(kw_only=True)
class PoolRow:
    tag: str
    name: str
    loop: bool
    block_size: int
    fs: str
    fs_uuid: str
    transaction_id: int
    next_id: int

    def device_name(self, id: int) -> str:
        """By the device's id, as the id of a layer may be longer than the name of a device."""
        return f"{self.tag}-{id}"


@frozen(kw_only=True)
class Device:
    id: int
    layer: str | None
    parent: str | None
    size: int
    read_only: bool
    filled: bool
    state: str

    def __str__(self) -> str:
        return "the base device" if self.layer is None else f"layer {self.layer}"


_POOL = "tag, name, loop, block_size, fs, fs_uuid, transaction_id, next_id"
_DEVICE = "id, layer, parent, size, read_only, filled, state"


@frozen
class Journal:
    """Opened for each use: nothing is held between calls, so threads and forked processes do not meet."""

    home: Path
    read_only: bool

    @property
    def path(self) -> Path:
        return self.home / FILE_NAME

    def make(self) -> None:
        """Make the file if need be."""
        with self._connected() as connection:
            if _version(connection, self.path) == 0:
                connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    # Reading

    def pool(self) -> PoolRow | None:
        """None: the home is not set up yet."""
        if not self.path.exists():
            return None
        with self._connected() as connection:
            if _version(connection, self.path) == 0:
                return None
            row = connection.execute(f"SELECT {_POOL} FROM pool").fetchone()
        if row is None:
            return None
        tag, name, loop, block_size, fs, fs_uuid, transaction_id, next_id = row
        return PoolRow(
            tag=tag,
            name=name,
            loop=bool(loop),
            block_size=block_size,
            fs=fs,
            fs_uuid=fs_uuid,
            transaction_id=transaction_id,
            next_id=next_id,
        )

    def existing_pool(self) -> PoolRow:
        """The row of a home that is set up."""
        row = self.pool()
        if row is None:
            raise StoreDamaged(f"{self.home}: the journal of the thin pool is gone")
        return row

    def device(self, layer: str) -> Device | None:
        """The device of a layer, in whatever state."""
        return self._device("layer = ?", layer)

    def base(self) -> Device | None:
        return self._device("layer IS NULL")

    def unfinished(self) -> Device | None:
        return self._device("state != 'ready'")

    def layers(self) -> list[str]:
        with self._connected() as connection:
            sql = "SELECT layer FROM devices WHERE layer IS NOT NULL AND state = 'ready' ORDER BY layer"
            return [row[0] for row in connection.execute(sql)]

    def devices(self) -> list[Device]:
        """In whatever state, by id."""
        return self._devices("TRUE ORDER BY id")

    # What is about to be done, and done

    def set_up(self, pool: PoolRow) -> None:
        with self._transaction() as connection:
            values = [getattr(pool, name) for name in _POOL.split(", ")]
            connection.execute(f"INSERT INTO pool ({_POOL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def creating(self, layer: str | None, parent: str | None, size: int, *, read_only: bool) -> Device:
        """A new row, under an id that no other has."""
        with self._transaction() as connection:
            device = Device(
                id=_take_id(connection),
                layer=layer,
                parent=parent,
                size=size,
                read_only=read_only,
                filled=False,
                state="creating",
            )
            values = [getattr(device, name) for name in _DEVICE.split(", ")]
            connection.execute(f"INSERT INTO devices ({_DEVICE}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return device

    def renumber(self, id: int) -> Device:
        """The id turned out to be taken in the pool: take another."""
        with self._transaction() as connection:
            connection.execute("UPDATE devices SET id = ? WHERE id = ?", (_take_id(connection), id))
        found = self.unfinished()
        assert found is not None
        return found

    def created(self, id: int, transaction_id: int, *, fs_uuid: str | None = None) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE devices SET state = 'ready' WHERE id = ?", (id,))
            connection.execute("UPDATE pool SET transaction_id = ?", (transaction_id,))
            if fs_uuid is not None:
                connection.execute("UPDATE pool SET fs_uuid = ?", (fs_uuid,))

    def growing(self, id: int, size: int) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE devices SET state = 'growing', size = ? WHERE id = ?", (size, id))

    def grown(self, id: int) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE devices SET state = 'ready' WHERE id = ?", (id,))

    def fill(self, id: int) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE devices SET filled = 1 WHERE id = ?", (id,))

    def removing(self, id: int) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE devices SET state = 'removing' WHERE id = ?", (id,))

    def removed(self, id: int, transaction_id: int) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM devices WHERE id = ?", (id,))
            connection.execute("UPDATE pool SET transaction_id = ?", (transaction_id,))

    def _device(self, condition: str, *values: object) -> Device | None:
        return next(iter(self._devices(condition, *values)), None)

    def _devices(self, condition: str, *values: object) -> list[Device]:
        with self._connected() as connection:
            rows = connection.execute(f"SELECT {_DEVICE} FROM devices WHERE {condition}", values).fetchall()
        return [
            Device(
                id=id,
                layer=layer,
                parent=parent,
                size=size,
                read_only=bool(read_only),
                filled=bool(filled),
                state=state,
            )
            for id, layer, parent, size, read_only, filled, state in rows
        ]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        # A rollback journal, not a write-ahead log: a home that nobody can write can still be read.
        # Forked inside of SQLite, a child would wait for locks of threads that it does not have.
        with held_off(), _translated(self.path):
            connection = sqlite3.connect(
                f"file:{_quoted(self.path)}?mode={'ro' if self.read_only else 'rwc'}",
                uri=True,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
            )
            with contextlib.closing(connection):
                connection.execute("PRAGMA synchronous = FULL")
                yield connection


def _take_id(connection: sqlite3.Connection) -> int:
    (id,) = connection.execute("SELECT next_id FROM pool").fetchone()
    for _ in range(MOST_DEVICES):
        taken = connection.execute("SELECT 1 FROM devices WHERE id = ?", (id,)).fetchone()
        following = (id + 1) % MOST_DEVICES
        if taken is None:
            connection.execute("UPDATE pool SET next_id = ?", (following,))
            return int(id)
        id = following
    raise NoSpace("the pool has no device id left", errno=errno.ENOSPC)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise NotSupported(
            f"{path}: the journal has format {version}, this layerfs knows up to {VERSION}",
            hint="use the layerfs that made it, or a newer one",
        )
    return version


def _quoted(path: Path) -> str:
    text = os.path.abspath(path).replace("%", "%25")
    return text.replace("?", "%3f").replace("#", "%23")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _from_sqlite(error, path) from error


def _from_sqlite(error: sqlite3.Error, path: Path) -> LayerfsError:
    # The primary result code is the low byte: https://www.sqlite.org/rescode.html
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kinds: dict[int, type[LayerfsError]] = {
        sqlite3.SQLITE_FULL: NoSpace,
        sqlite3.SQLITE_READONLY: ReadOnly,
        sqlite3.SQLITE_CORRUPT: StoreDamaged,
        sqlite3.SQLITE_NOTADB: StoreDamaged,
    }
    return kinds.get(code, SystemFailure)(f"{path}: {error}")

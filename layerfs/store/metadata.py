"""The database of a store: the schema, which is the reference of the format, and its transactions.

One SQLite file, ``layerfs.db``, in WAL mode. Every change is one short transaction, and no transaction
is open while a driver works: a row says what is about to be done, the driver does it, a row says that it
is done. Times are nanoseconds since 1970, sizes bytes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import (
    LayerfsError,
    NoSpace,
    NotSupported,
    ReadOnly,
    StoreDamaged,
    StoreLocked,
    SystemFailure,
    from_os_error,
    translated,
)
from layerfs.linux.flock import FileLock
from layerfs.store import reserve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE_NAME = "layerfs.db"
VERSION = 1
"""``PRAGMA user_version``."""

SCHEMA = """
-- What store this is: exactly one row.
CREATE TABLE store (
    driver       TEXT NOT NULL,  -- name of the driver that holds the layers
    entry_point  TEXT NOT NULL,  -- 'module:attribute' of its DriverInfo, '' when it was handed in
    boot_id      TEXT NOT NULL   -- of the boot in which every layer that is not durable was last known whole
);

-- Whoever works on the store or holds layers: one row for each opened store that does.
-- The file owners/<id> is held by flock(2) for as long as its process lives. A row whose file can be
-- locked is a dead owner's; what refers to it is undone or finished by the next who opens the store.
CREATE TABLE owners (
    id           TEXT PRIMARY KEY,
    pid          INTEGER NOT NULL,
    created_ns   INTEGER NOT NULL
);

-- Read-only layers.
--   creating: the driver's layer is being filled; worth nothing if its owner dies
--   ready:    usable, never changes again
--   removing: the driver's layer is being deleted; the row goes last
CREATE TABLE layers (
    cache_id     TEXT PRIMARY KEY,                          -- what the driver knows it by
    state        TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
    owner        TEXT REFERENCES owners ON DELETE SET NULL,  -- who creates or removes it; NULL: nobody does
    parent       TEXT REFERENCES layers,
    chain_id     TEXT,                                      -- NULL until it is known
    diff_id      TEXT,
    size         INTEGER,                                   -- file content of this layer alone
    tar_size     INTEGER,                                   -- its tar; the record is split/<cache_id>
    depth        INTEGER NOT NULL,                          -- 1: upon nothing
    created_ns   INTEGER NOT NULL,
    durable      INTEGER NOT NULL DEFAULT 0,                -- 1: flushed to the disk before this said so
    CHECK (state != 'ready' OR (chain_id IS NOT NULL AND diff_id IS NOT NULL
                                AND size IS NOT NULL AND tar_size IS NOT NULL))
);
-- A layer that is being removed and its successor may have the same chain_id.
CREATE UNIQUE INDEX layers_ready ON layers (chain_id) WHERE state = 'ready';
CREATE INDEX layers_parent ON layers (parent);
CREATE INDEX layers_to_flush ON layers (cache_id) WHERE state = 'ready' AND NOT durable;

-- Ready layers that are known not to be what they were. Nothing that stands upon one is mounted.
CREATE TABLE damaged (
    layer        TEXT PRIMARY KEY REFERENCES layers ON DELETE CASCADE,
    detail       TEXT NOT NULL
) WITHOUT ROWID;

-- Writable layers, in the same states. One that could not be removed has no name any more.
CREATE TABLE containers (
    mount_id     TEXT PRIMARY KEY,                          -- what the driver knows it by
    init_id      TEXT,                                      -- its init layer, NULL: none
    name         TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
    owner        TEXT REFERENCES owners ON DELETE SET NULL,
    parent       TEXT REFERENCES layers,                    -- NULL: upon nothing
    image        TEXT,                                      -- what its creator said it is made from
    size_limit   INTEGER,                                   -- NULL: none
    inode_limit  INTEGER,                                   -- NULL: none
    label        TEXT NOT NULL,                             -- SELinux mount context, '': none
    created_ns   INTEGER NOT NULL
);
CREATE UNIQUE INDEX containers_name ON containers (name) WHERE state != 'removing';
CREATE INDEX containers_parent ON containers (parent);

-- Images, as they were shipped.
CREATE TABLE images (
    id           TEXT PRIMARY KEY,                          -- digest of config
    config       BLOB NOT NULL,
    annotations  TEXT NOT NULL,                             -- of its manifest, a JSON object
    created_ns   INTEGER NOT NULL                           -- when it came into this store
);

-- The layers of an image, first layer at position 0, and how each was shipped (NULL: not known).
CREATE TABLE image_layers (
    image            TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
    position         INTEGER NOT NULL,
    layer            TEXT NOT NULL REFERENCES layers,
    blob_media_type  TEXT,
    blob_digest      TEXT,
    blob_size        INTEGER,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE INDEX image_layers_layer ON image_layers (layer);

CREATE TABLE image_names (
    name         TEXT PRIMARY KEY,
    image        TEXT NOT NULL REFERENCES images ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX image_names_by_image ON image_names (image);

-- Layers held by a living process.
CREATE TABLE refs (
    id           INTEGER PRIMARY KEY,
    owner        TEXT NOT NULL REFERENCES owners ON DELETE CASCADE,
    layer        TEXT NOT NULL REFERENCES layers
);
CREATE INDEX refs_layer ON refs (layer);

-- While the store moves: the other driver that holds something of it. At most one row.
--   copying: it is being filled; the store still belongs to the driver in table store
--   leaving: the store does not belong to it (any more); what it holds is to be removed
CREATE TABLE migration (
    driver       TEXT NOT NULL,
    entry_point  TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('copying', 'leaving'))
);

-- What the driver that is being filled holds whole, verified, and flushed before this said so.
CREATE TABLE migrated (
    id           TEXT PRIMARY KEY,                          -- cache_id or mount_id
    digest       TEXT NOT NULL,                             -- of what was copied: a container may change
    left_behind  TEXT NOT NULL                              -- paths no tar can hold, a JSON list
) WITHOUT ROWID;
"""


Row = tuple["Any", ...]

_ROOM = 1 << 20
"""Bytes that the database may want at once: its log, and the memory that processes share."""

BUSY_TIMEOUT_S = 60.0
"""How long to wait for another process's transaction; each takes milliseconds."""


class Database:
    """One connection, shared by the threads of a process under a lock."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
        self.read_only = read_only
        self._path = path
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, root: Path, *, read_only: bool = False) -> Database:
        """The database of the store in ``root``, made if need be.

        Errors: :class:`StoreDamaged` for a file that is none of ours, :class:`NotSupported` for a newer
        format, :class:`ReadOnly` for one that cannot be read without writing.
        """
        path = root / FILE_NAME
        with _translated(path):
            if read_only:
                return cls._open_read_only(path)
            reserve.give_up_if_full(root)
            connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA foreign_keys = ON")
                if _version(connection, path) == 0:
                    _create(connection, root)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path, read_only=False)

    @classmethod
    def _open_read_only(cls, path: Path) -> Database:
        connection = _connect_read_only(path)
        try:
            if _version(connection, path) == 0:
                raise StoreDamaged(f"{path}: holds no store")
        except BaseException:
            connection.close()
            raise
        return cls(connection, path, read_only=True)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """One thread at a time, with room for what SQLite writes."""
        with self._lock, _translated(self._path):
            if not self.read_only:
                reserve.give_up_if_full(self._path.parent)
            yield

    @contextlib.contextmanager
    def transaction(self, *, sync: bool = False) -> Iterator[None]:
        """All of the block's changes or none, seen by others when it ends.

        ``sync``: they are on the disk when it ends, and so is every earlier one. Without it a power loss
        may take back the latest transactions, as a whole and in order.
        """
        if self.read_only:
            raise ReadOnly("the store is open read-only")
        with self._asked():
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that the block reads is of one moment, whatever others change meanwhile."""
        with self._asked():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def execute(self, sql: str, *values: object) -> int:
        """Change something, inside a transaction. Returns the number of rows changed."""
        with self._asked():
            return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, *values: object) -> int:
        """Insert one row, inside a transaction. Returns its rowid."""
        with self._asked():
            return self._connection.execute(sql, values).lastrowid or 0

    def rows(self, sql: str, *values: object) -> list[Row]:
        with self._asked():
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row, or None."""
        with self._asked():
            found: Row | None = self._connection.execute(sql, values).fetchone()
            return found

    def driver(self) -> tuple[str, str] | None:
        """Name and entry point of the driver that the store belongs to; None for a new store."""
        with self._asked():
            return _driver(self._connection)

    def close(self) -> None:
        with self._asked():
            self._connection.close()


def driver_of(root: Path) -> tuple[str, str] | None:
    """Name and entry point of the driver that the store in ``root`` belongs to; None where no store is yet.
    Writes nothing. Errors as for opening it."""
    path = root / FILE_NAME
    with translated(f"look for a store in {root}"):
        if not path.exists():
            return None
    with _translated(path), contextlib.closing(_connect_read_only(path)) as connection:
        # Another process may be about to make it.
        return _driver(connection) if _version(connection, path) else None


def _driver(connection: sqlite3.Connection) -> tuple[str, str] | None:
    row = connection.execute("SELECT driver, entry_point FROM store").fetchone()
    return None if row is None else (str(row[0]), str(row[1]))


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise NotSupported(
            f"{path}: the store has format {version}, this layerfs knows up to {VERSION}",
            hint="use the layerfs that made it, or a newer one",
        )
    return version


def _create(connection: sqlite3.Connection, root: Path) -> None:
    # The change to WAL does not wait for another process that makes the same change, so a lock does.
    locks = root / "locks"
    with translated(f"make a store in {root}"):
        locks.mkdir(mode=0o700, exist_ok=True)
        with FileLock(locks / "create"):
            if _version(connection, root / FILE_NAME) == 0:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
                )


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing, unless a live process has the store open for writing: then its
    shared memory is used, so that its changes are seen."""
    with translated(f"look for a store in {path.parent}"):
        if not path.exists():
            raise StoreDamaged(f"no store in {path.parent}", hint="a read-only store must exist already")
        wal = path.with_name(path.name + "-wal")
        unwritten = wal.exists() and wal.stat().st_size > 0
    if unwritten and not os.access(path.parent, os.W_OK):
        raise ReadOnly(
            f"{path}: the store was not closed when it was made read-only",
            hint="open it once where it can be written",
        )
    # immutable: no locks and no shared memory, https://www.sqlite.org/uri.html#uriimmutable
    query = "mode=ro" if unwritten else "mode=ro&immutable=1"
    return sqlite3.connect(
        f"file:{_quoted(path)}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _quoted(path: Path) -> str:
    """For a URI; urllib.parse would be a third of the cost of opening a store."""
    text = os.fspath(path).replace("%", "%25")
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
    text = f"{path}: {error}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreLocked(text, hint="another process keeps the store's database locked")
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(text)
    if code == sqlite3.SQLITE_READONLY:
        return ReadOnly(text)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreDamaged(text)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return _by_trying(path, text)
    return SystemFailure(text)


def _by_trying(path: Path, text: str) -> SystemFailure:
    """What a file beside the database is refused for: SQLite keeps the errno to itself, and tells a quota, a
    log that cannot grow, and a file system that has become read-only as I/O errors."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(_ROOM))
    except OSError as refused:
        kind = type(from_os_error(refused, ""))
        hint = "in Python: open_store(..., read_only=True) reads it" if kind is ReadOnly else ""
        return kind(f"{text} ({refused.strerror})", errno=refused.errno or 0, hint=hint)
    return SystemFailure(text)

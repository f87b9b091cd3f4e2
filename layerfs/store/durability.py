"""Layers that outlive a power loss: flushed first, called durable after."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from layerfs.errors import translated
from layerfs.store.core import Core

PORTION = 8 << 20
"""Bytes as shipped, about three times as many as layers: less would have the journal committed too often,
more would leave too much for the end."""


def flush(core: Core) -> None:
    """One flush of the driver, and one of the store's records, for every layer that is ready now and not yet
    durable."""
    from layerfs.linux.syncfs import syncfs

    ready = core.db.rows("SELECT cache_id FROM layers WHERE state = 'ready' AND NOT durable")
    if not ready:
        return
    core.driver.flush()
    with translated(f"flush the store in {core.root}"):
        syncfs(core.root)
    with core.db.transaction(sync=True):
        for (cache_id,) in ready:
            core.db.execute("UPDATE layers SET durable = 1 WHERE cache_id = ? AND state = 'ready'", cache_id)


@contextlib.contextmanager
def writing_back(core: Core) -> Iterator[Callable[[int], None]]:
    """See :meth:`Store.writing_back`."""
    worker = _WriteBack(core.root)
    try:
        yield worker.add
    finally:
        failure = worker.end()
    if failure is not None:
        with translated(f"flush the store in {core.root}"):
            raise failure


class _WriteBack:
    """A thread that flushes the file system of ``root`` whenever so many bytes more have gone into it."""

    def __init__(self, root: Path) -> None:
        import threading

        self._root = root
        self._portions = threading.Semaphore(0)
        self._waiting = 0
        self._ended = False
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="layerfs-write-back", daemon=True)
        # The kernel tells each open file once what could not be written; this one is told of all that was
        # made since.
        with translated(f"open {root}"):
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def add(self, count: int) -> None:
        self._waiting += count
        if self._waiting >= PORTION:
            self._waiting = 0
            self._portions.release()
            if self._thread.ident is None:
                self._thread.start()

    def end(self) -> OSError | None:
        self._ended = True
        self._portions.release()
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._fd)
        return self._failure

    def _work(self) -> None:
        from layerfs.linux.syscall import call

        while True:
            self._portions.acquire()
            while self._portions.acquire(blocking=False):
                pass
            if self._ended or self._failure:
                return
            try:
                call("syncfs", self._fd, path=self._root)
            except OSError as error:
                self._failure = error

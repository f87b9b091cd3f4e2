"""Threads and fork(2): what a fork must not come between, and what a child must not take along.

A child shares every descriptor that any thread had open when it was forked, and keeps it open for as long as
it lives: the other end of a pipe whose reader waits for its end, a device that should be free by now. And it
has a copy of every lock, held by threads that it does not have.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

_lock = threading.Lock()
_owners: dict[int, int] = {}


@contextlib.contextmanager
def held_off() -> Iterator[None]:
    """No thread of this process forks during the block, nor is in another such block. Not to be nested."""
    with _lock:
        yield


def own(open: Callable[[], int]) -> int:
    """What ``open`` returns, a descriptor for the calling thread: a child forked by another one closes it."""
    with _lock:
        fd = open()
        _owners[fd] = threading.get_ident()
    return fd


def close(fd: int) -> None:
    """Close a descriptor of :func:`own`."""
    with _lock:
        _owners.pop(fd, None)
        os.close(fd)


def _in_child() -> None:
    for fd, owner in list(_owners.items()):
        if owner != threading.get_ident():
            del _owners[fd]
            with contextlib.suppress(OSError):
                os.close(fd)
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)

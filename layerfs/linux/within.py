"""Waiting in the kernel for somebody who may never answer: with an end.

A call that asks the server of a FUSE mount waits in the kernel, where no signal but the deadly one wakes it
(fs/fuse/dev.c ``request_wait_answer``). So another thread makes the call, and is left to itself when it takes
too long: it ends when the server goes on or dies, or with this process.
"""

from __future__ import annotations

import errno
import threading

from layerfs.linux.syscall import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")


def start(work: Callable[[], None]) -> threading.Thread:
    """A thread that does ``work`` and keeps no process from ending. ``OSError`` when there can be none."""
    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # Python does not tell which errno it was
        raise failure(errno.EAGAIN, reason=str(error)) from None
    return thread


def within(seconds: float, work: Callable[[], _T], sign: Callable[[], object] = lambda: None) -> _T:
    """What ``work`` returns or raises; :class:`TimeoutError` when it has not ended after ``seconds`` in which
    ``sign``, of whoever is waited for, stayed the same."""
    answers: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread = start(run)
    before: object = thread  # like no sign
    while thread.is_alive() and (now := sign()) != before:
        before = now
        thread.join(seconds)
    for error in errors:
        raise error
    for answer in answers:
        return answer
    raise TimeoutError(f"not done within {seconds:.0f} seconds")

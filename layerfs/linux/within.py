"""Waiting in the kernel for somebody who may never answer: with an end.

A call that asks the server of a FUSE mount waits in the kernel, where no signal but the deadly one wakes it
(fs/fuse/dev.c ``request_wait_answer``). So another thread makes the call, and is left to itself when it takes
too long: it ends when the server goes on or dies, or with this process.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """What ``work`` returns or raises; :class:`TimeoutError` when it has not ended after ``seconds``."""
    answers: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    for answer in answers:
        return answer
    raise TimeoutError(f"not done within {seconds:.0f} seconds")

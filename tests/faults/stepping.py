"""A process that is killed at one of its steps: whatever the test counts as one, each call of the driver."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

from layerfs.driver import Driver

Step = Callable[[], None]
Tell = Callable[[str], None]


class Stepping:
    """A driver that counts its calls, before and after."""

    CHANGING = frozenset(("create", "create_read_write", "remove", "get", "put", "apply_diff", "diff"))

    def __init__(self, driver: Driver, step: Step) -> None:
        self._driver = driver
        self._step = step

    def __getattr__(self, name: str) -> object:
        found = getattr(self._driver, name)
        if name not in self.CHANGING:
            return found

        def call(*args: object, **named: object) -> object:
            self._step()
            result = found(*args, **named)
            self._step()
            return result

        return call


def killed(at: int, work: Callable[[Step, Tell], None]) -> tuple[list[str], bool]:
    """Do ``work`` in a child that is killed at step ``at``. What it told, and whether it came so far."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _child(at, work, writable)
    os.close(writable)
    with open(readable) as told:
        lines = told.read().splitlines()
    _, status = os.waitpid(child, 0)
    was_killed = os.WIFSIGNALED(status)
    assert was_killed or os.WEXITSTATUS(status) == 0, "the work itself failed"
    return lines, was_killed


def _child(at: int, work: Callable[[Step, Tell], None], writable: int) -> NoReturn:
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        work(step, lambda text: void(os.write(writable, f"{text}\n".encode())))
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def void(_: object) -> None: ...

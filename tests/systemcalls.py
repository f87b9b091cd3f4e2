"""A process whose system calls are watched one by one: it is killed at any of them, or a call fails.

ptrace(2) stops the process before and after each call. strace counts them for each name by itself, and in
each thread anew, so it cannot stop at "the 1000th call"; and a process forked from this one, which has
everything imported, spares the start of an interpreter for each of thousands of runs. Programs that the
process starts (a tool, the server of a FUSE mount) are not watched, and outlive it as in earnest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import threading
from collections.abc import Callable
from typing import NoReturn

import attrs
import pytest

_TRACEME, _PEEKUSER, _POKEUSER, _SYSCALL, _SETOPTIONS = 0, 3, 6, 24, 0x4200
_SYSGOOD, _TRACECLONE, _EXITKILL = 1, 8, 1 << 20
_WALL = 0x40000000

# Of struct user_regs_struct, x86-64: the number of the call, its result, and its arguments.
_ORIG_RAX, _RAX = 15 * 8, 10 * 8
_ARGUMENTS = (14 * 8, 13 * 8, 12 * 8, 7 * 8, 9 * 8, 8 * 8)
_MARK = 0x6C66  # a process group that nobody has

LONGEST = 100.0
"""Seconds after which the process counts as hung, and is killed."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def need_tracing() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("needs x86-64: registers are named there")


@attrs.frozen
class Outcome:
    calls: int
    """Stops that were counted: before and after each call."""
    status: int
    """As of :func:`os.waitpid`."""
    told: tuple[str, ...]
    """What the process said with :func:`tell`."""
    last: int = -1
    """Number of the call at which it was killed, or which failed."""

    @property
    def killed(self) -> bool:
        return os.WIFSIGNALED(self.status)


@attrs.frozen
class Call:
    """One that is about to be made."""

    number: int
    thread: int

    def argument(self, index: int) -> int:
        return _peek(self.thread, _ARGUMENTS[index])


Fault = Callable[[Call], int]
"""Asked before each call for the errno it fails with; 0: none."""


def no_fault(call: Call) -> int:
    return 0


def watched(
    work: Callable[[Callable[[str], None]], None], *, kill_at: int | None = None, fault: Fault = no_fault
) -> Outcome:
    """Do ``work`` in a child. It is killed at stop ``kill_at``; calls fail as ``fault`` says.

    ``work`` is given a function by which it says how far it came. :func:`over` ends what happens to it.
    """
    need_tracing()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _child(work, writable)
    os.close(writable)
    hangs = threading.Timer(LONGEST, os.kill, (child, signal.SIGKILL))
    hangs.start()
    try:
        calls, status, last = _watch(child, kill_at, fault)
    finally:
        hangs.cancel()
        hangs.join()
        with open(readable) as said:
            told = tuple(said.read().splitlines())
    return Outcome(calls, status, told, last)


def over() -> None:
    """Said by the process: from here on nothing happens to it any more."""
    with contextlib.suppress(ProcessLookupError):
        os.getpgid(_MARK)


def _child(work: Callable[[Callable[[str], None]], None], writable: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        _ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work(lambda text: void(os.write(writable, f"{text}\n".encode(errors="backslashreplace"))))
        os._exit(0)
    except BaseException:
        over()
        import traceback

        traceback.print_exc()
        os._exit(1)


def void(_: object) -> None: ...


_GETPGID = 121


@attrs.define
class _Thread:
    inside: bool = False
    fails_with: int = 0


def _watch(child: int, kill_at: int | None, fault: Fault) -> tuple[int, int, int]:
    assert os.waitpid(child, os.WUNTRACED)[0] == child
    _ptrace(_SETOPTIONS, child, 0, _SYSGOOD | _TRACECLONE | _EXITKILL)
    threads = {child: _Thread()}
    stops, last, ended = 0, -1, False
    _ptrace(_SYSCALL, child, 0, 0)
    while True:
        tid, status = os.waitpid(-child, _WALL)
        if not os.WIFSTOPPED(status):
            if tid == child:
                return stops, status, last
            threads.pop(tid, None)
            continue
        thread = threads.setdefault(tid, _Thread())
        number = os.WSTOPSIG(status)
        pass_on = 0
        if number == signal.SIGTRAP | 0x80:
            thread.inside = not thread.inside
            stops += not ended
            if stops == kill_at and not ended:
                last = _peek(tid, _ORIG_RAX)
                os.kill(child, signal.SIGKILL)
                continue
            if thread.inside:
                call = Call(_peek(tid, _ORIG_RAX), tid)
                if call.number == _GETPGID and call.argument(0) == _MARK:
                    ended = True
                if not ended and (wrong := fault(call)):
                    thread.fails_with, last = wrong, call.number
                    _ptrace(_POKEUSER, tid, _ORIG_RAX, ctypes.c_ulong(-1).value)
            elif thread.fails_with:
                _ptrace(_POKEUSER, tid, _RAX, ctypes.c_ulong(-thread.fails_with).value)
                thread.fails_with = 0
        elif number not in (signal.SIGTRAP, signal.SIGSTOP):  # of a new thread
            pass_on = number
        _ptrace(_SYSCALL, tid, 0, pass_on)


def _peek(tid: int, where: int) -> int:
    word = ctypes.c_long()
    # The raw call stores the word; libc's function returns it.
    ctypes.set_errno(0)
    word.value = _libc.ptrace(_PEEKUSER, tid, where, None)
    return word.value


def _ptrace(request: int, tid: int, address: int, data: int) -> int:
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, tid, address, data)
    if result == -1 and ctypes.get_errno() not in (0, 3):  # 3: ESRCH, it was killed meanwhile
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

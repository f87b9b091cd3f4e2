"""The one door to system calls and libc functions that Python does not wrap."""

from __future__ import annotations

import ctypes
import errno
import os

Argument = int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None
"""An integer, a string, a buffer or structure that the kernel reads or fills, or NULL."""

PathLike = str | bytes | os.PathLike[str]

AT_FDCWD = -100
"""In the place of a directory descriptor: relative to the working directory."""

# From 424 on a call has the same number on every architecture but alpha (Linux 5.1). Older calls
# are reached through their libc function, which knows the number.
_NUMBERS = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "openat2": 437,
    "mount_setattr": 442,
    "quotactl_fd": 443,
}

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: Argument, path: PathLike = "") -> int:
    """Make the system call, or call the libc function, ``name`` and return its result.

    -1 becomes ``OSError(errno, strerror, path)``; a function that libc lacks is ENOSYS. Numbers are
    passed as C ``long``, buffers and structures by address.
    """
    number = _NUMBERS.get(name)
    function = getattr(_libc, name if number is None else "syscall", None)
    if function is None:
        raise failure(errno.ENOSYS, path)
    words = map(_as_c, args if number is None else (number, *args))
    result: int = function(*words)
    if result == -1:
        raise failure(ctypes.get_errno(), path)
    return result


def failure(number: int, path: PathLike = "", reason: str = "") -> OSError:
    """The ``OSError`` for errno ``number`` upon ``path``; ``reason`` is what more the kernel said."""
    text = os.strerror(number)
    if reason:
        text = f"{text} ({reason})"
    return OSError(number, text, os.fspath(path)) if path else OSError(number, text)


def _as_c(arg: Argument) -> object:
    if isinstance(arg, int):
        # A variadic function takes what it is given: a plain int would leave half the register unset.
        return ctypes.c_long(arg)
    if isinstance(arg, bytes):
        if b"\0" in arg:
            raise ValueError("embedded null byte")
        return ctypes.c_char_p(arg)
    if isinstance(arg, ctypes.Structure):
        return ctypes.byref(arg)
    return arg

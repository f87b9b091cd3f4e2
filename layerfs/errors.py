"""Everything layerfs raises.

::

    LayerfsError                 exit  meaning
    ├── InvalidInput              2    the caller's words are wrong
    │   ├── InvalidID                  an id, digest or name that cannot be one
    │   └── InvalidOption              an option or limit that does not exist or does not fit
    ├── NotFound                  3    no such thing; ``near`` holds names that look alike
    │   ├── LayerNotFound
    │   ├── ContainerNotFound
    │   ├── ImageNotFound
    │   └── DriverNotFound
    ├── Conflict                  4    the state of the store or host forbids it now
    │   ├── NameInUse                  a container of that name exists
    │   ├── LayerExists                a driver already holds that id
    │   ├── LayerInUse                 something references it (``users`` says what)
    │   ├── MountBusy                  a mount is held (``holders`` says by whom)
    │   ├── StoreLocked                waited for another process in vain
    │   └── PriorDrivers               the store holds state of more than one driver
    ├── NotSupported              5    this host or driver cannot do it, and why
    │   └── DepthExceeded              more layers than the driver can stack
    ├── BadData                   6    bytes that came from outside are wrong; nothing was kept
    │   ├── ArchiveError               a layer tar: ``entry`` names the culprit
    │   │   ├── TruncatedArchive       it ends too early
    │   │   ├── MalformedArchive       a header that lies or cannot be read
    │   │   ├── PathEscape             an entry or link that points out of the layer
    │   │   ├── EntryRefused           an entry that may not or cannot be made here
    │   │   └── ArchiveTooLarge        past a limit: a bomb, or endless padding
    │   ├── CompressionError           a compressed stream that does not decode
    │   ├── ImageError                 a layout, docker-archive, manifest or config
    │   └── DigestMismatch             ``expected`` and ``actual`` say what was found
    ├── StoreDamaged              7    what the store holds is not what it promised
    └── SystemFailure             8    the kernel or a tool said no; ``errno`` holds the number
        ├── MountFailed
        ├── NoSpace                    ENOSPC or EDQUOT
        ├── ReadOnly                   a store or file system that takes no writes
        ├── PermissionRefused          EPERM or EACCES
        └── CommandFailed              a tool; ``argv``, ``status``, ``stderr``

``str(error)`` is one sentence with what and where; ``hint``, when there is one, says how to mend it.
``exit_code`` is what the command line ends with; it is stable.
"""

from __future__ import annotations

import contextlib
import errno as _errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_LONGEST = 5000
"""Characters of a message about bytes from outside: any path that Linux takes, and the reason."""


class LayerfsError(Exception):
    """The root of the tree."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(LayerfsError):
    exit_code = 2


class InvalidID(InvalidInput):
    pass


class InvalidOption(InvalidInput):
    pass


class NotFound(LayerfsError):
    """No such thing. ``near``: names that exist and look alike, best first."""

    exit_code = 3

    def __init__(self, message: str, *, near: Sequence[str] = (), hint: str = "") -> None:
        if near and not hint:
            hint = "did you mean " + " or ".join(repr(name) for name in near) + "?"
        super().__init__(message, hint=hint)
        self.near = tuple(near)


class LayerNotFound(NotFound):
    pass


class ContainerNotFound(NotFound):
    pass


class ImageNotFound(NotFound):
    pass


class DriverNotFound(NotFound):
    pass


class Conflict(LayerfsError):
    exit_code = 4


class NameInUse(Conflict):
    pass


class LayerExists(Conflict):
    pass


class LayerInUse(Conflict):
    """``users``: what references it, as a person would name them."""

    def __init__(self, message: str, *, users: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.users = tuple(users)


class MountBusy(Conflict):
    """``holders``: who keeps the mount, ``pid (command), mount namespace N``."""

    def __init__(self, message: str, *, holders: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.holders = tuple(holders)


class StoreLocked(Conflict):
    pass


class PriorDrivers(Conflict):
    pass


class NotSupported(LayerfsError):
    """This host, file system or driver cannot do it. The only error after which automatic
    selection goes on to the next driver."""

    exit_code = 5


class DepthExceeded(NotSupported):
    pass


class BadData(LayerfsError):
    """The message is cut in its middle when it is long: bytes from outside may hold names of megabytes."""

    exit_code = 6

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(_shortened(message), hint=hint)


class ArchiveError(BadData):
    """``entry``: the name of the entry at fault, as in the archive; empty when it is none's."""

    def __init__(self, message: str, *, entry: bytes = b"", hint: str = "") -> None:
        if entry:
            message = f"{show(entry)}: {message}"
        super().__init__(message, hint=hint)
        self.entry = entry


class TruncatedArchive(ArchiveError):
    pass


class MalformedArchive(ArchiveError):
    pass


class PathEscape(ArchiveError):
    pass


class EntryRefused(ArchiveError):
    pass


class ArchiveTooLarge(ArchiveError):
    pass


class CompressionError(BadData):
    pass


class ImageError(BadData):
    pass


class DigestMismatch(BadData):
    def __init__(self, message: str, *, expected: str, actual: str, hint: str = "") -> None:
        super().__init__(f"{message}: expected {expected}, found {actual}", hint=hint)
        self.expected = expected
        self.actual = actual


class StoreDamaged(LayerfsError):
    exit_code = 7


class SystemFailure(LayerfsError):
    """The kernel said no. ``errno`` is its number, 0 when there is none."""

    exit_code = 8

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class MountFailed(SystemFailure):
    pass


class NoSpace(SystemFailure):
    pass


class ReadOnly(SystemFailure):
    pass


class PermissionRefused(SystemFailure):
    pass


class CommandFailed(SystemFailure):
    def __init__(
        self, message: str, *, argv: Sequence[str], status: int, stderr: str, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr


_BY_ERRNO: dict[int, type[SystemFailure]] = {
    _errno.ENOSPC: NoSpace,
    _errno.EDQUOT: NoSpace,
    _errno.EROFS: ReadOnly,
    _errno.EPERM: PermissionRefused,
    _errno.EACCES: PermissionRefused,
}

OF_THE_MOMENT = frozenset(
    {_errno.ENOSPC, _errno.EDQUOT, _errno.ENOMEM, _errno.EMFILE, _errno.ENFILE, _errno.EIO, _errno.ETIMEDOUT}
)
"""Of a trial: something is used up, broken or slow now. That does not say what a host can do: nobody may take
it for :class:`NotSupported`."""


def from_os_error(error: OSError, doing: str) -> SystemFailure:
    """The one translation of an :class:`OSError`. ``doing`` says what was tried: "create layer X"."""
    number = error.errno or 0
    names = [os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes | Path)]
    reason = error.strerror or str(error)
    where = f" ({' -> '.join(names)})" if names else ""
    kind = _BY_ERRNO.get(number, SystemFailure)
    return kind(f"cannot {doing}: {reason}{where}", errno=number)


def _shortened(text: str) -> str:
    left_out = len(text) - _LONGEST
    if left_out <= 0:
        return text
    return f"{text[: _LONGEST // 2]} [... {left_out} characters ...] {text[-_LONGEST // 2 :]}"


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise :func:`from_os_error` for any :class:`OSError` of the block."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error


def show(name: bytes) -> str:
    """A name from inside a layer as a person can read it: UTF-8, the rest and controls escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

"""ZFS by zfs-fuse, a daemon that serves it where the kernel has no such file system.

Debian ships no ``mount.zfs`` with it, so its daemon is asked as its own ``zfs mount`` asks it: by one
message on a socket (zfs-fuse 0.7.0, ``zfsfuse_socket.h`` and ``cmd_listener.c``). Unlike the kernel's ZFS
it mounts a dataset at one place at a time, and goes on unmounting for a moment after umount(2) returned:
until then a mount is EBUSY.

It hangs where its threads race. So whoever uses it from here takes a :func:`turn`, and unmounts by
:func:`release`:

- The arguments of the thread for a new connection are in one static variable (``start_ioctl_thread``): of two
  that come at once, one is never answered.
- At the end of a mount it closes the descriptor of that a second time (``destroy_fs``, after
  ``fuse_session_destroy`` did). If a connection or another mount was opened in between, it loses that one:
  whoever looks at such a mount waits for ever, while ``poll`` never waits again. So a mount
  begins, and a release ends, when all its threads have slept once: the one that closed a descriptor first
  closes it again.
- If it has not read every request of a file system when that is unmounted, it waits for the rest for ever,
  and serves nobody meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from layerfs.linux import umount
from layerfs.linux.flock import lock
from layerfs.linux.mountcalls import detached
from layerfs.linux.syscall import failure
from layerfs.linux.within import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_SOCKET = "/var/run/zfs/zfs_socket"
_LONGEST = 60.0
"""Seconds after which the daemon counts as hung."""

_PATIENCE = 3.0
"""Seconds to wait for a dataset that somebody is just unmounting."""

_MOUNT_REQUEST = 6
_REQUEST = struct.Struct("=i4xIIiI8x")
"""``zfsfuse_cmd_t``: the kind, then the lengths of dataset and directory, mount flags, the length of the
options; the three strings follow."""
_ANSWER = struct.Struct("=I")
"""An errno, 0 for success."""


def is_in_use() -> bool:
    """Whether ZFS is zfs-fuse here: the kernel has none, and the daemon's socket is there."""
    return os.path.exists(_SOCKET) and "\tzfs\n" not in Path("/proc/filesystems").read_text()


@contextlib.contextmanager
def turn() -> Iterator[int | None]:
    """The daemon is this process's alone, among all that take turns, during the block; where the kernel has
    ZFS nobody waits. Yields the descriptor that is locked, for a program to keep that is run in the block.
    """
    if not is_in_use():
        yield None
        return
    fd = os.open(os.path.dirname(_SOCKET), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(fd, fcntl.LOCK_EX, Path(_SOCKET).parent)
        yield fd
    finally:
        # Closing is not enough when a child made meanwhile shares the descriptor.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def release(target: Path) -> None:
    """Unmount the file system at ``target``, remove the directory; return when the daemon has done so.

    Not waited for is whoever else has it mounted, or open: the daemon hangs if that one closes a file last.
    """
    with turn(), _control() as control:
        try:
            connection = _settle(target, control)
            pid = _pid()
            before = _mounts_served(pid)
        except TimeoutError:
            raise
        except OSError:  # the daemon is dead
            umount.release(target)
            return
        umount.release(target)
        if not connection.exists():
            _wait_until(lambda: _mounts_served(pid) < before)
            _wait_for_sleep(pid)


def _settle(target: Path, control: Path) -> Path:
    """Wait until the daemon has done all that it was asked for: closing a file asks without waiting. The
    kernel tells how much is under way, below /sys/fs/fuse/connections; the answer is where."""

    def ask() -> int:
        os.statvfs(target)  # the first mount of all may still be introducing itself
        return os.stat(target).st_dev

    try:
        device = within(_LONGEST, ask)
    except TimeoutError:
        raise failure(errno.ETIMEDOUT, target, "the zfs-fuse daemon does not answer") from None
    connection = control / str(os.minor(device))
    _wait_until(lambda: (connection / "waiting").read_text() == "0\n")
    return connection


@contextlib.contextmanager
def _control() -> Iterator[Path]:
    """What the kernel tells of FUSE connections, mounted nowhere."""
    fd = detached("fusectl", "fusectl", ())
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONGEST
    while not done() and time.monotonic() < deadline:
        time.sleep(0.001)


def mount(dataset: str, options: Sequence[str], target: Path) -> None:
    """Mount ``dataset`` at ``target``: in the mount namespace of the daemon.

    ENOENT: there is no such dataset or directory. EBUSY: it is mounted, also elsewhere, and that does not end
    within seconds. ECONNREFUSED: the daemon is dead.
    """
    deadline = time.monotonic() + _PATIENCE
    while (number := _ask_to_mount(dataset, options, target)) == errno.EBUSY and time.monotonic() < deadline:
        time.sleep(0.02)
    if number:
        raise failure(number, target, f"zfs-fuse, dataset {dataset}")


def _ask_to_mount(dataset: str, options: Sequence[str], target: Path) -> int:
    import socket

    strings = [dataset.encode(), os.fsencode(target), ",".join(options).encode()]
    lengths = [len(each) for each in strings]
    request = _REQUEST.pack(_MOUNT_REQUEST, lengths[0], lengths[1], 0, lengths[2])
    try:
        with turn():
            _wait_for_sleep(_pid())  # somebody may have unmounted who took no turn, or was killed
            with _connected() as connection:
                connection.sendall(b"".join([request, *strings]))
                answer = connection.recv(_ANSWER.size, socket.MSG_WAITALL)
    except OSError as error:
        reason = "the zfs-fuse daemon does not answer"
        raise failure(error.errno or errno.ETIMEDOUT, target, reason) from error
    if len(answer) < _ANSWER.size:
        raise failure(errno.ECONNRESET, target, "the zfs-fuse daemon died")
    number: int = _ANSWER.unpack(answer)[0]
    return number


@contextlib.contextmanager
def _connected() -> Iterator[socket.socket]:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_LONGEST)
        connection.connect(_SOCKET)
        yield connection


def _pid() -> int:
    """The daemon's: SO_PEERCRED tells who listens (unix(7)); its ``struct ucred`` begins with the pid."""
    import socket

    with _connected() as connection:
        ucred = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(ucred[:4], sys.byteorder)


def _wait_for_sleep(pid: int) -> None:
    """Return when each thread of the daemon has slept since."""
    awake: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        awake += [f"/proc/{pid}/task/{thread}/stat" for thread in os.listdir(f"/proc/{pid}/task")]

    def all_slept() -> bool:
        awake[:] = filter(_is_awake, awake)
        return not awake

    _wait_until(all_slept)


def _is_awake(stat: str) -> bool:
    """Whether a thread runs, or waits for a processor or a disk (proc_pid_stat(5))."""
    try:
        with open(stat, "rb", buffering=0) as file:
            return file.read().rpartition(b") ")[2][:1] in b"RD"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _mounts_served(pid: int) -> int:
    """How many mounts the daemon has open: none any more when it is dead."""
    found = 0
    with contextlib.suppress(FileNotFoundError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/fuse"
    return found

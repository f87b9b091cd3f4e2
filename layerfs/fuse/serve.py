"""Mounts one union and answers for it until it is unmounted."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from layerfs.errors import MountFailed, NotSupported, translated
from layerfs.fuse.options import Options
from layerfs.linux.umount import umount
from layerfs.linux.userns import drop_capability, has_capability, in_user_namespace
from layerfs.union.aufs import Aufs
from layerfs.union.dialect import Dialect
from layerfs.union.fuseoverlayfs import FuseOverlayfs
from layerfs.union.overlay import FUSE, TRUSTED, USER, Overlay
from layerfs.union.union import Union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COMMAND = "layerfs-fuse"
"""How ps(1) calls the process."""

_PR_SET_NAME = 15
_YOUNG = 50_000
"""Objects between two looks for garbage: nodes refer to one another, but are let go one by one."""

log = logging.getLogger(__name__)


def serve(options: Options, source: str, target: Path, ready: Callable[[], None]) -> None:
    """Mount at ``target``, call ``ready``, and answer until somebody unmounts it.

    SIGTERM, SIGINT and SIGHUP unmount, at once if nobody uses it and else when the last user has gone.
    A second of them ends the process there and then.
    """
    _prepare()
    fuse = _pyfuse3()
    with _union(options) as union:
        from layerfs.fuse.edge import Edge

        edge = Edge(union, uids=options.uids, gids=options.gids)
        edge.enable_acl = options.owners is None
        _mount(fuse, edge, options, source, target)
        try:
            _unmount_on_signals(target)
            _wait_for_little_garbage()
            ready()
            _answer(fuse)
        finally:
            fuse.close()


def _prepare() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, COMMAND.encode(), 0, 0, 0)
    os.umask(0)
    # Each open file of a container is one here.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # It would let every container write past the project quota of ext4.
    drop_capability("CAP_SYS_RESOURCE")


def _pyfuse3() -> Any:
    from layerfs.fuse.loop import import_pyfuse3

    try:
        return import_pyfuse3()
    except ImportError as error:
        raise NotSupported(
            f"no pyfuse3: {error}",
            hint="pip install 'layerfs[fuse]', which needs libfuse3-dev, pkg-config, gcc and python3-dev",
        ) from error


def _dialect(options: Options) -> Dialect:
    if options.whiteouts == "aufs":
        return Aufs()
    kind = FuseOverlayfs if options.whiteouts == "fuse-overlayfs" else Overlay
    by_user = options.user_xattrs
    if by_user is None:
        by_user = in_user_namespace() or not has_capability("CAP_SYS_ADMIN")
    return kind((USER, FUSE) if by_user else (TRUSTED,))


@contextlib.contextmanager
def _union(options: Options) -> Iterator[Union]:
    dialect = _dialect(options)
    with translated("open the directories of the union"):
        union = Union(
            options.lower,
            options.upper,
            options.work,
            dialect=dialect,
            volatile=options.volatile,
            owners=options.owners,
        )
    try:
        yield union
    finally:
        union.close()


def _mount(fuse: Any, edge: object, options: Options, source: str, target: Path) -> None:
    privileged = has_capability("CAP_SYS_ADMIN")
    allow_other = privileged if options.allow_other is None else options.allow_other
    # Who serves is told to everybody who lists the mounts.
    given = [f"fsname={source}[{os.getpid()}]".replace(",", "\\,"), "subtype=layerfs", "default_permissions"]
    if allow_other:
        given.append("allow_other")
    if privileged:
        given += [word for word in ("suid", "dev") if f"no{word}" not in options.kernel]
    if not os.path.exists("/dev/fuse"):
        raise NotSupported("there is no /dev/fuse", hint="modprobe fuse")
    with _standard_error() as said:
        try:
            fuse.init(edge, os.fspath(target), [*given, *options.kernel])
        except RuntimeError as error:
            raise MountFailed(f"cannot mount at {target}: {said() or error}") from error


@contextlib.contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
    """What is written to the standard error in the block: where libfuse says what is wrong."""
    before, caught = os.dup(2), os.memfd_create("stderr")
    os.dup2(caught, 2)
    try:
        yield lambda: os.pread(caught, 4096, 0).decode(errors="replace").strip()
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(caught)


def _answer(fuse: Any) -> None:
    from layerfs.fuse.loop import run

    while True:
        try:
            run(fuse.main(min_tasks=1, max_tasks=1))
            return
        except OSError as error:
            # What reading a request may answer without being at an end.
            if error.errno not in (errno.EINTR, errno.EAGAIN, errno.ENOMEM):
                raise
            log.warning("reading a request: %s", error)
        except Exception:
            log.exception("a request could not be answered")


def _unmount_on_signals(target: Path) -> None:
    def unmount() -> None:
        try:
            umount(target, lazy=True)
        except OSError as error:
            log.warning("cannot unmount: %s", error)

    def react(number: int, frame: object) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Unmounting asks this very process, which must go on answering.
        threading.Thread(target=unmount, daemon=True).start()

    for each in _SIGNALS:
        signal.signal(each, react)


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _wait_for_little_garbage() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)

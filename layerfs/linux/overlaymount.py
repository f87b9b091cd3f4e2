"""Mounting overlay with any number of layers that it can stack (500), on every kernel, wherever they lie."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from layerfs.linux.mountcalls import FLAGS, by_string, configuring
from layerfs.linux.opened import opened
from layerfs.linux.syscall import call, failure
from layerfs.linux.umount import umount

_DIRECTORY = os.O_PATH | os.O_DIRECTORY

_LONGEST_STRING = 255
"""fsconfig(2) takes no longer string value (fs/fsopen.c)."""

_CLONE_FS = 0x200


def escape_lower(path: str | Path) -> str:
    """``path`` as it stands in the value of ``lowerdir``; right for ``upperdir`` and ``workdir``, too.

    A backslash before each backslash and colon: the kernel takes one level of backslashes away.
    """
    return os.fspath(path).replace("\\", "\\\\").replace(":", "\\:")


def split_lower(value: str) -> list[str]:
    """The paths in the value of ``lowerdir``, topmost first, without their escapes."""
    paths = [""]
    for token in re.findall(r"\\.|:|[^\\:]+", value, re.DOTALL):
        if token == ":":
            paths.append("")
        else:
            paths[-1] += token.removeprefix("\\")
    return paths


def _unescaped(path: str) -> str:
    return re.sub(r"\\(.)", r"\1", path, flags=re.DOTALL)


class _Overlay:
    """The options of an overlay mount, taken apart."""

    def __init__(self, options: Sequence[str]) -> None:
        self.lower: list[str] = []
        self.directories: dict[str, str] = {}
        self.rest: list[str] = []
        for option in options:
            key, _, value = option.partition("=")
            if key == "lowerdir":
                self.lower = split_lower(value)
            elif key in ("upperdir", "workdir"):
                self.directories[key] = _unescaped(value)
            else:
                self.rest.append(option)


def mount_overlay(source: str, options: Sequence[str], target: Path) -> None:
    """In the way that this kernel and these options want."""
    if takes_single_layers():
        by_layer(source, options, target)
    elif _fits_plainly(options):
        by_string("overlay", source, options, target)
    else:
        by_descriptor(source, options, target)
    if "ro" not in options:
        for option in options:
            if option.startswith("workdir="):
                _refuse_read_only(target, _unescaped(option.removeprefix("workdir=")))


def _refuse_read_only(target: Path, work: str) -> None:
    """Where overlay cannot make what it needs in ``work`` it mounts read-only, and tells its log alone why.
    The same again tells us."""
    if not os.statvfs(target).f_flag & os.ST_RDONLY:
        return
    umount(target)
    trial = os.path.join(work, ".trial")
    os.mkdir(trial)
    os.rmdir(trial)
    raise failure(errno.EROFS, target, "overlay could not be mounted writable")


@functools.cache
def takes_single_layers() -> bool:
    """Whether overlay takes its lower layers one at a time (``lowerdir+``, Linux 6.8).

    Where overlay has no parameters of its own (before 6.5) the kernel collects any word into one
    string and would only complain at the mount: such a kernel shows itself by taking nonsense.
    """
    try:
        with configuring("overlay") as context:
            context.set("lowerdir+", "/")
            try:
                context.set("layerfs-nonsense", "/")
            except OSError:
                return True
    except OSError:
        pass
    return False


def by_layer(source: str, options: Sequence[str], target: Path) -> None:
    """Where :func:`takes_single_layers`."""
    overlay = _Overlay(options)
    with configuring("overlay") as context:
        context.set("source", source)
        for path in overlay.lower:
            if _is_short(path):
                context.set("lowerdir+", path)
            else:
                with _short(path) as name:
                    context.set("lowerdir+", name)
        for key, path in overlay.directories.items():
            with _short(path) as name:
                context.set(key, name.replace("\\", "\\\\"))
        attributes = 0
        for option in overlay.rest:
            key, equals, value = option.partition("=")
            attributes |= FLAGS.get(option, (0, 0))[1]
            if equals:
                # An SELinux context holds commas, for which mount(2) wants it in quotes.
                context.set(key, value.strip('"'))
            elif option == "ro" or option not in FLAGS:
                context.set(option, None)
        context.attach(attributes, target)


def _is_short(path: str) -> bool:
    return len(os.fsencode(path)) + path.count("\\") <= _LONGEST_STRING


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """A name for the directory that fits fsconfig(2), even escaped. The kernel looks it up at once."""
    if _is_short(path):
        yield path
        return
    with opened(path, _DIRECTORY) as fd:
        yield f"/proc/self/fd/{fd}"


def _fits_plainly(options: Sequence[str]) -> bool:
    """Whether ``options`` can be joined: short enough, and no character that would need an escape."""
    joined = ",".join(options)
    if len(os.fsencode(joined)) >= os.sysconf("SC_PAGESIZE"):
        return False
    directories = [o for o in options if o.startswith(("lowerdir=", "upperdir=", "workdir="))]
    return not any(character in option for option in directories for character in '\\,"')


def by_descriptor(source: str, options: Sequence[str], target: Path) -> None:
    """Name every directory by the number of a file descriptor, which fits 500 layers into a page.

    The numbers are paths relative to the working directory, which is ``/proc/thread-self/fd`` for the
    time of the mount. That keeps the driver's home free of the short links that the field uses
    for this, and no path can need an escape. ``/proc/mounts`` shows the numbers.
    """
    overlay = _Overlay(options)
    with contextlib.ExitStack() as held:

        def number(path: str) -> str:
            return str(held.enter_context(opened(path, _DIRECTORY)))

        numbered = ["lowerdir=" + ":".join(number(path) for path in overlay.lower)]
        numbered += [f"{key}={number(path)}" for key, path in overlay.directories.items()]

        def mount() -> None:
            call("unshare", _CLONE_FS)
            os.chdir("/proc/thread-self/fd")
            by_string("overlay", source, numbered + overlay.rest, target)

        _in_thread(mount)


def _in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread that ends with it, whose working directory is its own to change."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]

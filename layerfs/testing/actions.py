"""What a process in a container does to its files, as data: drawn by Hypothesis, done on a real tree."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs

from layerfs.testing.privilege import xattr


@attrs.frozen
class Action:
    """One system call or a few. ``other`` is the second path of a rename or link, or a target."""

    what: str
    path: bytes
    other: bytes = b""


def act(root: Path, actions: Iterable[Action]) -> None:
    """Do them in order. One that the kernel refuses has no effect, as in life."""
    top = os.fsencode(root)
    for action in actions:
        with contextlib.suppress(OSError):
            ACTIONS[action.what](top + b"/" + action.path, top + b"/" + action.other)


def _write(path: bytes, other: bytes) -> None:
    _plain(path).write_bytes(b"written\n")


def _append(path: bytes, other: bytes) -> None:
    with _plain(path).open("ab") as out:
        out.write(b"appended\n")


def _plain(path: bytes) -> Path:
    """``path``, if opening it can neither block nor leave the tree."""
    plain = Path(os.fsdecode(path))
    if os.path.lexists(path) and (plain.is_symlink() or not plain.is_file()):
        raise OSError(f"{plain} is no regular file")
    return plain


def _remove(path: bytes, other: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _link(path: bytes, other: bytes) -> None:
    os.link(path, other, follow_symlinks=False)


def _touch(path: bytes, other: bytes) -> None:
    os.utime(path, ns=(5, 1_234_567_890), follow_symlinks=False)


def _chmod(path: bytes, other: bytes) -> None:
    if not os.path.islink(path):
        os.chmod(path, 0o3701)


ACTIONS: dict[str, Callable[[bytes, bytes], object]] = {
    "write": _write,
    "append": _append,
    "remove": _remove,
    "mkdir": lambda path, other: os.mkdir(path),
    "rename": os.rename,
    "link": _link,
    "symlink": lambda path, other: os.symlink(os.path.basename(other), path),
    "touch": _touch,
    "chmod": _chmod,
    "chown": lambda path, other: os.chown(path, 1000, 65534, follow_symlinks=False),
    "setxattr": lambda path, other: os.setxattr(path, xattr(b"trusted.note"), b"set", follow_symlinks=False),
    "mkfifo": lambda path, other: os.mkfifo(path),
}

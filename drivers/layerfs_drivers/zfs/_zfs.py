"""The one door to the ``zfs`` tool: builds its arguments, takes its output apart, types its complaints.

Only what both OpenZFS and zfs-fuse (pool version 23, of 2010) understand is used. One dataset is named in
each call, and lists go one level below it: a list over a pool takes seconds where there are many datasets.
The tool complains in words alone, in English whatever the locale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerfs.errors import (
    CommandFailed,
    InvalidOption,
    LayerExists,
    LayerfsError,
    LayerInUse,
    LayerNotFound,
    MountBusy,
    NoSpace,
    NotSupported,
    PermissionRefused,
)
from layerfs.linux import zfsfuse
from layerfs.linux.command import LONGEST, run

LONGEST_NAME = 255
"""Characters in the name of a dataset or snapshot, ``POOL/NAME@SNAPSHOT`` (ZFS_MAX_DATASET_NAME_LEN)."""

INSTALL = "install OpenZFS (Debian and Ubuntu: apt-get install zfsutils-linux), or zfs-fuse"
_START = "load the kernel module (modprobe zfs), or start zfs-fuse"

_COMPLAINTS: tuple[tuple[str, type[LayerfsError]], ...] = (
    ("dataset does not exist", LayerNotFound),
    ("no such pool", LayerNotFound),
    ("could not find any snapshots to destroy", LayerNotFound),
    ("dataset already exists", LayerExists),
    ("dataset is busy", MountBusy),
    ("has children", LayerInUse),
    ("has dependent clones", LayerInUse),
    ("out of space", NoSpace),
    ("permission denied", PermissionRefused),
    ("less than current used", InvalidOption),
    ("name is too long", NotSupported),
)
"""What the tool says, in lower case, and what that is (libzfs_util.c, libzfs_dataset.c of both)."""

_NOBODY_ANSWERS = ("modules are not loaded", "modules cannot be auto-loaded", "/dev/zfs", "daemon is running")


def create(dataset: str, properties: Mapping[str, str]) -> None:
    """Make a file system. :class:`LayerExists`, :class:`NoSpace`, :class:`PermissionRefused`."""
    _zfs("create", *_options(properties), dataset, doing=f"create dataset {dataset}")


def clone(snapshot: str, dataset: str, properties: Mapping[str, str]) -> None:
    """Make a file system that looks like ``snapshot``. :class:`LayerExists`; :class:`LayerNotFound` when the
    snapshot is not there."""
    _zfs("clone", *_options(properties), snapshot, dataset, doing=f"create dataset {dataset}")


def snapshot(name: str) -> None:
    """:class:`LayerExists`; :class:`LayerNotFound` when its dataset is not there."""
    _zfs("snapshot", name, doing=f"create snapshot {name}")


def destroy(name: str) -> None:
    """Remove one file system or snapshot and nothing else: :class:`LayerInUse` when it has snapshots,
    children or clones. :class:`MountBusy` while it is mounted somewhere, :class:`LayerNotFound`."""
    _zfs("destroy", name, doing=f"remove {name}")


def destroy_with_last_clone(snapshot: str) -> None:
    """Remove a snapshot now or, when it has clones, together with the last of them."""
    _zfs("destroy", "-d", snapshot, doing=f"remove snapshot {snapshot}")


def set_property(dataset: str, name: str, value: str) -> None:
    """Set a property. All that was written in the pool before is on the disk when this returns: a property
    is set by a sync task, which waits for its transaction group (``dsl_sync_task``)."""
    _zfs("set", f"{name}={value}", dataset, doing=f"set {name} of {dataset}")


def properties(dataset: str, *names: str, longest: float = LONGEST) -> dict[str, str]:
    """Properties of one dataset, sizes in bytes; ``-`` for one that it has not. :class:`LayerNotFound`."""
    words = ("get", "-H", "-p", "-o", "property,value", ",".join(names), dataset)
    rows = _rows(_zfs(*words, doing=f"look at dataset {dataset}", longest=longest))
    return {row[0]: row[1] for row in rows}


def children(dataset: str, name: str) -> list[tuple[str, str]]:
    """The file systems directly below ``dataset``, each with its property ``name``."""
    words = ("list", "-H", "-d", "1", "-t", "filesystem", "-o", f"name,{name}", dataset)
    rows = _rows(_zfs(*words, doing=f"list the datasets below {dataset}"))
    return [(child, value) for child, value in rows if child != dataset]


def snapshots(dataset: str) -> list[str]:
    """Those of the file systems directly below ``dataset``, and its own."""
    words = ("list", "-H", "-d", "2", "-t", "snapshot", "-o", "name", dataset)
    return [name for (name,) in _rows(_zfs(*words, doing=f"list the snapshots below {dataset}"))]


def contents(dataset: str) -> list[str]:
    """The names of all datasets and snapshots below ``dataset``. :class:`LayerNotFound`."""
    words = ("list", "-H", "-r", "-t", "filesystem,snapshot,volume", "-o", "name", dataset)
    rows = _rows(_zfs(*words, doing=f"list what dataset {dataset} holds"))
    return [name for (name,) in rows if name != dataset]


def _options(properties: Mapping[str, str]) -> list[str]:
    return [word for name, value in properties.items() for word in ("-o", f"{name}={value}")]


def _rows(output: str) -> list[list[str]]:
    return [line.split("\t") for line in output.splitlines()]


def _zfs(*words: str, doing: str, longest: float = LONGEST) -> str:
    try:
        with zfsfuse.turn() as lock:
            keep = () if lock is None else (lock,)
            return run(("zfs", *words), doing=doing, hint=INSTALL, longest=longest, keep=keep)
    except CommandFailed as error:
        raise _typed(error, words, doing) from error


def _typed(error: CommandFailed, words: Sequence[str], doing: str) -> LayerfsError:
    said = error.stderr.strip()
    if any(text in said for text in _NOBODY_ANSWERS):
        return NotSupported(f"cannot {doing}: nobody serves ZFS here ({_first_line(said)})", hint=_START)
    for text, kind in _COMPLAINTS:
        if text in said.lower():
            return kind(f"cannot {doing}: {_first_line(said)}")
    return error


def _first_line(text: str) -> str:
    return text.partition("\n")[0]

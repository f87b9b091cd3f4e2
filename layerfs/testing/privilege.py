"""What may stand in the layers of a test: all there is for root of the host, less in a user namespace.

There the kernel makes no device nodes, keeps ``trusted.*`` attributes to itself, and knows only the ids that
are mapped (user_namespaces(7)). Tests of layers go on with stand-ins, so that each case is run that can be::

    make_layer(driver, BASE, fit([device(b"null", 1, 3)]))      # a FIFO in a user namespace
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import attrs

from layerfs.archive.entry import Entry, EntryType
from layerfs.linux.userns import in_user_namespace
from layerfs.testing.model import Item

ENOUGH_IDS = 65_536
"""What a range of ids for containers usually holds."""

_DEVICES = (EntryType.CHARDEV, EntryType.BLOCKDEV)
_WITH_USER_XATTRS = (EntryType.FILE, EntryType.DIRECTORY)  # xattr(7)
_HOSTS, _USERS = b"trusted.", b"user."


@functools.cache
def is_root_of_host() -> bool:
    return os.geteuid() == 0 and not in_user_namespace()


@functools.cache
def mapped_ids() -> int:
    """How many ids are known here, counted from 0, of users and of groups."""
    return min(_mapped(Path("/proc/self/uid_map")), _mapped(Path("/proc/self/gid_map")))


def _mapped(table: Path) -> int:
    known = 0
    for inside, _, count in sorted(tuple(map(int, line.split())) for line in table.read_text().splitlines()):
        if inside == known:
            known += count
    return known


def xattr(name: bytes) -> bytes:
    """``name``, or in its place one that can be set here upon files and directories."""
    if name.startswith(_HOSTS) and not is_root_of_host():
        return _USERS + name.removeprefix(_HOSTS)
    return name


def fit(items: Iterable[Item]) -> list[Item]:
    """``items``, with stand-ins for what cannot be made here: a FIFO for a device, ``user.*`` for
    ``trusted.*``, other ids."""
    if is_root_of_host():
        return list(items)
    return [(_fit(entry), content) for entry, content in items]


def _fit(entry: Entry) -> Entry:
    kind = EntryType.FIFO if entry.type in _DEVICES else entry.type
    xattrs = {
        xattr(name): value
        for name, value in entry.xattrs.items()
        if kind in _WITH_USER_XATTRS or not xattr(name).startswith(_USERS)
    }
    return attrs.evolve(
        entry,
        type=kind,
        device=entry.device if kind is entry.type else (0, 0),
        uid=entry.uid % mapped_ids(),
        gid=entry.gid % mapped_ids(),
        xattrs=xattrs,
    )

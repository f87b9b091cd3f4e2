"""The options of ``layerfs-fuse``, as ``fuse-overlayfs`` has them (``fuse-overlayfs.1.md``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerfs.errors import InvalidOption
from layerfs.fuse.owners import Ids, parse_ranges
from layerfs.linux.overlaymount import split_lower
from layerfs.union.owners import PRIVILEGED, USER
from layerfs.values import frozen

_FOR_THE_KERNEL = frozenset({"nodev", "noexec", "nosuid"})
_OWNERS = {"0": None, "1": PRIVILEGED, "2": USER}
_SECURITY = ("context", "fscontext", "defcontext", "rootcontext")


@frozen(kw_only=True)
class Options:
    """What to mount, and how."""

    lower: tuple[Path, ...]
    """Topmost first."""
    upper: Path | None = None
    """None: read-only."""
    work: Path | None = None
    volatile: bool = False
    """Nothing is ever flushed to the disk."""
    whiteouts: str = "fuse-overlayfs"
    """Whose marks the directories have: ``overlay``, ``aufs``, or overlay's with those of fuse-overlayfs."""
    owners: bytes | None = None
    """The xattr in which owners and modes are kept; None: they are those of the files."""
    user_xattrs: bool | None = None
    """Marks in ``user.overlay.*``; None: where ``trusted.*`` cannot be set."""
    allow_other: bool | None = None
    """None: if this process may give that."""
    uids: Ids = Ids()
    gids: Ids = Ids()
    kernel: tuple[str, ...] = ()
    """Options of the mount itself."""
    log: Path | None = None
    """Where the server writes what goes wrong; None: nowhere, unless it stays in the foreground."""


def split_options(text: str) -> list[str]:
    """Single options. A comma in a value has a backslash before it, or the value stands in quotes."""
    options = [""]
    for token in re.findall(r'\\.|(?<==)"[^"]*"(?=,|$)|,|[^\\",]+|.', text, re.DOTALL):
        if token == ",":
            options.append("")
        else:
            options[-1] += "," if token == "\\," else token
    return [option for option in options if option]


def join_options(options: Sequence[str]) -> str:
    """The reverse, for options as a driver describes them."""
    return ",".join(
        option if option.startswith(_SECURITY) else option.replace(",", "\\,") for option in options
    )


def parse(options: Sequence[str]) -> Options:
    """:class:`InvalidOption` for what has no meaning.
    Options that are not known are passed over, as mount(8) hands on many (``rw``, ``dev``, ``_netdev``)."""
    given = dict(_pairs(options))
    if "lowerdir" not in given:
        raise InvalidOption("no lowerdir is given", hint="-o lowerdir=TOP:BELOW,upperdir=UPPER,workdir=WORK")
    # Whatever has an upper directory can be looked at without one.
    upper, work = _directory(given, "upperdir"), _directory(given, "workdir")
    lower = tuple(_absolute(path) for path in split_lower(given["lowerdir"]) if path)
    if upper is not None and work is None:
        raise InvalidOption("an upperdir needs a workdir on the same file system", hint="workdir=WORK")
    if "ro" in given and upper is not None:
        lower, upper = (upper, *lower), None
    owners = given.get("xattr_permissions", "0")
    if owners not in _OWNERS:
        raise InvalidOption(f"xattr_permissions={owners}: not known", hint="0, 1 or 2")
    whiteouts = given.get("whiteouts", "fuse-overlayfs")
    if whiteouts not in ("overlay", "aufs", "fuse-overlayfs"):
        raise InvalidOption(f"whiteouts={whiteouts}: not known", hint="overlay, aufs or fuse-overlayfs")
    read_only = ("ro",) if upper is None else ()
    return Options(
        lower=lower,
        upper=upper,
        work=work if upper is not None else None,
        volatile="volatile" in given or given.get("fsync") == "0",
        whiteouts=whiteouts,
        owners=_OWNERS[owners],
        user_xattrs=True if "userxattr" in given else None,
        allow_other=True if "allow_other" in given else None,
        uids=_ids(given, "uid"),
        gids=_ids(given, "gid"),
        kernel=(*read_only, *_kernel(given)),
        log=_directory(given, "log"),
    )


def _pairs(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option in options:
        name, _, value = option.partition("=")
        yield name, value


def _directory(given: dict[str, str], name: str) -> Path | None:
    value = given.get(name)
    if not value:
        return None
    return _absolute(re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL))


def _absolute(path: str) -> Path:
    # The server does not stay in the directory that it is started in.
    return Path(os.path.abspath(path))


def _ids(given: dict[str, str], kind: str) -> Ids:
    mapping = given.get(f"{kind}mapping")
    ranges = () if mapping is None else parse_ranges(f"{kind}mapping", mapping)
    squashed = given.get(f"squash_to_{kind}")
    if squashed is not None and not squashed.isdecimal():
        raise InvalidOption(f"squash_to_{kind}={squashed}: not a number")
    if squashed is not None:
        return Ids(ranges, int(squashed))
    return Ids(ranges, 0 if "squash_to_root" in given else None)


def _kernel(given: dict[str, str]) -> Iterator[str]:
    for name, value in given.items():
        if name in _FOR_THE_KERNEL:
            yield name
        elif name in _SECURITY:
            yield f"{name}={value}"

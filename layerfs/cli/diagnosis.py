"""What ``doctor`` finds: facts about this host and a store, and what each means."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from layerfs.cli import output
from layerfs.ids import GraphID
from layerfs.linux.mountinfo import holders, mounts_below
from layerfs.linux.userns import has_capability

if TYPE_CHECKING:
    from layerfs.errors import LayerfsError
    from layerfs.registry import Probe
    from layerfs.store.store import Store

LEAST_PART = 0.05
LEAST_BYTES = 10 << 30
"""Less free space than this part of a file system *and* than so much is too little."""

_ID = re.compile(r"[0-9a-f]{64}(-init)?")
"""What the store makes up for the drivers."""


class Level(enum.Enum):
    PROBLEM = "problem"
    """Something does not work, or soon will not."""
    NOTE = "note"
    """It works, but could do better, or is good to know."""


@attrs.frozen
class Finding:
    """One thing about this host or store."""

    level: Level
    about: str
    what: str
    mend: str = ""


def of_privilege() -> Iterator[Finding]:
    """Mounting is what all drivers but FUSE ones need a right for."""
    if not has_capability("CAP_SYS_ADMIN"):
        yield Finding(
            Level.PROBLEM,
            "privilege",
            f"no right to mount: uid {os.geteuid()} lacks CAP_SYS_ADMIN",
            "run as root, or inside: unshare --map-auto --map-root-user --mount",
        )


def of_drivers(probes: Sequence[Probe]) -> Iterator[Finding]:
    """Drivers that cannot work here; a problem only when none can."""
    if not any(probe.reason is None for probe in probes):
        yield Finding(Level.PROBLEM, "drivers", "no driver works here", "the mend of each is told below")
    for probe in probes:
        if probe.reason is not None:
            yield Finding(
                Level.NOTE, "drivers", f"{probe.info.name} cannot work here: {probe.reason}", probe.hint
            )


def no_store(root: Path) -> Finding:
    return Finding(Level.NOTE, "store", f"there is no store at {root} yet", "'layerfs load' makes one")


def of_error(error: LayerfsError) -> Finding:
    """What kept the store from being looked at."""
    return Finding(Level.PROBLEM, "store", str(error), error.hint)


def of_driver(store: Store) -> Iterator[Finding]:
    """What the store's driver cannot do, or does slowly, here."""
    driver = store.driver
    if not driver.capabilities.native_diff:
        because = driver.status().get("native diff", "")
        yield Finding(
            Level.NOTE,
            "diff",
            f"driver {driver.name} compares whole trees here: 'changes', 'diff' and 'commit' take as long "
            f"as the image is big{because and f' ({because})'}",
        )
    wanted = {"size": driver.capabilities.size_limit, "inodes": driver.capabilities.inode_limit}
    missing = [name for name, there in wanted.items() if not there]
    if missing:
        because = driver.capabilities.no_limits_because or f"driver {driver.name} has none"
        yield Finding(Level.NOTE, "limits", f"no limit on {' or '.join(missing)} of a container: {because}")


def of_store(store: Store) -> Iterator[Finding]:
    """Where database, driver and records disagree."""
    for problem in store.check():
        if problem.kind == "leaked-mount":
            continue  # told with the mounts
        yield Finding(
            Level.PROBLEM, "store", f"{problem.kind}: {problem.what}: {problem.detail}", problem.hint
        )


def of_mounts(store: Store, runroot: Path) -> Iterator[Finding]:
    """Mounts and their counts, and who holds them."""
    owners = _owners(store)
    mounted = _mounted(runroot, owners)
    for id, place in sorted(mounted.items()):
        owner = owners.get(id)
        count = store.driver.mounted(GraphID(id))
        if not count:
            what = owner or "a layer that the store does not know"
            yield Finding(
                Level.PROBLEM,
                "mounts",
                f"{what} is mounted at {place}, but nobody counts as its user",
                f"umount {place}",
            )
        elif owner is None:
            yield Finding(Level.NOTE, "mounts", f"a layer of another store is mounted at {place}")
        else:
            yield Finding(Level.NOTE, "mounts", _in_use(owner, place, count))


def _mounted(runroot: Path, known: Collection[str]) -> dict[str, Path]:
    """Where the drivers mounted what, by id. What a runtime mounts inside a container is left out."""
    places: dict[str, Path] = {}
    for entry in mounts_below(runroot):
        place = Path(os.fsdecode(entry.mount_point))
        ids = [
            part
            for part in place.relative_to(runroot.resolve()).parts
            if part in known or _ID.fullmatch(part)
        ]
        if ids and ids[0] == place.name:
            places[place.name] = place
    return places


def _in_use(owner: str, place: Path, count: int) -> str:
    times = "once" if count == 1 else f"{count} times"
    held = ", ".join(str(holder) for holder in holders(place)) or "no process that can be seen"
    return f"{owner} is mounted {times} at {place}, held by {held}"


def _owners(store: Store) -> dict[str, str]:
    """What each id of the driver belongs to, as a person would name it."""
    owners: dict[str, str] = {
        layer.cache_id: f"layer {output.short(layer.chain_id)}" for layer in store.layers()
    }
    for info in store.rw_layers():
        owners[info.mount_id] = f"container {info.name}"
        if info.init_id is not None:
            owners[info.init_id] = f"the init layer of container {info.name}"
    return owners


def of_space(root: Path) -> Iterator[Finding]:
    """Whether the file system where ``root`` is, or would be, is about to be full."""
    while not root.exists():
        root = root.parent
    found = os.statvfs(root)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    if free < total * LEAST_PART and free < LEAST_BYTES:
        yield Finding(
            Level.PROBLEM,
            "space",
            f"only {output.size(free)} of {output.size(total)} free where {root} lies",
            "'layerfs rmi' what is not needed, then 'layerfs prune'; 'layerfs du' tells what takes the space",
        )
    if found.f_files and found.f_favail < found.f_files * LEAST_PART:
        yield Finding(
            Level.PROBLEM,
            "space",
            f"only {found.f_favail} of {found.f_files} inodes free where {root} lies",
            "'layerfs rmi' what is not needed, then 'layerfs prune'",
        )

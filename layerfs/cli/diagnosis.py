"""What ``doctor`` finds: facts about this host and a store, and what each means."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from layerfs.cli import output
from layerfs.linux.mountinfo import holders, mounts_below
from layerfs.linux.userns import has_capability

if TYPE_CHECKING:
    from layerfs.errors import LayerfsError
    from layerfs.mountcount import MountCount
    from layerfs.registry import Probe
    from layerfs.store.store import Store

LEAST_FREE = 0.05
"""Less of a file system's space or inodes than this part is too little."""


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
        yield Finding(
            Level.NOTE,
            "diff",
            f"driver {driver.name} compares whole trees here: 'changes', 'diff' and 'commit' take as long "
            "as the image is big",
        )
    wanted = {"size": driver.capabilities.size_limit, "inodes": driver.capabilities.inode_limit}
    missing = [name for name, there in wanted.items() if not there]
    if missing:
        yield Finding(
            Level.NOTE,
            "limits",
            f"no limit on {' or '.join(missing)} of a container: {driver.capabilities.no_limits_because}",
        )


def of_store(store: Store) -> Iterator[Finding]:
    """Where database, driver and records disagree."""
    for problem in store.check():
        yield Finding(
            Level.PROBLEM, "store", f"{problem.kind}: {problem.what}: {problem.detail}", problem.hint
        )


def of_mounts(store: Store, runroot: Path, counts: MountCount) -> Iterator[Finding]:
    """Mounts and their counts, and who holds them."""
    owners = _owners(store)
    counted = set(counts.mounted_ids())
    mounted: dict[str, Path] = {}
    for entry in mounts_below(runroot):
        place = Path(os.fsdecode(entry.mount_point))
        mounted[place.name] = place
    for id, place in sorted(mounted.items()):
        owner = owners.get(id)
        if owner is None:
            yield Finding(
                Level.PROBLEM,
                "mounts",
                f"{place} is mounted, but the store knows no such layer",
                f"umount {place}",
            )
        elif id not in counted:
            yield Finding(
                Level.PROBLEM,
                "mounts",
                f"{owner} is mounted at {place}, but nobody counts as its user",
                f"umount {place}",
            )
        else:
            yield Finding(Level.NOTE, "mounts", _in_use(owner, place, counts.count(id)))


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
    if found.f_bavail < found.f_blocks * LEAST_FREE:
        free = output.size(found.f_bavail * found.f_frsize)
        yield Finding(
            Level.PROBLEM,
            "space",
            f"only {free} of {output.size(found.f_blocks * found.f_frsize)} free where {root} lies",
            "'layerfs rmi' what is not needed, then 'layerfs prune'; 'layerfs du' tells what takes the space",
        )
    if found.f_files and found.f_favail < found.f_files * LEAST_FREE:
        yield Finding(
            Level.PROBLEM,
            "space",
            f"only {found.f_favail} of {found.f_files} inodes free where {root} lies",
            "'layerfs rmi' what is not needed, then 'layerfs prune'",
        )

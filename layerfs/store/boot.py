"""The first opening after a boot: what a power cut may have taken is verified before anyone can use it.

A layer that is ready and not durable may be on the disk in part: files without content above all. Whether
the last boot ended cleanly is not asked, for there are few such layers: loading an image makes all of its
layers durable.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from layerfs.errors import LayerfsError, StoreDamaged, translated
from layerfs.ids import ChainID
from layerfs.store import damaged, references, rows
from layerfs.store.core import Core
from layerfs.store.records import LayerInfo

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Made up by the kernel at each boot: random(4)."""


def boot_id() -> str:
    """Of this boot."""
    with translated("look which boot this is"):
        return _BOOT_ID.read_text().strip()


def verify_after_boot(core: Core) -> None:
    """Once a boot: verify every layer that is ready and not durable. One that is damaged is dropped when
    nothing needs it, else noted as damaged. Whoever opens the store meanwhile waits for that.

    A read-only store can note nothing: :class:`StoreDamaged` when one of its layers is damaged.
    """
    now = boot_id()
    if _noted(core) == now:
        return
    if core.read_only:
        for layer, detail in _damage(core):
            raise StoreDamaged(
                f"layer {layer.chain_id} did not outlive the last boot whole: {detail}",
                hint="open the store once where it can be written",
            )
        return
    from layerfs.linux.flock import FileLock
    from layerfs.store.durability import flush

    with translated(f"verify the store in {core.root}"), FileLock(core.root / "locks" / "boot") as lock:
        if _noted(core) == now:
            return
        for layer, detail in reversed(_damage(core, lock.touch)):
            _drop_or_mark(core, layer, detail)
        flush(core)
        with core.db.transaction(sync=True):
            core.db.execute("UPDATE store SET boot_id = ?", now)


def _noted(core: Core) -> str:
    row = core.db.row("SELECT boot_id FROM store")
    return "" if row is None else str(row[0])


def _damage(core: Core, told: Callable[[], None] = lambda: None) -> list[tuple[LayerInfo, str]]:
    """What is damaged, and the first thing that is wrong with it; parents before children. ``told`` before
    each layer."""
    from layerfs.store.verify import examine

    found = []
    suspect: set[ChainID] = set()
    for layer in rows.all_layers(core.db):
        below = layer.parent in suspect
        if below:
            suspect.add(layer.chain_id)
        if layer.durable:
            continue
        told()
        examined = examine(core, layer, tree=not below)
        if examined.damage:
            suspect.add(layer.chain_id)
            found.append((layer, examined.damage[0].detail))
    return found


def _drop_or_mark(core: Core, layer: LayerInfo, detail: str) -> None:
    from layerfs.store.removal import remove_layer

    me = core.owner.id
    with core.db.transaction(sync=True):
        unused = layer.cache_id in references.unreferenced(core.db)
        if unused:
            core.db.execute(
                "UPDATE layers SET state = 'removing', owner = ? WHERE cache_id = ?", me, layer.cache_id
            )
    if not unused:
        damaged.mark(core.db, layer.cache_id, detail)
        return
    try:
        remove_layer(core, layer.cache_id)
    except LayerfsError:
        return  # no layer any more; a prune tries again

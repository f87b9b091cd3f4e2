"""The one road in: a tar becomes a layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import attrs

from layerfs.archive.compression import decompressed
from layerfs.archive.limits import UNLIMITED, Limits
from layerfs.archive.split import Recorder
from layerfs.archive.streams import CHUNK, pulled
from layerfs.errors import DigestMismatch, LayerfsError, translated
from layerfs.ids import CacheID, ChainID, DiffID, chain_id, new_cache_id
from layerfs.linux.flock import FileLock
from layerfs.store import damaged, references, rows
from layerfs.store.announce import announce_layer
from layerfs.store.core import Core
from layerfs.store.depth import refuse_deep
from layerfs.store.layer import Layer, take
from layerfs.store.records import LayerInfo
from layerfs.store.removal import discard_layer
from layerfs.store.reservation import take as take_reserved


def register(
    core: Core,
    tar: BinaryIO,
    parent: ChainID | None,
    expected: DiffID | None,
    *,
    compressed: bool = True,
    limits: Limits = UNLIMITED,
) -> Layer:
    """See :meth:`Store.register`. ``compressed``: look at ``tar`` for compression; not for one of ours, which
    might begin with a file name that looks like it."""
    below = None if parent is None else rows.layer(core.db, parent)
    depth = 1 if below is None else below.depth + 1
    refuse_deep(core.driver, depth, f"layer {expected}" if expected else "the layer")
    if expected is None:
        return _Registration(core, below, expected, limits).run(tar, compressed=compressed)
    chain = chain_id(parent, expected)
    damaged.refuse(core.db, chain)
    known = take(core, chain)
    if known is not None:
        return known
    with _alone(core, chain):
        known = take(core, chain)
        if known is not None:
            return known
        return _Registration(core, below, expected, limits).run(tar, compressed=compressed)


@contextlib.contextmanager
def _alone(core: Core, chain: ChainID) -> Iterator[None]:
    """Of all that register one chainID at once, one works; the rest wait for it as long as it goes on."""
    _ = core.owner.id  # so that whoever finds us dead looks for the lock as well
    lock = FileLock(core.chain_lock(chain), unlink=True)
    with contextlib.ExitStack() as held:
        with translated(f"wait for others that register {chain}"):
            held.enter_context(lock)
            held.enter_context(lock.shown())
        yield


def told(stream: BinaryIO, tell: Callable[[int], None]) -> BinaryIO:
    """A caller's stream; ``tell`` hears after each read how many bytes it was so far. Closing it leaves the
    caller's open."""

    def pieces() -> Iterator[bytes]:
        done = 0
        while data := stream.read(CHUNK):
            done += len(data)
            tell(done)
            yield data

    return pulled(pieces())


@attrs.frozen
class Filled:
    """What a layer that was filled turned out to be."""

    diff_id: DiffID
    size: int
    tar_size: int


def fill(
    core: Core, cache_id: CacheID, parent: CacheID | None, plain: BinaryIO, limits: Limits = UNLIMITED
) -> Filled:
    """Make the driver's layer, and its record, of an uncompressed tar. ``OSError`` for the record."""
    with core.record_path(cache_id).open("xb") as record:
        core.driver.create(cache_id, parent)
        with Recorder(plain, record, scratch=str(core.root / "tmp"), limits=limits) as recorder:
            size = core.driver.apply_diff(cache_id, parent, recorder, displaced=recorder.displaced)
            recorded = recorder.finish()
    return Filled(recorded.diff_id, size, recorded.tar_size)


class _Registration:
    """One layer on its way from ``creating`` to ``ready``, or away again."""

    def __init__(self, core: Core, below: LayerInfo | None, expected: DiffID | None, limits: Limits) -> None:
        self._limits = limits
        self._core = core
        self._below = below
        self._expected = expected
        self._cache_id: CacheID

    def run(self, tar: BinaryIO, *, compressed: bool) -> Layer:
        self._announce()
        try:
            filled = self._fill(tar, compressed=compressed)
            if self._expected not in (None, filled.diff_id):
                raise DigestMismatch("layer tar", expected=str(self._expected), actual=filled.diff_id)
            layer = self._settle(filled)
        except BaseException:
            self._discard()
            raise
        if layer.info.cache_id != self._cache_id:
            self._discard()
        return layer

    def _announce(self) -> None:
        """Say what is about to be made, so that it is found if we die."""
        core = self._core
        owner = core.owner.id
        reserved = take_reserved(core)
        self._cache_id = reserved or new_cache_id()
        try:
            with core.db.transaction(sync=reserved is None):
                self._below = self._insert(owner)
        except BaseException:
            if reserved is not None:
                core.reserved.appendleft(reserved)
            raise

    def _insert(self, owner: str) -> LayerInfo | None:
        core, below = self._core, self._below
        if below is not None:
            below = rows.layer(core.db, below.chain_id)
            damaged.refuse(core.db, below.chain_id)
        parent, depth = (below.cache_id, below.depth) if below else (None, 0)
        announce_layer(core.db, owner, self._cache_id, parent, depth + 1)
        return below

    def _fill(self, tar: BinaryIO, *, compressed: bool) -> Filled:
        parent = self._below.cache_id if self._below else None
        with translated("register a layer"):
            plain = pulled(decompressed(tar)) if compressed else tar
            filled = fill(self._core, self._cache_id, parent, plain, self._limits)
            # What stands at the end of the stream may be a check that its reader makes there.
            while tar.read(1 << 16):
                pass
        return filled

    def _settle(self, filled: Filled) -> Layer:
        """Make it ready, or yield to the same layer that came first. Either is held for the caller."""
        db = self._core.db
        owner = self._core.owner.id
        chain = chain_id(self._below.chain_id if self._below else None, filled.diff_id)
        with db.transaction():
            info = rows.find_layer(db, chain)
            if info is None:
                db.execute(
                    "UPDATE layers SET state = 'ready', owner = NULL, chain_id = ?, diff_id = ?, size = ?,"
                    " tar_size = ? WHERE cache_id = ?",
                    chain,
                    filled.diff_id,
                    filled.size,
                    filled.tar_size,
                    self._cache_id,
                )
                info = rows.layer(db, chain)
            return Layer(self._core, info, references.take(db, owner, info.cache_id))

    def _discard(self) -> None:
        """Leave nothing. What cannot be removed now is left to a prune, or to whoever finds us dead."""
        with contextlib.suppress(LayerfsError):
            discard_layer(self._core, self._cache_id)

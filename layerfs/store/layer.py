"""A read-only layer in the hand of a caller."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from layerfs.driver import Mount, Usage
from layerfs.errors import StoreDamaged, translated
from layerfs.ids import ChainID, DiffID
from layerfs.store import damaged, references, rows
from layerfs.store.core import Core
from layerfs.store.records import LayerInfo


class Layer:
    """A layer that no prune removes while this process lives, until :meth:`release`.

    As a context manager it is released at the end of the block. In a store that is open read-only
    nothing is noted down: there is nobody to keep it from.
    """

    def __init__(self, core: Core, info: LayerInfo, reference: int | None) -> None:
        self._core = core
        self._reference = reference
        self.info = info

    @property
    def chain_id(self) -> ChainID:
        return self.info.chain_id

    @property
    def diff_id(self) -> DiffID:
        return self.info.diff_id

    @property
    def parent(self) -> ChainID | None:
        return self.info.parent

    @property
    def size(self) -> int:
        """Bytes of file content that the layer itself holds."""
        return self.info.size

    @property
    def tar_size(self) -> int:
        """Bytes that :meth:`tar` gives."""
        return self.info.tar_size

    @property
    def depth(self) -> int:
        """1 for a layer upon nothing."""
        return self.info.depth

    def tar(self) -> BinaryIO:
        """The exact bytes that were registered, uncompressed. The caller closes the stream.

        Reading raises :class:`StoreDamaged` naming the file that is not what it was, or
        :class:`DigestMismatch` at the end, before a reader has seen the end of the stream.
        """
        from layerfs.archive.split import replay

        with contextlib.ExitStack() as held, translated(f"read layer {self.chain_id}"):
            try:
                record = held.enter_context(self._core.record_path(self.info.cache_id).open("rb"))
            except FileNotFoundError:
                raise StoreDamaged(
                    f"layer {self.chain_id}: the record of its tar is missing", hint="load its image again"
                ) from None
            open_file = held.enter_context(self._core.driver.files(self.info.cache_id))
            stream = held.enter_context(replay(record, open_file, self.diff_id))
            return io.BufferedReader(_Held(stream, held.pop_all()))

    def mount(self, *, options: Collection[str] = ()) -> Path:
        """The root file system of the layer and all below it, read-only. Counted: each is given back by an
        :meth:`umount`. ``options`` as for :meth:`RWLayer.mount`."""
        damaged.refuse(self._core.db, self.chain_id)
        with translated(f"mount layer {self.chain_id}"):
            if options:
                from layerfs.store.restrictions import restricted

                return restricted(self._get, self.umount, options)
            return self._get()

    def _get(self) -> Path:
        return self._core.driver.get(self.info.cache_id, read_only=True)

    def umount(self) -> None:
        """Give one :meth:`mount` back."""
        with translated(f"unmount layer {self.chain_id}"):
            self._core.driver.put(self.info.cache_id)

    def mounts(self, *, options: Collection[str] = ()) -> Sequence[Mount]:
        """The mounts that :meth:`mount` would make, in order; makes none."""
        with translated(f"describe the mounts of layer {self.chain_id}"):
            mounts = self._core.driver.mounts(self.info.cache_id, read_only=True)
        if options:
            from layerfs.store.restrictions import described

            return described(mounts, options)
        return mounts

    @contextlib.contextmanager
    def mounted(self, *, options: Collection[str] = ()) -> Iterator[Path]:
        """Mounted for the block."""
        root = self.mount(options=options)
        try:
            yield root
        finally:
            self.umount()

    def usage(self) -> Usage:
        """What the layer itself takes on the disk."""
        with translated(f"measure layer {self.chain_id}"):
            return self._core.driver.usage(self.info.cache_id)

    def release(self) -> None:
        """Drop the reference; a second time does nothing."""
        reference, self._reference = self._reference, None
        if reference is not None:
            references.drop(self._core.db, reference)

    def __enter__(self) -> Layer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Layer {self.chain_id}>"


def take(core: Core, chain: ChainID) -> Layer | None:
    """A handle of the layer, if it is there."""
    if rows.find_layer(core.db, chain) is None:
        return None
    owner = core.owner.id
    with core.db.transaction():
        info = rows.find_layer(core.db, chain)
        if info is None:
            return None
        return Layer(core, info, references.take(core.db, owner, info.cache_id))


class _Held(io.RawIOBase):
    """A stream that lets go of what it reads from when it is closed."""

    def __init__(self, stream: BinaryIO, held: contextlib.ExitStack) -> None:
        super().__init__()
        self._stream = stream
        self._held = held

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        target = memoryview(buffer)
        data = self._stream.read(len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._held.close()
        super().close()

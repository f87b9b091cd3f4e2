"""What the store answers with: its rows as values."""

from __future__ import annotations

import attrs

from layerfs.driver import CreateOptions
from layerfs.errors import LayerfsError
from layerfs.ids import CacheID, ChainID, DiffID, Digest, MountID


@attrs.frozen(kw_only=True)
class LayerInfo:
    """A read-only layer."""

    chain_id: ChainID
    diff_id: DiffID
    parent: ChainID | None
    cache_id: CacheID
    size: int
    """Bytes of file content that the layer itself holds."""
    tar_size: int
    """Bytes of its uncompressed tar."""
    depth: int
    """1 for a layer upon nothing."""
    created_ns: int
    durable: bool
    """Its bytes were flushed to the disk before the store said so."""


@attrs.frozen(kw_only=True)
class RWLayerInfo:
    """A container's writable layer."""

    name: str
    mount_id: MountID
    init_id: MountID | None
    """The init layer between ``parent`` and the writable layer."""
    parent: ChainID | None
    image: str | None
    """What the creator said it was made from; the store gives it no meaning."""
    options: CreateOptions
    created_ns: int


@attrs.frozen
class BlobInfo:
    """A layer as it was shipped."""

    digest: Digest
    size: int
    media_type: str


@attrs.frozen(kw_only=True)
class ImageRecord:
    """An image: what it says of itself, byte for byte, and the layers it stands upon."""

    id: Digest
    """Digest of ``config``."""
    config: bytes
    layers: tuple[ChainID, ...]
    """The whole chain, first layer first."""
    manifest: bytes | None = None
    """As it was shipped; None when it came without one."""
    blobs: tuple[BlobInfo | None, ...] = ()
    """For each layer how it was shipped, None where that is not known; empty: not known for any."""


@attrs.frozen(kw_only=True)
class ImageInfo:
    """An image in a list."""

    id: Digest
    names: tuple[str, ...]
    layers: tuple[ChainID, ...]
    size: int
    """Bytes of file content of all its layers, those it shares with other images too."""
    created_ns: int
    """When it came into this store."""


@attrs.frozen
class Pruned:
    """What :meth:`Store.prune` removed, and what it could not."""

    layers: tuple[LayerInfo, ...] = ()
    errors: tuple[LayerfsError, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of file content freed."""
        return sum(layer.size for layer in self.layers)

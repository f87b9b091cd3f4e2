"""What the store answers with: its rows as values."""

from __future__ import annotations

from layerfs.driver import CreateOptions
from layerfs.ids import CacheID, ChainID, DiffID, MountID
from layerfs.values import frozen


@frozen(kw_only=True)
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


@frozen(kw_only=True)
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

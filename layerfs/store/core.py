"""What the parts of an open store share."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from layerfs.driver import Driver
from layerfs.errors import ReadOnly
from layerfs.ids import CacheID, ChainID, GraphID
from layerfs.store.guard import Guard
from layerfs.store.metadata import Database
from layerfs.store.owner import Owner
from layerfs.values import frozen


@frozen
class Core:
    """An open store without its public face."""

    root: Path
    driver: Driver
    db: Database
    owner: Owner
    read_only: bool
    guard: Guard
    reserved: deque[CacheID]
    """Layers that are announced and not begun."""
    abandoned: set[GraphID]
    """Layers and containers of this owner that it does not work on any more, and could not say so."""

    def upon(self, driver: Driver) -> Core:
        """The same store as it would be with another driver."""
        return Core(
            self.root, driver, self.db, self.owner, self.read_only, self.guard, self.reserved, self.abandoned
        )

    def record_path(self, cache_id: CacheID) -> Path:
        """The record from which a layer's exact tar is given back."""
        return self.root / "split" / cache_id

    def chain_lock(self, chain_id: ChainID) -> Path:
        """Held by whoever registers ``chain_id``."""
        return self.root / "locks" / chain_id.replace(":", "-")

    def writable(self) -> None:
        """Raise :class:`ReadOnly` for a store that was opened read-only."""
        if self.read_only:
            raise ReadOnly(f"the store in {self.root} is open read-only")

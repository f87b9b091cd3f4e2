"""Identifiers: what a layer is called by its content, and what a driver calls it.

Content names are digests written ``sha256:<64 hex>``; a driver never sees one. Driver names are
random (``CacheID``, ``MountID``) and say nothing about content. The two are joined only by the store.

Sources: OCI image-spec, ``config.md`` (DiffID, ChainID) and ``descriptor.md`` (digests).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from layerfs.errors import InvalidID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType
else:

    def NewType(name: str, kind: type) -> type:
        """At run time an id is a plain str, and typing is not loaded for it."""
        return kind


Digest = NewType("Digest", str)
"""Digest of bytes as shipped (a compressed layer, a config, a manifest). Never a diffID."""

DiffID = NewType("DiffID", str)
"""Digest of a layer's *uncompressed* tar."""

ChainID = NewType("ChainID", str)
"""Digest that names a layer together with everything below it."""

GraphID = NewType("GraphID", str)
"""What a driver knows a layer by: a :data:`CacheID`, a :data:`MountID` or an initID."""

CacheID = NewType("CacheID", GraphID)
"""Random driver key of a read-only layer."""

MountID = NewType("MountID", GraphID)
"""Random driver key of a writable layer; its init layer is called ``<mountID>-init``."""

# Compiled, and kept by re, when first needed: a mount needs one of them.
_DIGEST = r"sha256:[0-9a-f]{64}"
_GRAPH_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"


def parse_digest(text: str) -> Digest:
    """Check that ``text`` is a sha256 digest; :class:`InvalidID` when it is not."""
    if not re.fullmatch(_DIGEST, text):
        raise InvalidID(f"not a digest: {text!r}", hint="a digest is 'sha256:' and 64 lower-case hex digits")
    return Digest(text)


def parse_diff_id(text: str) -> DiffID:
    """Check that ``text`` is a diffID; :class:`InvalidID` when it is not."""
    return DiffID(parse_digest(text))


def parse_chain_id(text: str) -> ChainID:
    """Check that ``text`` is a chainID; :class:`InvalidID` when it is not."""
    return ChainID(parse_digest(text))


def parse_graph_id(text: str) -> GraphID:
    """Check that ``text`` may name a layer inside a driver; :class:`InvalidID` when it may not.

    One path component of 1 to 200 letters, digits, ``_``, ``.`` and ``-``, not beginning with a
    mark: it becomes a directory, a subvolume, a dataset or a device name as it is.
    """
    if not re.fullmatch(_GRAPH_ID, text):
        raise InvalidID(
            f"not a layer id: {text!r}",
            hint="use 1 to 200 letters, digits, '_', '.' or '-', beginning with a letter or digit",
        )
    return GraphID(text)


def digest_of(data: bytes) -> Digest:
    """The digest of ``data``."""
    import hashlib  # it loads OpenSSL, which a mount can do without

    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def chain_id(parent: ChainID | None, diff_id: DiffID) -> ChainID:
    """The chainID of a layer with ``diff_id`` upon ``parent`` (``None`` for the first layer)."""
    if parent is None:
        return ChainID(diff_id)
    return ChainID(digest_of(f"{parent} {diff_id}".encode()))


def chain_ids(diff_ids: Iterable[DiffID]) -> list[ChainID]:
    """The chainID of each layer of an image, first layer first."""
    chain: list[ChainID] = []
    for diff_id in diff_ids:
        chain.append(chain_id(chain[-1] if chain else None, diff_id))
    return chain


def new_cache_id() -> CacheID:
    """A fresh key for a read-only layer: 64 random hex digits."""
    return CacheID(GraphID(os.urandom(32).hex()))


def new_mount_id() -> MountID:
    """A fresh key for a writable layer: 64 random hex digits."""
    return MountID(GraphID(os.urandom(32).hex()))


def init_id(mount_id: MountID) -> MountID:
    """The key of the init layer below a writable layer."""
    return MountID(GraphID(f"{mount_id}-init"))

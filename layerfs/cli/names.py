"""NAME on the command line: a container, an image or a layer, looked for in this order.

A container goes by its name; an image by a name, its id or a beginning of it; a layer by its chainID or
a beginning of it, with or without ``sha256:``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from layerfs.cli.command import near_names
from layerfs.errors import ContainerNotFound, ImageNotFound, InvalidID, InvalidInput, LayerNotFound, NotFound

if TYPE_CHECKING:
    from layerfs.ids import ChainID
    from layerfs.store.layer import RWLayer
    from layerfs.store.records import ImageRecord, LayerInfo
    from layerfs.store.store import Store

HELP = "a container's name, an image's name or id, or a layer's chainID; beginnings of ids will do"

_ID_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")


@attrs.frozen
class Found:
    """What a name stands for: exactly one of the three is set."""

    container: RWLayer | None = None
    image: ImageRecord | None = None
    layer: LayerInfo | None = None


def find(store: Store, name: str) -> Found:
    """What ``name`` stands for; :class:`~layerfs.errors.NotFound` with the names like it."""
    try:
        return Found(container=store.get_rw(name))
    except (ContainerNotFound, InvalidID):
        pass
    try:
        return Found(image=image(store, name))
    except ImageNotFound:
        pass
    try:
        return Found(layer=layer(store, name))
    except LayerNotFound:
        raise _nothing(store, name) from None


def image(store: Store, name: str) -> ImageRecord:
    """An image by its name, as people write it, or by its id or a beginning of it."""
    from layerfs.image.names import normalise

    try:
        return store.image(normalise(name))
    except (ImageNotFound, InvalidID):
        return store.image(name)


def top_layer(image: ImageRecord) -> ChainID:
    """The layer that shows an image's whole tree."""
    if not image.layers:
        raise InvalidInput(f"image {image.id} has no layers")
    return image.layers[-1]


def layer(store: Store, name: str) -> LayerInfo:
    """A layer by its chainID or an unambiguous beginning of it."""
    prefix = _ID_PREFIX.fullmatch(name)
    found = [info for info in store.layers() if prefix and info.chain_id.startswith(f"sha256:{prefix[1]}")]
    if len(found) > 1:
        raise InvalidID(f"{len(found)} layers begin with {name!r}", hint="give more digits")
    if not found:
        raise LayerNotFound(f"no layer {name!r}", hint="'layerfs layers' lists them")
    return found[0]


def _nothing(store: Store, name: str) -> NotFound:
    from layerfs.image.names import familiar

    known = [info.name for info in store.rw_layers()]
    known += [familiar(full) for image in store.images() for full in image.names]
    near = near_names(name, known)
    hint = "" if near else "'layerfs containers', 'layerfs images' and 'layerfs layers' list what is there"
    return NotFound(f"no container, image or layer {name!r}", near=near, hint=hint)

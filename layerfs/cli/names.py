"""NAME on the command line: a container, an image or a layer, looked for in this order.

A container goes by its name; an image by a name, its id or a prefix of it; a layer by its chainID or a
prefix of it, with or without ``sha256:``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from layerfs.cli.command import near_names
from layerfs.errors import ContainerNotFound, ImageNotFound, InvalidInput, LayerNotFound, NotFound

if TYPE_CHECKING:
    from layerfs.ids import ChainID
    from layerfs.store.layer import RWLayer
    from layerfs.store.records import ImageRecord, LayerInfo
    from layerfs.store.store import Store

HELP = "a container's name, an image's name or id, or a layer's chainID; beginnings of ids will do"

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")


@attrs.frozen
class Found:
    """What a name stands for: exactly one of the three is set."""

    container: RWLayer | None = None
    image: ImageRecord | None = None
    layer: LayerInfo | None = None

    @property
    def chain_id(self) -> ChainID | None:
        """The read-only layer that an image or layer shows; None for a container."""
        if self.layer is not None:
            return self.layer.chain_id
        if self.image is None:
            return None
        if not self.image.layers:
            raise InvalidInput(f"image {self.image.id} has no layers")
        return self.image.layers[-1]


def find(store: Store, name: str) -> Found:
    """What ``name`` stands for; :class:`~layerfs.errors.NotFound` with the names like it."""
    try:
        return Found(container=store.get_rw(name))
    except ContainerNotFound:
        pass
    try:
        return Found(image=store.image(name))
    except ImageNotFound:
        pass
    try:
        return Found(layer=layer(store, name))
    except LayerNotFound:
        near = near_names(name, _known(store))
        raise NotFound(
            f"no container, image or layer is called {name!r}", near=near, hint="" if near else _what_there_is()
        ) from None


def layer(store: Store, name: str) -> LayerInfo:
    """A layer by its chainID or an unambiguous prefix of it."""
    prefix = _PREFIX.fullmatch(name)
    if prefix:
        found = [info for info in store.layers() if info.chain_id.startswith(f"sha256:{prefix[1]}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidInput(
                f"{len(found)} layers begin with {name!r}",
                hint="one more letter may do: " + ", ".join(info.chain_id[:27] for info in found[:5]),
            )
    raise LayerNotFound(f"no layer {name!r}", hint="'layerfs layers' lists them")


def _known(store: Store) -> list[str]:
    containers = [info.name for info in store.rw_layers()]
    return containers + [name for image in store.images() for name in image.names]


def _what_there_is() -> str:
    return "'layerfs containers', 'layerfs images' and 'layerfs layers' list what is there"

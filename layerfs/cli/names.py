"""NAME on the command line: a container, an image or a layer, looked for in this order.

A container goes by its name; an image by a name, its id or a beginning of it; a layer by its chainID or
a beginning of it, with or without ``sha256:``.
"""

from __future__ import annotations

from layerfs.cli.command import near_names
from layerfs.errors import ContainerNotFound, ImageNotFound, InvalidInput, LayerNotFound, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.ids import ChainID
    from layerfs.store.images import ImageRecord
    from layerfs.store.records import LayerInfo
    from layerfs.store.rwlayer import RWLayer
    from layerfs.store.store import Store

HELP = "a container's name, an image's name or id, or a layer's chainID; beginnings of ids will do"


def find(store: Store, name: str) -> RWLayer | ImageRecord | LayerInfo:
    """What ``name`` stands for; :class:`~layerfs.errors.NotFound` with the names like it."""
    try:
        return store.get_rw(name)
    except ContainerNotFound:
        pass
    try:
        return image(store, name)
    except ImageNotFound:
        pass
    try:
        return store.layer_info(name)
    except LayerNotFound:
        raise _nothing(store, name) from None


def image(store: Store, name: str) -> ImageRecord:
    """An image by its name, its id or a beginning of it; :class:`~layerfs.errors.ImageNotFound` with the
    names like it, as people write them."""
    from layerfs.image.find import find as find_image

    try:
        return find_image(store, name)
    except ImageNotFound:
        near = _near_images(store, name)
        hint = "" if near else "'layerfs images' lists them"
        raise ImageNotFound(f"no image {name!r}", near=near, hint=hint) from None


def _near_images(store: Store, name: str) -> list[str]:
    """Images of another registry or tag first, then those that are spelt alike."""
    from layerfs.image.names import familiar, split_tag

    known = [familiar(full) for info in store.images() for full in info.names]
    wanted = split_tag(name)[0].rpartition("/")[2]
    same = [full for full in known if split_tag(full)[0].rpartition("/")[2] == wanted]
    spelt = {split_tag(full)[0]: full for full in known} | {full: full for full in known}
    return list(dict.fromkeys(same + [spelt[near] for near in near_names(name, spelt)]))[:3]


def top_layer(found: ImageRecord | LayerInfo) -> ChainID:
    """The layer itself, or the one that shows an image's whole tree."""
    from layerfs.store.records import LayerInfo

    if isinstance(found, LayerInfo):
        return found.chain_id
    if not found.layers:
        raise InvalidInput(f"image {found.id} has no layers")
    return found.layers[-1]


def _nothing(store: Store, name: str) -> NotFound:
    near = near_names(name, [info.name for info in store.rw_layers()]) + _near_images(store, name)
    hint = "" if near else "'layerfs containers', 'layerfs images' and 'layerfs layers' list what is there"
    return NotFound(f"no container, image or layer {name!r}", near=near, hint=hint)

"""Keeps a container's changes as a new image."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from layerfs.errors import Conflict, ImageNotFound
from layerfs.ids import ChainID, DiffID, digest_of
from layerfs.image.fields import Field
from layerfs.image.model import Config
from layerfs.image.names import normalise
from layerfs.image.platform import host_platform
from layerfs.store.images import ImageRecord
from layerfs.store.records import RWLayerInfo
from layerfs.store.store import Store

_CREATED_BY = "layerfs commit"

_STALE = ("container", "container_config")
"""Docker's notes about the container that the base image was committed from."""


def commit(
    store: Store,
    container: str,
    name: str | None = None,
    *,
    author: str = "",
    comment: str = "",
    created_ns: int | None = None,
) -> ImageRecord:
    """Register the changes of a container as a layer and make an image of it, called ``name``.

    The image says what the container's image says (command, environment, ...), with the layer and a
    line of history added; a container from a bare layer, or from nothing, gives an image that says
    nothing but its platform. The container stays as it is and where it is. ``created_ns``: when the
    image says it was made, since 1970; None: now.

    Errors: ``ContainerNotFound``; ``InvalidID`` for ``name``; ``Conflict`` when the container's image
    is not in the store any more; what the driver raises.
    """
    full = None if name is None else normalise(name)
    rw = store.get_rw(container)
    base = _base(store, rw.info)
    created = _rfc3339(time.time_ns() if created_ns is None else created_ns)
    with rw.commit() as layer:
        step = {"created": created, "created_by": _CREATED_BY}
        step |= {key: text for key, text in (("author", author), ("comment", comment)) if text}
        config = _appended(base.config, layer.diff_id, step)
        blobs = (*base.blobs, None) if base.blobs else ()
        image = ImageRecord(
            id=digest_of(config), config=config, layers=(*base.layers, layer.chain_id), blobs=blobs
        )
        store.flush()
        store.add_image(image, [full] if full else [])
    return image


def _base(store: Store, container: RWLayerInfo) -> ImageRecord:
    """What the new image adds to."""
    if container.image is None:
        return _bare(store, container.parent)
    try:
        base = store.image(container.image)
    except ImageNotFound as error:
        raise Conflict(
            f"container {container.name} comes from image {container.image}, which is no longer in the store",
            hint="load the image again, or take the changes out as a tar",
        ) from error
    if base.layers[-1:] != ((container.parent,) if container.parent else ()):
        raise Conflict(f"container {container.name} does not stand upon image {base.id}, which it names")
    return base


def _bare(store: Store, top: ChainID | None) -> ImageRecord:
    """An image without a word, of the layers up to ``top``."""
    chain: list[ChainID] = []
    diff_ids: list[DiffID] = []
    while top is not None:
        info = store.layer_info(top)
        chain.insert(0, info.chain_id)
        diff_ids.insert(0, info.diff_id)
        top = info.parent
    host = host_platform()
    config: dict[str, object] = {"architecture": host.architecture, "os": host.os}
    if host.variant:
        config["variant"] = host.variant
    config |= {"config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    data = _json(config)
    return ImageRecord(id=digest_of(data), config=data, layers=tuple(chain))


def _appended(base: bytes, diff_id: DiffID, step: dict[str, str]) -> bytes:
    """The config ``base`` with one more layer and line of history."""
    document = Field.parse(base, "config")
    diff_ids = Config.read(document).diff_ids
    config: dict[str, object] = dict(document.members())
    for key in _STALE:
        config.pop(key, None)
    config["created"] = step["created"]
    if "author" in step:
        config["author"] = step["author"]
    config["rootfs"] = {"type": "layers", "diff_ids": [*diff_ids, diff_id]}
    config["history"] = [*_history(document, len(diff_ids)), step]
    return _json(config)


def _history(document: Field, layers: int) -> list[object]:
    """The base's history, a line for each layer at least: ``docker history`` pairs the two and fails when
    it finds fewer lines than layers."""
    listed = document.get("history")
    lines = listed.items() if listed else []
    filled = sum(1 for line in lines if line.members().get("empty_layer") is not True)
    missing: list[object] = [{}] * (layers - filled)
    return [*missing, *(line.value for line in lines)]


def _rfc3339(time_ns: int) -> str:
    seconds, nanoseconds = divmod(time_ns, 10**9)
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

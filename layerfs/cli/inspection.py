"""``inspect``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from layerfs.cli import names, output
from layerfs.cli.command import Command, Parser, Session

if TYPE_CHECKING:
    from layerfs.store.images import ImageRecord
    from layerfs.store.records import LayerInfo
    from layerfs.store.rwlayer import RWLayer
    from layerfs.store.store import Store


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=names.HELP)


def _run(session: Session, args: argparse.Namespace) -> int:
    from layerfs.store.images import ImageRecord
    from layerfs.store.rwlayer import RWLayer

    with session.store() as store:
        found = names.find(store, args.name)
        if isinstance(found, RWLayer):
            output.json_document(_container(store, found))
        elif isinstance(found, ImageRecord):
            output.json_document(_image(store, found))
        else:
            output.json_document(_layer(store, found))
    return 0


def _container(store: Store, container: RWLayer) -> dict[str, object]:
    info = container.info
    return {
        "kind": "container",
        **output.fields(info),
        "driver": store.driver.name,
        "usage": container.usage(),
        "metadata": store.driver.metadata(info.mount_id),
        "mounts": container.mounts(),
    }


def _image(store: Store, image: ImageRecord) -> dict[str, object]:
    info = store.image_info(image.id)
    blobs = image.blobs or (None,) * len(image.layers)
    return {
        "kind": "image",
        **output.fields(info),
        "layers": [
            {**output.fields(store.layer_info(chain_id)), "blob": blob}
            for chain_id, blob in zip(image.layers, blobs, strict=True)
        ],
        "containers": [info.name for info in store.rw_layers() if info.image == image.id],
        "annotations": image.annotations,
        "config": json.loads(image.config),
    }


def _layer(store: Store, info: LayerInfo) -> dict[str, object]:
    return {
        "kind": "layer",
        **output.fields(info),
        "driver": store.driver.name,
        "users": store.layer_users(info.chain_id),
        "usage": store.driver.usage(info.cache_id),
        "metadata": store.driver.metadata(info.cache_id),
    }


COMMANDS = {"inspect": Command(_arguments, _run)}

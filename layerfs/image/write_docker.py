"""Writes a docker-archive: what ``docker load`` reads, in every version since 1.10.

Layers lie uncompressed under their diffID, so one that several images share is there once.
``repositories`` repeats the names for tools that look there; ``manifest.json`` is what counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from layerfs.ids import DiffID
from layerfs.image.destination import Destination
from layerfs.image.docker import MANIFEST, REPOSITORIES
from layerfs.image.names import split_tag
from layerfs.image.outgoing import Outgoing, tar_chunks
from layerfs.progress import Progress
from layerfs.store.layer import Layer


def write_archive(out: Destination, images: Sequence[Outgoing], progress: Progress) -> None:
    """Write ``images`` with their configs byte for byte."""
    written: set[DiffID] = set()
    for image in images:
        for layer in image.layers:
            if layer.diff_id not in written:
                written.add(layer.diff_id)
                out.add(_layer_name(layer), layer.tar_size, tar_chunks(layer, progress))
        config = image.record.config
        out.add(_config_name(image), len(config), (config,))
    _add_json(out, MANIFEST, [_entry(image) for image in images])
    _add_json(out, REPOSITORIES, _repositories(images))


def _entry(image: Outgoing) -> dict[str, object]:
    return {
        "Config": _config_name(image),
        "RepoTags": list(image.names) or None,
        "Layers": [_layer_name(layer) for layer in image.layers],
    }


def _repositories(images: Sequence[Outgoing]) -> dict[str, dict[str, str]]:
    """Repository, then tag, to the directory of the top layer."""
    found: dict[str, dict[str, str]] = {}
    for image in images:
        for name in image.names if image.layers else ():
            repository, tag = split_tag(name)
            found.setdefault(repository, {})[tag] = _hex(image.layers[-1].diff_id)
    return found


def _config_name(image: Outgoing) -> str:
    return f"{_hex(image.record.id)}.json"


def _layer_name(layer: Layer) -> str:
    return f"{_hex(layer.diff_id)}/layer.tar"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _add_json(out: Destination, name: bytes, document: object) -> None:
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    out.add(name.decode(), len(data), (data,))

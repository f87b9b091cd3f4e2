"""Finds the images of a docker-archive: what ``docker save`` writes.

Two shapes are about. Until Docker 24 each layer is ``<id>/layer.tar`` and each config ``<hash>.json``
(skopeo and Podman write ``<diffID>.tar``); since Docker 25 the archive is at the same time an OCI
layout, and ``manifest.json`` points into its blobs. For the latter the layout is what counts: it has
sizes and digests of everything. ``manifest.json`` then only adds its names.

Source: Docker's image-spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import re

from layerfs.archive.names import normalise
from layerfs.errors import DigestMismatch, ImageError, InvalidID
from layerfs.ids import Digest, digest_of
from layerfs.image import names
from layerfs.image.fields import Field
from layerfs.image.model import Config, FoundImage, FoundLayer
from layerfs.image.platform import Platform
from layerfs.image.source import Source, naming, read_json, read_small, where

MANIFEST = b"manifest.json"
REPOSITORIES = b"repositories"

_DIGEST_IN_NAME = re.compile(r"(?:blobs/sha256/([0-9a-f]{64})|([0-9a-f]{64})\.json)")


def find_images(source: Source, platform: Platform | None) -> list[FoundImage]:
    """The images of ``manifest.json``. Each is for one platform; with one asked for, all must fit it."""
    images = [_image(source, item, platform) for item in _entries(source)]
    if not images:
        raise ImageError(f"{where(source, MANIFEST)}: no image: it is empty")
    return images


def names_by_config(source: Source) -> dict[Digest, tuple[str, ...]]:
    """What ``manifest.json`` calls the images of an archive that is an OCI layout, too."""
    found: dict[Digest, tuple[str, ...]] = {}
    for item in _entries(source):
        config = read_small(source, _path(item.need("Config")))
        id = digest_of(config)
        found[id] = (*found.get(id, ()), *_names(item))
    return found


def _entries(source: Source) -> list[Field]:
    document = read_json(source, MANIFEST)
    if isinstance(document.value, dict) and "schemaVersion" in document.value:
        raise ImageError(
            f"{document.file}: a manifest by itself, as skopeo's dir: format has it",
            hint="convert it: skopeo copy dir:SOURCE oci-archive:FILE",
        )
    return document.items()


def _image(source: Source, item: Field, platform: Platform | None) -> FoundImage:
    path = _path(item.need("Config"))
    if not source.has(path):
        item.need("Config").fail(f"{item.need('Config').text()} is not in the archive")
    data = read_small(source, path)
    _check_name(source, path, data)
    config = Config.read(Field.parse(data, where(source, path)))
    listed = item.get("Layers")
    layers = listed.items() if listed else []
    if len(layers) != len(config.diff_ids):
        item.need("Config").fail(f"{len(config.diff_ids)} diff_ids in the config, but {len(layers)} layers")
    if platform and config.platform and platform.distance(config.platform) is None:
        item.fail(f"an image for {config.platform}, not for {platform}")
    return FoundImage(
        id=digest_of(data),
        config=data,
        layers=tuple(
            FoundLayer(path=_path(layer), diff_id=diff_id, blob=None, listed=layer)
            for layer, diff_id in zip(layers, config.diff_ids, strict=True)
        ),
        names=_names(item),
    )


def _check_name(source: Source, path: bytes, data: bytes) -> None:
    """A config is called by its digest; other names (some builders choose their own) say nothing."""
    found = _DIGEST_IN_NAME.fullmatch(path.decode("utf-8", "replace"))
    if found:
        expected = f"sha256:{found[1] or found[2]}"
        if digest_of(data) != expected:
            raise DigestMismatch(where(source, path), expected=expected, actual=digest_of(data))


def _names(item: Field) -> tuple[str, ...]:
    tags = item.get("RepoTags")
    found: list[str] = []
    for tag in tags.texts() if tags else ():
        try:
            found.append(names.normalise(tag))
        except InvalidID:
            continue
    return tuple(found)


def _path(field: Field) -> bytes:
    with naming(field.file):
        return normalise(field.text().encode())

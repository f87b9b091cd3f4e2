"""Writes an OCI image layout.

Source: OCI image-spec, ``image-layout.md``. The blobs come first, in the order of images and layers,
``index.json`` last: its digests are known only then, and nobody takes half a layout for a whole one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from layerfs.archive.compression import Compression, compress
from layerfs.archive.streams import CHUNK
from layerfs.ids import DiffID, Digest, digest_of
from layerfs.image.destination import Destination
from layerfs.image.fields import Field
from layerfs.image.model import FULL_NAME, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, REF_NAME, Config
from layerfs.image.names import split_tag
from layerfs.image.oci import INDEX, LAYOUT, blob_name
from layerfs.image.outgoing import Outgoing, tar_chunks
from layerfs.progress import Progress
from layerfs.store.layer import Layer

_VERSION = "1.0.0"


def write_layout(
    out: Destination,
    images: Sequence[Outgoing],
    compression: Compression,
    scratch: Path | None,
    progress: Progress,
) -> None:
    """Write ``images`` with their configs byte for byte. A compressed layer lies in an unnamed file in
    ``scratch`` until its size is known."""
    writer = _Writer(out, compression, scratch, progress)
    tags = Counter(split_tag(name)[1] for image in images for name in image.names)
    entries: list[dict[str, object]] = []
    for image in images:
        entry = writer.image(image)
        names = [{"annotations": _annotations(name, tags)} for name in image.names]
        entries += [{**entry, **name} for name in names or [{}]]
    writer.small(LAYOUT, _json({"imageLayoutVersion": _VERSION}))
    writer.small(INDEX, _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}))


class _Writer:
    def __init__(
        self, out: Destination, compression: Compression, scratch: Path | None, progress: Progress
    ) -> None:
        self._out, self._compression, self._scratch, self._progress = out, compression, scratch, progress
        self._written: set[Digest] = set()
        self._layers: dict[DiffID, dict[str, object]] = {}

    def image(self, image: Outgoing) -> dict[str, object]:
        """Write the blobs of an image; the descriptor of its manifest."""
        layers = [self._layer(layer) for layer in image.layers]
        manifest: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._blob(OCI_CONFIG, image.record.config),
            "layers": layers,
        }
        if image.record.annotations:
            manifest["annotations"] = dict(sorted(image.record.annotations.items()))
        return {**self._blob(OCI_MANIFEST, _json(manifest)), **_platform(image.record.config)}

    def small(self, name: bytes, data: bytes) -> None:
        self._out.add(name.decode(), len(data), (data,))

    def _blob(self, media_type: str, data: bytes) -> dict[str, object]:
        digest = digest_of(data)
        self._add(digest, len(data), (data,))
        return _descriptor(media_type, digest, len(data))

    def _layer(self, layer: Layer) -> dict[str, object]:
        if layer.diff_id not in self._layers:
            self._layers[layer.diff_id] = self._new_layer(layer)
        return self._layers[layer.diff_id]

    def _new_layer(self, layer: Layer) -> dict[str, object]:
        media_type = OCI_LAYER + self._compression.media_suffix
        chunks = tar_chunks(layer, self._progress)
        if self._compression is Compression.NONE:
            digest = Digest(layer.diff_id)
            self._add(digest, layer.tar_size, chunks)
            return _descriptor(media_type, digest, layer.tar_size)
        import tempfile

        with tempfile.TemporaryFile(dir=self._scratch) as file:
            hashed = hashlib.sha256()
            for chunk in compress(chunks, self._compression):
                hashed.update(chunk)
                file.write(chunk)
            size = file.tell()
            file.seek(0)
            digest = Digest(f"sha256:{hashed.hexdigest()}")
            self._add(digest, size, iter(lambda: file.read(CHUNK), b""))
        return _descriptor(media_type, digest, size)

    def _add(self, digest: Digest, size: int, content: Iterable[bytes]) -> None:
        if digest not in self._written:
            self._written.add(digest)
            self._out.add(blob_name(digest).decode(), size, content)


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _annotations(name: str, tags: Counter[str]) -> dict[str, str]:
    """As Docker and containerd write them: the full name, and the tag for tools that take one image of a
    layout by its tag. A tag that several images here have would not tell them apart."""
    tag = split_tag(name)[1]
    return {FULL_NAME: name, REF_NAME: tag if tags[tag] == 1 else name}


def _platform(config: bytes) -> dict[str, object]:
    found = Config.read(Field.parse(config, "config")).platform
    if found is None:
        return {}
    platform = {"architecture": found.architecture, "os": found.os}
    return {"platform": {**platform, "variant": found.variant} if found.variant else platform}


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

"""An image on its way out of a store."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from layerfs.archive.streams import CHUNK
from layerfs.progress import Progress
from layerfs.store.images import ImageRecord
from layerfs.store.layer import Layer


@attrs.frozen
class Outgoing:
    """``layers`` are held by whoever made this, until the image is written."""

    record: ImageRecord
    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    """The full names it goes out under."""


def tar_chunks(layer: Layer, progress: Progress) -> Iterator[bytes]:
    """A layer's exact tar, :attr:`Layer.tar_size` bytes. Damage raises before the last one was given."""
    done = 0
    with layer.tar() as tar:
        while chunk := tar.read(CHUNK):
            yield chunk
            done += len(chunk)
            progress(layer.diff_id, done, layer.tar_size)

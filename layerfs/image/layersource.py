"""The layers of an archive, one by one: what heals a store that has lost some of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from layerfs.errors import ImageError, translated
from layerfs.ids import DiffID
from layerfs.image import docker, oci
from layerfs.image.model import FoundImage, FoundLayer
from layerfs.image.opening import open_source
from layerfs.image.source import Source
from layerfs.progress import Progress, silent
from layerfs.store.records import LayerInfo


@contextlib.contextmanager
def layers_of(
    source: str | Path | BinaryIO, scratch: Path, *, progress: Progress = silent
) -> Iterator[Callable[[LayerInfo], BinaryIO | None]]:
    """For :meth:`Store.repair`: gives any layer of any image of ``source``, for whatever platform.

    ``source`` as for :func:`layerfs.image.load.load`. What cannot be read in place is written to an unnamed
    file in ``scratch`` first. Errors: :class:`~layerfs.errors.BadData` for what is no image archive.
    """
    with translated("read an image"), open_source(source, scratch, progress) as archive:
        found = _layers(archive)

        def layer(info: LayerInfo) -> BinaryIO | None:
            wanted = found.get(info.diff_id)
            if wanted is None:
                return None
            return archive.open(wanted.path)[0]

        yield layer


def _layers(archive: Source) -> dict[DiffID, FoundLayer]:
    """Those that are there."""
    if archive.has(oci.INDEX):
        images: Iterable[FoundImage] = oci.whole_images(archive)
    elif archive.has(docker.MANIFEST):
        images = docker.find_images(archive, None)
    else:
        raise ImageError(f"{archive.label}: neither an OCI layout nor a docker-archive")
    return {layer.diff_id: layer for image in images for layer in image.layers if archive.has(layer.path)}

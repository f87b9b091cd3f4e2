"""Writes images out of a store."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal, get_args

from layerfs.archive.compression import Compression
from layerfs.errors import InvalidID, InvalidOption, translated
from layerfs.ids import Digest
from layerfs.image.destination import Target, open_destination
from layerfs.image.find import find
from layerfs.image.names import normalise
from layerfs.image.outgoing import Outgoing
from layerfs.image.write_docker import write_archive
from layerfs.image.write_oci import write_layout
from layerfs.progress import Progress, silent
from layerfs.store.images import ImageRecord
from layerfs.store.store import Store

Format = Literal["oci", "docker"]
"""An OCI image layout, or a docker-archive for ``docker load``."""

_OCI_COMPRESSIONS = (Compression.GZIP, Compression.ZSTD, Compression.NONE)


def save(
    store: Store,
    images: Sequence[str],
    dest: Target,
    *,
    format: Format = "oci",
    compression: Compression | None = None,
    progress: Progress = silent,
) -> None:
    """Write images (names, ids or beginnings of ids) to ``dest``: a path or a stream.

    A path that ends in ``/``, or is an empty directory, becomes a layout in a directory; any other a
    tar, which replaces an older file only when it is complete. An image goes out under the name it was
    asked for by, one asked for by id without a name. Its config is the one it came with, byte for byte,
    so its id stays; layers are read exactly and verified. ``compression`` of the layers in a layout:
    gzip (None), zstd or none; in a docker-archive they are never compressed. Equal images and
    arguments give equal bytes.

    Errors: ``ImageNotFound``; ``InvalidOption`` for a compression that the format does not have;
    ``Conflict`` for a directory that is not empty; ``StoreDamaged`` for a layer that is not what it
    was; ``SystemFailure``. Then nothing is left at a path; a stream has been written to in part.
    """
    if not images:
        raise InvalidOption("no image to save")
    _check(format, compression)
    with contextlib.ExitStack() as held, translated("save an image"):
        outgoing = _outgoing(store, images, held)
        out = held.enter_context(open_destination(dest, directories=format == "oci"))
        if format == "docker":
            write_archive(out, outgoing, progress)
        else:
            scratch = None if store.read_only else store.root / "tmp"
            write_layout(out, outgoing, compression or Compression.GZIP, scratch, progress)


def _check(format: Format, compression: Compression | None) -> None:
    if format not in get_args(Format):
        raise InvalidOption(f"no format {format!r}", hint="oci or docker")
    if format == "docker" and compression not in (None, Compression.NONE):
        raise InvalidOption("the layers of a docker-archive are not compressed")
    if compression is not None and compression not in _OCI_COMPRESSIONS:
        raise InvalidOption(f"an OCI layout has no {compression.value} layers", hint="gzip, zstd or none")


def _outgoing(store: Store, images: Sequence[str], held: contextlib.ExitStack) -> list[Outgoing]:
    """Each image once, with all the names it was asked for by, its layers held by ``held``."""
    records: dict[Digest, ImageRecord] = {}
    names: dict[Digest, list[str]] = {}
    for text in images:
        record = find(store, text)
        records[record.id] = record
        name = _name(store, record, text)
        if name and name not in names.setdefault(record.id, []):
            names[record.id].append(name)
    return [
        Outgoing(
            record,
            tuple(held.enter_context(store.get(chain)) for chain in record.layers),
            tuple(names.get(id, ())),
        )
        for id, record in records.items()
    ]


def _name(store: Store, record: ImageRecord, text: str) -> str | None:
    """The full name of an image that was asked for by name; None when it was by id."""
    try:
        name = normalise(text)
    except InvalidID:
        return None
    return name if name in store.image_info(record.id).names else None

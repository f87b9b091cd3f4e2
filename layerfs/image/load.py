"""Brings the images of an archive into a store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs

from layerfs.archive.limits import DEFAULT as LIMITS
from layerfs.archive.limits import Limits
from layerfs.archive.streams import CHUNK
from layerfs.errors import (
    ArchiveTooLarge,
    BadData,
    ImageError,
    InvalidOption,
    LayerNotFound,
    ReadOnly,
    show,
    translated,
)
from layerfs.ids import ChainID, Digest, chain_id
from layerfs.image import docker, oci
from layerfs.image.model import FoundImage, FoundLayer
from layerfs.image.names import normalise
from layerfs.image.opening import open_source
from layerfs.image.platform import Platform, parse_platform
from layerfs.image.source import Source, naming, where
from layerfs.image.verify import check_size, verified
from layerfs.progress import Progress, silent
from layerfs.store.depth import refuse_deep
from layerfs.store.images import BlobInfo, ImageRecord
from layerfs.store.layer import Layer
from layerfs.store.store import Store

_A_LAYER = 512 << 10
"""What a layer counts beside its bytes when it is to be written to the disk: inodes and directories are
written, too, and small layers have little else."""


@attrs.frozen
class Loaded:
    """An image that :func:`load` put into the store."""

    id: Digest
    names: tuple[str, ...]
    """The full names it was given, none for an image without a name: it goes by its id."""
    layers: tuple[ChainID, ...]
    """First layer first."""


def load(
    store: Store,
    source: str | Path | BinaryIO,
    *,
    platform: str | None = None,
    names: Sequence[str] = (),
    limits: Limits = LIMITS,
    progress: Progress = silent,
) -> list[Loaded]:
    """Load every image of ``source``: an OCI layout (directory or tar) or a docker-archive, the tars
    compressed or not, from a path or from a stream that need not be seekable.

    Of an image for several platforms the one for ``platform`` is taken (``linux/arm64``; None: this
    host's). ``names`` are given to the image instead of its own; there must then be but one.

    Sizes and digests of manifests, configs, shipped layers and their uncompressed tars are all
    verified as they are read, once. A layer that the store has already is not read at all: its diffID
    stands in the verified config. Images enter the store when every layer of all of them is there.

    ``limits`` of each layer keep a small archive from filling the disk.

    Errors: :class:`~layerfs.errors.BadData` naming the file at fault (``ImageError``,
    ``DigestMismatch``, ``ArchiveError``, ``CompressionError``), after which nothing that this load
    brought is kept; ``InvalidOption``, ``InvalidID`` for ``platform`` and ``names``; ``NotSupported``
    for more layers than the driver stacks; ``StoreDamaged`` for a layer that is there and noted as damaged,
    which ``Store.repair`` heals from the same archive; ``SystemFailure``.
    """
    if store.read_only:
        raise ReadOnly(f"the store in {store.root} is open read-only")
    wanted = parse_platform(platform) if platform else None
    given = tuple(normalise(name) for name in names)
    with translated("load an image"), open_source(source, store.root / "tmp", progress, limits) as archive:
        found = _merged(_find_images(archive, wanted))
        if given:
            found = [_renamed(found, given)]
        return _Load(store, archive, limits, progress).run(found)


def _find_images(archive: Source, platform: Platform | None) -> list[FoundImage]:
    if archive.has(oci.INDEX):
        images = oci.find_images(archive, platform)
        more = docker.names_by_config(archive) if archive.has(docker.MANIFEST) else {}
        return [attrs.evolve(image, names=(*image.names, *more.get(image.id, ()))) for image in images]
    if archive.has(docker.MANIFEST):
        return docker.find_images(archive, platform)
    if archive.has(docker.REPOSITORIES):
        raise ImageError(
            f"{archive.label}: an archive of Docker before 1.10, without {show(docker.MANIFEST)}",
            hint="load it into a later Docker that still reads it (20.10 does) and save it again",
        )
    inside = ", ".join(show(name) for name in archive.top()[:5])
    raise ImageError(
        f"{archive.label}: neither an OCI layout nor a docker-archive: it holds {inside or 'nothing'}",
        hint="index.json or manifest.json must stand at its top",
    )


def _merged(images: Iterable[FoundImage]) -> list[FoundImage]:
    """One for each id: an archive lists an image once for each of its names."""
    merged: dict[Digest, FoundImage] = {}
    for image in images:
        same = merged.get(image.id)
        names = dict.fromkeys((*(same.names if same else ()), *image.names))
        merged[image.id] = attrs.evolve(same or image, names=tuple(names))
    return list(merged.values())


def _renamed(images: Sequence[FoundImage], names: tuple[str, ...]) -> FoundImage:
    if len(images) > 1:
        raise InvalidOption(f"{len(images)} images in the archive, names can be given to one only")
    return attrs.evolve(images[0], names=names)


class _Load:
    """One archive on its way in. Layers are held until their images are in the store."""

    def __init__(self, store: Store, archive: Source, limits: Limits, progress: Progress) -> None:
        self._store, self._archive, self._limits, self._progress = store, archive, limits, progress
        self._held: list[Layer] = []
        self._made: list[ChainID] = []
        self._read: Callable[[int], None]

    def run(self, images: Sequence[FoundImage]) -> list[Loaded]:
        for image in images:  # before the layers that would still fit are unpacked in vain
            refuse_deep(self._store.driver, len(image.layers), f"image {(*image.names, image.id)[0]}")
        try:
            with self._store.reserving(self._missing(images)), self._store.writing_back() as self._read:
                records = [self._record(image) for image in images]
            self._store.flush()
            for record, image in zip(records, images, strict=True):
                self._store.add_image(record, image.names)
        except BaseException:
            self._release()
            if self._made:
                self._store.prune(self._made)
            raise
        self._release()
        return [
            Loaded(image.id, image.names, record.layers)
            for record, image in zip(records, images, strict=True)
        ]

    def _missing(self, images: Sequence[FoundImage]) -> list[int]:
        """How deep each layer lies that is to be made."""
        depths: dict[ChainID, int] = {}
        for image in images:
            chain: ChainID | None = None
            for depth, layer in enumerate(image.layers, 1):
                chain = chain_id(chain, layer.diff_id)
                depths[chain] = depth
        return [depth for chain, depth in depths.items() if not self._is_there(chain)]

    def _is_there(self, chain: ChainID) -> bool:
        try:
            self._store.layer_info(chain)
        except LayerNotFound:
            return False
        return True

    def _record(self, image: FoundImage) -> ImageRecord:
        chain: list[ChainID] = []
        for layer in image.layers:
            chain.append(self._layer(layer, chain[-1] if chain else None))
        return ImageRecord(
            id=image.id,
            config=image.config,
            layers=tuple(chain),
            blobs=tuple(_blob_info(layer) for layer in image.layers),
            annotations=image.annotations,
        )

    def _layer(self, layer: FoundLayer, parent: ChainID | None) -> ChainID:
        chain = chain_id(parent, layer.diff_id)
        with contextlib.suppress(LayerNotFound):
            self._held.append(self._store.get(chain))
            self._store.require_whole(chain)
            return chain
        self._made.append(chain)
        self._held.append(self._register(layer, parent))
        self._read(_A_LAYER)
        return chain

    def _register(self, layer: FoundLayer, parent: ChainID | None) -> Layer:
        if not self._archive.has(layer.path):
            if layer.blob is not None:
                raise oci.missing_layer(layer.blob)
            if layer.listed is not None:
                layer.listed.fail(f"{show(layer.path)} is not in the archive")
        what = where(self._archive, layer.path)
        file, size = self._archive.open(layer.path)
        with file:
            if layer.blob is None:
                stream = file
            else:
                check_size(size, what, layer.blob.size)
                stream = verified(file, what, layer.blob.digest)
            with naming(what):
                try:
                    return self._store.register(
                        stream,
                        parent,
                        expected=layer.diff_id,
                        limits=self._limits,
                        progress=self._progress_of(size),
                        what=layer.diff_id,
                    )
                except ArchiveTooLarge:
                    raise  # to read on is what the limits are to prevent
                except BadData:
                    # Bytes that make no sense are most often damaged, and then their digest says so better.
                    while stream.read(CHUNK):
                        pass
                    raise

    def _progress_of(self, size: int) -> Callable[[str, int, int | None], None]:
        before = 0

        def progress(what: str, done: int, _: int | None) -> None:
            nonlocal before
            self._read(done - before)
            before = done
            self._progress(what, done, size)

        return progress

    def _release(self) -> None:
        for layer in self._held:
            layer.release()


def _blob_info(layer: FoundLayer) -> BlobInfo | None:
    blob = layer.blob
    return None if blob is None else BlobInfo(blob.media_type, blob.digest, blob.size)

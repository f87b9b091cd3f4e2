"""Finds the images of an OCI image layout.

Source: OCI image-spec, ``image-layout.md`` and ``image-index.md``.

An entry of ``index.json`` is a manifest, an image for one platform, or an index of the same image
for several. Some builders put the platforms straight into ``index.json``, so manifests there that
bear the same name, or none, are taken for the platforms of one image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import attrs

from layerfs.errors import BadData, ImageError, InvalidID
from layerfs.ids import Digest
from layerfs.image.fields import Field
from layerfs.image.model import (
    CONFIGS,
    FULL_NAME,
    INDEXES,
    MANIFESTS,
    REF_NAME,
    Config,
    Descriptor,
    FoundImage,
    FoundLayer,
    Manifest,
    is_foreign,
)
from layerfs.image.names import normalise
from layerfs.image.platform import Platform, host_platform
from layerfs.image.source import Source, read_json, read_small, where
from layerfs.image.verify import check_blob

INDEX = b"index.json"
LAYOUT = b"oci-layout"

MAX_NESTING = 8
"""Indexes within indexes."""
MAX_DOCUMENTS = 10_000
"""Manifests, indexes and configs of one layout, each as often as it is read: a small index can name one of
them any number of times."""

_UNKNOWN = 100
"""Farther than any two generations of an architecture are apart."""

_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"


def find_images(source: Source, platform: Platform | None) -> list[FoundImage]:
    """The images of the layout, for ``platform`` or, when None, for this host.

    With no platform given an image that comes for one platform alone is taken whatever that is.
    :class:`~layerfs.errors.BadData` when one cannot be had, or when there is none at all.
    """
    _check_version(source)
    layout = _Layout(source, platform)
    entries = [Descriptor.read(item) for item in read_json(source, INDEX).need("manifests").items()]
    groups: dict[str | None, list[Descriptor]] = {}
    chosen: list[tuple[str | None, Descriptor]] = []
    skipped: list[str] = []
    seen: set[tuple[object, ...]] = set()
    for entry in entries:
        name = _name(entry)
        same = (entry.digest, entry.size, entry.media_type, entry.platform, name)
        if same in seen:
            continue
        seen.add(same)
        reason = layout.reason_to_skip(entry)
        if reason:
            skipped.append(reason)
        elif layout.is_index(entry):
            chosen.append((name, layout.pick_one(layout.leaves(entry, 1), entry)))
        else:
            groups.setdefault(name, []).append(entry)
    for name, group in groups.items():
        chosen += [(name, entry) for entry in layout.pick(group, group[0])]
    if not chosen:
        raise ImageError(f"{where(source, INDEX)}: no image: {'; '.join(skipped) or 'it is empty'}")
    return [layout.image(entry, name) for name, entry in chosen]


def whole_images(source: Source) -> Iterator[FoundImage]:
    """Every image of the layout that makes sense, for whatever platform."""
    layout = _Layout(source, None)
    seen: set[Digest] = set()
    for item in read_json(source, INDEX).need("manifests").items():
        with contextlib.suppress(BadData):
            entry = Descriptor.read(item)
            for each in layout.leaves(entry, 1, seen) if layout.is_index(entry) else [entry]:
                with contextlib.suppress(BadData):
                    yield layout.image(each, None)


def blob_name(digest: Digest) -> bytes:
    """Where a layout keeps a blob. ``digest`` was checked, so it holds no slash and no dots."""
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}".encode()


@attrs.define
class _Layout:
    source: Source
    wanted: Platform | None
    _read: int = 0
    """Blobs so far."""

    def document(self, entry: Descriptor) -> Field:
        """The manifest or index an entry points to, checked against it."""
        document = Field.parse(self._blob(entry), where(self.source, blob_name(entry.digest)))
        _check_kind(document, entry)
        return document

    def is_index(self, entry: Descriptor) -> bool:
        return entry.media_type in INDEXES

    def reason_to_skip(self, entry: Descriptor) -> str:
        """Why an entry is no image at all; empty when it may be one."""
        if entry.is_attestation:
            return "an attestation"
        if entry.artifact_type:
            return f"an artifact of type {entry.artifact_type!r}"
        if entry.media_type.startswith(_SCHEMA1):
            entry.field.fail("a Docker schema 1 manifest; copying the image with skopeo converts it")
        if entry.media_type not in INDEXES | MANIFESTS:
            return f"a {entry.media_type!r}"
        return self._artifact(entry) if entry.media_type in MANIFESTS else ""

    def leaves(self, entry: Descriptor, depth: int, seen: set[Digest] | None = None) -> list[Descriptor]:
        """The manifests of an index and of those within it, each once."""
        if depth > MAX_NESTING:
            entry.field.fail(f"indexes nested more than {MAX_NESTING} deep")
        seen = set() if seen is None else seen
        found: list[Descriptor] = []
        for item in _members(self.document(entry)):
            if item.digest in seen or self.reason_to_skip(item):
                continue
            seen.add(item.digest)
            found += self.leaves(item, depth + 1, seen) if self.is_index(item) else [item]
        return found

    def _artifact(self, entry: Descriptor) -> str:
        """Says so when a manifest packs something else than an image: a chart, a signature."""
        if not self.source.has(blob_name(entry.digest)):
            return ""
        document = self.document(entry)
        config = document.get("config")
        kind = config.text_or("mediaType") if config else ""
        return "" if kind in CONFIGS else f"an artifact of type {document.text_or('artifactType', kind)!r}"

    def pick_one(self, candidates: list[Descriptor], index: Descriptor) -> Descriptor:
        """The manifest of an index that fits best."""
        if not candidates:
            index.field.fail(f"the index {index.digest} holds no image, at most attestations and artifacts")
        return self.pick(candidates, index)[0]

    def pick(self, candidates: Sequence[Descriptor], about: Descriptor) -> list[Descriptor]:
        """Those that fit best, all that are equally good; never none."""
        # Copies of an image for one platform keep the whole index but not the other platforms' blobs.
        present = [entry for entry in candidates if self.source.has(blob_name(entry.digest))]
        candidates = present or candidates
        if len(candidates) == 1 and self.wanted is None:
            return list(candidates)
        wanted = self.wanted or host_platform()
        distances = [(_distance(wanted, self.platform(entry)), entry) for entry in candidates]
        fitting = [distance for distance, _ in distances if distance is not None]
        if not fitting:
            offered = sorted({str(self.platform(entry) or "unknown") for entry in candidates})
            raise ImageError(
                f"{about.field.file}: {about.field.at}: no image for {wanted}, only for {', '.join(offered)}",
                hint="name one of them as the platform",
            )
        return [entry for distance, entry in distances if distance == min(fitting)]

    def platform(self, entry: Descriptor) -> Platform | None:
        """What a manifest is for: as the index says, else as its config says."""
        if entry.platform is not None:
            return entry.platform
        return self._config(self.manifest(entry).config)[1].platform

    def manifest(self, entry: Descriptor) -> Manifest:
        return Manifest.read(self.document(entry))

    def image(self, entry: Descriptor, name: str | None) -> FoundImage:
        manifest = self.manifest(entry)
        config, parsed = self._config(manifest.config)
        if len(parsed.diff_ids) != len(manifest.layers):
            entry.field.fail(
                f"the manifest {entry.digest} has {len(manifest.layers)} layers,"
                f" but its config has {len(parsed.diff_ids)} diff_ids"
            )
        return FoundImage(
            id=manifest.config.digest,
            config=config,
            layers=tuple(
                FoundLayer(path=blob_name(layer.digest), diff_id=diff_id, blob=layer)
                for layer, diff_id in zip(manifest.layers, parsed.diff_ids, strict=True)
            ),
            names=(name,) if name else (),
            annotations=manifest.annotations,
        )

    def _config(self, entry: Descriptor) -> tuple[bytes, Config]:
        data = self._blob(entry)
        return data, Config.read(Field.parse(data, where(self.source, blob_name(entry.digest))))

    def _blob(self, entry: Descriptor) -> bytes:
        self._read += 1
        if self._read > MAX_DOCUMENTS:
            entry.field.fail(
                f"more than {MAX_DOCUMENTS} manifests, indexes and configs to read: not an image"
            )
        name = blob_name(entry.digest)
        if not self.source.has(name):
            entry.field.fail(f"{entry.digest} is not in the archive")
        data = read_small(self.source, name)
        check_blob(data, where(self.source, name), entry.digest, entry.size)
        return data


def missing_layer(layer: Descriptor) -> ImageError:
    """What to say of a layer that the archive does not hold."""
    if is_foreign(layer):
        return ImageError(
            f"{layer.field.file}: {layer.field.at}: the layer {layer.digest} may not be distributed"
            " and was left out",
            hint="export the image with its foreign layers",
        )
    return ImageError(f"{layer.field.file}: {layer.field.at}: the layer {layer.digest} is not in the archive")


def _check_version(source: Source) -> None:
    if source.has(LAYOUT):
        version = read_json(source, LAYOUT).need("imageLayoutVersion")
        if not version.text().startswith("1."):
            version.fail(f"a layout of version {version.text()}, 1.x is read")


def _check_kind(document: Field, entry: Descriptor) -> None:
    """A document must be what its descriptor says, and not an image and an index in one: readers that
    take it for the one or the other would see different images (CVE-2021-41190)."""
    media_type = document.text_or("mediaType", entry.media_type)
    if media_type != entry.media_type:
        document.fail(f"mediaType is {media_type!r}, its descriptor says {entry.media_type!r}")
    others = ("layers", "config", "fsLayers") if entry.media_type in INDEXES else ("manifests", "fsLayers")
    for name in others:
        if document.get(name) is not None:
            document.fail(f"{entry.media_type!r} may not have {name!r}")


def _members(document: Field) -> Iterator[Descriptor]:
    for item in document.need("manifests").items():
        yield Descriptor.read(item)


def _distance(wanted: Platform, offered: Platform | None) -> int | None:
    """An image that does not say what it is for fits, behind all that do."""
    return _UNKNOWN if offered is None else wanted.distance(offered)


def _name(entry: Descriptor) -> str | None:
    """The full name of an entry; None when it has none, or one that cannot be an image's."""
    text = entry.annotations.get(FULL_NAME) or entry.annotations.get(REF_NAME)
    try:
        return normalise(text) if text else None
    except InvalidID:
        return None

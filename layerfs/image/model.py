"""What images are made of: descriptors, manifests, configs, and an image found in an archive.

Sources: OCI image-spec 1.1 (``descriptor.md``, ``manifest.md``, ``image-index.md``, ``config.md``,
``annotations.md``) and Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from layerfs.ids import DiffID, Digest, parse_diff_id
from layerfs.image.fields import Field
from layerfs.image.platform import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

REF_NAME = "org.opencontainers.image.ref.name"
"""What a layout calls one of its images: skopeo and Podman write whatever the user gave, the full
name too; Docker and containerd write the tag alone."""
FULL_NAME = "io.containerd.image.name"
"""The full name, beside a :data:`REF_NAME` that is only the tag: Docker and containerd write it,
Podman reads it first (https://github.com/containers/podman/issues/12560)."""
ATTESTATION = "vnd.docker.reference.type"
"""Marks a BuildKit attestation (provenance, SBOM) that lies in an index beside its image."""

_LAYER = re.compile(
    r"application/vnd\.(?:"
    r"oci\.image\.layer\.(?P<oci>nondistributable\.)?v1\.tar(?:\+\w+)?|"
    r"docker\.image\.rootfs\.(?P<docker>foreign\.)?diff\.tar(?:\.\w+)?)"
)


@attrs.frozen(kw_only=True)
class Descriptor:
    """Points to a blob."""

    field: Field
    """Where it stands, for errors."""
    media_type: str
    digest: Digest
    size: int
    platform: Platform | None
    annotations: Mapping[str, str]
    artifact_type: str

    @classmethod
    def read(cls, field: Field) -> Descriptor:
        return cls(
            field=field,
            media_type=field.text_or("mediaType"),
            digest=field.need("digest").digest(),
            size=field.need("size").size(),
            platform=_platform(field.get("platform")),
            annotations=_annotations(field),
            artifact_type=field.text_or("artifactType"),
        )

    @property
    def is_attestation(self) -> bool:
        return ATTESTATION in self.annotations or self.platform == Platform("unknown", "unknown")


@attrs.frozen
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @classmethod
    def read(cls, document: Field) -> Manifest:
        layers = tuple(Descriptor.read(item) for item in document.need("layers").items())
        for layer in layers:
            _check_layer_type(layer)
        return cls(Descriptor.read(document.need("config")), layers, _annotations(document))


@attrs.frozen
class Config:
    """The part of an image's config that says what it is made of."""

    platform: Platform | None
    diff_ids: tuple[DiffID, ...]

    @classmethod
    def read(cls, document: Field) -> Config:
        rootfs = document.need("rootfs")
        if rootfs.text_or("type") != "layers":
            rootfs.fail(f"type {rootfs.text_or('type')!r} is not 'layers'")
        diff_ids = rootfs.get("diff_ids")
        return cls(
            _platform(document),
            tuple(parse_diff_id(item.digest()) for item in (diff_ids.items() if diff_ids else ())),
        )


@attrs.frozen(kw_only=True)
class FoundLayer:
    """A layer of an image that is about to be loaded."""

    path: bytes
    """Where its bytes lie in the source."""
    diff_id: DiffID
    blob: Descriptor | None
    """How it is shipped; None where the archive does not say (a docker-archive)."""
    listed: Field | None = None
    """Where such an archive names it, for errors."""


@attrs.frozen(kw_only=True)
class FoundImage:
    """An image that is about to be loaded."""

    id: Digest
    config: bytes
    layers: tuple[FoundLayer, ...]
    names: tuple[str, ...]
    """Full names."""
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    """Of its manifest."""


def is_foreign(layer: Descriptor) -> bool:
    """A layer that its maker does not let others pass on: often left out of archives."""
    found = _LAYER.fullmatch(layer.media_type)
    return bool(found and (found["oci"] or found["docker"]))


def _check_layer_type(layer: Descriptor) -> None:
    # Which compression the media type names is not looked at: the bytes tell, and two digests vouch
    # for them. Tools that recompress have shipped wrong suffixes for years.
    if layer.media_type.endswith("+encrypted"):
        layer.field.fail("an encrypted layer; decrypt the image first (skopeo copy --decryption-key)")
    if not _LAYER.fullmatch(layer.media_type):
        layer.field.fail(f"{layer.media_type!r} is not the media type of a layer")


def _annotations(field: Field) -> Mapping[str, str]:
    found = field.get("annotations")
    return found.mapping() if found else {}


def _platform(field: Field | None) -> Platform | None:
    """The ``os``, ``architecture`` and ``variant`` of a descriptor's platform or of a config."""
    if field is None:
        return None
    os, architecture = field.text_or("os"), field.text_or("architecture")
    return Platform.of(os, architecture, field.text_or("variant")) if os and architecture else None

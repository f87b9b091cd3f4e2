"""Builds image archives for tests with nothing but the standard library, so that what layerfs reads was
not written by layerfs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"

Document = dict[str, object]


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of files, or of whatever a TarInfo says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(name: str, target: str, *, hard: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, target
    return info


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def config_of(tars: Sequence[bytes], platform: str = "linux/amd64", **more: object) -> bytes:
    """The config of an image with those layers."""
    os, architecture, *variant = platform.split("/")
    document: Document = {"architecture": architecture, "os": os}
    if variant:
        document["variant"] = variant[0]
    document["config"] = {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}
    document["rootfs"] = {"type": "layers", "diff_ids": [digest(tar) for tar in tars]}
    document["history"] = [{"created_by": f"step {n}"} for n in range(len(tars))]
    # The odd spacing shows that a config is kept byte for byte.
    return json.dumps(document | more, indent=3).encode()


@attrs.define
class Layout:
    """An OCI layout in the making: its files by name."""

    files: dict[str, bytes] = attrs.field(factory=dict)
    entries: list[Document] = attrs.field(factory=list)

    def blob(self, data: bytes, media_type: str) -> Document:
        """Add a blob; its descriptor."""
        self.files["blobs/" + digest(data).replace(":", "/")] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def json(self, document: Document, media_type: str) -> Document:
        return self.blob(json.dumps(document).encode(), media_type)

    def image(
        self,
        tars: Sequence[bytes],
        *,
        platform: str = "linux/amd64",
        config: bytes | None = None,
        layers: Sequence[Document] | None = None,
        **more: object,
    ) -> Document:
        """Add an image; the descriptor of its manifest."""
        if layers is None:
            layers = [self.blob(zipped(tar), OCI_LAYER) for tar in tars]
        data = config_of(tars, platform) if config is None else config
        manifest: Document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(data, OCI_CONFIG),
            "layers": list(layers),
        }
        return self.json(manifest | more, OCI_MANIFEST)

    def index(self, members: Sequence[Document]) -> Document:
        document: Document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(members)}
        return self.json(document, OCI_INDEX)

    def add(self, descriptor: Document, name: str | None = None, **annotations: str) -> None:
        """List a descriptor in ``index.json``."""
        marks = annotations | ({REF_NAME: name} if name else {})
        self.entries.append({**descriptor, "annotations": marks} if marks else descriptor)

    def all_files(self) -> dict[str, bytes]:
        index = json.dumps({"schemaVersion": 2, "manifests": self.entries}).encode()
        return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **self.files}

    def write(self, directory: Path) -> Path:
        for name, data in self.all_files().items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return directory

    def tar(self) -> bytes:
        return tar_of(self.all_files())


def simple_layout(
    name: str | None = "demo:v1", files: Sequence[str] = ("one", "two")
) -> tuple[Layout, bytes]:
    """A layout with one image, a layer for each name; the config, too."""
    tars = [tar_of({f"etc/{file}": file.encode() * 100}) for file in files]
    layout = Layout()
    layout.add(layout.image(tars), name)
    return layout, config_of(tars)


def docker_files(tars: Sequence[bytes], tags: Sequence[str]) -> dict[str, bytes | tarfile.TarInfo]:
    """The files of an archive as Docker up to 24 saves it."""
    config = config_of(tars)
    name = digest(config).removeprefix("sha256:") + ".json"
    layers = [f"{digest(tar)[7:]}/layer.tar" for tar in tars]
    manifest = [{"Config": name, "RepoTags": list(tags) or None, "Layers": layers}]
    return {
        name: config,
        **dict(zip(layers, tars, strict=True)),
        "manifest.json": json.dumps(manifest).encode(),
    }


def with_platform(descriptor: Document, platform: str) -> Document:
    """A descriptor that says what it is for."""
    os, architecture, *variant = platform.split("/")
    value = {"os": os, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
    return {**descriptor, "platform": value}


def real_layers() -> list[bytes]:
    """Layers with what real ones have: modes, links, deletions, an opaque directory, nothing at all."""
    directory, file, link, symlink = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
    base = [
        ("", directory, 0o755, b"", ""),
        ("etc", directory, 0o755, b"", ""),
        ("etc/passwd", file, 0o644, b"root:x:0:0:root:/root:/bin/sh\n", ""),
        ("etc/shadow", file, 0o600, b"root:*:1::::::\n", ""),
        ("bin", directory, 0o755, b"", ""),
        ("bin/su", file, 0o4755, b"#!" * 50_000, ""),
        ("bin/again", link, 0o4755, b"", "bin/su"),
        ("bin/sh", symlink, 0o777, b"", "../bin/su"),
        ("opt", directory, 0o1777, b"", ""),
        ("opt/old", directory, 0o700, b"", ""),
        ("opt/old/file", file, 0o644, b"old", ""),
    ]
    above = [
        ("etc", directory, 0o755, b"", ""),
        ("etc/.wh.shadow", file, 0, b"", ""),
        ("etc/passwd", file, 0o644, b"root:x:0:0:other:/root:/bin/sh\n", ""),
        ("opt", directory, 0o755, b"", ""),
        ("opt/.wh..wh..opq", file, 0, b"", ""),
        ("opt/new", file, 0o640, b"new", ""),
    ]
    return [_layer(base), _layer(above), bytes(1024)]


def _layer(entries: Sequence[tuple[str, bytes, int, bytes, str]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode, content, target in entries:
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.mode, info.linkname, info.size = kind, mode, target, len(content)
            info.mtime = 1_600_000_000
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()

"""Small image archives, written from the specification alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def layer(files: Mapping[str, bytes | None]) -> bytes:
    """A layer tar. A name that ends in ``/`` is a directory, None makes a whiteout."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            directory, slash, base = name.rpartition("/")
            entry = tarfile.TarInfo(f"{directory}{slash}.wh.{base}" if content is None else name)
            entry.mtime = 1_700_000_000
            if name.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            else:
                entry.size, entry.mode = len(content or b""), 0o644
            tar.addfile(entry, io.BytesIO(content or b""))
    return stream.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config(layers: Sequence[bytes]) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in layers]},
        }
    ).encode()


def oci_layout(directory: Path, images: Mapping[str, Sequence[bytes]]) -> Path:
    """An OCI layout with the images by name; an empty name is none."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
        kind = f"application/vnd.oci.image.{media_type}"
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    manifests = []
    for name, layers in images.items():
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(config(layers), "config.v1+json"),
            "layers": [blob(gzip.compress(tar, mtime=0), "layer.v1.tar+gzip") for tar in layers],
        }
        descriptor = blob(json.dumps(manifest).encode(), "manifest.v1+json")
        if name:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        manifests.append(descriptor)
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return directory


def tarred(layout: Path) -> bytes:
    """A layout as one tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, str(path.relative_to(layout)), recursive=False)
    return stream.getvalue()

"""What is worked with: a real image and made ones, the same bytes on every host.

An :class:`Archive` is an image as engines load it; a :class:`Stack` layers for containers to stand upon.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import zstandard
from attrs import frozen

from layerfs.archive.compression import open_decompressed
from layerfs.errors import NotSupported

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build/benchmarks/images"

OCI = "application/vnd.oci.image"
NAME = "localhost/bench:latest"
TAG = "bench"

IN_A_DIRECTORY = 100
FILE = bytes(range(256)) * 4
"""The content of a small file."""
READ = 1_000
"""Files at the bottom of the deep stack."""
_READ_DIRECTORIES = 4
_MTIME = 1_700_000_000

Json = dict[str, object]
Layers = Callable[[], Iterable[bytes]]


@frozen
class Archive:
    """One image as an OCI layout, in a directory and in a tar that is a docker-archive, too."""

    name: str
    layout: Path
    id: str
    diff_ids: tuple[str, ...]

    @property
    def tar(self) -> Path:
        return self.layout.with_suffix(".tar")


@frozen
class Stack:
    """Layers, first layer first, as tars."""

    name: str
    tars: tuple[bytes, ...]

    def cut(self, depth: int) -> Stack:
        """The lowest layers of it."""
        return Stack(f"{self.name}-{depth}", self.tars[:depth])


# Archives


def debian(compression: str) -> Archive:
    """Debian or Ubuntu from this machine's package mirror, in three layers: the image of ``make demo``."""
    made = ROOT / "build/demo-image.tar"
    if not made.exists():
        _make_debian(made)
    return _kept(f"debian-{compression}", lambda: _layers_of(made), compression)


def debian_large() -> Archive:
    """The same with compilers, interpreters, fonts: 15 layers, 25,000 entries, 1.35 GB, 508 MB with gzip."""

    def layers() -> Iterator[bytes]:
        with tempfile.TemporaryDirectory(prefix="large-", dir=CACHE) as scratch:
            made = Path(scratch, "large.tar")
            _make_debian(made, "--large")
            yield from _layers_of(made)

    return _kept("debian-large", layers, "gzip")


def _make_debian(made: Path, *options: str) -> None:
    if shutil.which("mmdebstrap") is None:
        raise NotSupported("no mmdebstrap to make a real image with")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "drivers")])}
    words = [sys.executable, str(ROOT / "scripts/demo_image.py"), str(made), *options]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise NotSupported(f"a real image cannot be made: {done.stderr.strip()[-300:]}")


def many_layers(count: int = 40, compression: str = "gzip") -> Archive:
    """Small layers, 50 files of a kilobyte in each."""
    return _kept(f"layers-{count}-{compression}", lambda: _small_layers(count), compression)


def of_stack(stack: Stack) -> Archive:
    """For engines that know layers from images only."""
    return _kept(f"stack-{stack.name}", lambda: stack.tars, "gzip")


def diff_ids_in(archive: Path) -> list[str]:
    """Of the layers of the one image in an archive, from their bytes."""
    return [_digest(layer) for layer in _layers_of(archive)]


def _layers_of(archive: Path) -> Iterator[bytes]:
    """The layers, uncompressed, of the one image in a docker-archive or OCI layout, in a tar."""
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file
            return file.read()

        if "manifest.json" in tar.getnames():
            [image] = json.loads(read("manifest.json"))
            names = image["Layers"]
        else:
            [entry] = json.loads(read("index.json"))["manifests"]
            names = [_file_of(layer) for layer in json.loads(read(_file_of(entry)))["layers"]]
        for name in names:
            with open_decompressed(io.BytesIO(read(name))) as plain:
                yield plain.read()


def _small_layers(count: int) -> list[bytes]:
    return [tar_of({f"usr/share/part{n:03}/f{k:02}": FILE for k in range(50)}) for n in range(count)]


def _kept(name: str, layers: Layers, compression: str) -> Archive:
    """The archive, made only if an earlier run has not."""
    layout, facts = CACHE / name, _facts(name)
    if not facts.exists():
        shutil.rmtree(layout, ignore_errors=True)
        id, diff_ids = _write(layout, layers(), compression)
        facts.write_text(json.dumps({"id": id, "diff_ids": diff_ids}))
    found = json.loads(facts.read_text())
    return Archive(name, layout, found["id"], tuple(found["diff_ids"]))


def is_kept(name: str) -> bool:
    """An earlier run has made it."""
    return _facts(name).exists()


def _facts(name: str) -> Path:
    return CACHE / f"{name}.json"


def _write(layout: Path, layers: Iterable[bytes], compression: str) -> tuple[str, list[str]]:
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> Json:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def document(content: object, media_type: str) -> Json:
        return blob(json.dumps(content).encode(), media_type)

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    diff_ids, described = [], []
    for layer in layers:
        diff_ids.append(_digest(layer))
        described.append(blob(_compressed(layer, compression), f"{OCI}.layer.v1.tar+{compression}"))
    config = document(
        {
            "architecture": machine,
            "os": "linux",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": f"layer {n}"} for n in range(len(diff_ids))],
        },
        f"{OCI}.config.v1+json",
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": config,
        "layers": described,
    }
    entry = document(manifest, f"{OCI}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": TAG, "io.containerd.image.name": NAME}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    for_docker = {
        "Config": _file_of(config),
        "RepoTags": [NAME],
        "Layers": [_file_of(layer) for layer in described],
    }
    (layout / "manifest.json").write_text(json.dumps([for_docker]))
    with tarfile.open(layout.with_suffix(".tar"), "w") as tar:
        for path in sorted(layout.rglob("*")):
            if path.is_file():
                tar.add(path, str(path.relative_to(layout)))
    return str(config["digest"]), diff_ids


def _file_of(descriptor: Json) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _compressed(data: bytes, compression: str) -> bytes:
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(data)
    return gzip.compress(data, compresslevel=6, mtime=0)


# Stacks


def many_files(files: int) -> Stack:
    """One layer of so many small files, 100 in each directory."""
    return Stack(f"files-{files}", (tar_of({path_of(number): FILE for number in range(files)}),))


def path_of(number: int) -> str:
    return f"d{number // IN_A_DIRECTORY:04}/f{number % IN_A_DIRECTORY:02}"


def deep(depth: int) -> Stack:
    """1,000 small files in 4 directories at the bottom, and in every layer above one more in each of the 4:
    a name of the bottom is looked for in all the others first."""
    bottom = tar_of(dict.fromkeys(bottom_files(), FILE))
    above = (
        tar_of({f"d{directory}/above{n:03}": FILE for directory in range(_READ_DIRECTORIES)})
        for n in range(1, depth)
    )
    return Stack("deep", (bottom, *above))


def bottom_files() -> list[str]:
    return [f"d{number % _READ_DIRECTORIES}/f{number:04}" for number in range(READ)]


def tree(files: int) -> Stack:
    """A tree of files of 8 KiB on average in 350 directories, spread over three layers."""
    noise = random.Random(1)
    layers: list[dict[str, bytes]] = [{}, {}, {}]
    for number in range(files):
        name = f"tree/d{number % 50:02}/e{number % 7}/f{number:05}"
        noise.choice(layers)[name] = noise.randbytes(int(noise.expovariate(1 / 8192)))
    return Stack(f"tree-{files}", tuple(map(tar_of, layers)))


def sized(sizes: Iterable[int]) -> Stack:
    """One layer with a file of each size, of bytes that do not compress."""
    noise = random.Random(0)
    return Stack("sized", (tar_of({f"size{size}": noise.randbytes(size) for size in sizes}),))


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of files and the directories they are in, the same bytes each time."""
    made = io.BytesIO()
    known: set[str] = set()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            for parent in reversed(Path(name).parents[:-1]):
                if str(parent) not in known:
                    known.add(str(parent))
                    directory = tarfile.TarInfo(str(parent))
                    directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, _MTIME
                    tar.addfile(directory)
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), _MTIME
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()

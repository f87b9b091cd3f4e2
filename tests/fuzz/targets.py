"""What is fuzzed. A target takes any bytes and returns, or raises what is a defect: an error that is none of
ours, or one that blames the machine for bytes that came from outside; something outside the layer touched;
other bytes given back than came in.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from layerfs.archive import names as archive_names
from layerfs.archive.compression import Compression, compress, open_decompressed
from layerfs.archive.limits import Limits
from layerfs.archive.reader import TarReader
from layerfs.archive.split import Recorder, replay
from layerfs.archive.unpack import unpack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.errors import ArchiveError, BadData, InvalidID, LayerfsError, StoreDamaged
from layerfs.ids import DiffID, digest_of
from layerfs.image import docker, names, oci
from layerfs.image.source import Source
from layerfs.image.tarball import TarSource
from layerfs.linux.removetree import remove_tree
from layerfs.testing.entries import (
    ACL,
    CAP_NET_RAW,
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    sparse_tar_stream,
    symlink,
    tar_bytes,
    whiteout,
)

LIMITS = Limits(bytes=1 << 20, entries=1000)
MOST = 8 << 20
"""Bytes that a target reads of what a small input claims to be."""

Target = Callable[[bytes, Path], None]
"""Called with the input and an empty directory to work in."""


def _refused(error: LayerfsError, *kinds: type[LayerfsError]) -> None:
    """The error must be one that tells of bytes from outside."""
    if not isinstance(error, kinds):
        raise AssertionError(f"{type(error).__name__} blames the system: {error}") from error
    if len(str(error)) > 20_000:  # a path with each of its bytes escaped
        raise AssertionError("a message without bounds") from error


# --- layers ----------------------------------------------------------------------------------


def tar(data: bytes, _: Path) -> None:
    """Reading gives every byte back: those between the entries, their payloads, what follows."""
    reader = TarReader(io.BytesIO(data))
    found = []
    try:
        for _entry in reader:
            found.append(reader.head())
            found.extend(reader.chunks())
        found.extend(reader.tail())
    except LayerfsError as error:
        _refused(error, BadData)
    else:
        assert b"".join(found) == data


OUTSIDE: Mapping[str, bytes] = {"target": b"mine", "dir/secret": b"mine", "x": b"mine"}


@attrs.frozen
class _Sentinel:
    """A tree beside the layer's root that must stay as it is."""

    root: Path

    def make(self) -> None:
        (self.root / "dir").mkdir(parents=True)
        for name, content in OUTSIDE.items():
            (self.root / name).write_bytes(content)

    def picture(self) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for path in (self.root, *sorted(self.root.rglob("*"))):
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            owner = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
            times = (status.st_mtime_ns, status.st_ctime_ns)
            found.append((path, owner, times, content, os.listxattr(path, follow_symlinks=False)))
        return found


@contextlib.contextmanager
def _untouched(scratch: Path) -> Iterator[None]:
    sentinel = _Sentinel(scratch / "outside")
    sentinel.make()
    before = sentinel.picture()
    try:
        yield
    finally:
        assert sentinel.picture() == before, "something outside was touched"
        assert set(os.listdir(scratch)) <= {"outside", "root", "record"}


def layer(data: bytes, scratch: Path) -> None:
    """The whole road in, upon a tree that links out; and if it was taken, the road out again."""
    form = tuple(WhiteoutFormat)[len(data) % len(WhiteoutFormat)]
    root = scratch / "root"
    root.mkdir()
    if form is WhiteoutFormat.APPLY:
        (root / "l").symlink_to("../outside")
        (root / "d").mkdir()
        (root / "d/l").symlink_to(scratch / "outside")
    with _untouched(scratch):
        _in_and_out(data, root, scratch / "record", form)


def _in_and_out(data: bytes, root: Path, record: Path, form: WhiteoutFormat) -> None:
    try:
        with record.open("xb") as out, Recorder(io.BytesIO(data), out, limits=LIMITS) as recorder:
            unpack(recorder, root, whiteouts=form, displaced=recorder.displaced)
            recorded = recorder.finish()
    except LayerfsError as error:
        _refused(error, BadData)
        return
    assert recorded.diff_id == digest_of(data)
    from layerfs.archive.layerfile import open_layer_file

    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        with record.open("rb") as again:
            stream = replay(again, lambda name: open_layer_file(fd, name), recorded.diff_id)
            with stream:
                assert stream.read() == data
    finally:
        os.close(fd)


def record(data: bytes, _: Path) -> None:
    """The reader of records: they may be damaged. The first bytes choose whether the frame is right."""
    if data[:1] == b"S":  # steps as they are, so that what lies behind zstd is reached
        data = b"LFSPLIT\x01" + b"".join(compress(iter([data[1:]]), Compression.ZSTD))

    def open_file(name: bytes) -> io.BytesIO:
        if b"missing" in name:
            raise FileNotFoundError(2, "missing")
        return io.BytesIO(b"content of a file" * 10)

    try:
        with replay(io.BytesIO(data), open_file, DiffID("sha256:" + "0" * 64)) as stream:
            read = 0
            while read < MOST and (chunk := stream.read(1 << 16)):
                read += len(chunk)
    except LayerfsError as error:
        _refused(error, BadData, StoreDamaged)
    else:
        assert read >= MOST, "what has another digest was given to its end"


def compressed(data: bytes, _: Path) -> None:
    """What comes in may be compressed, in several ways, and broken."""
    try:
        with open_decompressed(io.BytesIO(data)) as stream:
            read = 0
            while read < MOST and (chunk := stream.read(1 << 16)):
                read += len(chunk)
    except LayerfsError as error:
        _refused(error, BadData)


# --- images ----------------------------------------------------------------------------------


def _look(source: Source) -> None:
    try:
        if source.has(oci.INDEX):
            found = oci.find_images(source, None)
            if source.has(docker.MANIFEST):
                docker.names_by_config(source)
        elif source.has(docker.MANIFEST):
            found = docker.find_images(source, None)
        else:
            source.top()
            return
        for image in found:
            assert digest_of(image.config) == image.id
            for name in image.names:
                assert names.normalise(name) == name
            for one in image.layers:
                with source.open(one.path)[0] as blob:
                    blob.read(1 << 16)
    except LayerfsError as error:
        _refused(error, BadData)


def archive(data: bytes, _: Path) -> None:
    """An image archive as it comes: a tar."""
    fd = os.memfd_create("archive")
    os.write(fd, data)
    try:
        source = TarSource(fd, "archive")
    except LayerfsError as error:
        _refused(error, BadData)
        return
    try:
        _look(source)
    finally:
        source.close()


@attrs.frozen
class _Files:
    """An image archive of files in memory."""

    files: Mapping[bytes, bytes]
    label: str = "archive"

    def has(self, name: bytes) -> bool:
        return name in self.files

    def open(self, name: bytes) -> tuple[io.BytesIO, int]:
        from layerfs.errors import ImageError

        if name not in self.files:
            raise ImageError(f"no {name!r}")
        return io.BytesIO(self.files[name]), len(self.files[name])

    def top(self) -> list[bytes]:
        return sorted(self.files)

    def close(self) -> None: ...


_MARK = re.compile(rb"@([0-9])(#?)")


def documents(data: bytes, _: Path) -> None:
    """Documents divided by NULs: the first is ``index.json``, the second a docker-archive's
    ``manifest.json``, the rest blobs. ``@2`` is the digest of the document number 2 and ``@2#`` its size, so
    that documents that were changed are looked into and not only refused for their digests."""
    parts = data.split(b"\0")[:10]
    digests: dict[int, str] = {}
    for number in reversed(range(len(parts))):
        parts[number] = _MARK.sub(lambda found: _marked(found, parts, digests), parts[number])
        digests[number] = digest_of(parts[number])
    files = {b"blobs/" + digests[n].replace(":", "/").encode(): part for n, part in enumerate(parts)}
    if parts[0]:
        files[b"index.json"] = parts[0]
    if len(parts) > 1 and parts[1]:
        files[b"manifest.json"] = parts[1]
    _look(_Files(files))


def _marked(found: re.Match[bytes], parts: Sequence[bytes], digests: Mapping[int, str]) -> bytes:
    number = int(found[1])
    if number not in digests:
        return found[0]
    return b"%d" % len(parts[number]) if found[2] else digests[number].encode()


# --- names -----------------------------------------------------------------------------------


def name(data: bytes, _: Path) -> None:
    """Names in layers and names of images: what is taken is the same when it is taken again."""
    try:
        path = archive_names.normalise(data)
    except LayerfsError as error:
        _refused(error, ArchiveError)
    else:
        assert archive_names.normalise(path) == path
        parts = path.split(b"/") if path else []
        assert not {b"", b".", b".."} & set(parts) and b"\0" not in path
    text = data.decode("utf-8", "replace")
    try:
        full = names.normalise(text)
    except LayerfsError as error:
        _refused(error, InvalidID)
    else:
        assert names.normalise(full) == full == names.normalise(names.familiar(full))


TARGETS: Mapping[str, Target] = {
    target.__name__: target for target in (tar, layer, record, compressed, archive, documents, name)
}


@contextlib.contextmanager
def scratch_in(place: Path) -> Iterator[Path]:
    """An empty directory for one call, gone afterwards."""
    scratch = place / "scratch"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        remove_tree(scratch)


def mended(data: bytes) -> bytes:
    """The same with checksums that fit where a block looks like a tar header, so that what lies behind them
    is reached."""
    found = bytearray(data)
    for at in range(0, len(found) - 511, 512):
        if found[at + 257 : at + 262] == b"ustar":
            found[at + 148 : at + 156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)


TARS = ("tar", "layer", "archive")
"""The targets whose input is a tar."""


# --- where to begin --------------------------------------------------------------------------


def seeds(target: str) -> list[bytes]:
    """Inputs from which the search begins: sound ones, and attacks."""
    return _SEEDS[target]()


def _tars() -> list[bytes]:
    from tests.faults.test_hostile_images import LAYERS
    from tests.unit.test_unpack_hostile import ESCAPES, HARMLESS

    small = [data for data, _ in LAYERS.values() if len(data) < 20_000]
    escapes = [tar_bytes(items) for items in (*ESCAPES.values(), *HARMLESS.values())]
    sparse = [sparse_tar_stream(b"hole", 1 << 16, {0: b"x", 4096: b"y" * 100}).read()]
    rich = [
        directory(b"d", xattrs={b"user.a": b"b", b"system.posix_acl_default": ACL}),
        file(b"d/f", b"x" * 700, xattrs={b"security.capability": CAP_NET_RAW}, mode=0o4755),
        file(b"d/f", b"again"),
        hard_link(b"h", b"d/f"),
        symlink(b"l", b"d/f"),
        device(b"n", 1, 3),
        fifo(b"p"),
        whiteout(b"gone"),
        opaque(b"d"),
        file(b"n" * 150 + b"/" + b"m" * 120, b"long"),
        file(b".wh..wh.plnk/1.2", b"linked"),
        hard_link(b"pseudo", b".wh..wh.plnk/1.2"),
    ]
    return [tar_bytes(rich), *sparse, *small, *escapes]


def _steps() -> list[bytes]:
    out, kept = io.BytesIO(), []
    for data in _tars()[:2]:
        with Recorder(io.BytesIO(data), out) as recorder:
            while recorder.read(1 << 16):
                pass
            recorder.finish()
        kept.append(out.getvalue())
        with open_decompressed(io.BytesIO(out.getvalue()[8:])) as plain:
            kept.append(b"S" + plain.read())
        out = io.BytesIO()
    return kept


def _compressed() -> list[bytes]:
    data = tar_bytes([file(b"f", b"content" * 50)])
    packed = [b"".join(compress(iter([data]), kind)) for kind in Compression]
    return [*packed, packed[1] * 2, gzip.compress(bytes(1 << 20)), *[each + bytes(20) for each in packed]]


_CONFIG = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["@4"]}}
_KIND = "application/vnd.oci.image."


def _descriptor(number: int, kind: str, **more: object) -> dict[str, object]:
    return {"mediaType": _KIND + kind, "digest": f"@{number}", "size": 0} | more


def _documents() -> list[bytes]:
    manifest = {
        "schemaVersion": 2,
        "mediaType": _KIND + "manifest.v1+json",
        "config": _descriptor(3, "config.v1+json"),
        "layers": [_descriptor(4, "layer.v1.tar")],
    }
    platform = {"os": "linux", "architecture": "amd64", "variant": "v1"}
    named = {"org.opencontainers.image.ref.name": "demo:v1", "io.containerd.image.name": "quay.io/a/b:1"}
    listed = _descriptor(2, "manifest.v1+json", platform=platform, annotations=named)
    index = {"schemaVersion": 2, "manifests": [listed]}
    blob = "blobs/sha256/"
    saved = [{"Config": f"{blob}@3", "RepoTags": ["a:1"], "Layers": [f"{blob}@4"]}]
    nested = {"schemaVersion": 2, "manifests": [_descriptor(5, "index.v1+json")]}

    def joined(*parts: object) -> bytes:
        texts = [b"" if part is None else json.dumps(part).encode() for part in parts]
        # Sizes are numbers, which json would put in quotation marks.
        return b"\0".join(
            re.sub(rb'"digest": "@(\d)", "size": 0', rb'"digest": "@\1", "size": @\1#', t) for t in texts
        )

    return [
        joined(index, None, manifest, _CONFIG, "layer"),
        joined(index, saved, manifest, _CONFIG, "layer"),
        joined(None, saved, None, _CONFIG, "layer"),
        joined(nested, None, manifest, _CONFIG, "layer", index),
    ]


def _archives() -> list[bytes]:
    from tests.imaging import docker_files, simple_layout, tar_of

    layout, _ = simple_layout()
    tars = [tar_of({"f": b"x"}), tar_of({"g": b"y"})]
    return [layout.tar(), tar_of(docker_files(tars, ["a:1"])), *_tars()[:3]]


def _names() -> list[bytes]:
    from tests.unit.test_image_names import NAMES

    paths = [b"../x", b"/etc/passwd", b"a//b/./c", b"a/../../b", b".wh.x", b".wh..wh..opq", b"a\0b", b""]
    return [*paths, *[text.encode() for text, *_ in NAMES]]


_SEEDS: Mapping[str, Callable[[], list[bytes]]] = {
    "tar": _tars,
    "layer": _tars,
    "record": _steps,
    "compressed": _compressed,
    "archive": _archives,
    "documents": _documents,
    "name": _names,
}

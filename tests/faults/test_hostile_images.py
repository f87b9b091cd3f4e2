"""Images that want to do harm, through the whole of the store: each ends in success or in an error that names
what is wrong, leaves nothing behind, and never takes memory or time without bound."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import resource
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.archive.limits import Limits
from layerfs.errors import (
    ArchiveError,
    ArchiveTooLarge,
    BadData,
    DigestMismatch,
    EntryRefused,
    ImageError,
    LayerfsError,
    MalformedArchive,
)
from layerfs.image.load import load
from layerfs.store.store import Store
from layerfs.testing.entries import device, directory, file, sparse_tar_stream, symlink, tar_bytes, tar_stream
from tests.properties.profile import LONG, examples
from tests.storekit import held, open_store

OCI = "application/vnd.oci.image"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, "dir") as store:
        yield store
        assert held(store) == []
        assert list((store.root / "tmp").iterdir()) == []
        assert store.check() == []


def raw_header(
    name: bytes = b"f", size: bytes = b"00000000000\0", kind: bytes = b"0", **more: bytes
) -> bytes:
    """A ustar header with whatever numbers, and a checksum that is right."""
    block = bytearray(512)

    def put(at: int, data: bytes) -> None:
        block[at : at + len(data)] = data

    put(0, name)
    put(100, b"0000644\0")
    put(108, more.get("uid", b"0000000\0"))
    put(116, b"0000000\0")
    put(124, size)
    put(136, more.get("mtime", b"00000000000\0"))
    put(148, b" " * 8)
    put(156, kind)
    put(257, b"ustar\x0000")
    put(148, b"%06o\0 " % sum(block))
    return bytes(block)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return raw_header(b"pax", b"%011o\0" % len(records), kind) + records.ljust(
        -(-len(records) // 512) * 512, b"\0"
    )


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while len(b"%d" % size) + len(key) + len(value) + 3 != size:
        size = len(b"%d" % size) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (size, key, value)


END = bytes(1024)

# name: (tar, what is raised)
LAYERS: dict[str, tuple[bytes, type[LayerfsError]]] = {
    "a negative size": (raw_header(size=b"\xff" * 12) + END, MalformedArchive),
    "a size past 63 bits": (raw_header(size=b"\x80" + b"\x7f" * 11) + END, MalformedArchive),
    "a size that is no number": (raw_header(size=b"bigbigbigbi\0") + END, MalformedArchive),
    "a size that the archive has not": (raw_header(size=b"77777777777\0") + END, ArchiveError),
    "a negative size in pax": (pax(record(b"size", b"-1")) + raw_header() + END, MalformedArchive),
    "a size in pax past 63 bits": (pax(record(b"size", b"9" * 30)) + raw_header() + END, MalformedArchive),
    "a size of a million digits": (
        pax(record(b"size", b"9" * 1_000_000)) + raw_header() + END,
        MalformedArchive,
    ),
    "a record longer than its block": (pax(b"99999 path=x\n") + raw_header() + END, MalformedArchive),
    "a record of no length": (pax(b"0 path=x\n") + raw_header() + END, MalformedArchive),
    "a record of negative length": (pax(b"-5 path=x\n") + raw_header() + END, MalformedArchive),
    "a giant pax header": (pax(record(b"comment", b"x" * (17 << 20))) + raw_header() + END, ArchiveTooLarge),
    "a giant global header": (
        pax(record(b"comment", b"x" * (17 << 20)), b"g") + raw_header() + END,
        ArchiveTooLarge,
    ),
    "a NUL in a name": (pax(record(b"path", b"a\0b")) + raw_header() + END, BadData),
    "a name of megabytes": (pax(record(b"path", b"n/" * (1 << 20))) + raw_header() + END, EntryRefused),
    "an owner past 32 bits": (raw_header(uid=b"\x80\0\0\x7f\xff\xff\xff\xff") + END, ArchiveError),
    "a bad checksum": (raw_header()[:-1] + b"x" + END, MalformedArchive),
    "an xattr with an empty name": (
        pax(record(b"SCHILY.xattr.", b"v")) + raw_header() + END,
        ArchiveError,
    ),
    "a whiteout for a device": (tar_bytes([device(b"d", 0, 0)]), EntryRefused),
    "a root that is a link": (tar_bytes([symlink(b"./", b"elsewhere")]), EntryRefused),
    "something beneath a whiteout": (tar_bytes([file(b".wh.x/y")]), EntryRefused),
}


@pytest.mark.parametrize("story", LAYERS)
def test_a_hostile_layer_is_refused(store: Store, story: str) -> None:
    tar, error = LAYERS[story]
    with pytest.raises(error) as caught:
        store.register(io.BytesIO(tar))
    assert len(str(caught.value)) < 10_000


def test_attributes_that_are_the_kernels_own(tmp_path: Path) -> None:
    """Refused by name, or kept under a name that the kernel does not take for its own."""
    names = [
        b"trusted.overlay.opaque",
        b"user.overlay.redirect",
        b"security.evm",
        b"system.nosuch",
        b"nonsense",
    ]
    with open_store(tmp_path, "overlay") as store:
        base = store.register(tar_stream([directory(b"d"), file(b"d/below", b"")]))
        for name in names:
            item = directory(b"d", xattrs={name: b"y"})
            try:
                layer = store.register(tar_stream([item]), base.chain_id)
            except EntryRefused as refused:
                assert name.decode() in str(refused)
                continue
            with layer.mounted() as root:
                assert (root / "d/below").exists(), f"{name!r} hid what lies below"


def test_a_bomb_is_refused_before_it_fills_the_disk(store: Store) -> None:
    limits = Limits(bytes=1 << 20, entries=1000)
    bomb = io.BytesIO(gzip.compress(tar_bytes([file(b"zeros", bytes(50 << 20))])))
    with pytest.raises(ArchiveTooLarge, match="zeros"):
        store.register(bomb, limits=limits)
    with pytest.raises(ArchiveTooLarge, match="hole"):
        store.register(sparse_tar_stream(b"hole", 1 << 40, {0: b"x"}), limits=limits)
    limits = Limits(bytes=1 << 30, entries=1000)
    with pytest.raises(ArchiveTooLarge, match="1000 entries"):
        store.register(tar_stream([file(b"%d" % n) for n in range(1001)]), limits=limits)
    with pytest.raises(ArchiveTooLarge, match="directories"):
        store.register(tar_stream([file(b"%d/" % n + b"d/" * 500 + b"f") for n in range(3)]), limits=limits)
    with pytest.raises(ArchiveTooLarge, match=r"^g"):
        both = tar_stream([file(b"f", bytes(600_000)), file(b"g", bytes(600_000))])
        store.register(both, limits=Limits(bytes=1 << 20, entries=None))


def test_a_compressed_archive_that_is_a_bomb_is_refused_before_it_fills_the_disk(store: Store) -> None:
    bomb = io.BytesIO(gzip.compress(tar_bytes([file(b"zeros", bytes(5 << 20)), file(b"index.json", b"{}")])))
    with pytest.raises(ArchiveTooLarge, match="zeros"):
        load(store, bomb, limits=Limits(bytes=1 << 20, entries=None))


def test_a_million_entries_take_bounded_memory(tmp_path: Path) -> None:
    """And no time that follows their square. Some of them in a short run."""
    count = 1_000_000 if LONG else 30_000
    header = raw_header(b"d/%08d")  # a name of ten bytes, to be filled in

    class Many(io.RawIOBase):
        at = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if self.at == count:
                return 0
            data = numbered(header, self.at)
            buffer[: len(data)] = data
            self.at += 1
            return len(data)

    child = os.fork()
    if child == 0:
        limit_memory(200 + count // 1000)
        with open_store(tmp_path, "dir") as store:
            layer = store.register(io.BufferedReader(Many(), 512))  # type: ignore[arg-type]
            os._exit(0 if layer.tar_size == 512 * count else 1)
    assert os.waitpid(child, 0)[1] == 0


def numbered(header: bytes, number: int) -> bytes:
    block = bytearray(header)
    block[:10] = b"d/%08d" % number
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def limit_memory(megabytes: int) -> None:
    """Beyond what this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def test_what_a_layer_may_hold_is_bounded_unless_told_otherwise(store: Store) -> None:
    with pytest.raises(ArchiveTooLarge, match="vast"):
        store.register(sparse_tar_stream(b"vast", 1 << 50, {0: b"x"}))


def test_memory_does_not_follow_what_a_tar_claims(store: Store) -> None:
    """A header of 8 EB, a pax record of 4 GB: nothing is allocated for what is not there."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for tar in (
        raw_header(size=b"\x80" + b"\0" * 3 + b"\x6f" + b"\xff" * 7),
        raw_header(size=b"\x80" + b"\0" * 6 + b"\x01" + b"\0" * 4, kind=b"x"),
        raw_header(size=b"\x80" + b"\0" * 6 + b"\x01" + b"\0" * 4, kind=b"L"),
    ):
        with pytest.raises(BadData):
            store.register(io.BytesIO(tar + END), limits=Limits(None, None))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


# --- images ----------------------------------------------------------------------------------


class Layout:
    """An OCI layout under construction, with blobs that may lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs/sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.root / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def image(self, layer: bytes) -> dict[str, Any]:
        diff = hashlib.sha256(layer).hexdigest()
        config = {"os": "linux", "architecture": "amd64"}
        rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff}"]}
        described = self.blob(json.dumps({**config, "rootfs": rootfs}).encode(), "config.v1+json")
        layers = [self.blob(layer, "layer.v1.tar")]
        manifest = {"schemaVersion": 2, "config": described, "layers": layers}
        return self.blob(json.dumps(manifest).encode(), "manifest.v1+json")

    def index(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return self.blob(json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), "index.v1+json")

    def top(self, entries: list[dict[str, Any]]) -> Path:
        (self.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        return self.root


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


TAR = tar_bytes([file(b"f", b"content")])


def test_an_index_that_says_one_thing_often_is_read_once(tmp_path: Path, layout: Layout) -> None:
    entry = layout.image(TAR)
    with open_store(tmp_path) as store:
        begun = time.process_time()
        assert len(load(store, layout.top([entry] * 20_000))) == 1
        assert time.process_time() - begun < 10, "20,000 equal entries were read one by one"


def test_an_index_with_endless_names_is_refused(store: Store, layout: Layout) -> None:
    entry = layout.image(TAR)
    ref = "org.opencontainers.image.ref.name"
    many = [{**entry, "annotations": {ref: f"name:{n}"}} for n in range(12_000)]
    with pytest.raises(ImageError, match="more than 10000"):
        load(store, layout.top(many))


def test_indexes_that_multiply_are_refused(store: Store, layout: Layout) -> None:
    """Nine deep, each naming the one below many times under other platforms."""
    entry = layout.image(TAR)
    for level in range(10):
        variants = [{**entry, "platform": {"os": "linux", "architecture": f"a{level}{n}"}} for n in range(50)]
        entry = layout.index(variants)
    with pytest.raises(ImageError):
        load(store, layout.top([entry]))


def test_an_index_that_holds_itself_does_not_loop(store: Store, layout: Layout) -> None:
    """No digest can name itself; a blob that lies about its digest can."""
    name = layout.root / "blobs/sha256" / ("a" * 64)
    entry = {"mediaType": f"{OCI}.index.v1+json", "digest": "sha256:" + "a" * 64, "size": 0}
    for _ in range(3):
        name.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        entry["size"] = name.stat().st_size
    with pytest.raises(DigestMismatch):
        load(store, layout.top([entry]))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_blob_that_lies_is_named(store: Store, layout: Layout, which: int) -> None:
    source = layout.top([layout.image(TAR)])
    victim = sorted((layout.root / "blobs/sha256").iterdir())[which]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(BadData, match=victim.name):
        load(store, source)


def test_a_member_that_is_missing_is_named_with_where_it_is_listed(store: Store, tmp_path: Path) -> None:
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
        }
    ).encode()
    for files, missing, field in (
        ({}, "config.json", "Config"),
        ({"config.json": config}, "gone/layer.tar", r"Layers\[0\]"),
    ):
        manifest = [{"Config": "config.json", "RepoTags": ["a:1"], "Layers": ["gone/layer.tar"]}]
        archive = tmp_path / "archive.tar"
        with tarfile.open(archive, "w") as tar:
            for name, data in {"manifest.json": json.dumps(manifest).encode(), **files}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with pytest.raises(ImageError, match=field) as caught:
            load(store, archive)
        assert missing in str(caught.value)


# --- what nobody thought of ------------------------------------------------------------------

SOUND = tar_bytes([directory(b"d"), file(b"d/f", b"x" * 700), symlink(b"l", b"d/f"), device(b"n", 1, 3)])
_INTERESTING = st.sampled_from(
    [b"\0", b"\xff", b"\x80", b"7", b"-", b"/", b"../", b"=", b"\n", b"x", b"g", b"L"]
)
_EDITS = st.lists(st.tuples(st.integers(0, len(SOUND)), _INTERESTING, st.booleans()), max_size=8)


def changed(data: bytes, edits: list[tuple[int, bytes, bool]], *, mend: bool = False) -> bytes:
    found = bytearray(data)
    for at, what, insert in edits:
        at %= len(found) + 1
        found[at : at if insert else at + len(what)] = what
    if mend:  # so that what lies behind the checksum is reached
        for at in range(0, len(found) - 511, 512):
            if found[at + 257 : at + 262] == b"ustar":
                found[at + 148 : at + 156] = b" " * 8
                found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)


def attempt(call: Callable[[], object]) -> None:
    try:
        call()
    except LayerfsError as error:
        assert isinstance(error, BadData), f"{type(error).__name__} blames the system: {error}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("fuzz"), "dir") as store:
        yield store


@examples(150)
@given(edits=_EDITS, mend=st.booleans(), cut=st.integers(0, 3000))
def test_any_tar_ends_in_success_or_a_typed_error(
    shared: Store, edits: list[tuple[int, bytes, bool]], mend: bool, cut: int
) -> None:
    tar = changed(SOUND, edits, mend=mend)
    attempt(lambda: shared.register(io.BytesIO(tar[: len(tar) - cut] if cut < 1500 else tar)).release())
    shared.prune()
    assert held(shared) == []


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def somewhere(document: object, path: list[int], value: object) -> object:
    """``document`` with another value at some place."""
    if path and isinstance(document, dict) and document:
        key = sorted(document)[path[0] % len(document)]
        return {**document, key: somewhere(document[key], path[1:], value)}
    if path and isinstance(document, list) and document:
        at = path[0] % len(document)
        return [*document[:at], somewhere(document[at], path[1:], value), *document[at + 1 :]]
    return value


@examples(150)
@given(path=st.lists(st.integers(0, 9), max_size=5), value=_JSON, which=st.integers(0, 3))
def test_any_layout_ends_in_success_or_a_typed_error(
    shared: Store, tmp_path_factory: pytest.TempPathFactory, path: list[int], value: object, which: int
) -> None:
    layout = Layout(tmp_path_factory.mktemp("layout"))
    diff = hashlib.sha256(TAR).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff}"]}
    config: object = {"os": "linux", "architecture": "amd64", "rootfs": rootfs}
    if which == 0:
        config = somewhere(config, path, value)
    described = layout.blob(json.dumps(config).encode(), "config.v1+json")
    layers = [layout.blob(TAR, "layer.v1.tar")]
    manifest: object = {"schemaVersion": 2, "config": described, "layers": layers}
    if which == 1:
        manifest = somewhere(manifest, path, value)
    index: object = {
        "schemaVersion": 2,
        "manifests": [layout.blob(json.dumps(manifest).encode(), "manifest.v1+json")],
    }
    if which >= 2:
        index = somewhere(index, path, value)
    (layout.root / "index.json").write_text(json.dumps(index))
    attempt(lambda: load(shared, layout.root))
    for image in list(shared.images()):
        shared.remove_image(image.id, force=True)
    shared.prune()
    assert held(shared) == []

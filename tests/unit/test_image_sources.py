"""An archive is read the same from a directory, a tar, a compressed tar and a pipe, and no name in it
reaches anything outside."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard

from layerfs.archive.reader import MAX_TRAILING
from layerfs.errors import ArchiveTooLarge, BadData, CompressionError, ImageError, TruncatedArchive
from layerfs.image.directory import DirectorySource
from layerfs.image.fields import MAX_JSON
from layerfs.image.opening import open_source
from layerfs.image.source import Source, read_small
from layerfs.image.tarball import MAX_MEMBERS
from layerfs.progress import silent
from tests.imaging import link, tar_of, zipped

FILES: dict[str, bytes | tarfile.TarInfo] = {
    "index.json": b"{}",
    "./blobs/sha256/aa": b"layer" * 1000,
    "/absolute": b"beneath the root",
}


def contents(source: Source) -> dict[bytes, bytes]:
    return {name: read_small(source, name) for name in (b"index.json", b"blobs/sha256/aa", b"absolute")}


def expected() -> dict[bytes, bytes]:
    return {b"index.json": b"{}", b"blobs/sha256/aa": b"layer" * 1000, b"absolute": b"beneath the root"}


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": zipped,
    "zstd": lambda data: zstandard.compress(data),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


@pytest.mark.parametrize("packing", PACKED)
def test_a_tar_is_read_in_place_or_unpacked_first(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(PACKED[packing](tar_of(FILES)))
    with open_source(path, tmp_path, silent) as source:
        assert contents(source) == expected()
        assert source.top() == [b"absolute", b"blobs", b"index.json"]
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.parametrize("packing", PACKED)
def test_a_pipe_is_spooled(tmp_path: Path, packing: str) -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as out:
            out.write(PACKED[packing](tar_of(FILES)))

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reader, "rb") as stream, open_source(stream, tmp_path, silent) as source:
        assert contents(source) == expected()
    thread.join()
    assert os.listdir(tmp_path) == []


def test_endless_zeros_behind_the_end_are_not_spooled(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(zipped(tar_of(FILES)) + zipped(bytes(MAX_TRAILING + 1)))
    with (
        pytest.raises(ArchiveTooLarge, match=r"image: more than \d+ bytes after its end"),
        open_source(path, tmp_path, silent),
    ):
        pass
    assert os.listdir(tmp_path) == ["image"]


def test_a_stream_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "with-preamble"
    path.write_bytes(b"preamble" + tar_of(FILES))
    streams: list[BinaryIO] = [path.open("rb"), io.BytesIO(path.read_bytes())]
    for stream in streams:
        stream.read(8)
        with open_source(stream, tmp_path, silent) as source:
            assert contents(source) == expected()
        stream.close()


def test_files_are_read_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(tar_of({"a": b"a" * 1_000_000, "b": b"b" * 1_000_000}))
    with open_source(path, tmp_path, silent) as source:
        a, b = source.open(b"a")[0], source.open(b"b")[0]
        assert (a.read(10), b.read(10), a.read(), b.read()) == (
            b"a" * 10, b"b" * 10, b"a" * 999_990, b"b" * 999_990,
        )  # fmt: skip


# tars


def opened(tmp_path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(tar_of(files))
    return path


def read(tmp_path: Path, files: dict[str, bytes | tarfile.TarInfo], name: bytes) -> bytes:
    with open_source(opened(tmp_path, files), tmp_path, silent) as source:
        return read_small(source, name)


def test_links_are_followed_inside_the_tar(tmp_path: Path) -> None:
    files: dict[str, bytes | tarfile.TarInfo] = {
        "one/layer.tar": b"content",
        "two/layer.tar": link("two/layer.tar", "../one/layer.tar"),
        "three/layer.tar": link("three/layer.tar", "two/layer.tar", hard=True),
    }
    assert read(tmp_path, files, b"two/layer.tar") == b"content"
    assert read(tmp_path, files, b"three/layer.tar") == b"content"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x": link("x", "/etc/passwd")}, "points out of the archive"),
        ({"x": link("x", "../../etc/passwd")}, "points out of the archive"),
        ({"x": link("x", "y"), "y": link("y", "x")}, "circles"),
        ({"x": link("x", "x")}, "circles"),
        ({"x": link("x", "nowhere")}, "no such file"),
        ({"x": tarfile.TarInfo("x/")}, "no such file"),
    ],
)  # fmt: skip
def test_a_link_that_leads_nowhere_is_named(
    tmp_path: Path, files: dict[str, bytes | tarfile.TarInfo], message: str
) -> None:
    with pytest.raises(ImageError, match=f"image.tar: x: .*{message}"):
        read(tmp_path, files, b"x")


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_a_name_that_climbs_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadData, match=r"image\.tar: .*'\.\.'"):
        read(tmp_path, {"index.json": b"{}", name: b""}, b"index.json")


def test_a_file_that_is_there_twice_is_refused_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("twice", "./twice", "mixed", "once"):
            tar.addfile(tarfile.TarInfo(name))
        tar.addfile(link("mixed", "once"))
    with open_source(path, tmp_path, silent) as source:
        assert read_small(source, b"once") == b""
        for twice in (b"twice", b"mixed"):
            with pytest.raises(ImageError, match="more than one member"):
                source.open(twice)


def test_a_sparse_member_is_refused_when_asked_for(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("x")
    marks = {"major": "0", "minor": "1", "map": "9,0", "size": "9"}
    sparse.pax_headers = {f"GNU.sparse.{key}": value for key, value in marks.items()}
    with pytest.raises(ImageError, match="sparse"):
        read(tmp_path, {"x": sparse}, b"x")


def test_a_tar_cut_short_is_refused(tmp_path: Path) -> None:
    data = tar_of({"x": b"x" * 10_000})
    (tmp_path / "image.tar").write_bytes(data[:3000])
    with (
        pytest.raises(TruncatedArchive, match=r"image\.tar"),
        open_source(tmp_path / "image.tar", tmp_path, silent),
    ):
        pass


def test_a_compressed_tar_cut_short_is_refused(tmp_path: Path) -> None:
    data = zipped(tar_of({"x": os.urandom(10_000)}))
    (tmp_path / "image.tar").write_bytes(data[:3000])
    with (
        pytest.raises(CompressionError, match=r"image\.tar"),
        open_source(tmp_path / "image.tar", tmp_path, silent),
    ):
        pass


def test_an_archive_of_endless_members_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x").tobuf()
    (tmp_path / "image.tar").write_bytes(header * (MAX_MEMBERS + 1))
    with pytest.raises(ImageError, match="members"), open_source(tmp_path / "image.tar", tmp_path, silent):
        pass


def test_json_is_read_up_to_a_bound(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="are the most"):
        read(tmp_path, {"x": bytes(MAX_JSON + 1)}, b"x")


# directories


def test_a_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(b"{}")
    with open_source(tmp_path, tmp_path, silent) as source:
        assert read_small(source, b"index.json") == b"{}"
        assert source.top() == [b"index.json"]
        assert source.has(b"index.json")
        assert not source.has(b"index.json/below")
        assert not source.has(b"nothing")
        with pytest.raises(ImageError, match="No such file"):
            source.open(b"nothing")


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "beside", "blobs/beside"])
def test_a_symbolic_link_in_a_directory_is_not_followed(tmp_path: Path, target: str) -> None:
    layout = tmp_path / "layout"
    (layout / "blobs").mkdir(parents=True)
    for place in (tmp_path / "outside", layout / "beside", layout / "blobs/beside"):
        place.write_bytes(b"secret")
    (layout / "link").symlink_to(target)
    (layout / "linked").symlink_to("blobs")
    source = DirectorySource(layout)
    for name in (b"link", b"linked/beside"):
        assert source.has(name)
        with pytest.raises(ImageError, match="symbolic link"):
            source.open(name)
    source.close()


def test_a_fifo_in_a_directory_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    source = DirectorySource(tmp_path)
    with pytest.raises(ImageError, match="not a regular file"):
        source.open(b"fifo")
    source.close()


def test_a_name_that_climbs_out_of_a_directory_is_refused(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    with pytest.raises(BadData):
        source.open(b"../etc/passwd")
    source.close()

"""Layers made by every tar program at hand come out byte for byte, and mean the same on every driver."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs import Store, open_store
from layerfs.testing.model import read_tree
from tests.require import need

LONG = "d" * 90 + "/" + "e" * 90


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that bring out the differences between the formats."""
    need.root()
    root = tmp_path_factory.mktemp("tree") / "root"
    (root / LONG).mkdir(parents=True)
    (root / LONG / ("f" * 120)).write_text("long name\n")
    (root / "empty").touch()
    (root / "data").write_bytes(bytes(range(256)) * 5000)
    os.link(root / "data", root / "hard")
    (root / "soft").symlink_to("data")
    (root / "longsoft").symlink_to("x" * 150)
    os.mkfifo(root / "fifo")
    os.chown(root / "data", 1234, 5_000_000)
    os.chmod(root / "data", 0o4755)
    with (root / "sparse").open("wb") as sparse:
        for place in range(0, 8 << 20, 1 << 20):
            sparse.seek(place)
            sparse.write(b"island" * 1000)
        sparse.truncate(10 << 20)
    os.setxattr(root / "data", "user.note", b"\x00binary\xff")
    os.utime(root / "data", ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    os.utime(root / "empty", (-86400.5, -86400.5))
    return root


def run(argv: list[str], cwd: Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(argv, cwd=cwd, input=stdin, stdout=subprocess.PIPE, check=True).stdout


def gnu(*options: str) -> Callable[[Path], bytes]:
    return lambda tree: run([need.tool("tar"), "-cf", "-", *options, "."], tree)


def bsd(*options: str) -> Callable[[Path], bytes]:
    return lambda tree: run([need.tool("bsdtar"), "-cf", "-", *options, "."], tree)


def cpio(form: str) -> Callable[[Path], bytes]:
    """cpio cannot hold what its formats cannot: short names, small owners."""
    names = b"./empty\n./data\n./hard\n./soft\n./fifo\n"
    return lambda tree: run([need.tool("cpio"), "--quiet", "-o", "-H", form, "-R", "0:0"], tree, names)


def python(form: int) -> Callable[[Path], bytes]:
    def make(tree: Path) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            tar.add(tree, arcname=".")
        return out.getvalue()

    return make


def twice(tree: Path) -> bytes:
    """Every file twice, a file where a directory was, and back."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for turn in range(2):
            for name in ("one", "two", "dir/three"):
                data = f"{name} {turn}\n".encode() * 3000
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            gone = tarfile.TarInfo("dir")
            gone.size = 9
            tar.addfile(gone, io.BytesIO(b"no dir...\n"[:9]))
    return out.getvalue()


def without_end(tar: bytes) -> bytes:
    """The same without the blocks of zeros that end an archive."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.getmembers()
        return tar[: archive.offset]


PLAIN = ("--exclude=./" + "d" * 90, "--exclude=./empty", "--exclude=longsoft", "--owner=0", "--group=0")
MAKERS: dict[str, Callable[[Path], bytes]] = {
    "gnu-v7": gnu("--format=v7", *PLAIN, "--exclude=fifo"),
    "gnu-oldgnu": gnu("--format=oldgnu"),
    "gnu-gnu": gnu("--format=gnu"),
    "gnu-ustar": gnu("--format=ustar", *PLAIN),
    "gnu-pax": gnu("--format=pax", "--xattrs", "--xattrs-include=*"),
    "gnu-pax-globals": gnu("--format=pax", "--pax-option=globexthdr.name=g,comment=all,SCHILY.dev=1"),
    "gnu-sparse-old": gnu("--format=gnu", "--sparse"),
    "gnu-sparse-0.0": gnu("--format=pax", "--sparse", "--sparse-version=0.0"),
    "gnu-sparse-0.1": gnu("--format=pax", "--sparse", "--sparse-version=0.1"),
    "gnu-sparse-1.0": gnu("--format=pax", "--sparse", "--sparse-version=1.0", "--xattrs"),
    "bsd-pax": bsd("--format=pax", "--xattrs"),
    "bsd-ustar": bsd("--format=ustar", *PLAIN[:3]),
    "bsd-gnutar": bsd("--format=gnutar"),
    "bsd-v7": bsd("--format=v7", "--exclude=fifo", *PLAIN[:3]),
    "cpio-ustar": cpio("ustar"),
    "cpio-tar": cpio("tar"),
    "python-pax": python(tarfile.PAX_FORMAT),
    "python-gnu": python(tarfile.GNU_FORMAT),
    "twice": twice,
    "no-end": lambda tree: without_end(python(tarfile.PAX_FORMAT)(tree)),
    "bytes-after-the-end": lambda tree: gnu("--format=gnu")(tree) + b"after the end" * 100,
    "empty": lambda tree: bytes(1024),
    "nothing": lambda tree: b"",
    "gzip-members": lambda tree: gzip.compress((t := gnu()(tree))[:5000]) + gzip.compress(t[5000:]),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Store]]:
    base = tmp_path_factory.mktemp("stores")
    need.overlay(base)
    opened = [open_store(base / d, runroot=base / f"{d}-run", driver=d) for d in ("overlay", "vfs")]
    yield opened
    for store in opened:
        store.close()


@pytest.mark.parametrize("name", MAKERS)
def test_comes_out_as_it_went_in_and_means_the_same_everywhere(
    name: str, tree: Path, stores: list[Store]
) -> None:
    tar = MAKERS[name](tree)
    plain = gzip.decompress(tar) if name == "gzip-members" else tar
    trees = []
    for store in stores:
        with store.register(io.BytesIO(tar)) as layer:
            assert layer.diff_id == "sha256:" + hashlib.sha256(plain).hexdigest()
            with layer.tar() as out:
                assert out.read() == plain
            with layer.mounted() as root:
                trees.append(read_tree(root))
    assert trees[0] == trees[1]

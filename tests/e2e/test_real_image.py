"""A real Debian image: every layer out again byte for byte, and a container started on its root."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store, load, open_store
from layerfs.archive.compression import open_decompressed
from layerfs.testing.model import read_tree
from tests.e2e.containers import run_in_container
from tests.require import need

DRIVERS = ("overlay", "vfs")


@pytest.fixture(params=DRIVERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    need.root()
    if request.param == "overlay":
        need.overlay(tmp_path)
    with open_store(tmp_path / "store", runroot=tmp_path / "run", driver=request.param) as store:
        yield store


def layer_tars(archive: Path) -> Iterator[tuple[str, str]]:
    """(diffID as the config says, digest of the uncompressed layer in the file), first layer first."""
    with tarfile.open(archive) as tar:

        def blob(digest: str) -> bytes:
            file = tar.extractfile("blobs/" + digest.replace(":", "/"))
            assert file is not None
            return file.read()

        index = tar.extractfile("index.json")
        assert index is not None
        manifest = json.loads(blob(json.loads(index.read())["manifests"][0]["digest"]))
        diff_ids = json.loads(blob(manifest["config"]["digest"]))["rootfs"]["diff_ids"]
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True):
            member = tar.extractfile("blobs/" + layer["digest"].replace(":", "/"))
            assert member is not None
            plain = open_decompressed(member)  # type: ignore[arg-type]
            yield diff_id, "sha256:" + hashlib.file_digest(plain, "sha256").hexdigest()  # type: ignore[arg-type]


def test_every_layer_comes_out_with_the_bytes_that_went_in(store: Store, debian_image: Path) -> None:
    (image,) = load(store, debian_image)
    expected = list(layer_tars(debian_image))
    assert len(expected) == 3
    for chain_id, (diff_id, digest) in zip(image.layers, expected, strict=True):
        with store.get(chain_id) as layer, layer.tar() as tar:
            assert layer.diff_id == diff_id == digest
            assert "sha256:" + hashlib.file_digest(tar, "sha256").hexdigest() == digest  # type: ignore[arg-type]


def test_both_drivers_show_the_same_tree(tmp_path: Path, debian_image: Path) -> None:
    need.overlay(tmp_path)
    trees = []
    for driver in DRIVERS:
        with open_store(tmp_path / driver, runroot=tmp_path / f"{driver}-run", driver=driver) as store:
            (image,) = load(store, debian_image)
            with store.get(image.layers[-1]) as layer, layer.mounted() as root:
                trees.append(read_tree(root))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_container_runs_on_the_root_and_its_changes_come_out(
    store: Store, debian_image: Path, tmp_path: Path, runtime: str
) -> None:
    (image,) = load(store, debian_image)
    container = store.create_rw("web", image.layers[-1])
    with container.mounted() as root:
        script = "cat /etc/motd; echo new >/etc/motd; rm /etc/debian_version; id -u"
        out = run_in_container(root, tmp_path / "bundle", script, runtime=runtime)
    assert out == "A demonstration of layerfs.\n0\n"
    changed = {(c.kind.value, c.path) for c in container.changes()}
    assert {("C", b"etc/motd"), ("D", b"etc/debian_version"), ("C", b"etc")} <= changed
    assert all(path == b"" or path.split(b"/")[0] in (b"etc", b"root", b"run", b"var") for _, path in changed)

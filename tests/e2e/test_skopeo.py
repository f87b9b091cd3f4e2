"""Images go to skopeo and umoci and come from them with the same config and the same layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.compression import Compression
from layerfs.image.load import load
from layerfs.image.save import save
from layerfs.store.store import Store
from layerfs.testing.model import read_tree
from tests.e2e.peers import Identity, identity, layout_identity, make_layout, run, tree
from tests.imaging import digest
from tests.require import need
from tests.storekit import open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    need.tool("skopeo")
    with open_store(tmp_path, "overlay") as store:
        yield store


@pytest.fixture
def original(store: Store, tmp_path: Path) -> Identity:
    """The image ``demo:v1`` in the store."""
    load(store, make_layout(tmp_path / "original", ("demo:v1", "quay.io/team/base:v2")))
    return identity(store, "demo:v1")


def copy(source: str, target: str, *options: str) -> None:
    run("skopeo", "copy", "--insecure-policy", *options, source, target)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("oci:{}", ()),
        ("oci-archive:{}", ()),
        ("oci:{}", ("--dest-compress-format", "zstd", "--dest-compress")),
        ("oci-archive:{}", ("--dest-decompress",)),
        ("docker-archive:{}", ()),
    ],
)
def test_what_skopeo_writes_is_loaded(
    tmp_path: Path, target: str, options: tuple[str, ...], store: Store
) -> None:
    layout = make_layout(tmp_path / "layout")
    written = tmp_path / "written"
    copy(f"oci:{layout}:demo:v1", target.format(written) + ":docker.io/team/demo:v3", *options)
    [loaded] = load(store, written)
    assert loaded.names == ("docker.io/team/demo:v3",)
    assert identity(store, "team/demo:v3") == layout_identity(layout, "demo:v1")


@pytest.mark.parametrize("compression", [None, Compression.ZSTD, Compression.NONE])
def test_a_saved_layout_is_read_by_skopeo(
    store: Store, original: Identity, tmp_path: Path, compression: Compression | None
) -> None:
    archive = tmp_path / "saved.tar"
    save(store, ["demo:v1", "quay.io/team/base:v2"], archive, compression=compression)
    copy(f"oci-archive:{archive}:v1", f"oci:{tmp_path}/copy:back")
    assert layout_identity(tmp_path / "copy", "back") == original


def test_a_saved_docker_archive_is_read_by_skopeo(store: Store, original: Identity, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    save(store, ["demo:v1", "quay.io/team/base:v2"], archive, format="docker")
    source = f"docker-archive:{archive}:docker.io/library/demo:v1"
    assert digest(run("skopeo", "inspect", "--config", "--raw", source).encode()) == original.id
    # Made an OCI image, its config is rewritten; that its layers fit it skopeo checks.
    copy(source, f"oci:{tmp_path}/copy:back")
    assert layout_identity(tmp_path / "copy", "back").diff_ids == original.diff_ids


def test_a_layout_in_a_directory_is_read_by_skopeo_and_umoci(
    store: Store, original: Identity, tmp_path: Path
) -> None:
    layout = tmp_path / "saved"
    save(store, ["demo:v1"], f"{layout}/")
    copy(f"oci:{layout}:v1", f"oci:{tmp_path}/copy:back")
    assert layout_identity(tmp_path / "copy", "back") == original
    need.tool("umoci")
    run("umoci", "raw", "unpack", "--image", f"{layout}:v1", tmp_path / "rootfs")
    assert read_tree(tmp_path / "rootfs") == tree(store, "demo:v1")


def test_an_image_in_other_clothes_adds_no_layer(store: Store, original: Identity, tmp_path: Path) -> None:
    before = list(store.layers())
    copy(f"oci:{tmp_path}/original:demo:v1", f"docker-archive:{tmp_path}/docker.tar:again:v1")
    load(store, tmp_path / "docker.tar")
    assert list(store.layers()) == before
    assert identity(store, "again:v1") == original


def test_a_real_image_is_the_same_in_every_form(store: Store, debian_image: Path, tmp_path: Path) -> None:
    [loaded] = load(store, debian_image)
    original, before = identity(store, loaded.id), list(store.layers())
    save(store, [loaded.id], f"{tmp_path}/saved/", compression=Compression.ZSTD)
    copy(f"oci:{tmp_path}/saved", f"oci-archive:{tmp_path}/gzip.tar:again", "--dest-compress-format", "gzip")
    save(store, [loaded.id], tmp_path / "docker.tar", format="docker")
    for archive in ("saved", "gzip.tar", "docker.tar"):
        assert [image.id for image in load(store, tmp_path / archive)] == [original.id]
    assert list(store.layers()) == before
    with open_store(make_empty(tmp_path / "other"), "overlay") as other:
        load(other, tmp_path / "docker.tar")
        assert identity(other, original.id) == original
        assert tree(other, original.id) == tree(store, original.id)


def make_empty(directory: Path) -> Path:
    directory.mkdir()
    return directory

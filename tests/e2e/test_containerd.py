"""Images go to containerd and come from it, as the archive that is both a layout and a docker-archive."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.image.load import load
from layerfs.image.save import Format, save
from layerfs.store.store import Store
from tests.e2e.peers import identity, make_layout, run
from tests.engines import Client, containerd
from tests.storekit import open_store


@pytest.fixture
def ctr(tmp_path: Path) -> Iterator[Client]:
    """Runs ctr on a daemon of its own."""
    base = tmp_path / "containerd"
    base.mkdir()
    with containerd(base) as daemon:
        yield lambda *words: run("ctr", "--address", daemon.address, *words)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, "overlay") as store:
        yield store


@pytest.mark.parametrize("format", ["oci", "docker"])
def test_images_go_to_containerd_and_back(store: Store, ctr: Client, tmp_path: Path, format: Format) -> None:
    names = ["docker.io/library/demo:v1", "quay.io/team/base:v2"]
    load(store, make_layout(tmp_path / "layout", ("demo:v1", "quay.io/team/base:v2")))
    save(store, names, tmp_path / "there.tar", format=format)

    ctr("image", "import", tmp_path / "there.tar")
    assert ctr("image", "ls", "--quiet").split() == names

    ctr("image", "export", tmp_path / "back.tar", *names)
    with tarfile.open(tmp_path / "back.tar") as tar:
        assert {"index.json", "manifest.json"} <= set(tar.getnames())
    (tmp_path / "other").mkdir()
    with open_store(tmp_path / "other", "overlay") as other:
        loaded = load(other, tmp_path / "back.tar")
        assert sorted(name for image in loaded for name in image.names) == names
        for name in names:
            assert identity(other, name) == identity(store, name)
            assert json.loads(other.image(name).config) == json.loads(store.image(name).config)

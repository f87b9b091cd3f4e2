"""Images go to Podman and buildah and come from them, and mean the same root file system there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.image.commit import commit
from layerfs.image.load import load
from layerfs.image.save import Format, save
from layerfs.store.store import Store
from layerfs.testing.model import read_tree
from tests.e2e.peers import Identity, identity, kept, make_layout, run, tree
from tests.engines import Client, containers_storage
from tests.require import need
from tests.storekit import open_store


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Client]:
    """Runs podman or buildah on a storage of their own."""
    need.tool("podman")
    with containers_storage(tmp_path / "podman") as where:
        yield lambda tool, *words: run(tool, *where, *words)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, "overlay") as store:
        yield store


def held_by(peer: Client, name: str) -> Identity:
    """An image in Podman's storage."""
    [image] = json.loads(peer("podman", "image", "inspect", name))
    return Identity(f"sha256:{image['Id']}", tuple(image["RootFS"]["Layers"]))


@pytest.mark.parametrize("format", ["oci", "docker"])
def test_an_image_goes_to_podman_and_back(store: Store, peer: Client, tmp_path: Path, format: Format) -> None:
    load(store, make_layout(tmp_path / "layout", ("quay.io/team/demo:v1",)))
    original = identity(store, "quay.io/team/demo:v1")
    save(store, ["quay.io/team/demo:v1"], tmp_path / "there.tar", format=format)

    assert "quay.io/team/demo:v1" in peer("podman", "load", "-i", tmp_path / "there.tar")
    assert held_by(peer, "quay.io/team/demo:v1") == original
    root = Path(peer("podman", "image", "mount", "quay.io/team/demo:v1").strip())
    assert kept(read_tree(root)) == kept(tree(store, "quay.io/team/demo:v1"))

    back = {"oci": "oci-archive", "docker": "docker-archive"}[format]
    peer("podman", "save", "--format", back, "-o", tmp_path / "back.tar", "quay.io/team/demo:v1")
    (tmp_path / "other").mkdir()
    with open_store(tmp_path / "other", "overlay") as other:
        [loaded] = load(other, tmp_path / "back.tar")
        assert loaded.names == ("quay.io/team/demo:v1",)
        assert identity(other, loaded.id) == original


def test_several_images_go_to_podman_in_one_archive(store: Store, peer: Client, tmp_path: Path) -> None:
    names = ("demo:v1", "quay.io/team/base:v2")
    load(store, make_layout(tmp_path / "layout", names))
    save(store, names, tmp_path / "both.tar", format="docker")
    peer("podman", "load", "-i", tmp_path / "both.tar")
    for name in names:
        assert held_by(peer, name) == identity(store, name)


def test_an_image_without_a_name_goes_to_podman(store: Store, peer: Client, tmp_path: Path) -> None:
    load(store, make_layout(tmp_path / "layout"))
    original = identity(store, "demo:v1")
    for format in ("oci", "docker"):
        archive = tmp_path / f"{format}.tar"
        save(store, [original.id], archive, format=format)
        peer("podman", "load", "-i", archive)
        assert held_by(peer, original.id[7:]) == original
        peer("podman", "rmi", original.id[7:])


def test_a_commit_is_an_image_to_podman(store: Store, peer: Client, tmp_path: Path) -> None:
    load(store, make_layout(tmp_path / "layout"))
    base = store.image("docker.io/library/demo:v1")
    with store.create_rw("web", base.layers[-1], image=base.id).mounted() as root:
        (root / "etc/added").write_text("added")
        (root / "bin/again").unlink()
    commit(store, "web", "web:v1", author="me", comment="a change")
    save(store, ["web:v1"], tmp_path / "web.tar")
    peer("podman", "load", "-i", tmp_path / "web.tar")
    assert held_by(peer, "web:v1") == identity(store, "web:v1")
    root = Path(peer("podman", "image", "mount", "web:v1").strip())
    assert kept(read_tree(root)) == kept(tree(store, "web:v1"))
    assert "a change" in peer("podman", "history", "--no-trunc", "web:v1")


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_what_buildah_builds_is_loaded(store: Store, peer: Client, tmp_path: Path, transport: str) -> None:
    need.tool("buildah")
    layout = make_layout(tmp_path / "layout")
    container = peer("buildah", "from", f"oci:{layout}:demo:v1").strip()
    (tmp_path / "file").write_text("built")
    peer("buildah", "copy", container, tmp_path / "file", "/srv/file")
    peer("buildah", "config", "--env", "BUILT=yes", container)
    peer("buildah", "commit", container, "localhost/built:v1")
    built = read_tree(Path(peer("buildah", "mount", container).strip()))

    archive = tmp_path / "built"
    peer("buildah", "push", "localhost/built:v1", f"{transport}:{archive}:localhost/built:v1")
    [loaded] = load(store, archive)
    assert loaded.names == ("localhost/built:v1",)
    assert kept(tree(store, "localhost/built:v1")) == kept(built)
    assert "BUILT=yes" in store.image(loaded.id).config.decode()

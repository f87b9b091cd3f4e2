"""Images go to Docker and come from it with the same config and the same layers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.image.load import load
from layerfs.image.save import save
from layerfs.store.store import Store
from tests.e2e.peers import Identity, identity, make_layout, run, tree
from tests.engines import Client, dockerd
from tests.require import need
from tests.storekit import open_store

CLIENTS = ("/usr/bin/docker", "/usr/local/bin/docker")


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a daemon of its own."""
    with dockerd(tmp_path_factory.mktemp("docker")) as daemon:
        yield daemon.address


@pytest.fixture(params=CLIENTS)
def docker(request: pytest.FixtureRequest, socket: str) -> Iterator[Client]:
    """A client of that daemon, which has no images before and after."""
    client = need.tool(request.param)

    def call(*words: str | Path) -> str:
        return run(client, "--host", socket, *words)

    yield call
    for kind in ("container", "image"):
        newest_first = dict.fromkeys(call(kind, "ls", "--all", "--quiet", "--no-trunc").split())
        if newest_first:
            call(kind, "rm", "--force", *newest_first)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, "overlay") as store:
        yield store


def held_by(docker: Client, name: str) -> Identity:
    [image] = json.loads(docker("image", "inspect", name))
    return Identity(image["Id"], tuple(image["RootFS"]["Layers"]))


def test_images_go_to_docker_and_back(store: Store, docker: Client, tmp_path: Path) -> None:
    names = ("demo:v1", "quay.io/team/base:v2")
    load(store, make_layout(tmp_path / "layout", names))
    save(store, names, tmp_path / "there.tar", format="docker")

    said = docker("load", "-i", tmp_path / "there.tar")
    for name in names:
        assert f"Loaded image: {name}" in said
        assert held_by(docker, name) == identity(store, name)
    docker("history", "demo:v1")

    docker("save", "-o", tmp_path / "back.tar", *names)
    (tmp_path / "other").mkdir()
    with open_store(tmp_path / "other", "overlay") as other:
        load(other, tmp_path / "back.tar")
        for name in names:
            assert identity(other, name) == identity(store, name)
        assert tree(other, "demo:v1") == tree(store, "demo:v1")


def test_an_image_without_a_name_goes_to_docker_and_back(
    store: Store, docker: Client, tmp_path: Path
) -> None:
    load(store, make_layout(tmp_path / "layout"))
    original = identity(store, "demo:v1")
    save(store, [original.id], tmp_path / "there.tar", format="docker")
    assert original.id in docker("load", "-i", tmp_path / "there.tar")
    docker("save", "-o", tmp_path / "back.tar", original.id)
    (tmp_path / "other").mkdir()
    with open_store(tmp_path / "other", "overlay") as other:
        [loaded] = load(other, tmp_path / "back.tar")
        assert loaded.names == ()
        assert identity(other, loaded.id) == original


def test_what_docker_commits_is_loaded(store: Store, docker: Client, tmp_path: Path) -> None:
    load(store, make_layout(tmp_path / "layout"))
    save(store, ["demo:v1"], tmp_path / "there.tar", format="docker")
    docker("load", "-i", tmp_path / "there.tar")
    container = docker("create", "demo:v1", "/bin/sh").strip()
    (tmp_path / "file").write_text("copied in")
    docker("cp", tmp_path / "file", f"{container}:/etc/copied")
    docker("commit", "--message", "a file", container, "changed:v1")
    docker("save", "-o", tmp_path / "changed.tar", "changed:v1")
    [loaded] = load(store, tmp_path / "changed.tar")
    assert identity(store, "changed:v1") == held_by(docker, "changed:v1")
    with store.get(loaded.layers[-1]) as layer, layer.mounted() as root:
        assert (root / "etc/copied").read_text() == "copied in"


def test_layers_that_docker_saves_as_links_are_loaded(store: Store, docker: Client, tmp_path: Path) -> None:
    """Two images with one base but different configs: Docker stores the shared layer once and links."""
    layout = make_layout(tmp_path / "layout", ("demo:v1", "base:v1"))
    load(store, layout)
    save(store, ["demo:v1", "base:v1"], tmp_path / "there.tar", format="docker")
    docker("load", "-i", tmp_path / "there.tar")
    docker("save", "-o", tmp_path / "back.tar", "demo:v1", "base:v1")
    with tarfile.open(tmp_path / "back.tar") as tar:
        assert any(member.issym() for member in tar)
    (tmp_path / "other").mkdir()
    with open_store(tmp_path / "other", "overlay") as other:
        assert len(load(other, tmp_path / "back.tar")) == 2
        assert identity(other, "base:v1") == identity(store, "base:v1")

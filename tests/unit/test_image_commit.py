"""Committing: the container's changes become a layer, and an image that says the rest as before."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.errors import Conflict, ContainerNotFound, ImageNotFound, InvalidID
from layerfs.image.commit import commit
from layerfs.image.find import find
from layerfs.image.load import Loaded, load
from layerfs.store.images import ImageRecord
from layerfs.store.store import Store
from tests.imaging import Layout, config_of, digest, tar_of
from tests.storekit import open_store

ONE = tar_of({"one": b"1"})
TWO = tar_of({"two": b"2"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


def loaded(store: Store, **more: Any) -> Loaded:
    layout = Layout()
    layout.add(layout.image([ONE, TWO], config=config_of([ONE, TWO], **more)), "base")
    return load(store, io.BytesIO(layout.tar()))[0]


def container(store: Store, image: Loaded, name: str = "web") -> None:
    """A container of ``image`` in which something was written."""
    rw = store.create_rw(name, image.layers[-1] if image.layers else None, image=image.id)
    with rw.mounted() as root:
        (root / "written").write_text(name)


def said(image: ImageRecord) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(image.config)
    return config


def test_a_commit_adds_a_layer_and_a_line_of_history(store: Store) -> None:
    base = loaded(store, created="1970-01-01T00:00:00Z", container="c0ffee", container_config={"Cmd": []})
    container(store, base)
    image = commit(
        store, "web", "web:v1", author="me", comment="a file", created_ns=1_700_000_000_250_000_000
    )
    assert find(store, "web:v1") == image
    assert image.layers[:-1] == base.layers
    assert image.blobs[-1] is None
    with store.get(image.layers[-1]) as layer, layer.tar() as tar:
        with tarfile.open(fileobj=io.BytesIO(tar.read())) as files:
            assert "written" in files.getnames()
        diff_id = layer.diff_id
    before, after = json.loads(store.image(base.id).config), said(image)
    created = "2023-11-14T22:13:20.25Z"
    assert after.pop("created") == created
    assert after.pop("author") == "me"
    assert after.pop("rootfs")["diff_ids"] == [*before.pop("rootfs")["diff_ids"], diff_id]
    line = {"created": created, "created_by": "layerfs commit", "author": "me", "comment": "a file"}
    assert after.pop("history") == [*before.pop("history"), line]
    for gone in ("created", "container", "container_config"):
        del before[gone]
    assert after == before


def test_equal_changes_give_an_equal_image(store: Store) -> None:
    base = loaded(store)
    ids = []
    for name in ("one", "two"):
        rw = store.create_rw(name, base.layers[-1], image=base.id)
        del rw
        ids.append(commit(store, name, created_ns=0).id)
    assert ids[0] == ids[1]
    assert said(store.image(ids[0]))["created"] == "1970-01-01T00:00:00Z"


def test_without_a_name_the_image_goes_by_its_id(store: Store) -> None:
    container(store, loaded(store))
    image = commit(store, "web")
    assert find(store, image.id[7:19]) == image
    assert store.image_info(image.id).names == ()


def test_the_container_goes_on_and_commits_build_upon_commits(store: Store) -> None:
    base = loaded(store)
    container(store, base)
    first = commit(store, "web", "web")
    rw = store.create_rw("next", first.layers[-1], image=first.id)
    with rw.mounted() as root:
        assert (root / "written").read_text() == "web"
        (root / "written").unlink()
    second = commit(store, "next", "web")
    assert second.layers[:-1] == first.layers
    assert len(said(second)["history"]) == 4
    assert find(store, "web") == second
    assert commit(store, "web", created_ns=0).layers == first.layers


def test_what_is_committed_can_be_pruned_around(store: Store) -> None:
    container(store, loaded(store))
    image = commit(store, "web", "web:v1")
    assert store.prune().layers == ()
    assert [info.chain_id for info in store.layers()] == list(image.layers)


def test_missing_history_is_filled_up(store: Store) -> None:
    container(store, loaded(store, history=[{"created_by": "last", "empty_layer": True}]))
    assert [line.get("created_by") for line in said(commit(store, "web"))["history"]] == [
        None,
        None,
        "last",
        "layerfs commit",
    ]


@pytest.mark.parametrize("layers", [[], [ONE, TWO]])
def test_a_container_without_an_image_gives_a_bare_one(store: Store, layers: list[bytes]) -> None:
    parent = None
    for tar in layers:
        parent = store.register(io.BytesIO(tar), parent).chain_id
    with store.create_rw("bare", parent).mounted() as root:
        (root / "written").touch()
    image = commit(store, "bare", "bare")
    config = said(image)
    assert config["os"] == "linux"
    assert config["architecture"]
    assert config["rootfs"]["diff_ids"][:-1] == [digest(tar) for tar in layers]
    assert len(config["history"]) == len(image.layers) == len(layers) + 1
    assert config["config"] == {}


def test_errors_change_nothing(store: Store) -> None:
    base = loaded(store)
    container(store, base)
    store.create_rw("elsewhere", base.layers[0], image=base.id)
    before = len(list(store.layers()))
    with pytest.raises(InvalidID):
        commit(store, "web", "Not A Name")
    with pytest.raises(ContainerNotFound):
        commit(store, "nobody", "web")
    with pytest.raises(Conflict, match="does not stand upon"):
        commit(store, "elsewhere", "web")
    store.remove_image(base.id, force=True)
    with pytest.raises(Conflict, match="no longer in the store"):
        commit(store, "web", "web")
    assert len(list(store.layers())) == before
    with pytest.raises(ImageNotFound):
        find(store, "web")

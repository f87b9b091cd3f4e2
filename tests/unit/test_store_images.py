"""Images: what was added comes back, by id, by name, by the beginning of its id; names move and go."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import Conflict, ImageNotFound, InvalidID, LayerInUse, LayerNotFound
from layerfs.ids import ChainID, digest_of
from layerfs.store.images import BlobInfo, ImageRecord
from layerfs.store.store import Store
from tests.storekit import ABOVE, BASE, open_store, stream


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


def image(store: Store, config: bytes = b"{}") -> ImageRecord:
    base = store.register(stream(BASE))
    above = store.register(stream(ABOVE), base.chain_id)
    return ImageRecord(
        id=digest_of(config),
        config=config,
        layers=(base.chain_id, above.chain_id),
        blobs=(BlobInfo("application/x-layer", digest_of(b"blob"), 1234), None),
        annotations={"org.example.key": "värde"},
    )


def test_what_was_added_comes_back(store: Store) -> None:
    record = image(store)
    store.add_image(record, ["example.org/one:1", "example.org/one:latest"])
    for text in ("example.org/one:1", record.id, record.id[:11], record.id[7:12]):
        assert store.image(text) == record
    [info] = store.images()
    assert info == store.image_info(record.id)
    assert info.names == ("example.org/one:1", "example.org/one:latest")
    assert info.layers == record.layers
    assert info.size == sum(layer.size for layer in store.layers())


def test_it_outlives_the_process(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        record = image(store)
        store.add_image(record, ["a:1"])
    with open_store(tmp_path) as store:
        assert store.image("a:1") == record


def test_an_image_that_others_remove_meanwhile_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with open_store(tmp_path) as ours, open_store(tmp_path) as theirs:
        record = image(ours)
        done = threading.Event()

        def come_and_go() -> None:
            for _ in range(300):
                theirs.add_image(record, ["a:1"])
                theirs.remove_image(record.id)
            done.set()

        thread = threading.Thread(target=come_and_go)
        thread.start()
        while not done.is_set():
            with contextlib.suppress(ImageNotFound):
                assert all(info.layers == record.layers for info in ours.images())
                assert ours.image_info(record.id).layers == record.layers
                assert ours.image(record.id) == record
        thread.join()


def test_adding_it_again_adds_names_and_keeps_how_layers_were_shipped(store: Store) -> None:
    record = image(store)
    store.add_image(record, ["a:1"])
    store.add_image(ImageRecord(id=record.id, config=record.config, layers=record.layers), ["b:1"])
    assert store.image_info("b:1").names == ("a:1", "b:1")
    assert store.image("a:1").blobs == record.blobs


def test_a_name_moves_to_the_image_it_was_given_last(store: Store) -> None:
    first, second = image(store, b"1"), image(store, b"2")
    store.add_image(first, ["a:1"])
    store.add_image(second, ["a:1"])
    assert store.image("a:1") == second
    assert store.image(first.id) == first
    store.tag("a:1", first.id)
    assert store.image("a:1") == first
    store.untag("a:1")
    with pytest.raises(ImageNotFound):
        store.image("a:1")


def test_what_cannot_be_is_refused(store: Store) -> None:
    record = image(store)
    with pytest.raises(InvalidID):
        store.add_image(ImageRecord(id=digest_of(b"other"), config=b"{}", layers=record.layers))
    with pytest.raises(InvalidID):
        store.add_image(ImageRecord(id=record.id, config=b"{}", layers=record.layers, blobs=record.blobs[:1]))
    with pytest.raises(LayerNotFound):
        store.add_image(ImageRecord(id=record.id, config=b"{}", layers=(ChainID(digest_of(b"absent")),)))
    assert list(store.images()) == []


def test_an_unknown_name_tells_what_is_near(store: Store) -> None:
    store.add_image(image(store), ["example.org/debian:12"])
    for use in (store.image, store.untag, store.remove_image):
        with pytest.raises(ImageNotFound) as caught:
            use("example.org/debain:12")
        assert caught.value.near == ("example.org/debian:12",)


def test_removing_a_name_keeps_the_image_while_it_has_another(store: Store) -> None:
    record = image(store)
    store.add_image(record, ["a:1", "a:2"])
    assert store.remove_image("a:1") == ["a:1"]
    assert store.image("a:2") == record
    assert store.remove_image("a:2") == ["a:2", record.id]
    assert list(store.images()) == []


def test_removing_by_id(store: Store) -> None:
    record = image(store)
    store.add_image(record, ["a:1", "a:2"])
    with pytest.raises(Conflict):
        store.remove_image(record.id)
    assert store.remove_image(record.id, force=True) == ["a:1", "a:2", record.id]


def test_the_image_of_a_container_stays_unless_forced(store: Store) -> None:
    record = image(store)
    store.add_image(record, ["a:1"])
    store.create_rw("web", record.layers[-1], image=record.id)
    with pytest.raises(LayerInUse) as caught:
        store.remove_image("a:1")
    assert caught.value.users == ("container web",)
    store.remove_image("a:1", force=True)
    store.prune()
    with store.get_rw("web").mounted() as root:
        assert (root / "bin/sh").exists()

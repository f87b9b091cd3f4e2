"""Loading: what comes in is exact, verified, and whole, or nothing at all."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Capabilities
from layerfs.errors import (
    BadData,
    DepthExceeded,
    DigestMismatch,
    ImageError,
    ImageNotFound,
    InvalidID,
    InvalidOption,
    LayerfsError,
    LayerNotFound,
    ReadOnly,
    SystemFailure,
)
from layerfs.ids import ChainID, DiffID, chain_ids
from layerfs.image.find import find
from layerfs.image.load import Loaded, load
from layerfs.naivediff import NaiveDiff
from layerfs.store.store import Store
from tests.dirdriver import DirProto
from tests.imaging import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Document,
    Layout,
    config_of,
    digest,
    docker_files,
    link,
    simple_layout,
    tar_of,
    zipped,
)
from tests.storekit import held, open_store

ONE = tar_of({"one": b"1" * 3000})
TWO = tar_of({"two": b"2" * 3000})
THREE = tar_of({"three": b"3" * 3000})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


def chain(*tars: bytes) -> tuple[ChainID, ...]:
    return tuple(chain_ids([DiffID(digest(tar)) for tar in tars]))


def tar_in(store: Store, chain_id: ChainID) -> bytes:
    with store.get(chain_id) as layer, layer.tar() as tar:
        return tar.read()


# what comes in


@pytest.mark.parametrize("shape", ["directory", "tar", "compressed tar", "stream", "pipe"])
def test_a_layout_is_loaded_whatever_it_comes_in(store: Store, tmp_path: Path, shape: str) -> None:
    layout = Layout()
    layout.add(layout.image([ONE, TWO], annotations={"org.example.colour": "green"}), "demo:v1")
    file = tmp_path / "image"
    if shape == "directory":
        [loaded] = load(store, layout.write(tmp_path / "layout"))
    elif shape == "pipe":
        [loaded] = load_through_pipe(store, layout.tar())
    elif shape == "stream":
        [loaded] = load(store, io.BytesIO(layout.tar()))
    else:
        file.write_bytes(layout.tar() if shape == "tar" else zipped(layout.tar()))
        [loaded] = load(store, str(file))
    assert loaded.names == ("docker.io/library/demo:v1",)
    assert loaded.layers == chain(ONE, TWO)
    image = store.image("docker.io/library/demo:v1")
    assert (image.id, image.config, image.layers) == (loaded.id, config_of([ONE, TWO]), loaded.layers)
    assert image.annotations == {"org.example.colour": "green"}
    assert [tar_in(store, layer) for layer in image.layers] == [ONE, TWO]
    assert [(blob.media_type, blob.digest, blob.size) for blob in image.blobs if blob] == [
        (OCI_LAYER, digest(zipped(tar)), len(zipped(tar))) for tar in (ONE, TWO)
    ]
    assert os.listdir(store.root / "tmp") == []


def load_through_pipe(store: Store, data: bytes) -> list[Loaded]:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as out:
            out.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reader, "rb") as stream:
        loaded = load(store, stream)
    thread.join()
    return loaded


def test_a_docker_archive_with_linked_layers_is_loaded(store: Store) -> None:
    files = docker_files([ONE, TWO, ONE], ["demo:v1", "other:v1"])
    manifest = json.loads(bytes(files["manifest.json"]))  # type: ignore[arg-type]
    manifest[0]["Layers"][2] = "again/layer.tar"
    files["manifest.json"] = json.dumps(manifest).encode()
    files["again/layer.tar"] = link("again/layer.tar", f"../{manifest[0]['Layers'][0]}")
    [loaded] = load(store, io.BytesIO(tar_of(files)))
    assert loaded.names == ("docker.io/library/demo:v1", "docker.io/library/other:v1")
    assert loaded.layers == chain(ONE, TWO, ONE)
    assert tar_in(store, loaded.layers[2]) == ONE
    assert store.image(loaded.id).blobs == ()


def test_an_archive_that_is_both_has_the_names_of_both(store: Store) -> None:
    layout = Layout()
    layout.add(layout.image([ONE]), "by-index:v1")
    config = digest(config_of([ONE]))[7:]
    manifest = [{"Config": f"blobs/sha256/{config}", "RepoTags": ["by-manifest:v1"], "Layers": []}]
    layout.files["manifest.json"] = json.dumps(manifest).encode()
    [loaded] = load(store, io.BytesIO(layout.tar()))
    assert loaded.names == ("docker.io/library/by-index:v1", "docker.io/library/by-manifest:v1")
    assert store.image(loaded.id).blobs[0] is not None


def test_all_images_are_loaded_and_share_layers(store: Store) -> None:
    layout = Layout()
    layout.add(layout.image([ONE]), "base")
    layout.add(layout.image([ONE, TWO]), "app")
    layout.add(layout.image([ONE, TWO]), "app:again")
    layout.add(layout.image([THREE]))
    layout.add(layout.image([]), "nothing")
    loaded = load(store, io.BytesIO(layout.tar()))
    assert [image.names for image in loaded] == [
        ("docker.io/library/base:latest",),
        ("docker.io/library/app:latest", "docker.io/library/app:again"),
        (),
        ("docker.io/library/nothing:latest",),
    ]
    assert {info.chain_id for info in store.layers()} == {*chain(ONE, TWO), *chain(THREE)}


@pytest.mark.parametrize("layer", [b"", bytes(1024), tar_of({})], ids=["no bytes", "two blocks", "tar"])
def test_empty_layers_are_layers(store: Store, layer: bytes) -> None:
    layout = Layout()
    layout.add(layout.image([layer, ONE]), "demo")
    [loaded] = load(store, io.BytesIO(layout.tar()))
    assert tar_in(store, loaded.layers[0]) == layer


def test_the_compression_of_a_layer_is_told_by_its_bytes(store: Store) -> None:
    layout = Layout()
    layers = [layout.blob(zipped(ONE), OCI_LAYER.replace("gzip", "zstd")), layout.blob(TWO, OCI_LAYER)]
    layout.add(layout.image([ONE, TWO], layers=layers), "demo")
    assert load(store, io.BytesIO(layout.tar()))[0].layers == chain(ONE, TWO)


def test_given_names_replace_those_of_the_archive(store: Store) -> None:
    layout, _ = simple_layout("demo:v1")
    [loaded] = load(store, io.BytesIO(layout.tar()), names=["mine", "quay.io/team/mine:v2"])
    assert loaded.names == ("docker.io/library/mine:latest", "quay.io/team/mine:v2")
    with pytest.raises(ImageNotFound):
        find(store, "demo:v1")


def test_names_are_given_to_one_image_only(store: Store) -> None:
    layout = Layout()
    layout.add(layout.image([ONE]), "a")
    layout.add(layout.image([TWO]), "b")
    with pytest.raises(InvalidOption, match="2 images"):
        load(store, io.BytesIO(layout.tar()), names=["mine"])
    assert held(store) == []


def test_a_name_moves_to_the_image_loaded_last(store: Store) -> None:
    for tar in (ONE, TWO):
        layout = Layout()
        layout.add(layout.image([tar]), "demo")
        load(store, io.BytesIO(layout.tar()))
    assert find(store, "demo").layers == chain(TWO)
    assert len(list(store.images())) == 2


def test_an_image_is_found_by_what_people_call_it(store: Store) -> None:
    layout, config = simple_layout("quay.io/team/demo:v1")
    load(store, io.BytesIO(layout.tar()), names=["demo"])
    id = digest(config)
    for text in ("demo", "demo:latest", "docker.io/library/demo", id, id[7:], id[7:19], id[:19]):
        assert find(store, text).id == id
    for text in ("demo:v2", "library", "Demo", "0000", ""):
        with pytest.raises(ImageNotFound):
            find(store, text)


# layers that are there


def test_a_layer_that_is_there_is_not_read(store: Store) -> None:
    store.register(io.BytesIO(ONE)).release()
    layout = Layout()
    layout.add(layout.image([ONE, TWO]), "demo")
    layout.files["blobs/" + digest(zipped(ONE)).replace(":", "/")] = b"damaged"
    [loaded] = load(store, io.BytesIO(layout.tar()))
    assert tar_in(store, loaded.layers[0]) == ONE


def test_progress_counts_the_bytes_of_each_layer_as_shipped(store: Store, tmp_path: Path) -> None:
    told: dict[str, tuple[int, int | None]] = {}
    layout = Layout()
    layout.add(layout.image([ONE, TWO]), "demo")
    load(store, layout.write(tmp_path / "layout"), progress=lambda what, *how: told.update({what: how}))
    assert told == {digest(tar): (len(zipped(tar)),) * 2 for tar in (ONE, TWO)}


# what is refused


def reset(layout: Layout, layers: list[Document], tars: list[bytes]) -> None:
    layout.entries.clear()
    layout.add(layout.image(tars, layers=layers), "demo")


def damage(layout: Layout, how: str) -> str:
    """Spoil the second layer; what the error must say."""
    blob = zipped(TWO)
    name = "blobs/" + digest(blob).replace(":", "/")
    if how == "a bit":
        layout.files[name] = blob[:50] + bytes([blob[50] ^ 1]) + blob[51:]
        return f"{name}: expected {digest(blob)}, found "
    if how == "other bytes that decode":
        # Stored blocks make gzip members of equal size out of tars of equal size.
        same, other = stored(TWO), stored(TWO.replace(b"2", b"4"))
        assert len(same) == len(other)
        reset(layout, [layout.blob(zipped(ONE), OCI_LAYER), layout.blob(same, OCI_LAYER)], [ONE, TWO])
        layout.files["blobs/" + digest(same).replace(":", "/")] = other
        return f"expected {digest(same)}, found {digest(other)}"
    if how == "cut short":
        layout.files[name] = blob[:-10]
        return f"{name}: {len(blob) - 10} bytes, its descriptor says {len(blob)}"
    if how == "diffID":
        reset(layout, [layout.blob(zipped(tar), OCI_LAYER) for tar in (ONE, THREE)], [ONE, TWO])
        return f"{digest(zipped(THREE))[7:]}: .*expected {digest(TWO)}, found {digest(THREE)}"
    if how == "missing":
        del layout.files[name]
        return rf"layers\[1\]: the layer {digest(blob)} is not in the archive"
    if how == "foreign":
        kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        reset(layout, [layout.blob(zipped(ONE), OCI_LAYER), {**layout.blob(blob, kind)}], [ONE, TWO])
        del layout.files[name]
        return "may not be distributed"
    if how == "no tar":
        junk = b"junk" * 1000
        reset(layout, [layout.blob(zipped(ONE), OCI_LAYER), layout.blob(junk, OCI_LAYER)], [ONE, junk])
        return f"{digest(junk)[7:]}: .*is not a tar"
    escape = tar_of({"../../etc/cron.d/evil": b"x"})
    reset(layout, [layout.blob(zipped(tar), OCI_LAYER) for tar in (ONE, escape)], [ONE, escape])
    return r"\.\./\.\./etc/cron.d/evil"


def stored(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, compresslevel=0, mtime=0)


WAYS = ["a bit", "other bytes that decode", "cut short", "diffID", "missing", "foreign", "no tar", "escape"]


@pytest.mark.parametrize("how", WAYS)
def test_a_layer_that_is_not_what_it_should_be_is_named_and_nothing_is_kept(
    store: Store, tmp_path: Path, how: str
) -> None:
    layout = Layout()
    layout.add(layout.image([ONE, TWO]), "demo")
    message = damage(layout, how)
    with pytest.raises(BadData, match=message) as caught:
        load(store, layout.write(tmp_path / "layout"))
    assert str(tmp_path / "layout") in str(caught.value)
    assert held(store) == []
    assert list(store.images()) == []


def test_after_a_failed_load_what_was_there_before_is_there_still(store: Store) -> None:
    unreferenced = store.register(io.BytesIO(THREE))
    unreferenced.release()
    good = Layout()
    good.add(good.image([ONE]), "good")
    load(store, io.BytesIO(good.tar()))
    bad = Layout()
    bad.add(bad.image([TWO]), "good")
    bad.add(bad.image([ONE, TWO, THREE], config=config_of([ONE, TWO, TWO])), "bad")
    with pytest.raises(DigestMismatch):
        load(store, io.BytesIO(bad.tar()))
    assert {info.chain_id for info in store.layers()} == {*chain(ONE), *chain(THREE)}
    assert find(store, "good").layers == chain(ONE)


def test_layers_of_a_failed_load_that_somebody_else_holds_stay(store: Store, tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.image([ONE, TWO]), "demo")
    damage(layout, "diffID")

    def take_the_first(what: str, done: int, total: int | None) -> None:
        if chain(ONE)[0] in {info.chain_id for info in other.layers()} and not taken:
            taken.append(other.get(chain(ONE)[0]))

    with open_store(tmp_path) as other:
        taken: list[object] = []
        with pytest.raises(DigestMismatch):
            load(store, io.BytesIO(layout.tar()), progress=take_the_first)
        assert taken
        assert tar_in(other, chain(ONE)[0]) == ONE
    with pytest.raises(LayerNotFound):
        store.get(chain(ONE, TWO)[1])


def test_an_interrupted_load_leaves_nothing(store: Store) -> None:
    layout, _ = simple_layout()

    def interrupt(what: str, done: int, total: int | None) -> None:
        if len(list(store.layers())) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(store, io.BytesIO(layout.tar()), progress=interrupt)
    assert held(store) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"repositories": b"{}", "abc/layer.tar": ONE}, "an archive of Docker before 1.10"),
        ({"etc/passwd": b"", "bin/sh": b""}, "neither an OCI layout nor a docker-archive: it holds bin, etc"),
        ({}, "it holds nothing"),
    ],
)
def test_what_is_no_image_archive_is_called_what_it_is(
    store: Store, files: dict[str, bytes | tarfile.TarInfo], message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load(store, io.BytesIO(tar_of(files)))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["blobs/sha256/", "index.json", "oci-layout"])
def test_a_symbolic_link_in_a_layout_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    layout, _ = simple_layout(files=["one"])
    where = layout.write(tmp_path / "layout")
    if name.endswith("/"):
        name = next(name for name in layout.files if layout.files[name].startswith(b"\x1f\x8b"))
    (where / name).rename(tmp_path / "moved")
    (where / name).symlink_to(tmp_path / "moved")
    with pytest.raises(ImageError, match="symbolic link"):
        load(store, where)
    assert held(store) == []


def test_a_source_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SystemFailure, match="nowhere"):
        load(store, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("more", "error"),
    [({"platform": "a/b/c/d"}, InvalidOption), ({"names": ["Bad Name"]}, InvalidID)],
)
def test_wrong_words_are_refused_before_anything_is_read(
    store: Store, tmp_path: Path, more: dict[str, object], error: type[LayerfsError]
) -> None:
    with pytest.raises(error):
        load(store, tmp_path / "nowhere", **more)  # type: ignore[arg-type]


def test_a_store_that_is_read_only_takes_no_image(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with open_store(tmp_path, read_only=True) as store, pytest.raises(ReadOnly):
        load(store, tmp_path)


def test_docker_media_types_are_kept_as_they_came(store: Store) -> None:
    layout = Layout()
    kind = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    config = layout.blob(config_of([ONE]), OCI_CONFIG)
    manifest: Document = {"schemaVersion": 2, "config": config, "layers": [layout.blob(zipped(ONE), kind)]}
    layout.add(layout.json(manifest, OCI_MANIFEST), "demo")
    [loaded] = load(store, io.BytesIO(layout.tar()))
    blob = store.image(loaded.id).blobs[0]
    assert blob is not None
    assert blob.media_type == kind


def test_one_image_loaded_from_several_sides_at_once_is_there_once(store: Store, tmp_path: Path) -> None:
    good = Layout()
    good.add(good.image([ONE, TWO]), "demo")
    bad = Layout()
    bad.add(bad.image([ONE, THREE], config=config_of([ONE, TWO])), "bad")
    outcomes: list[object] = []

    def run(layout: Layout) -> None:
        with open_store(tmp_path) as mine:
            try:
                outcomes.append(load(mine, io.BytesIO(layout.tar()))[0].layers)
            except DigestMismatch as error:
                outcomes.append(type(error))

    threads = [threading.Thread(target=run, args=(layout,)) for layout in (good, bad, good, bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A bad archive that finds the good one's layer there already does not get to read its own.
    assert set(outcomes) <= {chain(ONE, TWO), DigestMismatch}
    assert len(outcomes) == 4
    assert tar_in(store, find(store, "demo").layers[1]) == TWO
    assert {info.chain_id for info in store.layers()} == set(chain(ONE, TWO))


def test_an_image_too_deep_for_the_driver_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.image([ONE, TWO, THREE]), "deep:v1")
    source = layout.write(tmp_path / "layout")
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    driver = NaiveDiff(DirProto(root / "dir", Capabilities(max_depth=4)))
    with Store.open(root, driver) as store:
        with pytest.raises(DepthExceeded, match=r"deep:v1 is 3 layers deep, but driver dir stacks at most 4"):
            load(store, source)
        assert held(store) == []
        assert list(driver.ids()) == []

"""Saving: the same image out, exact and deterministic, at once or not at all."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.compression import Compression
from layerfs.errors import Conflict, ImageNotFound, InvalidOption, StoreDamaged, SystemFailure
from layerfs.image.load import load
from layerfs.image.save import Format, save
from layerfs.store.store import Store
from tests.imaging import REF_NAME, Layout, config_of, digest, tar_of
from tests.storekit import open_store

ONE = tar_of({"one": b"1" * 3000})
TWO = tar_of({"two": os.urandom(300_000)})
EMPTY = bytes(1024)
FULL_NAME = "io.containerd.image.name"


def source() -> bytes:
    layout = Layout()
    layout.add(layout.image([ONE, EMPTY, TWO], annotations={"org.example.colour": "green"}), "demo:v1")
    layout.add(layout.image([ONE], platform="linux/arm/v6"), "quay.io/team/base:v1")
    layout.add(layout.image([ONE, ONE, EMPTY]), "twice")
    layout.add(layout.image([]), "nothing")
    return layout.tar()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        load(store, io.BytesIO(source()))
        yield store


ALL = ["demo:v1", "quay.io/team/base:v1", "twice", "nothing"]


def saved(store: Store, images: list[str], format: Format = "oci") -> bytes:
    out = io.BytesIO()
    save(store, images, out, format=format)
    return out.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = [member.name for member in tar]
        assert len(names) == len(set(names))
        assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in tar)
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("format", "compression"),
    [("oci", None), ("oci", Compression.ZSTD), ("oci", Compression.NONE), ("docker", None)],
)
def test_what_is_saved_loads_as_the_same_images(
    store: Store, tmp_path: Path, format: Format, compression: Compression | None
) -> None:
    out = io.BytesIO()
    save(store, ALL, out, format=format, compression=compression)
    (tmp_path / "other").mkdir()
    with open_store(tmp_path / "other") as other:
        load(other, io.BytesIO(out.getvalue()))
        expected = {info.id: (info.names, info.layers) for info in store.images()}
        assert {info.id: (info.names, info.layers) for info in other.images()} == expected
        for id in expected:
            assert other.image(id).config == store.image(id).config
            if format == "oci":
                assert other.image(id).annotations == store.image(id).annotations
        assert sorted(read_all(other)) == sorted(read_all(store)) == sorted(
            [ONE, EMPTY, TWO, ONE, EMPTY]
        )  # fmt: skip


def read_all(store: Store) -> Iterator[bytes]:
    for info in store.layers():
        with store.get(info.chain_id) as layer, layer.tar() as tar:
            yield tar.read()


@pytest.mark.parametrize("format", ["oci", "docker"])
def test_equal_images_give_equal_bytes(store: Store, format: Format) -> None:
    assert saved(store, ALL, format) == saved(store, ALL, format)


def test_a_layout_says_what_other_tools_look_for(store: Store) -> None:
    files = members(saved(store, ["demo:v1", "quay.io/team/base:v1", "twice"]))
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    entries = json.loads(files["index.json"])["manifests"]
    # Two images have the tag v1, so it would not tell them apart.
    assert [entry["annotations"] for entry in entries] == [
        {FULL_NAME: f"docker.io/library/{name}", REF_NAME: ref}
        for name, ref in [("demo:v1", "docker.io/library/demo:v1")]
    ] + [
        {FULL_NAME: "quay.io/team/base:v1", REF_NAME: "quay.io/team/base:v1"},
        {FULL_NAME: "docker.io/library/twice:latest", REF_NAME: "latest"},
    ]
    assert [entry["platform"] for entry in entries] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm", "os": "linux", "variant": "v6"},
        {"architecture": "amd64", "os": "linux"},
    ]
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert digest(data) == name.removeprefix("blobs/").replace("/", ":")
    assert config_of([ONE, EMPTY, TWO]) in files.values()


def test_a_docker_archive_says_what_docker_looks_for(store: Store) -> None:
    files = members(saved(store, ["demo:v1", "twice"], "docker"))
    first, second = json.loads(files["manifest.json"])
    assert first["RepoTags"] == ["docker.io/library/demo:v1"]
    assert files[first["Config"]] == config_of([ONE, EMPTY, TWO])
    assert first["Config"] == digest(files[first["Config"]])[7:] + ".json"
    assert [files[name] for name in first["Layers"]] == [ONE, EMPTY, TWO]
    assert [files[name] for name in second["Layers"]] == [ONE, ONE, EMPTY]
    assert len([name for name in files if name.endswith("layer.tar")]) == 3
    top = json.loads(files["repositories"])["docker.io/library/demo"]["v1"]
    assert files[f"{top}/layer.tar"] == TWO


def test_an_image_goes_out_under_the_names_it_was_asked_for_by(store: Store) -> None:
    image = store.image("docker.io/library/demo:v1")
    store.tag("docker.io/library/also:v2", image.id)

    def tags(*images: str) -> list[str] | None:
        [entry] = json.loads(members(saved(store, list(images), "docker"))["manifest.json"])
        tags: list[str] | None = entry["RepoTags"]
        return tags

    assert tags("also:v2", "demo:v1", "also:v2") == ["docker.io/library/also:v2", "docker.io/library/demo:v1"]
    assert tags("also:v2") == ["docker.io/library/also:v2"]
    assert tags(image.id) is None
    assert tags(image.id[7:20]) is None
    assert "annotations" not in json.loads(members(saved(store, [image.id]))["index.json"])["manifests"][0]


# where it goes


def test_a_file_is_replaced_only_when_all_is_written(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "out" / "image.tar"
    target.parent.mkdir()
    target.write_bytes(b"what was there before")
    seen: list[bytes] = []
    save(store, ["demo:v1"], target, progress=lambda *_: seen.append(target.read_bytes()))
    assert set(seen) == {b"what was there before"}
    assert target.read_bytes() == saved(store, ["demo:v1"])
    assert os.listdir(target.parent) == ["image.tar"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_the_target_of_a_link_is_replaced(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("image.tar")
    save(store, ["nothing"], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "image.tar").read_bytes() == saved(store, ["nothing"])


def test_a_fifo_is_written_into(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append((tmp_path / "fifo").read_bytes()))
    thread.start()
    save(store, ["demo:v1"], tmp_path / "fifo")
    thread.join()
    assert got == [saved(store, ["demo:v1"])]


@pytest.mark.parametrize("way", ["empty", "slash"])
def test_a_directory_gets_a_layout(store: Store, tmp_path: Path, way: str) -> None:
    where = tmp_path / "layout"
    if way == "empty":
        where.mkdir()
    save(store, ["demo:v1"], where if way == "empty" else f"{where}/")
    found = {str(p.relative_to(where)): p.read_bytes() for p in where.rglob("*") if p.is_file()}
    assert found == members(saved(store, ["demo:v1"]))


def test_a_directory_that_is_not_empty_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(Conflict, match="not empty"):
        save(store, ["demo:v1"], tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["file"]


def test_damage_in_the_store_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "empty").mkdir(parents=True)
    (out / "old.tar").write_bytes(b"old")
    for record in (store.root / "split").iterdir():
        record.unlink()
    for target in (out / "new.tar", out / "old.tar", out / "empty", f"{out}/made/"):
        with pytest.raises(StoreDamaged):
            save(store, ["demo:v1"], target)
    with pytest.raises(StoreDamaged):
        save(store, ["demo:v1"], out / "new.tar", format="docker")
    assert sorted(os.listdir(out)) == ["empty", "old.tar"]
    assert os.listdir(out / "empty") == []
    assert (out / "old.tar").read_bytes() == b"old"


# what is refused


def test_wrong_words_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        save(store, ["nobody"], tmp_path / "x")
    with pytest.raises(InvalidOption, match="no image"):
        save(store, [], tmp_path / "x")
    with pytest.raises(InvalidOption, match="not compressed"):
        save(store, ["demo:v1"], tmp_path / "x", format="docker", compression=Compression.ZSTD)
    with pytest.raises(InvalidOption, match="no xz layers"):
        save(store, ["demo:v1"], tmp_path / "x", compression=Compression.XZ)
    with pytest.raises(InvalidOption, match="is a file"):
        save(store, ["demo:v1"], f"{tmp_path}/x/", format="docker")
    with pytest.raises(SystemFailure, match="nowhere"):
        save(store, ["demo:v1"], tmp_path / "nowhere" / "x")
    with pytest.raises(SystemFailure, match="nowhere"):
        save(store, ["demo:v1"], f"{tmp_path}/nowhere/x/")
    assert not (tmp_path / "x").exists()


def test_progress_counts_the_bytes_of_each_layer(store: Store) -> None:
    told: dict[str, tuple[int, int | None]] = {}
    save(store, ["demo:v1"], io.BytesIO(), progress=lambda what, *how: told.update({what: how}))
    assert told == {digest(tar): (len(tar), len(tar)) for tar in (ONE, EMPTY, TWO)}


def test_a_store_that_is_read_only_gives_its_images(store: Store, tmp_path: Path) -> None:
    with open_store(tmp_path, read_only=True) as other:
        assert saved(other, ["demo:v1"]) == saved(store, ["demo:v1"])

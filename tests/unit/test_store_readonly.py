"""A store that is opened read-only: everything can be read, nothing is written."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from layerfs.errors import PriorDrivers, ReadOnly, StoreDamaged
from layerfs.ids import digest_of
from layerfs.store.images import ImageRecord
from layerfs.store.store import Store
from tests.require import need
from tests.storekit import BASE, make_tar, open_driver, open_store, stream


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store with an image and a container, closed."""
    with open_store(tmp_path, "vfs") as store:
        layer = store.register(stream(BASE))
        store.add_image(ImageRecord(id=digest_of(b"{}"), config=b"{}", layers=(layer.chain_id,)), ["i:1"])
        store.create_rw("web", layer.chain_id)
    return tmp_path


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {
        os.path.join(directory, name): (stat.st_mtime_ns, stat.st_ctime_ns)
        for directory, directories, files in os.walk(root)
        for name in [*directories, *files]
        for stat in [os.lstat(os.path.join(directory, name))]
    }


def use(store: Store) -> None:
    """Everything that reads."""
    image = store.image("i:1")
    with store.get(image.layers[0]) as layer:
        with layer.tar() as tar:
            assert tar.read() == make_tar(BASE)
        with layer.mounted() as root:
            assert (root / "etc/passwd").read_bytes() == b"root\n"
    assert [info.names for info in store.images()] == [("i:1",)]
    assert store.get_rw("web").name == "web"
    assert len(list(store.layers())) == 1
    assert store.check() == []


def test_nothing_is_written(filled: Path) -> None:
    before = tree(filled / "root")
    with open_store(filled, "vfs", read_only=True) as store:
        use(store)
    assert tree(filled / "root") == before


def test_what_would_write_is_refused(filled: Path) -> None:
    before = tree(filled / "root")
    with open_store(filled, "vfs", read_only=True) as store:
        web = store.get_rw("web")
        image = store.image("i:1")
        for write in (
            lambda: store.register(stream(BASE)),
            lambda: store.create_rw("new", image.layers[0]),
            lambda: store.remove_rw("web"),
            lambda: store.add_image(image),
            lambda: store.tag("j:1", image.id),
            lambda: store.untag("i:1"),
            lambda: store.remove_image("i:1"),
            web.commit,
            web.mount,
            store.prune,
            store.repair,
            store.flush,
        ):
            with pytest.raises(ReadOnly):
                write()
    assert tree(filled / "root") == before


def test_on_a_file_system_that_is_mounted_read_only(filled: Path) -> None:
    need.root()
    root = str(filled / "root")
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        with open_store(filled, "vfs", read_only=True) as store:
            use(store)
        with pytest.raises(ReadOnly) as caught:
            open_store(filled, "vfs")
        assert "read_only" in caught.value.hint
    finally:
        subprocess.run(["umount", root], check=True)


def test_beside_one_that_writes(filled: Path) -> None:
    with open_store(filled, "vfs") as writer, open_store(filled, "vfs", read_only=True) as reader:
        use(reader)
        writer.remove_rw("web")
    with open_store(filled, "vfs", read_only=True) as reader:
        assert list(reader.rw_layers()) == []


def test_there_must_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(StoreDamaged, match="no store"):
        open_store(tmp_path, "vfs", read_only=True)
    assert list((tmp_path / "root").iterdir()) == []


def test_of_another_driver(filled: Path) -> None:
    with pytest.raises(PriorDrivers):
        Store.open(filled / "root", open_driver("dir", filled, read_only=True), read_only=True)


def test_one_that_was_not_closed_before_it_became_read_only_is_refused(filled: Path) -> None:
    """Its latest changes are in the write-ahead log, which cannot be read without writing."""
    need.root()
    crashed = filled / "crashed"
    with open_store(filled, "vfs") as store:
        store.tag("late:1", "i:1")
        shutil.copytree(filled / "root", crashed / "root")
    root = str(crashed / "root")
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        with pytest.raises(ReadOnly, match="not closed"):
            open_store(crashed, "vfs", read_only=True)
    finally:
        subprocess.run(["umount", root], check=True)
    with open_store(crashed, "vfs") as store:
        assert store.image("late:1")

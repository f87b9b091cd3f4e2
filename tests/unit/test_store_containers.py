"""Containers: made, mounted, written, compared, committed, removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.archive.changes import Change, ChangeKind
from layerfs.driver import CreateOptions
from layerfs.errors import (
    ContainerNotFound,
    InvalidID,
    LayerfsError,
    LayerNotFound,
    MountBusy,
    NameInUse,
    NotSupported,
)
from layerfs.ids import ChainID, DiffID, GraphID, digest_of
from layerfs.store.store import Store
from tests.storekit import ABOVE, BASE, DRIVERS, held, open_store, stream


@pytest.fixture(params=DRIVERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, request.param) as store:
        yield store


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


def base(store: Store) -> ChainID:
    return store.register(stream(BASE)).chain_id


def test_the_life_of_a_container(store: Store) -> None:
    parent = base(store)
    web = store.create_rw("web", parent, image="an image")
    with web.mounted() as root:
        assert (root / "etc/hosts").exists()
        assert (root / "etc/passwd").read_bytes() == b"root\n"
        (root / "etc/hosts").write_text("127.0.0.1 web\n")
        (root / "data").mkdir()
        (root / "data/file").write_text("written")
        (root / "etc/passwd").unlink()
    again = store.get_rw("web")
    assert again.info == web.info
    assert (again.info.parent, again.info.image) == (parent, "an image")
    with again.mounted() as root:
        assert (root / "data/file").read_text() == "written"
    assert list(again.changes()) == [
        Change(b"", ChangeKind.MODIFIED),
        Change(b"data", ChangeKind.ADDED),
        Change(b"data/file", ChangeKind.ADDED),
        Change(b"etc", ChangeKind.MODIFIED),
        Change(b"etc/hosts", ChangeKind.MODIFIED),
        Change(b"etc/passwd", ChangeKind.DELETED),
    ]
    assert again.diff_size() == len("written") + len("127.0.0.1 web\n")
    again.remove()
    with pytest.raises(ContainerNotFound):
        store.get_rw("web")
    assert len(list(store.driver.ids())) == 1
    assert store.check() == []


def test_a_commit_is_a_layer_upon_the_parent_without_the_init_layers_files(store: Store) -> None:
    parent = base(store)
    web = store.create_rw("web", parent)
    with web.mounted() as root:
        (root / "new").write_text("written")
        (root / "etc/passwd").unlink()
    layer = web.commit()
    assert layer.parent == parent
    with web.diff() as diff, layer.tar() as tar:
        content = diff.read()
        assert tar.read() == content
    assert layer.diff_id == DiffID(digest_of(content))
    with layer.mounted() as root:
        assert (root / "new").read_text() == "written"
        assert sorted(path.name for path in root.iterdir()) == ["bin", "etc", "new"]
        assert list((root / "etc").iterdir()) == []
    assert web.commit().chain_id == layer.chain_id


def test_without_an_init_layer(store: Store) -> None:
    parent = base(store)
    bare = store.create_rw("bare", parent, init=None)
    assert bare.info.init_id is None
    assert list(bare.changes()) == []
    with bare.mounted() as root:
        assert not (root / "etc/hosts").exists()
        (root / "new").write_text("x")
    assert list(bare.changes()) == [Change(b"", ChangeKind.MODIFIED), Change(b"new", ChangeKind.ADDED)]
    assert bare.commit().parent == parent
    bare.remove()


def test_upon_nothing(store: Store) -> None:
    scratch = store.create_rw("scratch", None, init=None)
    with scratch.mounted() as root:
        assert list(root.iterdir()) == []
        (root / "first").write_text("x")
    layer = scratch.commit()
    assert layer.parent is None
    assert layer.depth == 1


def test_an_init_function_of_the_callers(store: Store) -> None:
    made = store.create_rw(None, base(store), init=lambda root: (root / "mark").mkdir())
    with made.mounted() as root:
        assert (root / "mark").is_dir()
        assert not (root / ".dockerenv").exists()
    assert list(made.changes()) == []


def test_an_init_function_that_fails_leaves_nothing(store: Store) -> None:
    parent = base(store)
    before = held(store)

    def init(root: Path) -> None:
        (root / "half").mkdir()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.create_rw("web", parent, init=init)
    assert held(store) == before
    assert store.check() == []
    store.create_rw("web", parent)


def test_a_mounted_container_is_not_removed_and_stays_as_it_was(tmp_path: Path) -> None:
    with open_store(tmp_path, "vfs") as store:
        web = store.create_rw("web", base(store))
        with web.mounted() as root:
            (root / "kept").write_text("x")
            with pytest.raises(MountBusy):
                web.remove()
            assert store.get_rw("web").info == web.info
        with web.mounted() as root:
            assert (root / "kept").read_text() == "x"
        web.remove()
        assert store.check() == []


def test_names(plain: Store) -> None:
    parent = base(plain)
    plain.create_rw("web", parent)
    with pytest.raises(NameInUse):
        plain.create_rw("web", parent)
    for bad in ("", ".hidden", "a/b", "-x", "a" * 129, "a\n"):
        with pytest.raises(InvalidID):
            plain.create_rw(bad, parent)
    made_up = {plain.create_rw(None, parent).name for _ in range(3)}
    assert len(made_up) == 3
    assert {info.name for info in plain.rw_layers()} == {"web", *made_up}
    with pytest.raises(ContainerNotFound) as caught:
        plain.get_rw("wbe")
    assert caught.value.near == ("web",)


def test_a_name_is_free_after_removal(plain: Store) -> None:
    parent = base(plain)
    plain.create_rw("web", parent).remove()
    plain.create_rw("web", parent)


def test_a_handle_of_a_removed_container(plain: Store) -> None:
    web = plain.create_rw("web", base(plain))
    plain.remove_rw("web")
    for use in (web.mount, web.diff_size, web.mounts, web.usage, web.commit, web.remove):
        with pytest.raises(ContainerNotFound):
            use()


def test_a_parent_that_is_not_there(plain: Store) -> None:
    with pytest.raises(LayerNotFound):
        plain.create_rw("web", ChainID(digest_of(b"absent")))
    assert held(plain) == []


def test_a_limit_that_the_driver_cannot_keep_leaves_nothing(plain: Store) -> None:
    parent = base(plain)
    before = held(plain)
    with pytest.raises(NotSupported):
        plain.create_rw("web", parent, options=CreateOptions(size=1 << 20))
    assert held(plain) == before
    assert list(plain.rw_layers()) == []


def test_limits_and_label_are_kept(tmp_path: Path) -> None:
    options = CreateOptions(label="system_u:object_r:container_file_t:s0")
    with open_store(tmp_path) as store:
        store.create_rw("web", base(store), options=options)
    with open_store(tmp_path) as store:
        assert store.get_rw("web").info.options == options


def test_the_mounts_of_a_container_as_data(store: Store) -> None:
    mounts = store.create_rw("web", base(store)).mounts()
    assert mounts
    assert all(mount.fstype for mount in mounts)


def test_usage_and_metadata(store: Store) -> None:
    web = store.create_rw("web", base(store))
    with web.mounted() as root:
        (root / "big").write_bytes(b"x" * 100_000)
    assert web.usage().bytes >= 100_000
    assert web.metadata()


def test_closing_an_erring_block_keeps_the_error(plain: Store) -> None:
    parent = base(plain)
    web = plain.create_rw("web", parent)
    with pytest.raises(LayerfsError, match="mine"), web.mounted():
        raise LayerfsError("mine")


def test_a_removal_that_died_before_it_was_refused_is_undone(tmp_path: Path) -> None:
    """Somebody has the container mounted, so it would have stayed as it was. The same for a layer."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def in_a_process_that_dies(remove: Callable[[Store], object]) -> None:
        child = os.fork()
        if child == 0:
            with open_store(tmp_path, "vfs") as store:
                object.__setattr__(store.driver.proto, "remove", die)  # type: ignore[attr-defined]
                remove(store)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL

    with open_store(tmp_path, "vfs") as store:
        base = store.register(stream(BASE))
        root = store.create_rw("web", base.chain_id).mount()
        (root / "new").write_text("new")
        alone = store.register(stream(ABOVE))
        alone.mount()
        alone.release()
    in_a_process_that_dies(lambda store: store.remove_rw("web"))
    in_a_process_that_dies(lambda store: store.prune([alone.chain_id]))
    with open_store(tmp_path, "vfs") as store:
        assert store.check() == []
        web = store.get_rw("web")
        assert (root / "new").read_text() == "new"
        web.umount()
        with store.get(alone.chain_id) as again:
            again.umount()
        web.remove()
        assert len(store.prune().layers) == 2
        assert held(store) == []


def test_a_name_is_not_free_before_its_container_is_gone(tmp_path: Path) -> None:
    """What is mounted is not removed, and must have its name back."""
    with open_store(tmp_path, "vfs") as store, open_store(tmp_path, "vfs") as other:
        web = store.create_rw("web", None)
        web.mount()
        remove = type(store.driver.proto).remove  # type: ignore[attr-defined]

        def removing(id: GraphID) -> None:
            with pytest.raises(NameInUse):
                other.create_rw("web", None)
            remove(store.driver.proto, id)  # type: ignore[attr-defined]

        object.__setattr__(store.driver.proto, "remove", removing)  # type: ignore[attr-defined]
        with pytest.raises(MountBusy):
            store.remove_rw("web")
        assert other.get_rw("web").info == web.info
        web.umount()
        web.remove()
        assert store.check() == []

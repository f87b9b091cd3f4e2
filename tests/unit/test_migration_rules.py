"""When a move is refused, what an unfinished one leaves, and how it goes on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from layerfs.driver import CreateOptions
from layerfs.errors import (
    Conflict,
    DepthExceeded,
    DigestMismatch,
    DriverNotFound,
    InvalidOption,
    LayerfsError,
    MountBusy,
    NoSpace,
    NotFound,
    NotSupported,
    PriorDrivers,
    StoreDamaged,
    StoreLocked,
)
from layerfs.ids import ChainID, GraphID
from layerfs.naivediff import NaiveDiff
from layerfs.opening import migrate_store, open_store
from layerfs.store import migration
from layerfs.store.migration import Migrated
from layerfs.store.store import Store
from tests.dirdriver import DirInfo, DirProto
from tests.migrationkit import LimitsInfo, use_drivers
from tests.require import need
from tests.storekit import ABOVE, BASE, make_tar, stream


class Lacking(DirInfo):
    def open(self, *args: object, **named: object) -> NoReturn:
        raise NotSupported("the kernel lacks it", hint="get another kernel")


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [DirInfo(name) for name in ("one", "two", "three")]
    use_drivers(monkeypatch, *infos, LimitsInfo("limits"), Lacking("lacking"))


@pytest.fixture(autouse=True)
def noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer of these stores is small; each is flushed and noted when it is copied."""
    monkeypatch.setattr(migration, "UNFLUSHED", 0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A store of driver ``one``: two layers, and a container upon them."""
    with opened(tmp_path, "one") as store:
        below = store.register(stream(BASE))
        above = store.register(stream(ABOVE), below.chain_id)
        with store.create_rw("web", above.chain_id).mounted() as root:
            (root / "new").write_text("written")
    return tmp_path


def opened(base: Path, driver: str | None = None) -> Store:
    return open_store(base / "root", runroot=base / "run", driver=driver)


def move(base: Path, to: str, progress: Callable[[str, int, int | None], None] | None = None) -> Migrated:
    named = {"progress": progress} if progress else {}
    return migrate_store(base / "root", to, runroot=base / "run", **named)  # type: ignore[arg-type]


def held(base: Path, driver: str) -> list[str]:
    home = base / "root" / driver
    return sorted(set(os.listdir(home)) - {".removing"}) if home.exists() else []


def is_as_it_was(base: Path) -> None:
    """With driver ``one``, nothing of any other."""
    with opened(base) as store:
        assert store.driver.name == "one"
        assert store.migration() is None
        assert store.check() == []
        assert [layer.depth for layer in store.layers()] == [1, 2]
        with store.get_rw("web").mounted() as root:
            assert (root / "new").read_text() == "written"
    assert [name for name in ("two", "three", "limits", "lacking") if held(base, name)] == []


class Stop(Exception):
    pass


def stop_at(part: str) -> Callable[[str, int, int | None], None]:
    def progress(what: str, done: int, total: int | None) -> None:
        if what.startswith(part):
            raise Stop

    return progress


def begun(base: Path) -> None:
    """A move to driver ``two`` that ended when both layers were there, and half a container."""
    with pytest.raises(Stop):
        move(base, "two", stop_at("container"))
    assert len(held(base, "two")) == 3


# refused


def test_one_who_has_the_store_open_is_named_and_left_alone(base: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from layerfs.store.store import Store;"
        "from tests.dirdriver import DirInfo; base = Path(sys.argv[1]);"
        "store = Store.open(base / 'root', DirInfo('one').open(base / 'root/one', base, {}));"
        "print('open', flush=True); input(); print(store.get_rw('web').diff_size())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(base)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match=rf"open in another process: {other.pid} \("):
            move(base, "two")
        assert other.communicate("\n")[0] == "7\n"
    is_as_it_was(base)
    assert move(base, "two").layers == 2


def test_nobody_opens_a_store_that_is_being_moved(base: Path) -> None:
    told: list[str] = []

    def progress(what: str, done: int, total: int | None) -> None:
        for read_only in (False, True):
            with pytest.raises(StoreLocked, match=f"moved to another driver by {os.getpid()} "):
                open_store(base / "root", runroot=base / "run", read_only=read_only)
        told.append(what)

    move(base, "two", progress)
    assert told


def test_mounts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need.root()
    need.overlay(tmp_path)
    from layerfs_drivers.overlay import DRIVER as OVERLAY
    from layerfs_drivers.vfs import DRIVER as VFS

    use_drivers(monkeypatch, OVERLAY, VFS)
    with opened(tmp_path, "overlay") as store:
        layer = store.register(stream(BASE))
        web = store.create_rw("web", layer.chain_id)
        root = web.mount()
        layer.mount()
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=root) as holder,
        pytest.raises(MountBusy) as caught,
    ):
        try:
            move(tmp_path, "vfs")
        finally:
            holder.communicate(b"\n")
    assert f"container web, layer {layer.chain_id}" in str(caught.value)
    assert any(str(holder.pid) in one for one in caught.value.holders)
    assert held(tmp_path, "vfs") == []
    with opened(tmp_path) as store:
        store.get_rw("web").umount()
        layer = store.get(layer.chain_id)
        layer.umount()
    move(tmp_path, "vfs")


def test_a_driver_that_does_not_work_here_says_why(base: Path) -> None:
    with pytest.raises(NotSupported, match="the kernel lacks it") as caught:
        move(base, "lacking")
    assert caught.value.hint == "get another kernel"
    with pytest.raises(DriverNotFound):
        move(base, "tow")
    with pytest.raises(NotFound):
        move(base / "elsewhere", "two")
    is_as_it_was(base)


def test_the_driver_that_it_has(base: Path) -> None:
    with pytest.raises(Conflict, match="belongs to driver one already"):
        move(base, "one")
    is_as_it_was(base)


def test_a_limit_that_cannot_be_kept_names_the_container_first(tmp_path: Path) -> None:
    with opened(tmp_path, "limits") as store:
        parent = store.register(stream(BASE)).chain_id
        store.create_rw("free", parent)
        store.create_rw("limited", parent, options=CreateOptions(size=1 << 20))

    def progress(what: str, done: int, total: int | None) -> None:
        raise AssertionError("nothing is copied")

    with pytest.raises(NotSupported, match="container limited has limits that driver two cannot keep"):
        move(tmp_path, "two", progress)
    with opened(tmp_path) as store:
        assert store.migration() is None
        store.remove_rw("limited")
    move(tmp_path, "two")


def test_limits_and_labels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, CreateOptions] = {}
    create = DirProto.create_read_write

    def noting(self: DirProto, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions) -> None:
        given[id] = options
        create(self, id, parent)

    options = CreateOptions(size=1 << 20, inodes=100, label="system_u:object_r:container_file_t:s0")
    with opened(tmp_path, "limits") as store:
        web = store.create_rw("web", store.register(stream(BASE)).chain_id, options=options)
    monkeypatch.setattr(DirProto, "create_read_write", noting)
    move(tmp_path, "two")
    assert given[web.info.mount_id] == options
    assert web.info.init_id is not None
    assert given[web.info.init_id] == CreateOptions(label=options.label)


def test_a_chain_that_is_too_deep_is_named(base: Path) -> None:
    with pytest.raises(DepthExceeded, match="driver two stacks at most 3,"):
        migrate_store(base / "root", "two", runroot=base / "run", options={"two.depth": "3"})
    is_as_it_was(base)
    migrate_store(base / "root", "two", runroot=base / "run", options={"two.depth": "4", "one.depth": "9"})
    with pytest.raises(InvalidOption, match="the store uses two and one"):
        migrate_store(base / "root", "one", runroot=base / "run", options={"three.depth": "4"})


def test_what_somebody_else_has_there_is_not_touched(base: Path) -> None:
    (base / "root/two/precious").mkdir(parents=True)
    with pytest.raises(PriorDrivers, match="driver two holds layers already"):
        move(base, "two")
    assert held(base, "two") == ["precious"]
    with opened(base) as store:
        assert store.migration() is None


# unfinished


def test_it_goes_on_where_it_stopped(base: Path) -> None:
    begun(base)
    told: list[str] = []
    done = move(base, "two", lambda what, *_: told.append(what))
    assert (done.layers, done.containers) == (2, 1)
    assert set(told) == {"container web"}
    assert held(base, "one") == []
    with opened(base) as store:
        assert store.driver.name == "two"
        assert store.check() == []


def test_an_unfinished_move_is_told_and_the_store_works(base: Path) -> None:
    begun(base)
    with opened(base) as store:
        found = store.migration()
        assert found is not None and (found.driver, found.copying) == ("two", True)
        [problem] = store.check()
        assert (problem.kind, problem.what) == ("migration", "two")
        assert "migrate --to two" in problem.hint and "migrate --to one" in problem.hint
        store.register(stream({"more": b"more"})).release()
        store.prune()
        assert store.repair() == []


def test_what_changed_meanwhile_is_copied_as_it_is_now(base: Path) -> None:
    with opened(base) as store:
        parent = store.get_rw("web").info.parent
        store.create_rw("also", parent)
        store.create_rw("untouched", parent)
    with pytest.raises(Stop):
        move(base, "two", stop_at("container web"))
    with opened(base) as store:
        with store.get_rw("also").mounted() as root:
            (root / "later").write_text("later")
        store.create_rw("new", store.register(stream({"own": b"own"})).chain_id)
    told: list[str] = []
    move(base, "two", lambda what, *_: told.append(what))
    assert {what for what in told if what.startswith("container")} == {
        "container also",
        "container new",
        "container web",
    }
    with opened(base) as store:
        assert store.check() == []
        with store.get_rw("also").mounted() as root:
            assert (root / "later").read_text() == "later"
        with store.get_rw("new").mounted() as root:
            assert (root / "own").exists()


def test_what_was_removed_meanwhile_is_not_moved(base: Path) -> None:
    begun(base)
    with opened(base) as store:
        store.remove_rw("web")
        assert len(store.prune().layers) == 2
        store.register(stream({"other": b"other"})).release()
    assert move(base, "two").layers == 1
    assert len(held(base, "two")) == 1


def test_a_copy_that_somebody_removed_is_made_again(base: Path) -> None:
    begun(base)
    with opened(base) as store:
        bottom = next(iter(store.layers())).cache_id
    DirInfo("two").open(base / "root/two", base, {}).remove(bottom)
    move(base, "two")
    with opened(base) as store:
        assert store.check() == []


def test_it_can_be_given_up(base: Path) -> None:
    begun(base)
    assert move(base, "one") == Migrated(source="two", target="one")
    is_as_it_was(base)
    move(base, "three")


def test_another_driver_must_wait(base: Path) -> None:
    begun(base)
    with pytest.raises(Conflict, match="on its way to driver two") as caught:
        move(base, "three")
    assert "migrate --to one" in caught.value.hint
    assert held(base, "three") == []


def test_what_the_old_driver_still_holds_is_removed_by_the_next_call(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = DirProto.remove

    def failing(self: DirProto, id: GraphID, /) -> None:
        if self.name == "one" and not id.endswith("-init"):
            raise LayerfsError("not now")
        remove(self, id)

    monkeypatch.setattr(DirProto, "remove", failing)
    assert move(base, "two").warnings == ("driver one still holds what was moved: not now",)
    with opened(base) as store:
        assert store.driver.name == "two"
        [problem] = store.check()
        assert "migrate --to two" in problem.hint
    monkeypatch.undo()
    use_drivers(monkeypatch, DirInfo("one"), DirInfo("two"), DirInfo("three"))
    assert move(base, "two") == Migrated(source="one", target="two")
    assert held(base, "one") == []
    with opened(base) as store:
        assert store.check() == []


def test_back_to_the_old_driver_before_it_was_emptied(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: DirProto, id: GraphID, /) -> None:
        raise LayerfsError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(DirProto, "remove", failing)
        move(base, "two")
    with opened(base) as store, store.get_rw("web").mounted() as root:
        (root / "new").write_text("newer")
    move(base, "one")
    with opened(base) as store, store.get_rw("web").mounted() as root:
        assert (root / "new").read_text() == "newer"
    assert held(base, "two") == []


# damage and space


def test_a_damaged_layer_is_told_and_not_moved(base: Path) -> None:
    with opened(base) as store:
        bottom = next(iter(store.layers()))
    (base / "root/one" / bottom.cache_id / "bin/sh").write_bytes(b"damage" * 1000)
    with pytest.raises((StoreDamaged, DigestMismatch)):
        move(base, "two")
    move(base, "one")
    is_as_it_was(base)


def test_a_driver_that_keeps_something_else_is_found_out(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = DirProto.put

    def spoiling(self: DirProto, id: GraphID, /) -> None:
        (self.home / id / "spoilt").touch()
        put(self, id)

    monkeypatch.setattr(DirProto, "put", spoiling)
    with pytest.raises(StoreDamaged, match="container web are not the same with driver two"):
        move(base, "two")
    monkeypatch.setattr(DirProto, "put", put)
    apply = NaiveDiff.apply_diff

    def forgetting(
        self: NaiveDiff, id: GraphID, parent: GraphID | None, tar: io.BytesIO, /, **named: object
    ) -> int:
        size = apply(self, id, parent, tar, **named)  # type: ignore[arg-type]
        (Path(self.metadata(id)["root"]) / "etc/group").unlink(missing_ok=True)
        return size

    monkeypatch.setattr(NaiveDiff, "apply_diff", forgetting)
    move(base, "one")
    with pytest.raises(StoreDamaged, match="etc/group"):
        move(base, "two")
    move(base, "one")
    is_as_it_was(base)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of a layer of a megabyte and a container of one, where four have room."""
    need.root()
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", place], check=True)
    return place


def test_layers_that_surely_do_not_fit_are_refused_first(small: Path) -> None:
    with opened(small, "one") as store:
        store.register(stream({"big": os.urandom(2 << 20)})).release()
        before = held(small, "one")
    with pytest.raises(NoSpace, match="needs 2097152 bytes"):
        move(small, "two", stop_at(""))
    assert held(small, "one") == before
    with opened(small) as store:
        assert store.migration() is None


def test_a_full_disk_leaves_the_store_as_it_was(small: Path) -> None:
    with opened(small, "one") as store:
        layer = store.register(io.BytesIO(make_tar({"big": os.urandom(1 << 20)})))
        # The container has a copy of the layer, and each driver would have both.
        with store.create_rw("web", ChainID(layer.chain_id), init=None).mounted() as root:
            (root / "new").write_text("written")
    with pytest.raises(NoSpace, match="the store stays with driver one"):
        move(small, "two")
    assert held(small, "two") == []
    with opened(small) as store:
        assert store.migration() is None
        assert store.check() == []
        with store.get_rw("web").mounted() as root:
            assert (root / "new").read_text() == "written"

"""Whatever is damaged below a store: a check names it, a repair mends it, and then all is as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from layerfs.ids import GraphID
from layerfs.image.layersource import layers_of
from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from layerfs.opening import open_store
from layerfs.store.check import Problem
from layerfs.store.records import LayerInfo
from layerfs.store.store import Store
from tests import migrationkit, zfskit
from tests.faults.anywhere import quick_mounts
from tests.places import Place, place_for

LONG = os.environ.get("LAYERFS_LONG") == "1"

DRIVERS = ("vfs", "overlay", "btrfs", "fuse", "aufs", "zfs")
THIN = "devicemapper"
SLOW = ("fuse", "aufs", "zfs", THIN)
"""Of these some stories stand for the rest, unless the tests may take long."""


@attrs.frozen
class Ground:
    """A store with something of everything, and what it was filled from."""

    driver: str
    place: Place

    def open(self, *, exclusive: bool = True) -> Store:
        return open_store(
            self.place.base / "root",
            runroot=self.place.base / "run",
            driver=self.driver,
            options=self.place.options,
            exclusive=exclusive,
        )

    @property
    def layout(self) -> Path:
        return self.place.base / "layout"

    @property
    def home(self) -> Path:
        return self.place.base / "root" / self.driver

    @contextlib.contextmanager
    def tree(self, store: Store, id: GraphID) -> Iterator[Path]:
        """What the layer itself holds, where its driver keeps it, to be damaged."""
        driver: Any = store.driver
        with contextlib.ExitStack() as held:
            if self.driver in ("overlay", "fuse", "aufs"):
                yield driver.layout.diff(id)
            elif self.driver == "btrfs":
                yield held.enter_context(unsealed(self.home / id))
            elif self.driver == "zfs":
                yield held.enter_context(driver.proto._shown.look(id))
            elif self.driver == THIN:
                yield held.enter_context(writable_device(driver.proto.pool, id))
            else:
                yield self.home / id


@contextlib.contextmanager
def unsealed(subvolume: Path) -> Iterator[Path]:
    from layerfs_drivers.btrfs import _ioctl

    fd = os.open(subvolume, os.O_RDONLY)
    sealed = _ioctl.is_read_only(fd)
    try:
        _ioctl.set_read_only(fd, False)
        yield subvolume
        _ioctl.set_read_only(fd, sealed)
    finally:
        os.close(fd)


@contextlib.contextmanager
def writable_device(pool: Any, id: GraphID) -> Iterator[Path]:
    from layerfs.linux import forks
    from layerfs_drivers.devicemapper import _filesystem

    with pool.held(pool.require(id)) as node:
        fd = _filesystem.mount(pool.fs, node, [()])
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        forks.close(fd)


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    scratch = tmp_path_factory.mktemp("damage")
    with quick_mounts(request.param), place_for(request.param, scratch) as place:
        yield Ground(request.param, place)
        for mount in reversed(mounts_below(place.base)):
            if Path(os.fsdecode(mount.mount_point)) != place.base:
                umount(Path(os.fsdecode(mount.mount_point)))


@pytest.fixture(scope="module")
def filled(place: Ground) -> Ground:
    """Healed after each story, it serves the next one: one that was not would spoil it."""
    with place.open() as store:
        migrationkit.fill(store, place.place.base)
        assert store.check(deep=True) == []
    return place


def bottom(store: Store) -> LayerInfo:
    """Below two more layers, an image's commit, and two containers."""
    return store.layer_info(store.image("docker.io/library/base:1").layers[0])


def middle(store: Store) -> LayerInfo:
    return store.layer_info(store.image("docker.io/library/app:1").layers[1])


def committed(store: Store) -> LayerInfo:
    """Of which no archive is anywhere."""
    return store.layer_info(store.image("docker.io/library/committed:1").layers[-1])


def picture(store: Store, scratch: Path) -> dict[str, Any]:
    """What a user sees; not what the driver calls it."""
    seen = migrationkit.seen(store, scratch)
    layers: Any = seen["layers"]
    seen["layers"] = {layer["chain_id"]: {**layer, "cache_id": ""} for layer in layers}
    seen["containers"] = [
        {**vars(info), "mount_id": "", "init_id": info.init_id is not None}
        for info in seen["containers"]  # type: ignore[attr-defined]
    ]
    return seen


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """As rot does it: the directory's and the file's times stay."""
    parent = path.parent.stat()  # may be behind a link, of a process to its descriptor
    own = path.lstat() if os.path.lexists(path) else None
    yield
    if own is not None:
        os.utime(path, ns=(own.st_atime_ns, own.st_mtime_ns), follow_symlinks=False)
    os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))


Find = Callable[[Store], LayerInfo]
Harm = Callable[[Path], object]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with quiet(path), path.open("r+b") as file:
        file.write(data)


def retarget(path: Path) -> None:
    with quiet(path):
        path.unlink()
        path.symlink_to("elsewhere")


def add(path: Path) -> None:
    with quiet(path):
        path.write_text("somebody left this here")


# For each story the file that the check must name.
HARM: dict[str, tuple[Find, str, Harm]] = {
    "a flipped bit": (bottom, "bin/su", flip),
    "a file without content": (bottom, "etc/passwd", lambda path: os.truncate(path, 0)),
    "a file that is gone": (bottom, "bin/su", os.unlink),
    "a directory that is gone": (bottom, "srv/old", shutil.rmtree),
    "another mode": (bottom, "etc/shadow", lambda path: path.chmod(0o666)),
    "another owner": (bottom, "etc/passwd", lambda path: os.chown(path, 7, 7)),
    "another time": (bottom, "etc/passwd", lambda path: os.utime(path, (1, 1))),
    "no capability": (bottom, "bin/ping", lambda path: os.removexattr(path, "security.capability")),
    "a link to elsewhere": (bottom, "lib", retarget),
    "no device": (bottom, "dev/null", os.unlink),
    "a file too many": (bottom, "etc/planted", add),
    "a file in the middle": (middle, "etc/passwd", flip),
    "a file that nobody else has": (committed, "pipe", os.unlink),
}


BRIEF = ("a flipped bit", "a file that nobody else has")


def stories(*drivers: str) -> pytest.MarkDecorator:
    told = [(one, story) for one in drivers for story in HARM if LONG or one not in SLOW or story in BRIEF]
    return pytest.mark.parametrize(("place", "story"), told, indirect=["place"], scope="module")


@stories(*DRIVERS)
def test_damage_is_named_and_mended(filled: Ground, tmp_path: Path, story: str) -> None:
    damaged_and_mended(filled, tmp_path, story)


@pytest.mark.host("thin")
@stories(THIN)
def test_damage_in_a_thin_pool_is_named_and_mended(filled: Ground, tmp_path: Path, story: str) -> None:
    damaged_and_mended(filled, tmp_path, story)


def damaged_and_mended(filled: Ground, tmp_path: Path, story: str) -> None:
    find, name, harm = HARM[story]
    with filled.open() as store:
        before = picture(store, tmp_path)
        layer = find(store)
        with filled.tree(store, layer.cache_id) as root:
            harm(root / name)
    with filled.open(exclusive=False) as store:
        found = store.check(deep=True)
        assert found, "nothing was noticed"
        assert {(one.kind, one.what) for one in found} == {("damaged-layer", layer.chain_id)}
        assert any(f"'{name}" in one.detail for one in found), found
        assert all(one.hint for one in found)
    mended(filled, tmp_path, before)


def mended(ground: Ground, scratch: Path, before: dict[str, Any], *, but: str = "") -> None:
    """``but`` for a container whose init layer was made, and dated, anew."""
    with ground.open() as store, layers_of(ground.layout, scratch) as source:
        assert {one.error for one in store.repair(source)} == {""}
    with ground.open() as store:
        assert store.check(deep=True) == []
        now = picture(store, scratch)
        changed = {key for key in before if now[key] != before[key]}
        assert changed <= {f"{part} of {but}" for part in ("tree", "diff", "changes")}
        with store.get_rw("untouched").mounted() as root:
            assert (root / "etc/hosts").exists()
        assert store.prune(()).errors == ()


def vanish(ground: Ground, store: Store, id: GraphID) -> None:
    if ground.driver in ("vfs", "overlay", "fuse"):
        shutil.rmtree(ground.home / id)
    else:
        store.driver.remove(id)


def lose(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    vanish(ground, store, layer.cache_id)
    return [Problem("missing-layer", layer.chain_id, "")]


def lose_record(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    (store.root / "split" / layer.cache_id).unlink()
    return [Problem("missing-record", layer.chain_id, "")]


def harm_record(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    flip(store.root / "split" / layer.cache_id)
    return [Problem("damaged-layer", layer.chain_id, "")]


def cut_record(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    os.truncate(store.root / "split" / layer.cache_id, 0)
    return [Problem("damaged-layer", layer.chain_id, "")]


def sql(store: Store, text: str, *values: object) -> None:
    with store._core.db.transaction():
        assert store._core.db.execute(text, *values)


def wrong_size(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    sql(store, "UPDATE layers SET size = 1 WHERE cache_id = ?", layer.cache_id)
    return [Problem("wrong-size", layer.chain_id, "")]


def wrong_parent(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    child = middle(store)
    sql(store, "UPDATE layers SET parent = NULL WHERE cache_id = ?", child.cache_id)
    return [Problem("wrong-parent", child.chain_id, "")]


def wrong_depth(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    sql(store, "UPDATE layers SET depth = 9 WHERE cache_id = ?", committed(store).cache_id)
    return [Problem("count", committed(store).chain_id, "")]


def orphan(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    store.driver.create(GraphID("orphan"), layer.cache_id)
    store.driver.create(GraphID("another"), GraphID("orphan"))
    (store.root / "split/stray").write_bytes(b"")
    return [
        Problem("orphan", "orphan", ""),
        Problem("orphan", "another", ""),
        Problem("stray-record", "stray", ""),
    ]


def leak_mount(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    """What is left when the count of a mount is lost."""
    target = store.driver.get(layer.cache_id, read_only=True)
    (ground.place.base / "run" / ground.driver / "counts" / layer.cache_id).unlink()
    return [Problem("leaked-mount", str(target), "")]


def stale_count(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    umount(store.driver.get(layer.cache_id, read_only=True))
    run = ground.place.base / "run" / ground.driver
    found = [Problem("count", str(run / "counts" / layer.cache_id), "")]
    if ground.driver == "zfs":  # what was unmounted shows a mount of the dataset
        found.append(Problem("leaked-mount", str(run / "datasets" / layer.cache_id), ""))
    return found


def lose_init(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    init = store.get_rw("untouched").info.init_id
    assert init is not None
    vanish(ground, store, init)
    return [Problem("missing-init", "untouched", "")]


def other_lower(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    """The driver has a layer upon nothing."""
    child = middle(store)
    if ground.driver == THIN:
        with contextlib.closing(sqlite3.connect(ground.home / "journal.db")) as journal, journal:
            journal.execute("UPDATE devices SET parent = NULL WHERE layer = ?", (child.cache_id,))
    elif ground.driver == "aufs":
        (ground.home / "layers" / child.cache_id).write_text("")
    else:
        (ground.home / child.cache_id / "lower").write_text("0\n")
    return [Problem("wrong-parent", child.chain_id, "")]


def leak_device(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    store.driver.mounts(layer.cache_id, read_only=True)
    name = Path(store.driver.metadata(layer.cache_id)["device"]).name
    (ground.place.base / "run" / ground.driver / "described" / name).unlink()
    return [Problem("leaked-device", name, "")]


def leak_snapshot(ground: Ground, store: Store, layer: LayerInfo) -> list[Problem]:
    driver: Any = store.driver
    left = driver.proto.dataset.passing_snapshot(layer.cache_id)
    zfskit.zfs("snapshot", left)
    return [Problem("leaked-snapshot", left, "")]


ODD = [
    lose,
    lose_record,
    harm_record,
    cut_record,
    wrong_size,
    wrong_parent,
    wrong_depth,
    orphan,
    leak_mount,
    stale_count,
    lose_init,
    other_lower,
    leak_device,
    leak_snapshot,
]

ONLY: dict[Any, Sequence[str]] = {
    lose: ("vfs", "overlay", "btrfs", "fuse", "aufs", THIN),  # what has clones cannot be lost
    lose_init: ("vfs", "overlay", "btrfs", "fuse", "aufs", THIN),
    other_lower: ("overlay", "fuse", "aufs", THIN),  # btrfs and zfs have it from the file system
    leak_device: (THIN,),
    leak_snapshot: ("zfs",),
}
BRIEF_ODD = (lose, leak_mount, other_lower, leak_device, leak_snapshot)


def oddities(*drivers: str) -> pytest.MarkDecorator:
    told = [
        pytest.param(one, harm, id=f"{one}-{harm.__name__}")
        for one in drivers
        for harm in ODD
        if one in ONLY.get(harm, drivers) and (LONG or one not in SLOW or harm in BRIEF_ODD)
    ]
    return pytest.mark.parametrize(("place", "harm"), told, indirect=["place"], scope="module")


Odd = Callable[[Ground, Store, LayerInfo], list[Problem]]


@oddities(*DRIVERS)
def test_what_is_odd_is_named_and_mended(filled: Ground, tmp_path: Path, harm: Odd) -> None:
    odd_and_mended(filled, tmp_path, harm)


@pytest.mark.host("thin")
@oddities(THIN)
def test_what_is_odd_in_a_thin_pool_is_named_and_mended(filled: Ground, tmp_path: Path, harm: Odd) -> None:
    odd_and_mended(filled, tmp_path, harm)


def odd_and_mended(filled: Ground, tmp_path: Path, harm: Odd) -> None:
    with filled.open() as store:
        before = picture(store, tmp_path)
        expected = harm(filled, store, bottom(store))
        # To look at a layer is to mount it, and to unmount it again.
        found = store.check(deep=harm not in (leak_mount, stale_count, leak_device))
        assert {(one.kind, one.what) for one in found} == {(one.kind, one.what) for one in expected}
    mended(filled, tmp_path, before, but="untouched" if harm is lose_init else "")

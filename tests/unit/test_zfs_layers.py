"""The zfs driver: its own datasets and nothing else, whoever is killed, whatever else is in the pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.driver import CreateOptions
from layerfs.errors import (
    Conflict,
    InvalidOption,
    LayerExists,
    LayerInUse,
    LayerNotFound,
    MountBusy,
    NotSupported,
)
from layerfs.ids import GraphID
from layerfs.linux import zfsfuse
from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from layerfs.naivediff import NaiveDiff
from layerfs.testing.conformance.base import (
    BASE,
    OTHER,
    TOP,
    in_killed_child,
    make_layer,
    mounted,
    tree_of,
)
from layerfs.testing.entries import file
from layerfs.testing.model import read_items
from layerfs_drivers.zfs import DRIVER, _shown, _zfs
from layerfs_drivers.zfs.driver import ZfsDriver
from tests.zfskit import zfs


@pytest.fixture
def driver(zfs_dataset: str, tmp_path: Path) -> NaiveDiff:
    return reopened(tmp_path, dataset=zfs_dataset)


def reopened(place: Path, **options: str) -> NaiveDiff:
    driver = DRIVER.open(place / "home", place / "run", options)
    assert isinstance(driver, NaiveDiff) and isinstance(driver.proto, ZfsDriver)
    return driver


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfsfuse, "_PATIENCE", 0.1)
    monkeypatch.setattr(_shown, "PATIENCE", 0.1)


def below(dataset: str) -> list[str]:
    """The names of all that a dataset holds, without its own."""
    names = zfs("list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", dataset).split()
    return sorted(name.removeprefix(dataset).lstrip("/") for name in names if name != dataset)


# What is its own


def test_what_somebody_else_made_is_no_layer_and_stays(driver: NaiveDiff, zfs_dataset: str) -> None:
    zfs("create", f"{zfs_dataset}/{TOP}")
    assert not driver.exists(TOP) and list(driver.ids()) == []
    with pytest.raises(LayerExists, match="was not made by this store"):
        driver.create(TOP, None)
    with pytest.raises(LayerNotFound, match="was not made by this store"):
        driver.get(TOP)
    with pytest.raises(Conflict, match="was not made by this store"):
        driver.remove(TOP)
    assert below(zfs_dataset) == [TOP]


def test_the_layers_of_another_store_in_the_same_dataset_stay(
    driver: NaiveDiff, zfs_dataset: str, tmp_path: Path
) -> None:
    make_layer(driver, BASE, [file(b"f", b"")])
    other = reopened(tmp_path / "other", dataset=zfs_dataset)
    assert list(other.ids()) == []
    with pytest.raises(Conflict):
        other.remove(BASE)
    make_layer(other, OTHER, [file(b"f", b"")])
    assert list(driver.ids()) == [BASE] and list(other.ids()) == [OTHER]


def test_a_clone_of_a_layer_that_somebody_made_is_not_the_layer(driver: NaiveDiff, zfs_dataset: str) -> None:
    """A dataset inherits what marks the one above it; the id in the mark tells them apart."""
    make_layer(driver, BASE, [])
    zfs("create", f"{zfs_dataset}/{BASE}/inside")
    assert list(driver.ids()) == [BASE]
    with pytest.raises(LayerInUse, match="what this store did not make") as caught:
        driver.remove(BASE)
    assert caught.value.users == (f"{zfs_dataset}/{BASE}/inside",)
    assert below(zfs_dataset) == [BASE, f"{BASE}/inside"]


def test_a_snapshot_that_somebody_took_keeps_the_layer(driver: NaiveDiff, zfs_dataset: str) -> None:
    make_layer(driver, BASE, [])
    zfs("snapshot", f"{zfs_dataset}/{BASE}@backup")
    with pytest.raises(LayerInUse, match="@backup"):
        driver.remove(BASE)
    zfs("destroy", f"{zfs_dataset}/{BASE}@backup")
    driver.remove(BASE)
    assert below(zfs_dataset) == []


def test_no_call_of_the_tool_concerns_more_than_the_stores_dataset(
    driver: NaiveDiff, zfs_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    run = _zfs.run

    def recorded(argv: tuple[str, ...], **named: object) -> str:
        calls.append(argv)
        return run(argv, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(_zfs, "run", recorded)
    again = reopened(tmp_path)
    make_layer(again, BASE, [file(b"f", b"")])
    again.create_read_write(TOP, BASE)
    again.create_read_write(OTHER, TOP)
    with mounted(again, TOP):
        assert list(again.changes(TOP, BASE)) == []
    assert (list(again.ids()), again.exists(BASE)) == (sorted([BASE, TOP, OTHER]), True)
    assert again.usage(TOP) and again.metadata(TOP) and again.status()
    again.flush()
    for id in (OTHER, TOP, BASE):
        again.remove(id)
    assert {argv[1] for argv in calls} >= {"create", "clone", "snapshot", "destroy", "get", "set", "list"}
    for argv in calls:
        assert argv[-1].startswith(zfs_dataset), argv
        assert argv[1] != "list" or argv[2:5] == ("-H", "-d", "1") or argv[-1] != zfs_dataset


def test_snapshots_go_with_what_needs_them(driver: NaiveDiff, zfs_dataset: str) -> None:
    """That of a layer which may still change goes with its clone: deferred destroy."""
    make_layer(driver, BASE, [])
    for id in (TOP, OTHER):
        driver.create_read_write(id, BASE)
    assert len(below(zfs_dataset)) == 4, "one snapshot for all who stand upon a filled layer"
    upon = GraphID("upon")
    driver.create_read_write(upon, TOP)
    assert len(below(zfs_dataset)) == 6
    driver.remove(upon)
    assert len(below(zfs_dataset)) == 4
    for id in (TOP, OTHER, BASE):
        driver.remove(id)
    assert below(zfs_dataset) == []


def test_a_layer_with_layers_upon_it_stays(driver: NaiveDiff, zfs_dataset: str) -> None:
    make_layer(driver, BASE, [])
    driver.create_read_write(TOP, BASE)
    with pytest.raises(LayerInUse, match="layer base has layers upon it"):
        driver.remove(BASE)
    assert driver.exists(BASE)


def test_what_a_layer_stands_upon_is_told(driver: NaiveDiff) -> None:
    make_layer(driver, BASE, [])
    driver.create_read_write(TOP, BASE)
    driver.create_read_write(OTHER, TOP)
    assert [driver.parent(id) for id in (BASE, TOP, OTHER)] == [None, BASE, TOP]


def test_a_snapshot_without_a_clone_is_a_leak(driver: NaiveDiff, zfs_dataset: str) -> None:
    driver.create_read_write(TOP, None)
    driver.create_read_write(OTHER, TOP)
    zfs("snapshot", f"{zfs_dataset}/{TOP}@backup")
    before = below(zfs_dataset)
    assert driver.leaks() == []
    left = driver.proto.dataset.passing_snapshot(TOP)
    zfs("snapshot", left)
    with driver.proto._cloning(alone=False):
        assert driver.leaks() == [], "somebody may be about to make a clone"
    [leak] = driver.leaks()
    assert (leak.kind, leak.what) == ("snapshot", left)
    assert driver.leaks(remove=True) == [leak]
    assert driver.leaks() == [] and below(zfs_dataset) == before


def test_mounts_that_nobody_counts_are_leaks(driver: NaiveDiff) -> None:
    driver.create_read_write(TOP, None)
    with mounted(driver, TOP):
        assert driver.leaks(remove=True) == []
    target = driver.get(TOP)
    dataset = driver.proto.runroot / "datasets" / TOP
    (driver.proto.runroot / "counts" / TOP).unlink()
    assert [(leak.kind, leak.what) for leak in driver.leaks()] == [("mount", str(target))]
    umount(target)
    assert [(leak.kind, leak.what) for leak in driver.leaks()] == [("mount", str(dataset))]
    driver.leaks(remove=True)
    assert driver.leaks() == [] and mounts_below(driver.proto.runroot) == []
    with driver.files(TOP):
        assert driver.leaks() == []


# Who is busy


@pytest.mark.usefixtures("impatient")
def test_a_dataset_mounted_by_somebody_else_is_named_with_its_holder(
    driver: NaiveDiff, zfs_dataset: str, tmp_path: Path
) -> None:
    driver.create_read_write(TOP, None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    zfsfuse.mount(f"{zfs_dataset}/{TOP}", (), elsewhere)
    for attempt in (driver.get, driver.remove):
        with pytest.raises(MountBusy, match=f"{zfs_dataset}/{TOP} .* is busy, held by") as caught:
            attempt(TOP)
        assert caught.value.holders == (f"a mount at {elsewhere}",)
    zfsfuse.release(elsewhere)
    driver.remove(TOP)
    assert not driver.exists(TOP)


@pytest.mark.usefixtures("impatient")
def test_who_reads_a_layer_is_named_to_who_removes_it(driver: NaiveDiff) -> None:
    make_layer(driver, BASE, [file(b"f", b"")])
    with driver.files(BASE), pytest.raises(MountBusy, match=r"is being read or written by \d+ \("):
        driver.remove(BASE)
    driver.remove(BASE)


# Limits, names, options, attributes


def test_long_attributes_come_back_whole(driver: NaiveDiff) -> None:
    """Of whatever length: zfs-fuse gives a wrong answer to who asks with little room."""
    values = {b"user.%d" % length: os.urandom(length) for length in (0, 1, 8, 127, 128, 129, 255, 256, 3000)}
    names = {b"user." + b"n" * 200 + b"%d" % number: b"" for number in range(5)}
    make_layer(driver, BASE, [file(b"f", b"", xattrs={**values, **names})])
    with driver.diff(BASE, None) as tar:
        (found,) = [entry for entry, _ in read_items(tar) if entry.name == b"f"]
    assert dict(found.xattrs) == {**values, **names}


def test_a_limit_is_the_quota_of_the_dataset(driver: NaiveDiff, zfs_dataset: str) -> None:
    driver.create_read_write(TOP, None, options=CreateOptions(size=16 << 20))
    assert driver.metadata(TOP)["quota"] == str(16 << 20)
    driver.create_read_write(OTHER, TOP)
    assert driver.metadata(OTHER)["quota"] == "0"
    with pytest.raises(NotSupported, match="cannot limit the inodes"):
        driver.create_read_write(BASE, None, options=CreateOptions(inodes=10))
    assert not driver.exists(BASE)


def test_a_name_too_long_is_refused_before_anything_is_made(zfs_dataset: str, tmp_path: Path) -> None:
    deep = zfs_dataset + "/" + "d" * 80
    zfs("create", deep)
    driver = reopened(tmp_path, dataset=deep)
    fits = 255 - len(f"{deep}/@layerfs-12345678-12345678")
    with pytest.raises(NotSupported, match="too long") as caught:
        driver.create(GraphID("x" * (fits + 1)), None)
    assert "nearer to the top" in caught.value.hint
    assert below(deep) == []
    longest = GraphID("x" * fits)
    driver.create_read_write(longest, None)
    driver.create_read_write(TOP, longest)
    driver.remove(TOP)
    driver.remove(longest)


def test_the_home_remembers_its_dataset(driver: NaiveDiff, zfs_dataset: str, tmp_path: Path) -> None:
    make_layer(driver, BASE, [])
    assert list(reopened(tmp_path).ids()) == [BASE]
    zfs("create", f"{zfs_dataset}/other")
    with pytest.raises(InvalidOption, match=f"are in dataset {zfs_dataset}, not in {zfs_dataset}/other"):
        reopened(tmp_path, dataset=f"{zfs_dataset}/other")
    with pytest.raises(InvalidOption, match="no option 'quota'"):
        reopened(tmp_path, quota="1")


# Processes that are killed


def test_what_a_killed_process_left_mounted_goes_at_the_next_opening(
    driver: NaiveDiff, tmp_path: Path
) -> None:
    make_layer(driver, BASE, [file(b"f", b"")])

    def look() -> object:
        manager = reopened(tmp_path).files(BASE)
        return manager, manager.__enter__()

    in_killed_child(look)
    assert len(mounts_below(tmp_path)) == 1
    assert reopened(tmp_path).mounted(BASE) == 0
    assert mounts_below(tmp_path) == []


WORKS: dict[str, Callable[[NaiveDiff], object]] = {
    "create a layer": lambda driver: driver.create(TOP, BASE),
    "create upon nothing": lambda driver: driver.create_read_write(TOP, None),
    "create upon what may change": lambda driver: driver.create_read_write(TOP, OTHER),
    "fill": lambda driver: make_layer(driver, TOP, [file(b"new", b"")], BASE),
    "mount": lambda driver: driver.get(OTHER),
    "remove": lambda driver: driver.remove(OTHER),
}


@pytest.mark.parametrize("work", WORKS)
def test_killed_at_any_step_it_can_be_done_again(driver: NaiveDiff, tmp_path: Path, work: str) -> None:
    make_layer(driver, BASE, [file(b"f", b"f")])
    for at in range(1, 40):
        if not driver.exists(OTHER):
            driver.create_read_write(OTHER, BASE)
        if not killed_at_step(lambda: WORKS[work](reopened(tmp_path)), at):
            assert at > 3
            return
        again = reopened(tmp_path)
        again.remove(TOP)
        WORKS[work](again)
        for id in (TOP, OTHER):
            again.put(id)
            again.remove(id)
        assert list(again.ids()) == [BASE] and len(tree_of(again, BASE).nodes) == 2
        assert mounts_below(tmp_path) == []
    pytest.fail("there is no end of steps")


def killed_at_step(work: Callable[[], object], at: int) -> bool:
    """Run it in a child that is killed before or after one of its calls of the tool, mounts and unmounts;
    False when it has not so many."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        return status != 0
    status = 1
    try:
        left = iter(range(at - 1, -1, -1))

        def step() -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            stepping(patch, _zfs, "run", step)
            stepping(patch, zfsfuse, "mount", step)
            stepping(patch, zfsfuse, "release", step)
            work()
        status = 0
    finally:
        os._exit(status)


def stepping(patch: pytest.MonkeyPatch, module: object, name: str, step: Callable[[], None]) -> None:
    original = getattr(module, name)

    def stepped(*args: object, **named: object) -> object:
        step()
        result = original(*args, **named)
        step()
        return result

    patch.setattr(module, name, stepped)

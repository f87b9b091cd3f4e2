"""Causes as they come: a disk that is full, a quota that is used up, a file system that becomes read-only.

They begin while a store is open. The error says what is short, what was there is as before, and the same work
succeeds in the same process when the cause is gone; where a file system had to be mounted anew, in the next.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from layerfs.errors import LayerfsError, NoSpace, ReadOnly
from layerfs.linux import quota
from layerfs.linux.mountinfo import mount_of, mounts_below
from layerfs.linux.umount import umount
from layerfs.store.store import Store
from tests.faults.anywhere import (
    LONG,
    SEED,
    WORKS,
    Ground,
    Work,
    is_as_before,
    is_whole,
    nothing_is_left,
    prepare,
    settled,
    tidy,
)
from tests.filesystems import file_system
from tests.places import Place, place_for
from tests.require import need

pytestmark = pytest.mark.timeout(3600 if LONG else 300)

MIB = 1 << 20
HEADROOM = (0, 4096, 32 << 10, 100 << 10, 300 << 10, 700 << 10)
"""Bytes that are left: it fails in the database, or in the midst of a layer."""

ROUNDS = 200 if LONG else 6


@contextlib.contextmanager
def filled_up(root: Path, headroom: int) -> Iterator[None]:
    """No more than so many bytes can be written below ``root``."""
    spare, filler = root / "spare", root / "filler"
    spare.write_bytes(os.urandom(headroom))
    try:
        with filler.open("wb", buffering=0) as file:
            for size in (MIB, 4096, 512):
                with contextlib.suppress(OSError):
                    while file.write(os.urandom(size)) == size:
                        pass
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
        spare.unlink()
        yield
    finally:
        for path in (filler, spare):
            path.unlink(missing_ok=True)
        subprocess.run(["sync", "-f", str(root)], check=True)


def works_again(
    ground: Ground, work: Work, trouble: Callable[[], contextlib.AbstractContextManager[None]]
) -> bool:
    """Whether the trouble was felt."""
    prepare(ground, work)
    felt = False
    with ground.open() as store:
        with trouble():
            try:
                work.do(store, ground.base)
            except NoSpace:
                felt = True
        finished(store, ground, work)
    with ground.open() as store:
        assert store.check() == []
        is_whole(store, thorough=False)
        nothing_is_left(ground, store)
    is_as_before(ground)
    return felt


def finished(store: Store, ground: Ground, work: Work) -> None:
    if not work.done(store):
        assert store.prune().errors == ()
        work.do(store, ground.base)
    assert work.done(store)


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def look_first(ground: Ground, works: Iterable[Work]) -> None:
    """How it is after all has been done once."""
    for work in works:
        prepare(ground, work)
        with ground.open() as store:
            work.do(store, ground.base)
            tidy(store)
    ground.before = ground.look()


Trouble = Callable[[int], contextlib.AbstractContextManager[None]]
"""Leaves so many bytes."""


def try_all(ground: Ground, trouble: Trouble) -> None:
    pick, felt = random.Random(f"{SEED} {ground.driver}"), 0
    with ground.filled():
        look_first(ground, WORKS.values())
        for number in range(ROUNDS):
            name = list(WORKS)[number % len(WORKS)] if number < len(WORKS) and LONG else pick.choice([*WORKS])
            headroom = pick.choice(HEADROOM)
            try:
                felt += works_again(ground, WORKS[name], functools.partial(trouble, headroom))
            except BaseException as error:
                error.add_note(f"LAYERFS_SEED={SEED}: {name!r} with {headroom} bytes left")
                raise
    sys.stdout.write(f"{ground.driver}: {ROUNDS} tried, {felt} felt\n")


@pytest.mark.parametrize("driver", ["overlay", "vfs", "fuse", "aufs"])
def test_a_full_disk(driver: str) -> None:
    with (
        file_system("ext4", size=24 * MIB, mkfs=["-m", "0"]) as root,
        place_for(driver, made(root / "place")) as place,
    ):
        try_all(Ground(driver, place), functools.partial(filled_up, root))


def test_a_full_btrfs() -> None:
    with file_system("btrfs", size=128 * MIB, mkfs=["--mixed"]) as root:
        base = made(root / "place")
        try_all(Ground("btrfs", Place(base)), functools.partial(filled_up, root))


@pytest.mark.parametrize("driver", ["overlay", "vfs", "fuse", "aufs", "btrfs"])
def test_a_quota(driver: str) -> None:
    """Of btrfs: the one that holds root, too. EDQUOT."""
    with file_system("btrfs", size=1 << 30) as root:
        base = root / "place"
        subprocess.run(["btrfs", "quota", "enable", str(root)], check=True)
        subprocess.run(["btrfs", "subvolume", "create", str(base)], check=True, capture_output=True)
        subprocess.run(["btrfs", "qgroup", "limit", "16M", str(base)], check=True)
        try_all(Ground(driver, Place(base)), functools.partial(filled_up, base))


@pytest.mark.host("overlay-6.1")
@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_a_project_quota(driver: str, tmp_path: Path) -> None:
    """Of xfs: ENOSPC, while the disk has room."""
    if reason := quota.missing(tmp_path):
        need.missing("project-quota", reason)
    base = made(tmp_path / "place")
    quota.assign(tmp_path, base, size=16 * MIB, inodes=None)
    with place_for(driver, base) as place:
        try_all(Ground(driver, place), functools.partial(filled_up, base))


def test_a_quota_of_zfs(tmp_path: Path) -> None:
    """Of the dataset that holds all layers; the database lies elsewhere."""
    from tests.zfskit import used, zfs

    with place_for("zfs", tmp_path) as place:
        dataset = place.options["zfs.dataset"]

        @contextlib.contextmanager
        def limited(headroom: int) -> Iterator[None]:
            zfs("set", f"quota={used(dataset) + headroom}", dataset)
            try:
                yield
            finally:
                zfs("set", "quota=none", dataset)

        try_all(Ground("zfs", place), limited)


# --- read-only --------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["overlay", "vfs", "fuse", "aufs"])
@pytest.mark.parametrize("name", [*WORKS] if LONG else ["commit", "remove"])
def test_a_file_system_that_goes_read_only_by_itself(driver: str, name: str) -> None:
    """ext4 does so when it finds itself damaged, whoever writes at that moment."""
    work = WORKS[name]
    with file_system("ext4", size=64 * MIB, options="errors=remount-ro") as root:
        base = made(root / "place")
        ground = Ground(driver, Place(base))
        with ground.filled():
            look_first(ground, [work])
            prepare(ground, work)
            subprocess.run(["sync", "-f", str(root)], check=True)
            entry = mount_of(root)
            device = Path(f"/sys/dev/block/{entry.device[0]}:{entry.device[1]}").resolve().name
            with pytest.raises(ReadOnly), ground.open() as store:
                Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("tests")
                work.do(store, base)
            with pytest.raises(ReadOnly), ground.open() as store:
                work.do(store, base)
            remounted(root)
            with ground.open() as store:
                finished(store, ground, work)
                assert store.check() == []
                is_whole(store, thorough=True)
                nothing_is_left(ground, store)
            is_as_before(ground)


def remounted(root: Path) -> None:
    """Unmounted and mounted again, after a look by e2fsck."""
    source = os.fsdecode(mount_of(root).source)
    loop = Path(f"/sys/block/{Path(source).name}/loop")
    image = (loop / "backing_file").read_text().strip()
    for entry in reversed(mounts_below(root)):
        umount(Path(os.fsdecode(entry.mount_point)))
    root.rmdir()  # with which copies of the mount go that other mount namespaces have
    assert settled(lambda: [str(path) for path in loop.glob("backing_file")]) == []
    root.mkdir()
    assert subprocess.run(["e2fsck", "-fy", image], capture_output=True).returncode in (0, 1)
    subprocess.run(["mount", "-o", "loop", image, str(root)], check=True)


@pytest.mark.parametrize("driver", ["overlay", "vfs", "fuse", "aufs", "btrfs", "zfs"])
def test_a_file_system_that_is_remounted(driver: str, tmp_path: Path) -> None:
    """The kernel refuses it while anybody has the store open, as that may write."""
    kind = "btrfs" if driver == "btrfs" else "ext4"
    with file_system(kind, size=256 * MIB) as root, place_for(driver, tmp_path) as elsewhere:
        base = made(root / "place")
        ground = Ground(driver, Place(base, elsewhere.options))
        with ground.filled():
            works = [WORKS["commit"], WORKS["remove"]]
            look_first(ground, works)
            for work in works:
                prepare(ground, work)
                with ground.open():
                    assert remount(root, "ro") != 0
                assert remount(root, "ro") == 0
                with pytest.raises(ReadOnly) as caught:
                    ground.open()
                assert "read_only=True" in caught.value.hint
                with read_only(ground) as store:
                    with pytest.raises(LayerfsError):
                        work.do(store, base)
                    assert not work.done(store)
                    is_whole(store, thorough=False)
                assert remount(root, "rw") == 0
                with ground.open() as store:
                    finished(store, ground, work)
                    assert store.check() == []
                    is_whole(store, thorough=True)
                    nothing_is_left(ground, store)
                is_as_before(ground)


def remount(root: Path, how: str) -> int:
    return subprocess.run(["mount", "-o", f"remount,{how}", str(root)], capture_output=True).returncode


def read_only(ground: Ground) -> Store:
    from layerfs.opening import open_store

    run, options = ground.place.base.parent.parent / f"{ground.driver}-run", ground.place.options
    return open_store(ground.root, runroot=run, driver=ground.driver, options=options, read_only=True)

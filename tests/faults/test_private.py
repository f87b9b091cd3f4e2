"""What others on the machine can reach of a store: nothing; and what a container can do to the machine
through its mount, when that is forbidden."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import InvalidOption
from layerfs.linux.mountinfo import mounts_below
from layerfs.opening import open_store
from layerfs.store.store import Store
from layerfs.testing.entries import device, directory, file, tar_stream
from tests.places import place_for

DRIVERS = ("overlay", "vfs", "btrfs", "fuse", "aufs", "zfs")
"""devicemapper is in ``test_thin_at_once.py``."""
on_every_driver = pytest.mark.parametrize("store", DRIVERS, indirect=True)

NOBODY = 65534
ITEMS = [
    directory(b"", mode=0o777),
    directory(b"open", mode=0o777),
    file(b"open/file", b"for all", mode=0o666),
    file(b"open/program", Path("/bin/true").read_bytes(), mode=0o4777),
    device(b"open/zero", 1, 5, mode=0o666),
]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with store_of(request.param, tmp_path) as store:
        yield store


@contextlib.contextmanager
def store_of(driver: str, scratch: Path) -> Iterator[Store]:
    with place_for(driver, scratch) as place:
        let_in(place.base)
        root, runroot = place.base / "root", place.base / "run"
        with open_store(root, runroot=runroot, driver=driver, options=place.options) as store:
            yield store


def let_in(place: Path) -> None:
    """The directories above the store are nobody's business: there everybody may go."""
    for above in (place, *place.parents):
        above.chmod(above.stat().st_mode | 0o755)


def reached(*places: Path) -> list[str]:
    """What somebody else finds who looks below these, with all names told."""
    readable, writable = os.pipe()
    names = sorted({path for place in places for path in place.rglob("*")})
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        for path in names:
            try:
                os.lstat(path)
            except PermissionError:
                continue
            except OSError as error:
                os.write(writable, f"{path}: {error.strerror}\n".encode())
            else:
                if path.parent not in places or (path.is_dir() and os.access(path, os.R_OK)):
                    os.write(writable, f"{path}\n".encode())
        os._exit(0)
    os.close(writable)
    with open(readable) as told:
        found = told.read().splitlines()
    os.waitpid(child, 0)
    return found


@on_every_driver
def test_nobody_else_reaches_a_file_of_a_layer(store: Store) -> None:
    base = store.register(tar_stream(ITEMS))
    web = store.create_rw("web", base.chain_id)
    with web.mounted() as root, base.mounted() as shown:
        (root / "own").write_text("own")
        (root / "own").chmod(0o666)
        assert (shown / "open/file").read_bytes() == b"for all"
        run = store.root.parent / "run"
        assert reached(store.root, run) == []
        for place in (store.root, store.root / store.driver.name):
            assert stat.S_IMODE(place.stat().st_mode) & 0o077 in (0, 0o010), place


@on_every_driver
def test_what_a_mount_forbids(store: Store) -> None:
    base = store.register(tar_stream(ITEMS))
    web = store.create_rw("web", base.chain_id)
    for thing in (web, base):
        with thing.mounted(options=("nodev", "nosuid", "noexec")) as root:
            flags = os.statvfs(root).f_flag
            assert flags & os.ST_NODEV and flags & os.ST_NOSUID and flags & os.ST_NOEXEC
            with pytest.raises(PermissionError):
                (root / "open/zero").open("rb")
            with pytest.raises(PermissionError):
                os.posix_spawn(root / "open/program", ["program"], {})
            assert (root / "open/file").read_bytes() == b"for all"
        assert {"nodev", "nosuid"} <= set(thing.mounts(options=["nodev", "nosuid"])[-1].options)
    if store.driver.name != "zfs":  # zfs-fuse lets nobody open a device
        with web.mounted() as root, (root / "open/zero").open("rb") as zero:
            assert zero.read(1) == b"\0"
    with web.mounted() as root:
        assert not os.statvfs(root).f_flag & os.ST_NOEXEC
        with web.mounted(options=["noexec"]) as again:  # there is one mount
            assert again == root and os.statvfs(root).f_flag & os.ST_NOEXEC


@pytest.mark.parametrize("store", ["overlay"], indirect=True)
def test_what_is_no_restriction_is_refused_and_nothing_is_mounted(store: Store) -> None:
    web = store.create_rw("web", None)
    with pytest.raises(InvalidOption, match="exec"):
        web.mount(options=["exec"])
    assert store.driver.mounted(web.info.mount_id) == 0
    assert mounts_below(store.root.parent / "run") == []

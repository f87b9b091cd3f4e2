"""A process of the devicemapper driver killed between any two steps: the next opening finds nothing half
done, nothing lost, and no device that the journal does not know.

The work is done in a forked child that counts its steps: each call to the device mapper, each change of the
journal, each mount. It is run once for each step and killed before it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.driver import CreateOptions, Driver
from layerfs.errors import LayerfsError
from layerfs.ids import GraphID
from layerfs.linux import command
from layerfs.testing.conformance.base import assert_same, make_layer, mounted, tree_of
from layerfs.testing.entries import directory, file
from layerfs.testing.model import EMPTY, apply
from layerfs_drivers.devicemapper import _block, _dmsetup, _filesystem, _ioctl, driver
from layerfs_drivers.devicemapper._journal import Journal
from tests.require import need
from tests.thinkit import active, detach, detached_afterwards, device_ids, open_small

pytestmark = pytest.mark.host("thin")

ITEMS = [directory(b"etc"), file(b"etc/motd", b"hello\n")]
BASE, INIT, KEPT, NEW = GraphID("base"), GraphID("init"), GraphID("kept"), GraphID("new")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with a layer, a container upon it, and one that is mounted while others are made upon it."""
    need.root()
    home = tmp_path / "home"
    with detached_afterwards(home):
        opened = open_small(home, tmp_path / "run")
        make_layer(opened, BASE, ITEMS)
        for id in (KEPT, INIT):
            opened.create_read_write(id, BASE)
        with mounted(opened, KEPT) as root:
            (root / "kept").write_bytes(b"kept")
        yield home


def reopen(home: Path) -> Driver:
    return open_small(home, home.parent / "run")


Work = Callable[[Driver], object]

WORKS: dict[str, Work] = {
    "create a layer": lambda driver: driver.create(NEW, BASE),
    "create a container upon what is mounted": lambda driver: driver.create_read_write(NEW, INIT),
    "create a larger container": lambda driver: driver.create_read_write(
        NEW, BASE, options=CreateOptions(size=80 << 20)
    ),
    "create and fill": lambda driver: make_layer(driver, NEW, [file(b"own", b"x")], BASE),
    "mount and unmount": lambda driver: (driver.get(KEPT), driver.put(KEPT)),
    "describe": lambda driver: (driver.mounts(KEPT), driver.put(KEPT)),
    "compare": lambda driver: list(driver.changes(KEPT, BASE)),
    "remove": lambda driver: driver.remove(NEW),
}
MAKING = [what for what in WORKS if what.startswith("create")]


@pytest.mark.parametrize("what", WORKS)
def test_nothing_is_half_done_and_nothing_is_lost(home: Path, what: str) -> None:
    opened = reopen(home)
    with mounted(opened, INIT) as root:
        for done in every_step(home, WORKS[what], before=lambda: prepare(home, what)):
            made = check(home)
            can_be_written(root)
            if done and what in MAKING:
                assert made
            tidy(home)


def prepare(home: Path, what: str) -> None:
    if what == "remove":
        reopen(home).create_read_write(NEW, BASE)


def check(home: Path) -> bool:
    """What an opening must find, and leave. Whether the new layer is there."""
    opened = reopen(home)
    journal = Journal(home, True)
    assert journal.unfinished() is None
    opened.put(KEPT)  # should it have been killed while it had it mounted: mounts outlive processes
    assert set(opened.ids()) - {NEW} == {BASE, INIT, KEPT}
    assert device_ids(home) == [device.id for device in journal.devices()]
    assert_same(tree_of(opened, BASE), apply(EMPTY, ITEMS))
    with mounted(opened, KEPT) as root:
        assert (root / "kept").read_bytes() == b"kept"
    if opened.exists(NEW):
        with mounted(opened, NEW) as root:
            assert (root / "etc/motd").read_bytes() == b"hello\n"
    settle(home, [str(INIT)])
    return opened.exists(NEW)


def settle(home: Path, expected: list[str]) -> None:
    """Devices go a moment after their last user."""
    deadline = time.monotonic() + 5
    while active(home) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert active(home) == expected


def can_be_written(root: Path) -> None:
    """A file system that was left frozen would make its writer wait for ever."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        (root / "written").write_bytes(b"x")
        os.sync()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def tidy(home: Path) -> None:
    reopen(home).remove(NEW)


def every_step(home: Path, work: Work, before: Callable[[], None]) -> Iterator[bool]:
    """Kill the work at each of its steps. Whether it was done: in the end it is not killed any more."""
    for at in range(1, 1000):
        before()
        killed = run_killed(home, work, at)
        yield not killed
        if not killed:
            assert at > 3, "there are some steps to be killed at"
            return


def run_killed(home: Path, work: Work, at: int) -> bool:
    """Do the work in a child that kills itself at step ``at``. False: it came to its end before."""
    child = os.fork()
    if child == 0:
        try:
            opened = reopen(home)
            kill_at(at)
            work(opened)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


STEPS: list[tuple[Any, str]] = [
    (_ioctl, "_call"),
    (_block, "discard"),
    *((_filesystem, name) for name in ("run", "detached", "grow")),
    *((driver, name) for name in ("perform", "release")),
    (Journal, "_transaction"),
]
"""All that changes something outside of the process."""

ASKING = (_ioctl._DEV_STATUS, _ioctl._TABLE_STATUS, _ioctl._LIST_VERSIONS)


def kill_at(at: int) -> None:
    """From now on this process counts its steps."""
    steps = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            nonlocal steps
            if args[0] not in ASKING:
                steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **named)

        return run

    for module, name in STEPS:
        setattr(module, name, counted(getattr(module, name)))


def test_the_first_opening_may_be_killed(tmp_path: Path) -> None:
    for at in range(1, 1000):
        home = tmp_path / str(at) / "home"
        with detached_afterwards(home):
            if not run_killed_opening(home, at):
                assert at > 8
                return
            opened = reopen(home)
            make_layer(opened, BASE, ITEMS)
            assert_same(tree_of(opened, BASE), apply(EMPTY, ITEMS))
            assert device_ids(home) == [device.id for device in Journal(home, True).devices()]
            settle(home, [])


def run_killed_opening(home: Path, at: int, **options: str) -> bool:
    child = os.fork()
    if child == 0:
        kill_at(at)
        with contextlib.suppress(LayerfsError):
            open_small(home, home.parent / "run", **options)
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(
    ("what", "at"), [("create a container upon what is mounted", 5), ("remove", 10), ("remove", 11)]
)
def test_recovery_may_be_killed(home: Path, what: str, at: int) -> None:
    """``at``: where the pool has been told already, the journal not yet."""
    opened = reopen(home)
    with mounted(opened, INIT) as root:
        for step in range(1, 1000):
            prepare(home, what)
            assert run_killed(home, WORKS[what], at)
            assert Journal(home, True).unfinished() is not None
            killed = run_killed_opening(home, step)
            check(home)
            can_be_written(root)
            tidy(home)
            if not killed:
                assert step > 1
                return


def test_growing_the_base_may_be_killed(home: Path) -> None:
    before = 0
    for at in range(1, 1000):
        size = f"{64 + 4 * at}M"
        killed = run_killed_opening(home, at, basesize=size)
        opened = open_small(home, home.parent / "run", basesize=size)
        opened.create_read_write(NEW, None)
        with mounted(opened, NEW) as root:
            found = os.statvfs(root)
        grown = found.f_blocks * found.f_frsize
        assert grown > before + (3 << 20)
        before = grown
        opened.remove(NEW)
        if not killed:
            assert at > 3
            return


def test_a_tool_that_outlives_its_killed_caller_is_waited_for(home: Path, tmp_path: Path) -> None:
    """Else it could make a device active after all had been put right. Where udev runs, that is dmsetup."""
    slow = tmp_path / "slow"
    slow.mkdir()
    tool = command.find("dmsetup")
    (slow / "dmsetup").write_text(f'#!/bin/sh\necho now >{slow}/begun\nsleep 2\nexec {tool} "$@"\n')
    (slow / "dmsetup").chmod(0o755)
    child = os.fork()
    if child == 0:
        _dmsetup.has_udev = lambda: True
        command._PATH = f"{slow}:{command._PATH}"
        reopen(home).get(KEPT)
        os._exit(1)
    while not (slow / "begun").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reopen(home)
    settle(home, [])


def test_killed_in_the_middle_and_booted(home: Path) -> None:
    for at in (2, 3, 4):
        assert run_killed(home, WORKS["create a layer"], at)
        detach(home)
        for path in sorted((home.parent / "run").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        opened = reopen(home)
        assert_same(tree_of(opened, BASE), apply(EMPTY, ITEMS))
        assert device_ids(home) == [device.id for device in Journal(home, True).devices()]
        opened.remove(NEW)

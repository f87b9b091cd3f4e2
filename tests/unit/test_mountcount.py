"""Counted mounts among threads, processes, and processes that are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from layerfs.errors import MountBusy
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import is_mount, mounts_below
from layerfs.linux.umount import release, umount
from layerfs.mountcount import MountCount
from tests.require import need

FORK = multiprocessing.get_context("fork")
"""Children share this process's code; every one leaves by a signal or os._exit."""


@attrs.frozen
class Layer:
    """A layer that is a tmpfs holding one file."""

    counts: MountCount
    target: Path
    id: str = "a-layer"

    def mount(self, read_only: bool = False) -> None:
        self.target.mkdir(exist_ok=True)
        perform("tmpfs", "tmpfs", ["size=64k", "ro"] if read_only else ["size=64k"], self.target)
        if not read_only:
            (self.target / "here").touch()

    def get(self, *, read_only: bool = False) -> None:
        self.counts.get(self.id, self.target, lambda _: self.mount(read_only), read_only=read_only)

    def put(self) -> None:
        self.counts.put(self.id, self.target, lambda: release(self.target))

    @property
    def count(self) -> int:
        return self.counts.count(self.id)

    @property
    def depth(self) -> int:
        """How many mounts lie one upon the other: never more than 1."""
        return len(mounts_below(self.target))

    def is_gone(self) -> bool:
        left = os.listdir(self.counts.directory)
        return not self.target.exists() and self.count == 0 and not left


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    need.root()
    yield Layer(MountCount(tmp_path / "run" / "counts"), tmp_path / "merged")
    for entry in reversed(mounts_below(tmp_path)):
        umount(Path(os.fsdecode(entry.mount_point)), lazy=True)


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in another process; its exit status, or minus the signal that ended it."""

    def run() -> None:
        work()
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_first_get_mounts_and_last_put_unmounts(layer: Layer) -> None:
    assert layer.count == 0
    layer.get()
    (layer.target / "written").touch()
    layer.get()
    assert layer.count == 2 and layer.depth == 1
    layer.put()
    assert (layer.target / "written").exists()
    layer.put()
    assert layer.is_gone()
    layer.put()
    assert layer.is_gone(), "a put without a get does nothing"


def test_the_count_survives_the_process(layer: Layer) -> None:
    assert in_child(layer.get) == 0
    assert layer.count == 1 and (layer.target / "here").exists()
    layer.get()
    assert in_child(layer.put) == 0
    assert layer.count == 1 and is_mount(layer.target)
    assert in_child(layer.put) == 0
    assert layer.is_gone()


def test_writable_after_read_only_is_busy(layer: Layer) -> None:
    layer.get(read_only=True)
    with pytest.raises(MountBusy, match="read-only"):
        layer.get()
    assert layer.count == 1
    layer.get(read_only=True)
    assert layer.count == 2
    layer.put()
    layer.put()
    layer.get()
    layer.get(read_only=True)
    (layer.target / "new").touch()
    assert layer.count == 2, "read-only shares the writable mount"


def test_a_mount_that_fails_counts_nothing(layer: Layer) -> None:
    def fail(*_: int) -> None:
        raise OSError(5, "no such luck")

    with pytest.raises(OSError, match="luck"):
        layer.counts.get(layer.id, layer.target, fail, read_only=False)
    assert layer.is_gone()
    layer.get()
    with pytest.raises(OSError, match="luck"):
        layer.counts.put(layer.id, layer.target, fail)
    assert layer.count == 1
    layer.put()
    assert layer.is_gone()


def test_a_mount_that_fails_leaves_no_mount_point(layer: Layer) -> None:
    def fail(*_: int) -> None:
        layer.target.mkdir(exist_ok=True)
        raise OSError(24, "no such luck")

    with pytest.raises(OSError, match="luck"):
        layer.counts.get(layer.id, layer.target, fail, read_only=False)
    assert not layer.target.exists()


def test_a_busy_mount_is_given_back_all_the_same(layer: Layer) -> None:
    layer.get()
    with (layer.target / "here").open():
        layer.put()
        assert layer.is_gone()
        layer.get()
        assert layer.count == 1 and (layer.target / "here").exists()


def test_a_lost_mount_is_made_afresh(layer: Layer) -> None:
    """As after a reboot with a runroot that outlives it, or somebody's umount."""
    layer.get()
    layer.get()
    umount(layer.target)
    assert layer.count == 0
    layer.get(read_only=True)
    assert layer.count == 1 and is_mount(layer.target)
    umount(layer.target)
    layer.put()
    assert layer.count == 0 and os.listdir(layer.counts.directory) == []


def test_a_lost_count_adopts_the_mount(layer: Layer) -> None:
    layer.get()
    (layer.target / "written").touch()
    shutil.rmtree(layer.counts.directory)
    assert layer.count == 0
    layer.put()
    assert is_mount(layer.target)
    layer.get()
    assert layer.count == 1 and (layer.target / "written").exists() and layer.depth == 1
    layer.put()
    assert layer.is_gone()


def test_an_adopted_read_only_mount_is_not_taken_for_writable(layer: Layer) -> None:
    layer.get(read_only=True)
    shutil.rmtree(layer.counts.directory)
    with pytest.raises(MountBusy):
        layer.get()
    layer.get(read_only=True)
    layer.put()
    assert layer.is_gone()


@pytest.mark.parametrize("mounted", [False, True])
def test_killed_while_mounting(layer: Layer, mounted: bool) -> None:
    def killed(_: int) -> None:
        if mounted:
            layer.mount(read_only=True)
        die()

    def getting() -> None:
        layer.counts.get(layer.id, layer.target, killed, read_only=True)

    assert in_child(getting) == -signal.SIGKILL
    assert is_mount(layer.target) is mounted
    assert layer.count == 0
    layer.get()
    assert layer.count == 1 and layer.depth == 1 and (layer.target / "here").exists()
    layer.put()
    assert layer.is_gone()


@pytest.mark.parametrize("unmounted", [False, True])
def test_killed_while_unmounting(layer: Layer, unmounted: bool) -> None:
    def killed() -> None:
        if unmounted:
            release(layer.target)
        die()

    layer.get()
    assert in_child(lambda: layer.counts.put(layer.id, layer.target, killed)) == -signal.SIGKILL
    assert layer.count == 0
    layer.put()
    layer.get()
    assert layer.count == 1 and layer.depth == 1
    layer.put()
    assert layer.is_gone()


@pytest.mark.parametrize("mounted", [False, True])
def test_a_sweep_takes_away_what_was_half_mounted(layer: Layer, mounted: bool) -> None:
    def killed(_: int) -> None:
        if mounted:
            layer.mount()
        die()

    in_child(lambda: layer.counts.get(layer.id, layer.target, killed, read_only=False))
    layer.counts.sweep()
    assert layer.is_gone() and not is_mount(layer.target)


def test_a_sweep_leaves_alone_what_is_counted_and_what_is_in_hand(layer: Layer) -> None:
    layer.get()
    layer.counts.sweep()
    assert layer.count == 1

    def mount(_: int) -> None:
        other.mount()
        other.counts.sweep()

    other = Layer(layer.counts, layer.target.with_name("other"), "another-layer")
    other.counts.get(other.id, other.target, mount, read_only=False)
    assert other.count == 1


def test_a_sweep_leaves_counted_what_is_in_use_and_was_half_unmounted(layer: Layer) -> None:
    layer.get()
    in_child(lambda: layer.counts.put(layer.id, layer.target, die))
    with (layer.target / "here").open():
        layer.counts.sweep()
        assert layer.count == 1
    layer.put()
    assert layer.is_gone()


def test_removal_waits_for_users_and_keeps_new_ones_off(layer: Layer) -> None:
    layer.get()
    with (
        (layer.target / "here").open(),
        pytest.raises(MountBusy, match=f"{os.getpid()} ") as busy,
        layer.counts.unused(layer.id, layer.target),
    ):
        pytest.fail("it is in use")
    assert str(os.getpid()) in busy.value.holders[0]
    layer.put()

    entered, mounted = threading.Event(), threading.Event()

    def late() -> None:
        entered.wait()
        layer.get()
        mounted.set()

    thread = threading.Thread(target=late)
    thread.start()
    with layer.counts.unused(layer.id, layer.target):
        entered.set()
        assert not mounted.wait(0.1)
        assert not is_mount(layer.target)
    thread.join()
    assert layer.count == 1


def test_removal_is_possible_after_a_user_was_killed_half_way(layer: Layer) -> None:
    def killed(_: int) -> None:
        layer.mount()
        die()

    in_child(lambda: layer.counts.get(layer.id, layer.target, killed, read_only=False))
    with layer.counts.unused(layer.id, layer.target):
        release(layer.target)
    assert layer.is_gone()


def use(layer: Layer, rounds: int) -> None:
    """What every user may rely on: the mount is there for as long as it is held."""
    chance = random.Random(os.getpid() + threading.get_ident())
    for _ in range(rounds):
        layer.get()
        assert (layer.target / "here").exists()
        time.sleep(chance.random() / 1000)
        assert (layer.target / "here").exists()
        layer.put()


def test_threads_and_processes_at_once(layer: Layer) -> None:
    failures: list[BaseException] = []

    def thread_use() -> None:
        try:
            use(layer, 50)
        except BaseException as error:
            failures.append(error)

    processes = [FORK.Process(target=use, args=(layer, 50)) for _ in range(3)]
    for process in processes:
        process.start()
    threads = [threading.Thread(target=thread_use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
    assert failures == [] and [process.exitcode for process in processes] == [0, 0, 0]
    assert layer.is_gone()


def test_users_that_are_killed_at_any_moment_harm_no_other(layer: Layer) -> None:
    """A killed user may leave its count behind, never a mount that another user loses."""
    chance = random.Random(20)
    survivor = FORK.Process(target=use, args=(layer, 150))
    survivor.start()
    for _ in range(40):
        victim = FORK.Process(target=use, args=(layer, 1000))
        victim.start()
        time.sleep(chance.random() / 50)
        victim.kill()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        assert layer.depth <= 1
    survivor.join()
    assert survivor.exitcode == 0
    for _ in range(layer.count):
        layer.put()
    use(layer, 1)
    assert layer.is_gone()


def test_a_child_that_outlives_the_call_holds_no_lock(layer: Layer) -> None:
    """A mount made by starting a server: the server shares this process's descriptors for a while."""
    children = []

    def mount(_: int) -> None:
        layer.mount()
        if (pid := os.fork()) == 0:
            signal.pause()
            os._exit(0)
        children.append(pid)

    layer.counts.get(layer.id, layer.target, mount, read_only=False)
    try:
        layer.get()
        assert layer.count == 2
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_ids_are_counted_apart(layer: Layer) -> None:
    other = Layer(layer.counts, layer.target.with_name("other"), "another-layer")
    layer.get()
    other.get()
    assert (layer.count, other.count) == (1, 1)
    layer.put()
    assert (layer.count, other.count) == (0, 1) and not is_mount(layer.target)
    subprocess.run([need.tool("umount"), other.target], check=True)
    assert other.count == 0


def test_what_somebody_is_just_removing_or_mounting_is_no_leak_and_not_waited_for(tmp_path: Path) -> None:
    counts = MountCount(tmp_path / "counts")
    with counts.unused("a", tmp_path / "targets/a"):
        assert counts.leaks(tmp_path / "targets", remove=False) == []
        assert counts.leaks(tmp_path / "targets", remove=True) == []
    assert os.listdir(tmp_path / "counts") == []

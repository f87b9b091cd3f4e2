"""What the tests of the suite stand upon: a fresh place, a driver there, and a few verbs."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import attrs
import pytest

from layerfs.driver import Driver
from layerfs.errors import NotSupported
from layerfs.ids import GraphID
from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from layerfs.testing.entries import tar_stream
from layerfs.testing.model import Item, Tree, differences, read_tree
from layerfs.testing.privilege import ENOUGH_IDS, is_root_of_host, mapped_ids

T = TypeVar("T")


@attrs.frozen
class Place:
    """Where one driver lives. Neither directory exists at first."""

    home: Path
    runroot: Path


class Base:
    """Override :meth:`open_driver`, and the rest where your driver differs."""

    persistent: ClassVar[bool] = True
    """Layers are still there when the driver is opened anew, also by another process."""
    protects: ClassVar[bool] = True
    """A read-only mount refuses writes."""
    holes: ClassVar[bool] = True
    """A hole in a file takes no space, nor time to copy."""

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        """A fresh home and runroot."""
        yield Place(tmp_path / "home", tmp_path / "runroot")

    @pytest.fixture
    def driver(self, place: Place, request: pytest.FixtureRequest) -> Iterator[Driver]:
        """A driver upon a fresh home."""
        if os.geteuid() != 0:
            pytest.skip("needs root, of the host or of a user namespace")
        if mapped_ids() < ENOUGH_IDS:
            pytest.skip(f"needs {ENOUGH_IDS} ids: unshare --map-root-user --map-auto --mount")
        driver = self._opened(place)
        yield driver
        driver.cleanup()
        for mount in reversed([*mounts_below(place.home), *mounts_below(place.runroot)]):
            umount(Path(os.fsdecode(mount.mount_point)), lazy=True)

    def unmount(self, target: Path) -> None:
        """Take a mount of the driver's away, as anybody can."""
        umount(target)

    def free_space(self, place: Place) -> int | None:
        """How many bytes are free where the driver keeps its layers, after waiting for what the kernel or a
        daemon frees in the background. Only differences count, so minus what is used will do. None: nobody
        can tell, and the test of what removal gives back is skipped."""
        return None

    def open(self, place: Place, *, read_only: bool = False) -> Driver:
        return self.open_driver(place.home, place.runroot, read_only=read_only)

    def _opened(self, place: Place) -> Driver:
        if is_root_of_host():
            return self.open(place)
        try:
            driver = self.open(place)
        except NotSupported as error:
            pytest.skip(f"the driver does not work in a user namespace: {error}")
        if not driver.capabilities.rootless:
            pytest.skip("the driver does not say that it works in a user namespace")
        return driver

    def need_host(self, why: str) -> None:
        if not is_root_of_host():
            pytest.skip(f"needs root of the host: {why}")

    def need_persistence(self) -> None:
        if not self.persistent:
            pytest.skip("the driver keeps its layers in this process")


def graph_id(text: str) -> GraphID:
    return GraphID(text)


BASE, TOP, OTHER = graph_id("base"), graph_id("top"), graph_id("other")


def make_layer(driver: Driver, id: GraphID, items: Iterable[Item], parent: GraphID | None = None) -> GraphID:
    """A read-only layer, filled."""
    driver.create(id, parent)
    driver.apply_diff(id, parent, tar_stream(items))
    return id


@contextlib.contextmanager
def mounted(driver: Driver, id: GraphID, *, read_only: bool = False) -> Iterator[Path]:
    root = driver.get(id, read_only=read_only)
    try:
        yield root
    finally:
        driver.put(id)


def tree_of(driver: Driver, id: GraphID) -> Tree:
    """The layer's root file system as it is seen when mounted."""
    with mounted(driver, id, read_only=True) as root:
        return read_tree(root)


def assert_same(actual: Tree, expected: Tree) -> None:
    found = differences(actual, expected)
    assert not found, "\n".join(found)


def each(cases: Mapping[str, T], check: Callable[[str, T], None]) -> None:
    """Run ``check`` upon every case, also after one failed, and raise all failures at once, each telling
    its case. Cases share a driver, so that a suite of hundreds does not open one for each."""
    failures: list[BaseException] = []
    for name, case in cases.items():
        try:
            check(name, case)
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"the case: {name}")
            failures.append(error)
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases failed", failures)


def case_id(name: str, role: str = "layer") -> GraphID:
    """An id of its own for what a case makes."""
    return graph_id(re.sub(r"\W+", "-", f"{role} {name}"))


def in_child(work: Callable[[], T]) -> T:
    """Run ``work`` in another process; what it returns or raises comes back."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        outcome: tuple[bool, object]
        try:
            outcome = True, work()
        except BaseException as error:
            outcome = False, f"{type(error).__name__}: {error}"
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(data)
    if not succeeded:
        raise AssertionError(f"in a child process: {value}")
    result: T = value
    return result


def in_killed_child(work: Callable[[], object]) -> None:
    """Run ``work`` in another process, which is killed (SIGKILL) when that has returned, and so still
    holds what it returned. ``work`` may do it itself."""
    reader, writer = os.pipe()
    alive, parent = os.pipe()  # the child ends with this process, also when that dies
    child = os.fork()
    if child == 0:
        os.close(parent)
        try:
            held = work()
            os.write(writer, b"done")
        except BaseException as error:
            held = error
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        os.read(alive, 1)
        os._exit(held is None)
    os.close(writer)
    os.close(alive)
    try:
        said = os.read(reader, 4096)
    finally:
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(reader)
        os.close(parent)
    assert status == -signal.SIGKILL and said in (b"done", b""), f"in a child process: {said.decode()}"

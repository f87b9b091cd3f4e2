"""What btrfs says was touched leads to the very changes that a walk over both trees finds."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerfs.driver import Driver
from layerfs.ids import GraphID
from layerfs.naivediff import NaiveDiff
from layerfs.testing import strategies
from layerfs.testing.actions import Action, act
from layerfs.testing.conformance.base import mounted
from layerfs_drivers.btrfs import DRIVER
from tests.filesystems import file_system
from tests.properties.profile import examples

BASE, TOP, BESIDE = GraphID("base"), GraphID("top"), GraphID("beside")

DIRECTORIES = [b"a", b"a/b", b"a/b/c", b"a/e", b"x", b"x/y", b"x/y/z", b"w"]
FILES = [directory + name for directory in DIRECTORIES for name in (b"/1", b"/2")]
LINKS = [b"a/b/linked", b"x/y/linked", b"w/linked", b"a/e/linked"]


@pytest.fixture(scope="module")
def where() -> Iterator[Path]:
    with file_system("btrfs") as root:
        yield root


@contextlib.contextmanager
def opened(where: Path) -> Iterator[Driver]:
    """A writable layer with directories, files and hard links, as a parent."""
    driver = DRIVER.open(where / "home", where / "run", {})
    try:
        driver.create_read_write(BASE, None)
        with mounted(driver, BASE) as root:
            for directory in DIRECTORIES:
                (root / os.fsdecode(directory)).mkdir()
            for file in FILES:
                (root / os.fsdecode(file)).write_bytes(file)
            (root / "linked").write_bytes(b"linked")
            for link in LINKS:
                os.link(root / "linked", root / os.fsdecode(link))
        yield driver
    finally:
        for id in driver.ids():
            driver.remove(id)


def exchange(path: bytes, other: bytes) -> None:
    """Two paths change places, or the kernel refuses the first step."""
    os.rename(path, path + b"~")
    try:
        os.rename(other, path)
    finally:
        os.rename(path + b"~", other if not os.path.lexists(other) else path)


def replace_tree(path: bytes, other: bytes) -> None:
    """A directory is removed and another takes its name."""
    if os.path.isdir(path) and os.path.isdir(other) and not (other + b"/").startswith(path + b"/"):
        shutil.rmtree(path)
        os.rename(other, path)


EDITS: dict[str, Callable[[bytes, bytes], None]] = {"exchange": exchange, "replace": replace_tree}


@st.composite
def edits(draw: st.DrawFn) -> list[Action | tuple[str, bytes, bytes]]:
    known = DIRECTORIES + FILES + LINKS
    paths = st.sampled_from(known)
    found: list[Action | tuple[str, bytes, bytes]] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            found.extend(draw(strategies.actions(4, known=known)))
        else:
            directories = st.sampled_from(DIRECTORIES)
            either = directories if draw(st.booleans()) else paths
            found.append((draw(st.sampled_from(sorted(EDITS))), draw(either), draw(either)))
    return found


def edit(driver: Driver, id: GraphID, done: Sequence[Action | tuple[str, bytes, bytes]]) -> None:
    with mounted(driver, id) as root:
        top = os.fsencode(root)
        for each in done:
            if isinstance(each, Action):
                act(root, [each])
            else:
                with contextlib.suppress(OSError):
                    EDITS[each[0]](top + b"/" + each[1], top + b"/" + each[2])


def assert_changes_are_a_walks(driver: Driver, id: GraphID, parent: GraphID) -> None:
    naive = NaiveDiff(driver)
    assert list(driver.changes(id, parent)) == list(naive.changes(id, parent))
    with driver.diff(id, parent) as one, naive.diff(id, parent) as other:
        assert one.read() == other.read()


@given(done=edits())
@examples(250)
def test_of_a_container(where: Path, done: list[Action | tuple[str, bytes, bytes]]) -> None:
    with opened(where) as driver:
        driver.create_read_write(TOP, BASE)
        edit(driver, TOP, done)
        assert_changes_are_a_walks(driver, TOP, BASE)


@given(done=edits(), meanwhile=edits())
@example(done=[Action("chmod", b"a")], meanwhile=[Action("append", b"a/1")])  # still in memory alone
@examples(120)
def test_with_a_parent_that_was_changed_as_well(
    where: Path,
    done: list[Action | tuple[str, bytes, bytes]],
    meanwhile: list[Action | tuple[str, bytes, bytes]],
) -> None:
    with opened(where) as driver:
        driver.create_read_write(TOP, BASE)
        edit(driver, TOP, done)
        edit(driver, BASE, meanwhile)
        assert_changes_are_a_walks(driver, TOP, BASE)


@given(done=edits())
@examples(40)
def test_of_a_layer_that_is_not_the_parents_snapshot(
    where: Path, done: list[Action | tuple[str, bytes, bytes]]
) -> None:
    with opened(where) as driver:
        driver.create_read_write(BESIDE, BASE)
        driver.create_read_write(TOP, BASE)
        edit(driver, TOP, done)
        assert_changes_are_a_walks(driver, TOP, BESIDE)

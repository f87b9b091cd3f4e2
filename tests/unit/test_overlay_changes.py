"""Changes from an upper directory alone: the same as comparing the merged trees, at the cost of the upper."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.archive.changes import Change, ChangeKind, walk_changes
from layerfs.archive.pack import pack
from layerfs.archive.upperdiff import upper_changes, upper_diff
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.errors import NotSupported
from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from layerfs.overlay.driver import OverlayDriver
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.entries import directory, file, hard_link
from layerfs.testing.model import read_items
from tests.overlaykit import kernel, overlay
from tests.require import need

ADDED, MODIFIED, DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    with overlay(tmp_path) as driver:
        yield driver


def kinds(driver: OverlayDriver) -> dict[bytes, ChangeKind]:
    """The changes of TOP, without the root."""
    return {change.path: change.kind for change in driver.changes(TOP, BASE) if change.path}


def by_walking(driver: OverlayDriver) -> list[Change]:
    """The changes of TOP as everybody else finds them."""
    with mounted(driver, BASE, read_only=True) as below, mounted(driver, TOP, read_only=True) as root:
        return list(walk_changes(root, below))


LINKED = [file(b"a/one", b"same"), hard_link(b"b/two", b"a/one"), hard_link(b"b/three", b"a/one")]


@pytest.mark.parametrize("what", ["copied up", "replaced", "deleted", "deleted with its directory"])
def test_the_other_names_of_a_linked_file_are_changed_too(driver: OverlayDriver, what: str) -> None:
    """They are one file less, or not linked to it any more; the upper directory knows nothing of them."""
    make_layer(driver, BASE, LINKED)
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        if what == "copied up":
            (root / "a" / "one").chmod(0o600)
        elif what == "replaced":
            (root / "a" / "one").unlink()
            (root / "a" / "one").write_bytes(b"other")
        else:
            (root / "a" / "one").unlink()
        if what == "deleted with its directory":
            (root / "a").rmdir()
    assert not (driver.layout.diff(TOP) / "b").exists()
    found = kinds(driver)
    assert found[b"b/two"] == found[b"b/three"] == found[b"b"] == MODIFIED
    assert list(driver.changes(TOP, BASE)) == by_walking(driver)
    with driver.diff(TOP, BASE) as tar:
        carried = {entry.name: (entry.linkname, content) for entry, content in read_items(tar)}
    assert carried[b"b/three"] == (b"", b"same")
    assert carried[b"b/two"] == (b"b/three", b"")
    assert driver.diff_size(TOP, BASE) == sum(len(content) for _, content in carried.values())


def test_the_cost_follows_the_changes_not_the_image(driver: OverlayDriver) -> None:
    """Directories of lower layers are never listed, unless the layer hides what is in them."""
    items = [file(b"big/%d/%d" % (n % 10, n), b"") for n in range(300)]
    make_layer(driver, BASE, [*items, file(b"small/x", b"x"), file(b"small/y", b"y")])
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "big" / "3" / "new").write_bytes(b"")
        (root / "big" / "4" / "14").write_bytes(b"changed")
        (root / "small" / "x").unlink()
    read = listed_directories(
        f"driver.changes({TOP!r}, {BASE!r}); driver.diff({TOP!r}, {BASE!r}).read()", driver
    )
    assert read and not [path for path in read if str(driver.layout.diff(BASE)) in path]
    with mounted(driver, TOP) as root:
        shutil.rmtree(root / "small")
        (root / "small").mkdir()
    read = listed_directories(f"driver.changes({TOP!r}, {BASE!r})", driver)
    below = [path for path in read if str(driver.layout.diff(BASE)) in path]
    assert below == [str(driver.layout.diff(BASE) / "small")]


def listed_directories(code: str, driver: OverlayDriver) -> list[str]:
    """The directories that are listed while ``code`` runs, by path or by descriptor."""
    script = f"""
import os, sys
from pathlib import Path
import layerfs.archive.upperdiff
from layerfs.overlay.driver import OverlayDriver

home, runroot = {str(driver.layout.home)!r}, {str(driver.layout.runroot)!r}
driver = OverlayDriver.open(Path(home), Path(runroot), read_only=False)
read = []

def hook(event, args):
    if event in ("os.listdir", "os.scandir"):
        where = args[0]
        read.append(os.readlink(f"/proc/self/fd/{{where}}") if isinstance(where, int) else os.fsdecode(where))

sys.addaudithook(hook)
{code}
print("\\n".join(read))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_can_be_had_without_a_mount_and_while_mounted(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [file(b"f", b"1")])
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "f").write_bytes(b"22")
        live = list(driver.changes(TOP, BASE))
    assert list(driver.changes(TOP, BASE)) == live == [Change(b"f", MODIFIED)]


def test_marks_of_a_redirecting_mount_are_refused_not_misread(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [directory(b"d"), file(b"d/x", b"x")])
    driver.create_read_write(TOP, BASE)
    foreign_mount(driver, "redirect_dir=on", lambda root: (root / "d").rename(root / "moved"))
    with pytest.raises(NotSupported, match=r"moved: .*redirect_dir=on"):
        driver.changes(TOP, BASE)


def test_marks_of_a_metacopy_mount_are_refused_not_misread(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [file(b"f", b"content" * 1000)])
    driver.create_read_write(TOP, BASE)
    foreign_mount(driver, "redirect_dir=on,metacopy=on", lambda root: (root / "f").chmod(0o600))
    with pytest.raises(NotSupported, match=r"f: .*metacopy=on"):
        driver.diff(TOP, BASE)


def foreign_mount(driver: OverlayDriver, options: str, work: Callable[[Path], object]) -> None:
    """Do ``work`` upon TOP, mounted by somebody with other options."""
    facts = driver.metadata(TOP)
    target = driver.layout.runroot / "foreign"
    target.mkdir()
    directories = [f"{key}={facts[key]}" for key in ("lowerdir", "upperdir", "workdir")]
    perform("overlay", "overlay", [*directories, *options.split(",")], target)
    try:
        work(target)
    finally:
        umount(target)


def test_whiteouts_as_xattrs_are_deletions(driver: OverlayDriver) -> None:
    """What a nested overlay leaves, which cannot make devices (Linux 6.7): a mark upon an empty file."""
    if kernel() < (6, 7):
        need.missing("overlay-xattr-whiteouts", "Linux 6.7")
    make_layer(driver, BASE, [file(b"d/gone", b""), file(b"d/stays", b"")])
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "d").chmod(0o700)
    upper = driver.layout.diff(TOP) / "d"
    os.setxattr(upper, "trusted.overlay.opaque", b"x")
    (upper / "gone").touch()
    os.setxattr(upper / "gone", "trusted.overlay.whiteout", b"")
    with mounted(driver, TOP) as root:
        assert not (root / "d" / "gone").exists()
    assert kinds(driver) == {b"d": MODIFIED, b"d/gone": DELETED}


def test_a_parent_that_is_itself_a_stack_is_seen_merged(driver: OverlayDriver) -> None:
    """What a layer in the middle hides is new when it comes back."""
    make_layer(driver, OTHER, [file(b"d/x", b"x"), file(b"d/y", b"y")])
    driver.create_read_write(BASE, OTHER)
    with mounted(driver, BASE) as root:
        shutil.rmtree(root / "d")
        (root / "d").mkdir()
        (root / "d" / "z").write_bytes(b"z")
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "d" / "x").write_bytes(b"x")
        (root / "d" / "z").unlink()
    assert kinds(driver) == {b"d": MODIFIED, b"d/x": ADDED, b"d/z": DELETED}
    assert list(driver.changes(TOP, BASE)) == by_walking(driver)


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["write", "mkdir", "remove", "link", "symlink", "chmod", "rename", "xattr", "touch"]),
        NAMES,
        NAMES,
    ),
    max_size=25,
)


def edit(verb: str, one: Path, two: Path) -> None:
    if verb == "write":
        one.write_text(two.name)
    elif verb == "mkdir":
        one.mkdir()
    elif verb == "remove":
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
    elif verb == "link":
        os.link(one, two, follow_symlinks=False)
    elif verb == "symlink":
        one.symlink_to(two.name)
    elif verb == "chmod":
        if not one.is_symlink():
            one.chmod(0o700)
    elif verb == "rename":
        one.rename(two)
    elif verb == "xattr":
        os.setxattr(one, "trusted.overlay.mark", two.name.encode(), follow_symlinks=False)
    elif verb == "touch":
        os.utime(one, ns=(0, 0), follow_symlinks=False)


class Chain:
    """Layer directories that one random container after the other has written."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.layers: list[Path] = []
        for name in ("empty", "empty2", "merged", "below"):
            (where / name).mkdir()

    def add(self, edits: list[tuple[str, str, str]]) -> None:
        number = len(self.layers)
        upper, work = self.where / f"upper{number}", self.where / f"work{number}"
        upper.mkdir()
        work.mkdir()
        os.utime(upper, ns=(0, 0))
        with self.mounted("merged", [f"upperdir={upper}", f"workdir={work}"]) as merged:
            for verb, one, two in edits:
                # Random edits do not always make sense.
                with contextlib.suppress(OSError):
                    edit(verb, merged / one, merged / two)
            with self.mounted("below", ["ro"]) as below:
                self.compare(upper, merged, below if self.layers else None)
        self.layers.insert(0, upper)

    @contextlib.contextmanager
    def mounted(self, name: str, options: list[str]) -> Iterator[Path]:
        lower = "lowerdir=" + ":".join(map(str, [*self.layers, self.where / "empty", self.where / "empty2"]))
        fixed = ["redirect_dir=nofollow", "metacopy=off", "index=off"]
        perform("overlay", "overlay", [lower, *fixed, *options], self.where / name)
        try:
            yield self.where / name
        finally:
            umount(self.where / name)

    def compare(self, upper: Path, merged: Path, below: Path | None) -> None:
        expected = list(walk_changes(merged, below))
        assert upper_changes(upper, self.layers, whiteouts=WhiteoutFormat.OVERLAY) == expected
        ours = upper_diff(upper, self.layers, whiteouts=WhiteoutFormat.OVERLAY)
        with ours, pack(merged, expected) as theirs:
            assert ours.read() == theirs.read()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(EDITS, min_size=1, max_size=3))
def test_any_container_has_the_changes_and_the_diff_of_its_merged_tree(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, str, str]]]
) -> None:
    where = tmp_path_factory.mktemp("chain")
    need.overlay(where)
    chain = Chain(where)
    for edits in layers:
        chain.add(edits)
    shutil.rmtree(where)

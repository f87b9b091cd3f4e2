"""What changes cost follows the changes: counted in system calls, not measured in time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.ids import GraphID
from layerfs.naivediff import NaiveDiff
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.entries import directory, file
from layerfs.testing.model import Item
from tests.btrfskit import open_in
from tests.filesystems import file_system
from tests.require import need

COUNTED = ("openat2", "getdents64", "newfstatat", "read", "pread64", "getxattr", "llistxattr", "flistxattr")

SCRIPT = """
import sys
from pathlib import Path
from layerfs_drivers.btrfs import DRIVER
driver = DRIVER.open(Path(sys.argv[1]) / "home", Path(sys.argv[1]) / "run", {})
list(driver.changes("warm", "other"))  # what is imported and found out once
print("now", file=sys.stderr, flush=True)
print(*driver.changes("top", "other"), sep="\\n")
print("done", file=sys.stderr, flush=True)
"""


@pytest.fixture
def disk() -> Iterator[Path]:
    with file_system("btrfs") as root:
        yield root


def image(directories: int) -> list[Item]:
    items = [directory(b"etc"), file(b"etc/motd", b"hello"), directory(b"usr")]
    for number in range(directories):
        name = b"usr/%03d" % number
        items.append(directory(name))
        items += [file(name + b"/%d" % each, b"x") for each in range(20)]
    return items


def edited(where: Path, directories: int) -> NaiveDiff:
    """A container, in which little was done, upon an image with so many directories of 20 files."""
    where.mkdir()
    driver = open_in(where)
    make_layer(driver, BASE, image(directories))
    driver.create_read_write(OTHER, BASE)
    driver.create_read_write(TOP, OTHER)
    driver.create_read_write(GraphID("warm"), OTHER)
    read_all(driver.proto.home / TOP)
    with mounted(driver, TOP) as root:
        (root / "etc" / "new").write_bytes(b"new")
        (root / "etc" / "motd").chmod(0o600)
        (root / "usr" / "000" / "3").write_bytes(b"written")
        (root / "usr" / "001" / "4").unlink()
    read_all(driver.proto.home / OTHER)
    return driver


def read_all(root: Path) -> None:
    """That is no change, though access times are kept here, where no mount prevents it."""
    for path in root.rglob("*"):
        if path.is_file():
            path.read_bytes()


def calls(where: Path) -> tuple[str, Counter[str]]:
    """The changes of the container, and how often each system call was made to find them."""
    log = where / "strace"
    watched = ",".join((*COUNTED, "write"))
    done = subprocess.run(
        [need.tool("strace"), "-f", "-o", log, "-e", f"trace={watched}", sys.executable, "-c", SCRIPT, where],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    between = log.read_text().partition('"now')[2].partition('"done')[0]
    return done.stdout, Counter(
        name for name in re.findall(r"^\d+ +(\w+)\(", between, re.M) if name != "write"
    )


def test_a_larger_image_does_not_make_changes_cost_more(disk: Path) -> None:
    need.tool("strace")
    found = {}
    for directories in (10, 300):
        where = disk / str(directories)
        driver = edited(where, directories)
        found[directories] = calls(where)
        for id in driver.ids():
            driver.remove(id)
    (small, few), (large, many) = found.values()
    assert small == large
    assert small.split("\n")[:-1] == [
        "C /etc",
        "C /etc/motd",
        "A /etc/new",
        "C /usr",
        "C /usr/000",
        "C /usr/000/3",
        "C /usr/001",
        "D /usr/001/4",
    ]
    assert few["openat2"] > 0
    assert many == few

"""What an ordinary user is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.archives import oci_layout
from tests.cli.conftest import BASE, environment
from tests.require import need


def as_nobody(*words: str | Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Without any right but to read, since the interpreter may lie where nobody else may look."""
    keep = "-all,+dac_read_search"
    drop = [
        need.tool("setpriv"),
        "--reuid=65534",
        "--clear-groups",
        f"--inh-caps={keep}",
        f"--ambient-caps={keep}",
    ]
    where = ["--root", str(root / "store"), "--runroot", str(root / "run")]
    command = [*drop, sys.executable, "-m", "layerfs.cli", *where, *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    need.root()
    tmp_path.chmod(0o777)
    return tmp_path


def test_each_driver_says_why_it_cannot_be_used_and_what_to_do(place: Path) -> None:
    done = as_nobody("drivers", root=place)
    assert done.returncode == 0
    done = as_nobody("drivers", "--json", root=place)
    found = {driver["name"]: driver for driver in json.loads(done.stdout)}
    assert {"overlay", "btrfs", "zfs", "devicemapper", "vfs"} <= found.keys()
    for driver in found.values():
        assert not driver["works"]
        assert driver["reason"] and driver["hint"]


def test_loading_ends_with_the_reasons_and_makes_no_store(place: Path) -> None:
    done = as_nobody("load", oci_layout(place / "layout", {"base:1": [BASE]}), root=place)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("layerfs: no driver works here\n  overlay: ")
    assert "hint: 'layerfs drivers' tells how to mend each" in done.stderr
    assert not (place / "store").exists()


def test_doctor_finds_the_missing_right(place: Path) -> None:
    done = as_nobody("doctor", root=place)
    assert done.returncode == 1
    assert (
        done.stdout.splitlines()[0] == "problem: privilege: no right to mount: uid 65534 lacks CAP_SYS_ADMIN"
    )
    assert done.stdout.splitlines()[1].startswith("  mend: run as root")

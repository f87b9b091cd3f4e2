"""Whether zfs can work in a place, and what is said where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.errors import NotSupported
from layerfs.linux import command
from layerfs.linux.mountinfo import mounts_below
from layerfs_drivers.zfs import DRIVER
from tests import zfskit
from tests.require import need
from tests.zfskit import zfs


def refused(dataset: str, place: Path) -> NotSupported:
    with pytest.raises(NotSupported) as caught:
        DRIVER.open(place / "home", place / "run", {"dataset": dataset})
    assert not (place / "home").exists()
    return caught.value


def test_a_place_that_is_not_on_zfs(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"lies on \w+, not on ZFS") as caught:
        DRIVER.probe(tmp_path / "home", tmp_path / "run")
    assert caught.value.hint == "put the store on a ZFS dataset, or name one: --option zfs.dataset=POOL/NAME"
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("zpool")
def test_a_place_on_zfs_is_left_as_it_was(tmp_path: Path) -> None:
    with zfskit.mounted_dataset(tmp_path) as place:
        DRIVER.probe(place / "not/there/yet", tmp_path / "run")
        assert os.listdir(place) == []
        driver = DRIVER.open(place / "home", tmp_path / "run", {})
        assert driver.status()["dataset"].encode() in [mount.source for mount in mounts_below(place)]


def test_without_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need.root()
    monkeypatch.setattr(command, "_PATH", str(tmp_path))
    error = refused("tank/layers", tmp_path)
    assert "no program 'zfs' is installed" in str(error)
    assert "zfsutils-linux" in error.hint


def test_without_a_zfs_that_answers(tmp_path: Path) -> None:
    """The machine has the tool; in a mount namespace without the socket it is as if nobody served it."""
    need.root()
    need.tool("zfs")
    code = f"""
from layerfs_drivers.zfs import DRIVER
from layerfs.errors import NotSupported
from pathlib import Path
try:
    DRIVER.open(Path({str(tmp_path / "home")!r}), Path({str(tmp_path / "run")!r}), {{"dataset": "tank"}})
except NotSupported as error:
    print(error, "|", error.hint)
"""
    hidden = "mkdir -p /run/zfs && mount -t tmpfs tmpfs /run/zfs"
    script = f'{hidden} && exec "$0" -c "$1"'
    said = in_python("unshare", "--mount", "sh", "-c", script, sys.executable, code)
    assert "nobody serves ZFS here" in said and "start zfs-fuse" in said


def test_who_may_not_mount_is_told_how_to(tmp_path: Path) -> None:
    code = """
from layerfs_drivers.zfs._probe import probe
from layerfs.errors import NotSupported
try:
    probe("tank")
except NotSupported as error:
    print(error, "|", error.hint)
"""
    need.root()
    said = in_python("setpriv", "--bounding-set", "-all", "--reuid", "65534", sys.executable, "-c", code)
    assert said == "zfs needs the right to mount datasets (CAP_SYS_ADMIN) | run as root\n"


def in_python(*argv: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_dataset_that_is_not_there(zfs_dataset: str, tmp_path: Path) -> None:
    error = refused(f"{zfs_dataset}/missing", tmp_path)
    assert str(error) == f"there is no dataset {zfs_dataset}/missing"
    assert error.hint == f"zfs create {zfs_dataset}/missing"


def test_a_pool_that_is_not_there(zpool: str, tmp_path: Path) -> None:
    assert "there is no dataset no-such-pool" in str(refused("no-such-pool/layers", tmp_path))


def test_what_is_no_file_system(zfs_dataset: str, tmp_path: Path) -> None:
    zfs("snapshot", f"{zfs_dataset}@s")
    error = refused(f"{zfs_dataset}@s", tmp_path)
    assert str(error) == f"{zfs_dataset}@s is a snapshot, not a file system"


def test_a_name_that_leaves_no_room_for_layers(zfs_dataset: str, tmp_path: Path) -> None:
    name = zfs_dataset + "/" + "x" * 150
    zfs("create", name)
    error = refused(name, tmp_path)
    assert "too long" in str(error) and "nearer to the top" in error.hint

"""The process behind a mount of the fuse driver: it is watched, outlives its parent, and its end is told."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.changes import ChangeKind
from layerfs.cli.main import main
from layerfs.errors import MountFailed, NotSupported
from layerfs.linux.fuseserver import server_of
from layerfs.linux.mountinfo import is_mount, mount_of, mounts_below
from layerfs.linux.privatemount import private_mount
from layerfs.linux.umount import umount
from layerfs.overlay.driver import OverlayDriver
from layerfs.testing.conformance.base import BASE, TOP, make_layer, mounted
from layerfs.testing.entries import directory, file
from layerfs_drivers.fuse import DRIVER
from tests.cli.archives import layer, oci_layout
from tests.filesystems import file_system
from tests.fusekit import layerfs_fuse
from tests.overlaykit import unmounted
from tests.require import need


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    need.root()
    need.fuse()
    with unmounted(tmp_path):
        driver = DRIVER.open(tmp_path / "home", tmp_path / "run", {})
        assert isinstance(driver, OverlayDriver)
        make_layer(driver, BASE, [file(b"f", b"below")])
        driver.create_read_write(TOP, BASE)
        yield driver


def server(root: Path) -> int:
    found = server_of(root)
    assert found is not None
    return found.pid


def is_alive(pid: int) -> bool:
    """It runs; its parent may not have seen its end yet."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_ends_with_the_last_put(driver: OverlayDriver) -> None:
    with mounted(driver, TOP) as root:
        pid = server(root)
        with mounted(driver, TOP):
            assert server(root) == pid, "one process a mount"
        assert is_alive(pid)
        (root / "f").write_bytes(b"above")
    assert not is_alive(pid)
    assert (driver.layout.diff(TOP) / "f").read_bytes() == b"above"


def test_what_is_written_to_a_mounted_layer_is_among_its_changes(driver: OverlayDriver) -> None:
    with mounted(driver, TOP) as root, (root / "f").open("wb", buffering=0) as file:
        file.write(b"not yet closed")
        assert [(change.path, change.kind) for change in driver.changes(TOP, BASE)] == [
            (b"f", ChangeKind.MODIFIED)
        ]
        assert driver.diff_size(TOP, BASE) == len(b"not yet closed")
        with driver.diff(TOP, BASE) as tar:
            assert b"not yet closed" in tar.read()


def test_a_busy_mount_is_given_back_with_all_that_was_written(driver: OverlayDriver) -> None:
    root = driver.get(TOP)
    with (root / "f").open("wb", buffering=0) as file:
        file.write(b"above")
        driver.put(TOP)
        assert not is_mount(root)
        assert (driver.layout.diff(TOP) / "f").read_bytes() == b"above"


def test_it_outlives_the_process_that_mounted(driver: OverlayDriver) -> None:
    code = f"""
from pathlib import Path
from layerfs_drivers.fuse import DRIVER
DRIVER.open(Path({str(driver.layout.home)!r}), Path({str(driver.layout.runroot)!r}), {{}}).get({TOP!r})
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    root = driver.layout.mount_point(TOP)
    assert driver.mounted(TOP) == 1
    assert (root / "f").read_bytes() == b"below"
    pid = server(root)
    driver.put(TOP)
    assert not is_alive(pid)


def test_its_death_is_noticed_and_named(driver: OverlayDriver) -> None:
    root = driver.get(TOP)
    driver.get(TOP)
    pid = server(root)
    os.kill(pid, signal.SIGKILL)
    words = rf"the FUSE process {pid} ended with signal 9; its log: {driver.layout.log(TOP)}"
    with pytest.raises(MountFailed, match=words) as caught:
        driver.get(TOP)
    assert "unmount it as often as it was mounted (2)" in caught.value.hint
    assert "ended with signal 9" in driver.metadata(TOP)["process"]
    for _ in range(2):
        with pytest.raises(MountFailed, match=words):
            driver.put(TOP)
    assert driver.mounted(TOP) == 0 and not is_mount(root)
    with mounted(driver, TOP) as root:
        assert (root / "f").read_bytes() == b"below"
    driver.remove(TOP)


def test_what_is_left_of_it_is_a_leak_only_while_it_is_mounted(driver: OverlayDriver) -> None:
    assert (driver.parent(TOP), driver.parent(BASE)) == (BASE, None)
    target = driver.get(TOP)
    assert driver.leaks() == []
    (driver.layout.counts / TOP).unlink()
    os.kill(server(target), signal.SIGKILL)
    assert [(leak.kind, leak.what) for leak in driver.leaks()] == [("mount", str(target))]
    driver.leaks(remove=True)
    assert driver.leaks() == [] and not is_mount(target)
    with mounted(driver, TOP) as root:
        assert (root / "f").read_bytes() == b"below"


def test_facts_tell_who_serves(driver: OverlayDriver) -> None:
    assert "process" not in driver.metadata(TOP)
    with mounted(driver, TOP) as root:
        assert driver.metadata(TOP)["process"] == str(server(root))
        assert mount_of(root).fstype == "fuse.layerfs"
    assert driver.status()["mounted by"] == "FUSE"


def test_why_it_cannot_mount_is_told_in_its_words(driver: OverlayDriver) -> None:
    driver.layout.diff(BASE).rename(driver.layout.diff(BASE).with_name("lost"))
    driver.layout.diff(BASE).symlink_to("lost/loop")
    with pytest.raises(MountFailed, match=r"cannot mount layer top: .*base/diff"):
        driver.get(TOP)
    assert driver.mounted(TOP) == 0
    assert not driver.layout.mount_point(TOP).exists()


def test_without_pyfuse3_it_says_what_to_install(tmp_path: Path) -> None:
    need.root()
    code = f"""
import sys
from pathlib import Path
sys.modules["pyfuse3"] = None
from layerfs.errors import NotSupported
from layerfs_drivers.fuse import DRIVER
try:
    DRIVER.probe(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}))
except NotSupported as error:
    print(error, error.hint)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("no pyfuse3 is installed")
    assert "libfuse3-dev" in done.stdout and "pip install" in done.stdout
    assert os.listdir(tmp_path) == []


def test_probing_leaves_nothing_behind(tmp_path: Path) -> None:
    need.root()
    need.fuse()
    DRIVER.probe(tmp_path / "not" / "there", tmp_path / "run")
    assert os.listdir(tmp_path) == []
    wait_until_none_serves(tmp_path)


def test_a_mount_that_nobody_else_sees(driver: OverlayDriver) -> None:
    with private_mount(driver.mounts(BASE, read_only=True)) as root:
        assert (root / "f").read_bytes() == b"below"
        assert mounts_below(driver.layout.home.parent) == []
    wait_until_none_serves(driver.layout.home)


def test_a_mount_is_printed_as_a_command_that_works(
    driver: OverlayDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "runroot"), "--driver", "fuse"]
    layout = oci_layout(tmp_path / "layout", {"base:1": [layer({"file": b"x"})]})
    target = tmp_path / "target"
    target.mkdir()
    for command in (["load", str(layout)], ["create", "--name", "one", "base:1"]):
        assert main([*words, *command]) == 0
    capsys.readouterr()
    assert main([*words, "mount", "one", str(target), "--print"]) == 0
    program, *arguments = shlex.split(capsys.readouterr().out)
    assert program == "layerfs-fuse"
    assert layerfs_fuse(*arguments).returncode == 0
    assert (target / "file").read_bytes() == b"x"
    umount(target)


def test_doctor_tells_of_a_dead_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need.root()
    need.fuse()
    words = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "runroot"), "--driver", "fuse"]
    layout = oci_layout(tmp_path / "layout", {"base:1": [layer({"file": b"x"})]})
    with unmounted(tmp_path):
        for command in (["load", str(layout)], ["create", "--name", "one", "base:1"]):
            assert main([*words, *command]) == 0
        capsys.readouterr()
        assert main([*words, "mount", "one"]) == 0
        root = Path(capsys.readouterr().out.strip())
        os.kill(server(root), signal.SIGKILL)
        assert main([*words, "doctor"]) != 0
        told = capsys.readouterr().out
        assert "container one is mounted" in told and "ended with signal 9" in told
        assert main([*words, "umount", "one"]) != 0
        assert "ended with signal 9" in capsys.readouterr().err
        assert main([*words, "mount", "one"]) == 0


def wait_until_none_serves(place: Path) -> None:
    """No process has to do with ``place`` any more; it may just be about to end."""
    deadline = time.monotonic() + 20
    while any(str(place) in _command(pid) for pid in os.listdir("/proc") if pid.isdecimal()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _command(pid: str) -> str:
    """Of a server, its command line."""
    try:
        if Path(f"/proc/{pid}/comm").read_bytes() != b"layerfs-fuse\n":
            return ""
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_bad_place_is_refused(tmp_path: Path) -> None:
    need.root()
    need.fuse()
    (tmp_path / "place").mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path / "place"], check=True)
    with pytest.raises(NotSupported, match="ramfs"):
        DRIVER.probe(tmp_path / "place" / "home", tmp_path / "run")
    assert os.listdir(tmp_path / "place") == []


def test_upon_btrfs() -> None:
    """Which does not tell of what is made in a directory while it is open."""
    need.root()
    need.fuse()
    with file_system("btrfs") as place:
        driver = DRIVER.open(place / "home", place / "run", {})
        make_layer(driver, BASE, [directory(b"d"), file(b"d/below", b"below"), file(b"d/other", b"below")])
        driver.create_read_write(TOP, BASE)
        with mounted(driver, TOP) as root:
            (root / "d" / "other").unlink()
            assert os.listdir(root / "d") == ["below"]
            (root / "d" / "below").unlink()
            (root / "d" / "new").touch()
            assert os.listdir(root / "d") == ["new"]
            (root / "d" / "new").unlink()
            (root / "d").rmdir()
        driver.remove(TOP)
        driver.remove(BASE)

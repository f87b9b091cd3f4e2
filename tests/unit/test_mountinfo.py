"""What is mounted where, and who holds it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

from layerfs.linux import mount
from layerfs.linux.mountinfo import holders, is_mount, mount_of, mounts, mounts_below, parse
from layerfs.linux.umount import umount
from tests.require import need

LINES = rb"""22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
46 28 0:40 / /a\040b\011c\012d\134040 ro,relatime shared:1 master:2 - overlay o\040v ro,lowerdir=/a\134:b:/c
47 28 8:1 /sub/dir /bind rw - ext4 /dev/sda1 rw,prjquota
49 28 0:42 / /nosource rw - tmpfs  rw,size=4k
"""


def test_parse() -> None:
    sysfs, overlay, bind, nosource = parse(LINES)
    assert (sysfs.mount_id, sysfs.parent_id, sysfs.device, sysfs.fstype) == (22, 28, (0, 20), "sysfs")
    assert overlay.mount_point == b"/a b\tc\nd\\040"
    assert (overlay.source, overlay.options) == (b"o v", ("ro", "relatime"))
    assert overlay.super_options == ("ro", "lowerdir=/a\\:b:/c")
    assert (bind.root, bind.source, bind.super_options) == (b"/sub/dir", b"/dev/sda1", ("rw", "prjquota"))
    assert (nosource.source, nosource.super_options) == (b"", ("rw", "size=4k"))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    need.root()
    yield tmp_path
    for entry in reversed(mounts_below(tmp_path)):
        umount(Path(os.fsdecode(entry.mount_point)), lazy=True)


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has printed a line; it ends when its standard input does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment) as process:
        assert process.stdin and process.stdout
        try:
            assert process.stdout.readline()
            yield process
        finally:
            process.stdin.close()


def tmpfs(target: Path) -> Path:
    target.mkdir(exist_ok=True)
    mount.perform("tmpfs", "tmpfs", [], target)
    return target


def test_is_mount(scratch: Path) -> None:
    target = tmpfs(scratch / "a b\n\\c")
    (target / "below").mkdir()
    (scratch / "link").symlink_to(target)
    assert is_mount(target) and is_mount(Path("/"))
    assert not is_mount(target / "below")
    assert not is_mount(scratch / "link")
    assert not is_mount(scratch / "nowhere") and not is_mount(target / "below" / "nowhere")
    mount.perform("bind", str(target / "below"), ["bind"], target / "below")
    assert is_mount(target / "below"), "a bind mount within one file system is one, too"
    with chdir(target):
        assert is_mount(Path())


def test_mounts_below_in_an_order_to_unmount_by(scratch: Path) -> None:
    outer = tmpfs(scratch / "out er")
    tmpfs(outer / "in")
    tmpfs(scratch / "out er2")
    (scratch / "link").symlink_to(scratch)
    found = mounts_below(scratch / "link" / "out er")
    assert [entry.mount_point for entry in found] == [os.fsencode(outer), os.fsencode(outer / "in")]
    for entry in reversed(found):
        umount(Path(os.fsdecode(entry.mount_point)))
    assert not is_mount(outer) and is_mount(scratch / "out er2")


def test_mount_of_a_file(scratch: Path) -> None:
    outer = tmpfs(scratch / "outer")
    inner = tmpfs(outer / "inner")
    mount.perform("bind", str(outer), ["rbind"], inner)
    (inner / "file").touch()
    found = mount_of(inner / "file")
    assert found.mount_point == os.fsencode(inner) and found == mounts_below(inner)[1]
    assert mount_of(scratch) not in mounts_below(scratch)


def test_own_namespace_holders(scratch: Path) -> None:
    target = tmpfs(scratch / "target")
    (target / "file").touch()
    assert holders(target) == []
    with (
        running("sh", "-c", f"cd '{target}'; echo up; read _") as inside,
        running("sh", "-c", f"exec 3<'{target}/file'; echo up; read _") as reading,
        running("sh", "-c", "echo up; read _"),
    ):
        namespace = os.stat("/proc/self/ns/mnt").st_ino
        assert [str(holder) for holder in holders(target)] == [
            f"{pid} (sh), mount namespace {namespace}" for pid in sorted([inside.pid, reading.pid])
        ]
    with (target / "file").open():
        assert [holder.pid for holder in holders(target)] == [os.getpid()]


def test_other_namespaces_are_named_once(scratch: Path) -> None:
    target = tmpfs(scratch / "target")
    unshare = [need.tool("unshare"), "--mount", "--propagation", "private"]
    with (
        running(*unshare, "sh", "-c", "sh -c 'echo up; read _'; true") as copy,
        running(*unshare, "sh", "-c", f"umount '{target}'; echo up; read _"),
    ):
        (holder,) = holders(target)
        assert holder.pid == copy.pid
        assert holder.namespace == os.stat(f"/proc/{copy.pid}/ns/mnt").st_ino
        umount(target)
        assert holders(target) == [holder], "also when only the copy is left"


def test_a_container_with_a_root_of_its_own_is_found(scratch: Path) -> None:
    """After pivot_root the mount's path there is ``/``: it is known by its file system."""
    target = tmpfs(scratch / "target")
    (target / "old").mkdir()
    script = (
        "import os, sys; from layerfs.linux.syscall import call\n"
        "os.chdir(sys.argv[1]); call('pivot_root', b'.', b'old'); os.chdir('/')\n"
        "call('umount2', b'/old', 2)\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    unshare = [need.tool("unshare"), "--mount", "--propagation", "private"]
    with running(*unshare, sys.executable, "-c", script, target) as container:
        assert b" / / " in Path(f"/proc/{container.pid}/mountinfo").read_bytes()
        assert [holder.pid for holder in holders(target)] == [container.pid]


def test_processes_that_come_and_go_do_not_disturb(scratch: Path) -> None:
    target = tmpfs(scratch / "target")
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            subprocess.run(["true"], check=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            assert holders(target) == []
    finally:
        ended.set()
        thread.join()


def test_mounts_of_this_process() -> None:
    assert any(entry.mount_point == b"/proc" and entry.fstype == "proc" for entry in mounts())

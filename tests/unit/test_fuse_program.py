"""``layerfs-fuse`` at a shell: as fuse-overlayfs is called, and as mount(8) calls it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfs.linux.mountinfo import is_mount, mount_of
from layerfs.linux.umount import umount
from tests.fusekit import Ground, layerfs_fuse
from tests.require import need


@pytest.fixture
def ground(ground: Ground) -> Ground:
    (ground.low / "file").write_bytes(b"1")
    (ground.lowers[1] / "below").write_bytes(b"2")
    return ground


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.01)


def test_it_is_ready_when_it_returns_and_gone_when_it_is_unmounted(ground: Ground) -> None:
    root = ground.mount()
    assert sorted(os.listdir(root)) == ["below", "file"]
    entry = mount_of(root)
    assert (entry.fstype, entry.source) == ("fuse.layerfs", b"layerfs[%d]" % ground.pid)
    assert {"default_permissions", "allow_other"} <= set(entry.super_options)
    assert not {"nosuid", "nodev"} & set(entry.options)
    (root / "file").write_bytes(b"written")
    pid = ground.pid
    ground.umount()
    wait_until_gone(pid)
    assert (ground.upper / "file").read_bytes() == b"written"


def test_a_plain_umount_hands_everything_over(ground: Ground) -> None:
    root = ground.mount()
    pid = ground.pid
    with (root / "file").open("wb") as file:
        for number in range(300):
            file.write(b"%05d\n" % number)
    subprocess.run(["umount", root], check=True)
    assert (ground.upper / "file").read_bytes() == b"".join(b"%05d\n" % number for number in range(300))
    wait_until_gone(pid)


def test_in_the_foreground_it_ends_with_the_mount(ground: Ground) -> None:
    command = [sys.executable, "-m", "layerfs.fuse", "-f", "-o", ground.options(), str(ground.root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment) as process:
        while not is_mount(ground.root):
            assert process.poll() is None
            time.sleep(0.01)
        assert (ground.root / "file").read_bytes() == b"1"
        assert ground.pid == process.pid
        subprocess.run(["umount", ground.root], check=True)
        assert process.wait(60) == 0


def test_a_signal_unmounts(ground: Ground) -> None:
    root = ground.mount()
    pid = ground.pid
    (root / "file").write_bytes(b"written")
    with (root / "below").open("rb") as held:
        os.kill(pid, signal.SIGTERM)
        while is_mount(root):
            time.sleep(0.01)
        assert held.read() == b"2", "it serves until the last user has gone"
    wait_until_gone(pid)
    assert (ground.upper / "file").read_bytes() == b"written"


def test_mount_8_calls_it(ground: Ground, tmp_path: Path) -> None:
    """As a helper: with the source first, and options that concern mount(8) alone."""
    done = layerfs_fuse("layers", ground.root, "-o", f"rw,dev,suid,_netdev,{ground.options()}", "-t", "x")
    assert done.returncode == 0, done.stderr
    assert mount_of(ground.root).source.startswith(b"layers[")
    ground.umount()


def test_without_an_upper_directory_it_is_read_only(ground: Ground) -> None:
    low, below = ground.lowers
    done = layerfs_fuse("-o", f"lowerdir={low}:{below}", ground.root)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(ground.root)) == ["below", "file"]
    with pytest.raises(OSError, match="Read-only file system"):
        (ground.root / "new").touch()
    umount(ground.root)
    (ground.upper / "top").touch()
    ground.mount("ro")
    assert sorted(os.listdir(ground.root)) == ["below", "file", "top"]
    with pytest.raises(OSError, match="Read-only file system"):
        (ground.root / "file").unlink()
    ground.umount()


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a b", 'a"b', "a\\:b,c", "x" * 200])
def test_any_path_will_do(ground: Ground, tmp_path: Path, name: str) -> None:
    odd = Ground.make(tmp_path / name)
    (odd.low / "file").touch()

    def written(path: Path) -> str:
        return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")

    lower = ":".join(written(path) for path in odd.lowers)
    options = f"lowerdir={lower},upperdir={written(odd.upper)},workdir={written(odd.work)}"
    done = layerfs_fuse("-o", options, odd.root)
    assert done.returncode == 0, done.stderr
    (odd.root / "new").touch()
    assert sorted(os.listdir(odd.root)) == ["file", "new"]
    umount(odd.root)
    assert os.listdir(odd.upper) == ["new"]


def test_paths_may_be_relative(ground: Ground) -> None:
    done = layerfs_fuse("-o", "lowerdir=low1:low2,upperdir=upper,workdir=work", "root", cwd=ground.place)
    assert done.returncode == 0, done.stderr
    (ground.root / "new").touch()
    umount(ground.root)
    assert (ground.upper / "new").exists()


def test_owners_are_mapped(ground: Ground) -> None:
    os.chown(ground.low / "file", 100_005, 200_005)
    os.chown(ground.lowers[1] / "below", 7, 7)
    ground.mount("uidmapping=0:100000:1000", "gidmapping=0:200000:1000")
    status = (ground.root / "file").stat()
    assert (status.st_uid, status.st_gid) == (5, 5)
    status = (ground.root / "below").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65534), "what has no place in the map"
    (ground.root / "new").touch()
    os.chown(ground.root / "file", 6, 7)
    ground.umount()
    status = (ground.upper / "new").stat()
    assert (status.st_uid, status.st_gid) == (100_000, 200_000)
    status = (ground.upper / "file").stat()
    assert (status.st_uid, status.st_gid) == (100_006, 200_007)


@pytest.mark.parametrize(
    ("options", "shown"),
    [(("squash_to_root",), (0, 0)), (("squash_to_uid=7", "squash_to_gid=8"), (7, 8))],
)
def test_owners_are_squashed(ground: Ground, options: tuple[str, ...], shown: tuple[int, int]) -> None:
    os.chown(ground.low / "file", 5, 5)
    ground.mount(*options)
    (ground.root / "new").touch()
    for name in ("file", "new"):
        status = (ground.root / name).stat()
        assert (status.st_uid, status.st_gid) == shown
    ground.umount()
    assert (ground.upper / "new").stat().st_uid == shown[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "upperdir=/tmp,workdir=/tmp", "ROOT"], "no lowerdir"),
        (["-o", "lowerdir=/,upperdir=/tmp", "ROOT"], "workdir"),
        (["-o", "lowerdir=/no/such/directory", "ROOT"], "/no/such/directory"),
        (["-o", "lowerdir=/", "/no/such/root"], "/no/such/root is not a directory"),
        (["-o", "lowerdir=/,uidmapping=1:2", "ROOT"], "uidmapping"),
        (["-o", "lowerdir=/,squash_to_uid=me", "ROOT"], "squash_to_uid"),
        (["-o", "lowerdir=/,xattr_permissions=3", "ROOT"], "xattr_permissions"),
    ],
)
def test_what_it_cannot_do_it_says(ground: Ground, words: list[str], said: str) -> None:
    done = layerfs_fuse(*(str(ground.root) if word == "ROOT" else word for word in words))
    assert done.returncode != 0
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not is_mount(ground.root)


def test_it_holds_nothing_of_who_started_it(ground: Ground, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        command = [sys.executable, "-m", "layerfs.fuse", "-o", ground.options(), str(ground.root)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        subprocess.run(command, env=environment, close_fds=False, check=True, cwd=tmp_path)
    links = {os.readlink(link) for link in Path(f"/proc/{ground.pid}/fd").iterdir()}
    assert str(tmp_path / "open") not in links
    assert os.readlink(f"/proc/{ground.pid}/cwd") == "/"
    assert os.getsid(ground.pid) != os.getsid(0)
    effective = int(Path(f"/proc/{ground.pid}/status").read_text().partition("CapEff:")[2].split()[0], 16)
    assert not effective & 1 << 24, "CAP_SYS_RESOURCE: it would write past quotas"
    ground.umount()


@pytest.mark.parametrize("tool", ["mount", "mount.fuse3"])
def test_the_type_leads_to_it(ground: Ground, tmp_path: Path, tool: str) -> None:
    """mount(8), and containerd's way: both run the program that the type names, found in PATH."""
    need.tool("mount.fuse3")
    program = tmp_path / "bin" / "layerfs"
    program.parent.mkdir()
    path = f"sys.path[:0] = {sys.path!r}"
    program.write_text(f"#!{sys.executable}\nimport sys\n{path}\nfrom layerfs.cli import run\nrun()\n")
    program.chmod(0o755)
    if tool == "mount":
        words = ["-t", "fuse.layerfs", "layers", str(ground.root), "-o", ground.options()]
    else:
        options = [word for option in ground.options().split(",") for word in ("-o", option)]
        words = ["layers", str(ground.root), *options, "-t", "layerfs"]
    commands = [
        f"mount --bind {program.parent} /usr/local/bin",
        shlex.join([need.tool(tool), *words]),
        f"cat {ground.root}/file",
        f"findmnt -no FSTYPE,SOURCE {ground.root}",
        f"umount {ground.root}",
    ]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", " && ".join(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1fuse.layerfs layers["), done.stdout


def test_a_directory_that_cannot_be_shown_does_not_hide_its_neighbours(ground: Ground) -> None:
    """One that was renamed with ``redirect_dir=on``."""
    (ground.low / "moved").mkdir()
    os.setxattr(ground.low / "moved", "trusted.overlay.redirect", b"before")
    root = ground.mount()
    assert sorted(os.listdir(root)) == ["below", "file", "moved"]
    with pytest.raises(PermissionError):
        (root / "moved").stat()
    assert (root / "file").read_bytes() == b"1"
    ground.umount()


def test_killed_before_it_is_ready_it_leaves_nothing(ground: Ground, tmp_path: Path) -> None:
    """Who waits for it kills it when it takes too long: here for ever, as a directory does not answer."""
    below = Ground.make(tmp_path / "below")
    place, log = tmp_path / "place", tmp_path / "log of another"
    place.mkdir()
    stopped = below.mount()
    os.kill(below.pid, signal.SIGSTOP)
    try:
        options = f"lowerdir={stopped},log={log}"
        with subprocess.Popen([sys.executable, "-m", "layerfs.fuse", "-o", options, str(place)]) as program:
            server = None
            while server is None:
                assert program.poll() is None
                time.sleep(0.01)
                server = re.search(r"process (\d+) serves", log.read_text() if log.exists() else "")
            time.sleep(0.2)
            program.kill()
        assert program.returncode == -signal.SIGKILL
        wait_until_gone(int(server[1]))
    finally:
        os.kill(below.pid, signal.SIGCONT)
    assert not is_mount(place)
    below.umount()

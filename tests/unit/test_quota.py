"""Project quota on real xfs and ext4 file systems. Skipped where the kernel has none."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux import quota
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from layerfs.linux.userns import has_capability
from tests.require import need

pytestmark = pytest.mark.host("here", "overlay-6.1")

MIB = 1 << 20
MKFS = {
    "xfs": ["mkfs.xfs", "-q"],
    "ext4": ["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota"],
}


def make_and_mount(mkfs: list[str], where: Path, *options: str) -> Path:
    """A fresh file system, loop-mounted below ``where``."""
    need.loop()
    image, target = where / "image", where / "mounted"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run([need.tool(mkfs[0]), *mkfs[1:], str(image)], check=True, capture_output=True)
    command = ["mount", "-o", ",".join(["loop", *options]), str(image), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        need.missing("project-quota", done.stderr.partition("\n")[0].removeprefix(f"mount: {target}: "))
    return target


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for entry in reversed(mounts_below(tmp_path)):
        umount(Path(os.fsdecode(entry.mount_point)))


@pytest.fixture(params=["xfs", "ext4"])
def home(request: pytest.FixtureRequest, scratch: Path) -> Path:
    """A driver's home on a file system that limits projects."""
    home = make_and_mount(MKFS[request.param], scratch, "prjquota") / "home"
    home.mkdir()
    if reason := quota.missing(home):
        need.missing("project-quota", reason)
    return home


def new_layer(home: Path, name: str, *, size: int | None = None, inodes: int | None = None) -> Path:
    layer = home / name
    layer.mkdir()
    quota.assign(home, layer, size=size, inodes=inodes)
    return layer


def run(*command: str) -> str:
    """Run as root without CAP_SYS_RESOURCE, as root of a container is; what it complained of."""
    unprivileged = [need.tool("setpriv"), "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    return subprocess.run([*unprivileged, *command], capture_output=True, text=True).stderr


def write(path: Path, size: int) -> str:
    return run(
        "dd", "if=/dev/zero", f"of={path}", "bs=64k", f"count={size >> 16}", "conv=fsync", "status=none"
    )


FULL = ("No space left on device", "Disk quota exceeded")


def test_size_limit(home: Path) -> None:
    layer, other = new_layer(home, "layer", size=2 * MIB), new_layer(home, "other")
    (layer / "deep" / "below").mkdir(parents=True)
    assert write(layer / "fits", MIB) == ""
    assert write(layer / "deep" / "below" / "grows", 4 * MIB).strip().endswith(FULL)
    used = quota.usage(layer)
    assert used and MIB < used.bytes <= 2 * MIB and used.size_limit == 2 * MIB and used.inode_limit is None
    assert write(other / "free", 4 * MIB) == "", "each directory has its own limit"
    (layer / "fits").unlink()
    assert write(layer / "again", MIB // 2) == ""


def test_inode_limit(home: Path) -> None:
    layer = new_layer(home, "layer", inodes=5)
    complaints = run("touch", *(str(layer / f"file{number}") for number in range(8)))
    assert len(os.listdir(layer)) == 4, "the directory itself counts"
    assert complaints.count("cannot touch") == 4 and complaints.strip().endswith(FULL)
    used = quota.usage(layer)
    assert used and (used.inodes, used.inode_limit, used.size_limit) == (5, 5, None)


def test_limits_can_be_changed(home: Path) -> None:
    layer = new_layer(home, "layer", size=MIB)
    assert write(layer / "file", 2 * MIB) != ""
    quota.set_limits(layer, size=3 * MIB, inodes=10)
    assert write(layer / "file", 2 * MIB) == ""
    quota.set_limits(layer, size=MIB, inodes=None)
    assert write(layer / "more", MIB) != "", "a limit below what is in use takes effect"
    used = quota.usage(layer)
    assert used and used.bytes >= 2 * MIB and used.size_limit == MIB and used.inode_limit is None


def test_an_odd_size_is_rounded_up(home: Path) -> None:
    used = quota.usage(new_layer(home, "layer", size=MIB + 1))
    assert used and used.size_limit and MIB < used.size_limit <= MIB + 4096


def test_who_is_above_the_limit(home: Path) -> None:
    """As documented: ext4 lets CAP_SYS_RESOURCE past, xfs lets nobody."""
    layer = new_layer(home, "layer", size=MIB)
    on_xfs = b"xfs" in subprocess.check_output(["stat", "-f", "-c", "%T", layer])
    try:
        (layer / "file").write_bytes(bytes(2 * MIB))
        refused = False
    except OSError as error:
        assert error.errno in (errno.ENOSPC, errno.EDQUOT)
        refused = True
    assert refused is (on_xfs or not has_capability("CAP_SYS_RESOURCE"))


def test_project_ids_are_used_again_only_when_free(home: Path) -> None:
    first, second = new_layer(home, "first", size=MIB), new_layer(home, "second")
    ids = {quota.project_of(first), quota.project_of(second)}
    assert len(ids) == 2 and 0 not in ids
    quota.clear(first)
    third = new_layer(home, "third")
    assert quota.project_of(third) not in ids, "cleared, but still there"
    ids.add(quota.project_of(third))
    first.rmdir()
    assert quota.project_of(new_layer(home, "fourth")) not in ids - {min(ids)}


def test_ids_that_others_gave_out_are_left_alone(home: Path) -> None:
    foreign = home.parent / "foreign"
    foreign.mkdir()
    (home / "probe").mkdir()
    taken = quota.assign(home, home / "probe", size=None, inodes=None)
    quota.set_project(home / "probe", 0)
    quota.set_project(foreign, taken)
    assert quota.project_of(new_layer(home, "layer")) != taken


def test_processes_at_once_get_different_ids(home: Path) -> None:
    context = multiprocessing.get_context("fork")

    def work(worker: int) -> None:
        for number in range(10):
            new_layer(home, f"{worker}-{number}", size=MIB)

    workers = [context.Process(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len({quota.project_of(layer) for layer in home.iterdir()}) == 40


def test_a_directory_in_no_project(home: Path) -> None:
    (home / "plain").mkdir()
    assert quota.project_of(home / "plain") == 0
    assert quota.usage(home / "plain") is None
    quota.clear(home / "plain")
    with pytest.raises(OSError, match="no project"):
        quota.set_limits(home / "plain", size=MIB, inodes=None)


def test_only_an_empty_directory_is_assigned(home: Path) -> None:
    """What is in it already would not count."""
    (home / "layer" / "old").mkdir(parents=True)
    with pytest.raises(OSError) as refused:
        quota.assign(home, home / "layer", size=MIB, inodes=None)
    assert refused.value.errno == errno.ENOTEMPTY


def test_nothing_is_moved_in_from_outside(home: Path) -> None:
    layer = new_layer(home, "layer")
    (home / "outside").touch()
    for move in (os.rename, os.link):
        with pytest.raises(OSError) as refused:
            move(home / "outside", layer / "inside")
        assert refused.value.errno == errno.EXDEV


def test_by_device_where_the_kernel_wants_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls as before Linux 5.14, with a project that is full already."""
    monkeypatch.setattr(quota, "_has_quotactl_fd", lambda: False)
    assert quota.missing(home) == ""
    layer = new_layer(home, "layer", inodes=1)
    used = quota.usage(layer)
    assert used and (used.inodes, used.inode_limit) == (1, 1)
    assert sorted(os.listdir(home)) == ["layer"] and os.listdir(layer) == []


@pytest.mark.parametrize(
    ("mkfs", "options", "reason"),
    [
        (["mkfs.xfs", "-q"], [], "prjquota"),
        (["mkfs.xfs", "-q"], ["pqnoenforce"], "without limiting"),
        (["mkfs.ext4", "-q"], [], "tune2fs -O project,quota -Q prjquota /dev/loop"),
        (MKFS["ext4"], [], "without limiting"),
        (["mkfs.btrfs", "-q"], [], "is on btrfs"),
    ],
)
def test_why_not(scratch: Path, mkfs: list[str], options: list[str], reason: str) -> None:
    target = make_and_mount(mkfs, scratch, *options)
    told = quota.missing(target)
    assert reason in told or "this kernel was built without CONFIG" in told


def test_why_not_on_other_file_systems(tmp_path: Path) -> None:
    need.root()
    perform("tmpfs", "tmpfs", [], tmp_path)
    try:
        assert "tmpfs" in quota.missing(tmp_path)
    finally:
        umount(tmp_path)

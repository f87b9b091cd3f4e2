"""``xattr_permissions``: owners and modes in an xattr, read and written as fuse-overlayfs does."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.fusekit import Ground

NAMES = {"1": "security.fuseoverlayfs.override_stat", "2": "user.fuseoverlayfs.override_stat"}


@pytest.fixture
def ground(ground: Ground) -> Ground:
    (ground.low / "file").write_bytes(b"1")
    (ground.low / "dir").mkdir()
    (ground.low / "dir" / "inside").write_bytes(b"2")
    (ground.low / "link").symlink_to("file")
    return ground


def work(root: Path) -> None:
    """Somebody makes, changes and copies up."""
    (root / "new").write_bytes(b"new")
    os.chown(root / "new", 1, 2)
    os.chmod(root / "new", 0o4750)
    (root / "newdir").mkdir(0o700)
    (root / "newdir" / "f").write_bytes(b"f")
    os.chown(root / "newdir", 3, 4)
    os.chmod(root / "file", 0o640)
    os.chown(root / "file", 5, 6)
    os.chown(root / "dir", 7, 8)
    os.chmod(root / "dir", 0o1777)
    (root / "dir" / "inside").write_bytes(b"more")
    os.link(root / "new", root / "newdir" / "linked")
    (root / "newdir" / "f").rename(root / "newdir" / "moved")


def seen(root: Path) -> dict[str, tuple[int, int, str]]:
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(root))] = (status.st_uid, status.st_gid, stat.filemode(status.st_mode))
    return found


EXPECTED = {
    "dir": (7, 8, "drwxrwxrwt"),
    "dir/inside": (0, 0, "-rw-r--r--"),
    "file": (5, 6, "-rw-r-----"),
    "link": (0, 0, "lrwxrwxrwx"),
    "new": (1, 2, "-rwsr-x---"),
    "newdir": (3, 4, "drwx------"),
    "newdir/linked": (1, 2, "-rwsr-x---"),
    "newdir/moved": (0, 0, "-rw-r--r--"),
}


@pytest.mark.parametrize("value", ["1", "2"])
def test_owners_and_modes_are_kept_beside_the_files(ground: Ground, value: str) -> None:
    with ground.by_us(f"xattr_permissions={value}") as root:
        work(root)
        assert seen(root) == EXPECTED
    assert {(place[0], place[1]) for place in seen(ground.upper).values()} == {(0, 0)}
    assert os.getxattr(ground.upper / "file", NAMES[value]) == b"5:6:100640"
    with ground.by_us(f"xattr_permissions={value}") as root:
        assert seen(root) == EXPECTED
        assert NAMES[value] not in os.listxattr(root / "file")
        with pytest.raises(OSError, match="Operation not permitted") as caught:
            os.setxattr(root / "file", NAMES[value], b"0:0:777")
        assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize("value", ["1", "2"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_what_one_writes_the_other_shows(ground: Ground, value: str, ours_first: bool) -> None:
    ways = [ground.by_us, ground.by_fuse_overlayfs]
    writer, reader = ways if ours_first else reversed(ways)
    with writer(f"xattr_permissions={value}") as root:
        work(root)
        written = seen(root)
    with reader(f"xattr_permissions={value}") as root:
        assert seen(root) == written


def test_a_layer_of_containers_storage_is_shown_by_its_own(ground: Ground) -> None:
    name = "user.containers.override_stat"
    os.setxattr(ground.low, name, b"0:0:0755")
    os.setxattr(ground.low / "file", name, b"9:10:0604:file")
    with ground.by_us("xattr_permissions=2") as root:
        assert seen(root)["file"] == (9, 10, "-rw----r--")
        os.chown(root / "file", 11, -1)
        assert seen(root)["file"] == (11, 10, "-rw----r--")
    assert os.getxattr(ground.upper / "file", NAMES["2"]) == b"11:10:100604"


def test_the_kernel_goes_by_what_is_shown(ground: Ground) -> None:
    with ground.by_us("xattr_permissions=2") as root:
        os.chmod(root / "file", 0o600)
        (root / "new").touch()
        os.chmod(root / "new", 0o4755)
        os.chown(root / "new", 1000, 1000)
        assert seen(root)["new"] == (1000, 1000, "-rwxr-xr-x"), "a new owner clears setuid"
        script = "cat file || echo closed; echo mine > new && cat new"
        words = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", script]
        done = subprocess.run(words, capture_output=True, text=True, cwd=root)
        assert done.stdout == "closed\nmine\n", done.stderr
        (root / "dir" / "inside").unlink()
        os.chmod(root / "dir", 0o2775)
        os.chown(root / "dir", 0, 50)
        os.chmod(root / "dir", 0o2775)
        (root / "dir" / "inside").mkdir(0o755)
        assert seen(root)["dir/inside"] == (0, 50, "drwxr-sr-x"), "over a whiteout"
        os.mkfifo(root / "fifo", 0o640)
        assert seen(root)["fifo"][2] == "prw-r-----"
        with (root / "file").open("rb") as held:
            os.chmod(root / "file", 0o604)
            (root / "file").unlink()
            assert stat.S_IMODE(os.fstat(held.fileno()).st_mode) == 0o604

"""What the union over FUSE does in a user namespace. Run by ``test_fuse_rootless.py``, inside one; what every
driver does there is asked by ``tests/conformance/test_rootless.py``."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.marks import marks_of
from layerfs.linux.mountinfo import mount_of
from layerfs.linux.userns import in_user_namespace
from layerfs.overlay.driver import OverlayDriver
from layerfs.overlay.ways import ByFuse
from layerfs.testing.conformance.base import BASE, TOP, make_layer, mounted, tree_of
from layerfs.testing.entries import directory, file
from layerfs_drivers.aufs._info import AufsInfo
from layerfs_drivers.fuse import DRIVER
from tests.fusekit import Ground
from tests.overlaykit import unmounted

AUFS = AufsInfo()


@pytest.fixture(params=["fuse", "overlay in fallback", "aufs"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OverlayDriver]:
    assert in_user_namespace()
    home, runroot = tmp_path / "home", tmp_path / "run"
    DRIVER.probe(home, runroot)
    with unmounted(tmp_path):
        if request.param == "aufs":
            driver = AUFS.open(home, runroot, {})
        elif request.param == "fuse":
            driver = OverlayDriver.open(home, runroot, read_only=False, name="fuse", way=ByFuse())
        else:
            driver = OverlayDriver.open(home, runroot, read_only=False, instead=ByFuse())
            driver.layout.set_reason("it is not wanted", read_only=False)
        make_layer(driver, BASE, [directory(b"e"), file(b"e/x", b"x")])
        yield driver


def test_marks_are_those_of_the_user(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        assert mount_of(root).fstype == "fuse.layerfs"
        (root / "e" / "x").unlink()
        (root / "e").rmdir()
        (root / "e").mkdir()
        os.setxattr(root / "e", "user.overlay.mine", b"kept")
    assert marks_of(driver.format).is_opaque(bytes(driver.layout.diff(TOP) / "e"))
    assert tree_of(driver, TOP).nodes[b"e"].xattrs == {b"user.overlay.mine": b"kept"}


def test_other_users_of_the_namespace_may_use_it(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "open").mkdir()
        (root / "open").chmod(0o777)
        code = "import os; os.setgroups([]); os.setgid(33); os.setuid(33); open('mine', 'w').write('m')"
        subprocess.run([shutil.which("python3") or "python3", "-c", code], cwd=root / "open", check=True)
        status = (root / "open" / "mine").stat()
        assert (status.st_uid, status.st_gid, status.st_size) == (33, 33, 1)
        with pytest.raises(PermissionError):
            os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def test_the_program_by_itself(tmp_path: Path) -> None:
    ground = Ground.make(tmp_path)
    (ground.low / "file").write_bytes(b"1")
    with unmounted(tmp_path):
        root = ground.mount()
        (root / "file").unlink()
        (root / "new").touch()
        root = ground.again()
        assert os.listdir(root) == ["new"]
        ground.umount()

"""What the union over FUSE does in a user namespace. Run by ``test_fuse_rootless.py``, inside one."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.marks import marks_of
from layerfs.errors import EntryRefused
from layerfs.linux.mountinfo import mount_of
from layerfs.linux.userns import in_user_namespace
from layerfs.overlay.driver import OverlayDriver
from layerfs.overlay.ways import ByFuse
from layerfs.testing.conformance.base import BASE, OTHER, TOP, assert_same, make_layer, mounted, tree_of
from layerfs.testing.entries import device, directory, file, hard_link, opaque, symlink, tar_stream, whiteout
from layerfs.testing.model import EMPTY, apply, changes
from layerfs_drivers.aufs._info import AufsInfo
from layerfs_drivers.fuse import DRIVER
from tests.fusekit import Ground
from tests.overlaykit import unmounted

AUFS = AufsInfo()

LOWER = [
    directory(b"d", mode=0o750, uid=1, gid=2, xattrs={b"user.mark": b"1"}),
    file(b"d/one", b"1", uid=1000, mode=0o4755),
    file(b"d/two", b"2"),
    directory(b"e"),
    file(b"e/x", b"x"),
    file(b"linked", b"same"),
    hard_link(b"link", b"linked"),
    symlink(b"s", b"d", uid=7),
]
UPPER = [whiteout(b"d/one"), opaque(b"e"), file(b"e/new", b""), file(b"d/three", b"3")]


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
        make_layer(driver, BASE, LOWER)
        yield driver


def test_layers_upon_layers(driver: OverlayDriver) -> None:
    make_layer(driver, OTHER, UPPER, BASE)
    driver.create_read_write(TOP, OTHER)
    assert_same(tree_of(driver, TOP), apply(apply(EMPTY, LOWER), UPPER))
    with mounted(driver, TOP) as root:
        assert mount_of(root).fstype == "fuse.layerfs"


def test_a_container_from_its_creation_to_its_removal(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    before = tree_of(driver, TOP)
    with mounted(driver, TOP) as root:
        (root / "d" / "one").unlink()
        (root / "e" / "x").unlink()
        (root / "e").rmdir()
        (root / "e").mkdir()
        (root / "e" / "y").write_bytes(b"y")
        os.chown(root / "e" / "y", 33, 33)
        os.setxattr(root / "e", "user.overlay.mine", b"kept")
        (root / "linked").write_bytes(b"other")
    after = tree_of(driver, TOP)
    assert list(driver.changes(TOP, BASE)) == changes(after, before)
    driver.create(OTHER, BASE)
    with driver.diff(TOP, BASE) as tar:
        driver.apply_diff(OTHER, BASE, tar)
    assert_same(tree_of(driver, OTHER), after)
    assert marks_of(driver.format).is_opaque(bytes(driver.layout.diff(TOP) / "e"))
    driver.remove(TOP)
    assert not driver.exists(TOP)


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


def test_what_only_the_host_may_make_is_refused_by_name(driver: OverlayDriver) -> None:
    driver.create(OTHER, BASE)
    with pytest.raises(EntryRefused) as caught:
        driver.apply_diff(OTHER, BASE, tar_stream([device(b"null", 1, 3)]))
    assert "root of the host" in caught.value.hint


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

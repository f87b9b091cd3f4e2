"""What only the aufs driver does: its layout, its mounts as data, and what Docker's driver left behind."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import attrs
import pytest

from layerfs.archive.changes import Change, ChangeKind, walk_changes
from layerfs.archive.pack import pack
from layerfs.driver import CreateOptions
from layerfs.errors import (
    DepthExceeded,
    EntryRefused,
    LayerExists,
    LayerNotFound,
    MountBusy,
    NotSupported,
    StoreDamaged,
    SystemFailure,
)
from layerfs.ids import GraphID
from layerfs.linux import aufs as aufs_options
from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from layerfs.overlay.driver import OverlayDriver
from layerfs.overlay.ways import ByFuse, Way
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.entries import directory, file, whiteout
from layerfs.testing.model import read_items
from layerfs_drivers.aufs import DRIVER
from layerfs_drivers.aufs._ways import MOST_LAYERS, ByAufs
from tests.require import need

ADDED, MODIFIED, DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
PAGE = 4096


def opened(where: Path, *, read_only: bool = False) -> OverlayDriver:
    """A driver with its home in ``where``, which need not be able to mount anything."""
    need.root()
    (where / "home").mkdir(mode=0o700, parents=True, exist_ok=True)
    driver = DRIVER.open(where / "home", where / "run", {}, read_only=read_only)
    assert isinstance(driver, OverlayDriver)
    return driver


@pytest.fixture
def driver(tmp_path: Path) -> OverlayDriver:
    return opened(tmp_path)


def mounted_by(driver: OverlayDriver, way: Way) -> OverlayDriver:
    """The driver as it is on a host that stacks layers this way."""
    return OverlayDriver(driver.layout, driver.format, driver.read_only, driver.name, way)


# Layout


def test_layers_lie_as_dockers_aufs_driver_lays_them(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [file(b"etc/passwd", b"root\n")])
    make_layer(driver, OTHER, [whiteout(b"etc/passwd"), file(b"new", b"")], BASE)
    driver.create_read_write(TOP, OTHER)
    home = driver.layout.home
    assert {path.name: path.read_text() for path in (home / "layers").iterdir()} == {
        "base": "",
        "other": "base\n",
        "top": "other\nbase\n",
    }
    assert sorted(os.listdir(home / "diff")) == ["base", "other", "top"]
    assert (home / "diff/base/etc/passwd").read_bytes() == b"root\n"
    assert os.listdir(home / "diff/other/etc") == [".wh.passwd"]
    assert driver.layout.is_writable(TOP) and not driver.layout.is_writable(OTHER)
    assert driver.metadata(TOP)["lowerdir"] == f"{home}/diff/other:{home}/diff/base"


@pytest.mark.host("here", "no-overlay")
def test_what_it_stands_upon_and_what_it_left_mounted_is_told(driver: OverlayDriver) -> None:
    need.fuse()
    make_layer(driver, BASE, [file(b"f", b"")])
    driver.create_read_write(TOP, BASE)
    assert (driver.parent(TOP), driver.parent(BASE)) == (BASE, None)
    target = driver.get(TOP)
    (driver.layout.counts / TOP).unlink()
    assert [(leak.kind, leak.what) for leak in driver.leaks(remove=True)] == [("mount", str(target))]
    assert driver.leaks() == []


def test_a_chain_is_no_deeper_than_aufs_can_stack(driver: OverlayDriver) -> None:
    parent = None
    for number in range(MOST_LAYERS):
        id = GraphID(f"layer-{number}")
        driver.create(id, parent)
        parent = id
    with pytest.raises(DepthExceeded, match="127"):
        driver.create(TOP, parent)


def test_limits_are_refused(driver: OverlayDriver) -> None:
    with pytest.raises(NotSupported) as caught:
        driver.create_read_write(TOP, None, options=CreateOptions(size=1 << 20))
    assert "project quota" in caught.value.hint == driver.capabilities.no_limits_because
    assert not driver.exists(TOP)


def test_a_layer_that_is_not_whole_is_named_and_can_be_removed(driver: OverlayDriver) -> None:
    driver.create(BASE, None)
    driver.create(TOP, BASE)
    home = driver.layout.home
    (home / "layers/top").unlink()
    with pytest.raises(StoreDamaged, match="layer top is not whole"):
        driver.mounts(TOP)
    with pytest.raises(LayerExists):
        driver.create(TOP, BASE)
    assert set(driver.ids()) == {BASE, TOP}
    driver.remove(TOP)
    (home / "diff/base").rmdir()
    with pytest.raises(StoreDamaged, match="layer base is not whole"):
        driver.changes(BASE, None)
    driver.remove(BASE)
    assert not list(driver.ids())
    assert [os.listdir(home / part) for part in ("layers", "diff", "work")] == [[], [], []]


def test_a_list_of_layers_that_leads_out_of_the_home_is_refused(driver: OverlayDriver) -> None:
    driver.create(BASE, None)
    (driver.layout.home / "layers/base").write_text("../../etc\n")
    with pytest.raises(Exception, match="not a layer id"):
        driver.mounts(BASE)


# Mounts as data


def test_the_mount_of_aufs(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [])
    driver.create_read_write(TOP, BASE)
    by_aufs = mounted_by(driver, ByAufs())
    diff = driver.layout.home / "diff"
    fixed = ("dio", "dirperm1", "noplink", "xino=/dev/shm/.layerfs-top.xino")
    (mount,) = by_aufs.mounts(TOP)
    assert (mount.fstype, mount.source) == ("aufs", "none")
    assert mount.options == (f"br:{diff}/top=rw:{diff}/base=ro+wh", *fixed)
    (mount,) = by_aufs.mounts(TOP, read_only=True)
    assert mount.options == (f"br:{diff}/top=ro+wh:{diff}/base=ro+wh", *fixed, "ro")


def test_the_mount_by_fuse(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [])
    driver.create_read_write(TOP, BASE)
    by_fuse = mounted_by(driver, ByFuse("aufs"))
    home = driver.layout.home
    (mount,) = by_fuse.mounts(TOP)
    assert (mount.fstype, mount.source) == ("fuse.layerfs", "layerfs")
    assert mount.options == (
        f"lowerdir={home}/diff/base",
        f"upperdir={home}/diff/top",
        f"workdir={home}/work/top",
        "allow_other",
        "whiteouts=aufs",
    )
    (mount,) = by_fuse.mounts(BASE)
    assert mount.options == (f"lowerdir={home}/diff/base", "ro", "allow_other", "whiteouts=aufs")


def test_layers_below_an_opaque_root_are_not_mounted(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [file(b"old", b"")])
    make_layer(driver, OTHER, [file(b".wh..wh..opq", b""), file(b"new", b"")], BASE)
    driver.create_read_write(TOP, OTHER)
    (mount,) = mounted_by(driver, ByAufs()).mounts(TOP)
    diff = driver.layout.home / "diff"
    assert mount.options[0] == f"br:{diff}/top=rw:{diff}/other=ro+wh"


def test_branches_that_do_not_fit_a_page_are_appended_one_by_one() -> None:
    branches = [("/diff/" + "w" * 64, "rw"), *((f"/diff/{n:064}", "ro+wh") for n in range(1, 127))]
    options = (aufs_options.join_branches(branches), "dio", "dirperm1", "noplink", "xino=/dev/shm/x", "ro")
    first, *remounts = aufs_options.steps(options, PAGE)
    assert first[1:] == options[1:]
    assert len(",".join(first)) <= PAGE - 1 < len(",".join(first)) + len(f":/diff/{1:064}=ro+wh")
    assert all(step[:2] == ("remount", "ro") and len(",".join(step)) < PAGE for step in remounts)
    appended = [step[2].removeprefix("append:") for step in remounts]
    assert first[0].removeprefix("br:").split(":") + appended == [f"{path}={mode}" for path, mode in branches]


def test_branches_that_fit_are_mounted_at_once() -> None:
    options = (aufs_options.join_branches([("/a", "rw"), ("/b", "ro+wh")]), "dio")
    assert aufs_options.steps(options, PAGE) == [("br:/a=rw:/b=ro+wh", "dio")]


@pytest.mark.parametrize("path", ["/a:b", "/a,b", "/a=b"])
def test_a_path_that_aufs_would_misread_is_refused(tmp_path: Path, path: str) -> None:
    need.root()
    driver = opened(tmp_path / path[1:])
    driver.create(BASE, None)
    with pytest.raises(SystemFailure, match="aufs takes no branch"):
        mounted_by(driver, ByAufs()).mounts(BASE)


# What Docker left behind


IMAGE, INIT, CONTAINER = GraphID("1" * 64), GraphID("c" * 64 + "-init"), GraphID("c" * 64)


@attrs.frozen
class Docker:
    """A home as Docker's aufs driver makes it (daemon/graphdriver/aufs), containers/storage's likewise."""

    home: Path

    def layer(self, id: GraphID, *ancestors: GraphID) -> Path:
        for part in ("layers", "diff", "mnt"):
            (self.home / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.home / "layers" / id).write_text("".join(f"{ancestor}\n" for ancestor in ancestors))
        (self.home / "mnt" / id).mkdir()
        diff = self.home / "diff" / id
        diff.mkdir()
        return diff

    def mounted(self, id: GraphID) -> Path:
        """What aufs makes in a branch that it may write to."""
        diff = self.home / "diff" / id
        (diff / ".wh..wh.aufs").touch(mode=0o444)
        (diff / ".wh..wh.orph").mkdir(mode=0o700)
        (diff / ".wh..wh.plnk").mkdir(mode=0o700)
        return diff

    @staticmethod
    def whiteout(diff: Path, path: str) -> None:
        """All whiteouts of a branch are links of one file."""
        where = diff / path
        os.link(diff / ".wh..wh.aufs", where.with_name(f".wh.{where.name}"))


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    """An image of one layer, and a container upon it that was used."""
    need.root()
    docker = Docker(tmp_path / "home")
    image = docker.layer(IMAGE)
    for name in ("bin", "etc", "old", "same"):
        (image / name).mkdir()
        (image / name / "file").write_text(name)
    os.link(image / "bin/file", image / "bin/link")
    for path in sorted(image.rglob("*")):
        os.utime(path, ns=(0, 0))
    init = docker.layer(INIT, IMAGE)
    docker.mounted(INIT)
    (init / "etc").mkdir()
    (init / "etc/hosts").touch()
    os.utime(init / "etc", ns=(0, 0))
    diff = docker.layer(CONTAINER, INIT, IMAGE)
    docker.mounted(CONTAINER)
    (diff / "etc").mkdir()
    docker.whiteout(diff, "etc/file")
    os.utime(diff / "etc", ns=(0, 0))
    (diff / "old").mkdir()
    (diff / "old/.wh..wh..opq").touch()
    (diff / "old/new").write_text("new")
    (diff / "bin").mkdir()
    (diff / "bin/file").write_text("written")
    # A pseudo-link: the names of the image's file stay one for aufs.
    os.link(diff / "bin/file", diff / ".wh..wh.plnk/42.43")
    os.utime(diff / "bin", ns=(0, 0))
    (diff / ".wh..wh.orph/77").write_text("deleted while it was open")
    for path in (diff, init, image):
        os.utime(path, ns=(0, 0))
    return docker


def test_the_layers_that_docker_left_are_there(docker: Docker) -> None:
    driver = opened(docker.home.parent)
    assert set(driver.ids()) == {IMAGE, INIT, CONTAINER}
    diff = docker.home / "diff"
    assert driver.metadata(CONTAINER)["lowerdir"] == f"{diff}/{INIT}:{diff}/{IMAGE}"
    assert driver.mounted(CONTAINER) == 0


def test_changes_of_a_container_that_docker_left(docker: Docker) -> None:
    driver = opened(docker.home.parent)
    assert list(driver.changes(CONTAINER, INIT)) == [
        Change(b"bin", MODIFIED),
        Change(b"bin/file", MODIFIED),
        Change(b"bin/link", MODIFIED),
        Change(b"etc", MODIFIED),
        Change(b"etc/file", DELETED),
        Change(b"old", MODIFIED),
        Change(b"old/file", DELETED),
        Change(b"old/new", ADDED),
    ]
    assert list(driver.changes(INIT, IMAGE)) == [Change(b"etc", MODIFIED), Change(b"etc/hosts", ADDED)]


@pytest.mark.host("here", "no-overlay")
def test_what_docker_left_is_shown(docker: Docker) -> None:
    need.fuse()
    driver = opened(docker.home.parent)
    with mounted(driver, CONTAINER) as root:
        shown = sorted(os.fspath(path.relative_to(root)) for path in root.rglob("*"))
        assert shown == sorted(
            ["bin", "bin/file", "bin/link", "etc", "etc/hosts", "old", "old/new", "same", "same/file"]
        )
        assert [(root / "bin" / name).read_text() for name in ("file", "link")] == ["written", "bin"]
        with mounted(driver, INIT) as below:
            changed = list(walk_changes(root, below))
            with pack(root, changed) as packed:
                naive = packed.read()
    assert list(driver.changes(CONTAINER, INIT)) == changed
    with driver.diff(CONTAINER, INIT) as tar:
        assert tar.read() == naive


@pytest.mark.host("here", "no-overlay")
def test_a_container_upon_what_docker_left(docker: Docker) -> None:
    need.fuse()
    driver = opened(docker.home.parent)
    driver.create_read_write(TOP, CONTAINER)
    with mounted(driver, TOP) as root:
        (root / "old/new").unlink()
        (root / "etc/file").write_text("again")
        (root / "same/file").write_text("changed")
    assert list(map(str, driver.changes(TOP, CONTAINER))) == [
        "C /etc",
        "A /etc/file",
        "C /old",
        "D /old/new",
        "C /same",
        "C /same/file",
    ]
    assert os.listdir(docker.home / "diff/top/old") == [".wh.new"]


def test_nothing_of_aufs_itself_is_exported(docker: Docker) -> None:
    driver = opened(docker.home.parent)
    with driver.diff(CONTAINER, INIT) as tar:
        items = {entry.name: content for entry, content in read_items(io.BytesIO(tar.read()))}
    assert sorted(items) == [
        b"bin/",
        b"bin/file",
        b"bin/link",
        b"etc/",
        b"etc/.wh.file",
        b"old/",
        b"old/.wh.file",
        b"old/new",
    ]
    assert items[b"bin/file"] == b"written"


def test_what_docker_left_is_never_mounted_writable(docker: Docker) -> None:
    driver = opened(docker.home.parent)
    (mount,) = driver.mounts(CONTAINER)
    assert "ro" in mount.options
    driver.create_read_write(TOP, CONTAINER)
    (mount,) = driver.mounts(TOP)
    assert "ro" not in mount.options


def test_what_docker_left_is_removed_with_its_mount_point(docker: Docker) -> None:
    driver = opened(docker.home.parent)
    target = docker.home / "mnt" / CONTAINER
    perform("bind", str(docker.home / "diff" / CONTAINER), ("bind",), target)
    try:
        with pytest.raises(MountBusy):
            driver.remove(CONTAINER)
    finally:
        umount(target)
    driver.remove(CONTAINER)
    assert not any(path.name.startswith(CONTAINER + "-r") for path in docker.home.rglob("*"))
    assert not any((docker.home / part / CONTAINER).exists() for part in ("layers", "diff", "mnt", "work"))
    assert set(driver.ids()) == {IMAGE, INIT}


def test_a_removal_that_docker_did_not_finish_can_be_finished(docker: Docker) -> None:
    (docker.home / "layers" / CONTAINER).unlink()
    (docker.home / "diff" / CONTAINER).rename(docker.home / "diff" / f"{CONTAINER}-removing")
    driver = opened(docker.home.parent)
    gone = GraphID(f"{CONTAINER}-removing")
    assert set(driver.ids()) == {IMAGE, INIT, gone}
    with pytest.raises(StoreDamaged):
        driver.mounts(gone)
    with pytest.raises(LayerNotFound):
        driver.mounts(CONTAINER)
    driver.remove(gone)
    assert set(driver.ids()) == {IMAGE, INIT}


def test_a_home_that_docker_left_is_read_without_a_write(docker: Docker) -> None:
    before = sorted(docker.home.rglob("*"))
    os.chmod(docker.home, stat.S_IMODE(docker.home.stat().st_mode))
    driver = opened(docker.home.parent, read_only=True)
    list(driver.changes(CONTAINER, INIT))
    driver.mounts(CONTAINER, read_only=True)
    assert sorted(docker.home.rglob("*")) == before


def test_a_whiteout_for_which_a_name_is_too_long_is_refused(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [directory(b"d"), file(b"d/" + b"n" * 255, b"")])
    with pytest.raises(EntryRefused, match="File name too long"):
        make_layer(driver, TOP, [whiteout(b"d/" + b"n" * 255)], BASE)


def test_a_removal_goes_on_when_somebody_opens_the_home_meanwhile(
    driver: OverlayDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does so removes what removals left that did not finish, and cannot tell one that goes on."""
    make_layer(driver, BASE, [file(b"f", b"")])
    driver.create_read_write(TOP, BASE)
    rename, seen = Path.rename, set[Path]()

    def opened_first(path: Path, target: Path) -> Path:
        if path not in seen:
            seen.add(path)
            opened(tmp_path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", opened_first)
        driver.remove(TOP)
    assert not driver.exists(TOP)
    assert list(driver.ids()) == [BASE]

"""What only the devicemapper driver promises."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs import registry
from layerfs.driver import CreateOptions, Driver
from layerfs.errors import (
    InvalidOption,
    LayerNotFound,
    MountBusy,
    NoSpace,
    NotSupported,
    ReadOnly,
    StoreDamaged,
    SystemFailure,
)
from layerfs.ids import GraphID
from layerfs.linux import command
from layerfs.linux.mount import perform_all
from layerfs.linux.umount import umount
from layerfs.testing.conformance.base import BASE, TOP, in_child, make_layer, mounted
from layerfs.testing.entries import file
from layerfs_drivers import vfs
from layerfs_drivers.devicemapper import DRIVER, _probe
from layerfs_drivers.devicemapper._journal import Journal
from layerfs_drivers.devicemapper._space import PoolStatus
from tests.migrationkit import use_drivers
from tests.require import need
from tests.thinkit import (
    active,
    detach,
    detached_afterwards,
    device_ids,
    dmsetup,
    open_small,
    pool_upon_files,
)

pytestmark = pytest.mark.host("thin")

MIB = 1 << 20
OTHER = GraphID("other")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    need.root()
    with detached_afterwards(tmp_path / "home"):
        yield tmp_path / "home"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def forget(run: Path) -> None:
    """What a boot does to the runroot."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(run)


def boot(home: Path, run: Path) -> None:
    detach(home)
    forget(run)


# Devices


def test_a_device_is_there_as_long_as_the_layer_is_mounted(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create_read_write(TOP, None)
    assert active(home) == []
    with mounted(driver, TOP):
        assert active(home) == [TOP]
        assert driver.metadata(TOP)["active"] == "yes"
    gone(home)
    assert list(driver.changes(TOP, None)) == []
    gone(home)


def test_described_mounts_can_be_made_until_the_layer_is_given_back(
    home: Path, run: Path, tmp_path: Path
) -> None:
    driver = open_small(home, run)
    driver.create_read_write(TOP, None)
    mounts = driver.mounts(TOP)
    open_small(home, run).create(OTHER, None)  # whoever opens the driver meanwhile
    with driver.files(TOP):
        pass
    target = tmp_path / "target"
    target.mkdir()
    perform_all(mounts, target)
    driver.put(TOP)
    (target / "new").write_bytes(b"x")
    umount(target)
    gone(home)
    with mounted(driver, TOP) as root:
        assert os.listdir(root) == ["new"]


def test_a_layer_mounted_in_another_namespace_names_who_has_it(home: Path, run: Path, tmp_path: Path) -> None:
    driver = open_small(home, run)
    driver.create_read_write(TOP, None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = driver.get(TOP)
    script = f"mount --bind {root} {elsewhere} && echo mounted && exec sleep 600"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"mounted\n"
            driver.put(TOP)
            with pytest.raises(MountBusy, match=f"{holder.pid} \\(sleep\\), mount namespace") as caught:
                driver.remove(TOP)
            assert len(caught.value.holders) == 1
            assert driver.exists(TOP)
        finally:
            holder.kill()
    driver.remove(TOP)
    assert not driver.exists(TOP)
    gone(home)


def test_a_device_that_nobody_uses_is_a_leak(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create_read_write(TOP, None)
    driver.create_read_write(OTHER, TOP)
    find = driver.leaks  # type: ignore[attr-defined]
    assert [driver.parent(id) for id in (TOP, OTHER)] == [None, TOP]  # type: ignore[attr-defined]
    driver.mounts(TOP)
    with mounted(driver, OTHER):
        assert find(remove=True) == []
        assert active(home) == sorted([TOP, OTHER])
    target = driver.get(OTHER)
    (run / "counts" / OTHER).unlink()
    (run / "described" / Path(driver.metadata(TOP)["device"]).name).unlink()
    found = [(leak.kind, leak.what) for leak in find()]
    assert found == [("mount", str(target)), ("device", Path(driver.metadata(TOP)["device"]).name)]
    find(remove=True)
    assert find() == []
    gone(home)


def gone(home: Path) -> None:
    until(lambda: active(home) == [])


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done()


# Boots and other pools


def test_a_pool_of_loop_files_is_there_again_after_a_boot(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    make_layer(driver, BASE, [file(b"f", b"content")])
    driver.create_read_write(TOP, BASE)
    root = driver.get(TOP)
    (root / "new").write_bytes(b"x")
    boot(home, run)
    driver = open_small(home, run)
    assert driver.mounted(TOP) == 0
    with mounted(driver, TOP) as root:
        assert sorted(os.listdir(root)) == ["f", "new"]
    boot(home, run)
    with pytest.raises(ReadOnly, match="not active"):
        open_small(home, run, read_only=True)


def test_a_copy_of_a_home_in_use_is_refused(home: Path, run: Path, tmp_path: Path) -> None:
    make_layer(open_small(home, run), BASE, [])
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", "--sparse=always", home, copy], check=True)
    with pytest.raises(StoreDamaged, match="copy"):
        open_small(copy, tmp_path / "run2")
    boot(home, run)
    with detached_afterwards(copy):
        assert list(open_small(copy, run).ids()) == [BASE]


def test_files_without_their_journal_are_refused(home: Path, run: Path) -> None:
    open_small(home, run)
    boot(home, run)
    (home / "journal.db").unlink()
    with pytest.raises(StoreDamaged, match="no journal"):
        open_small(home, run)


def test_a_pool_given_by_name(home: Path, run: Path, tmp_path: Path) -> None:
    with pool_upon_files("layerfs-test-a", tmp_path / "a"):
        driver = open_small(home, run, pool="layerfs-test-a")
        make_layer(driver, BASE, [file(b"f", b"content")])
        assert "warning" not in driver.status()
        assert driver.status()["pool"] == "layerfs-test-a"
        # Whoever opens it later need not say so again.
        driver = DRIVER.open(home, run, {})
        driver.remove(BASE)
        assert list(driver.ids()) == []
        with pytest.raises(InvalidOption, match="pool"):
            open_small(home, run, pool="another")
        detach(home)


def test_a_pool_that_somebody_else_uses_is_refused(home: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="no active thin pool"):
        open_small(home, run, pool="layerfs-test-a")
    with pool_upon_files("layerfs-test-a", tmp_path / "a"):
        dmsetup("message", "layerfs-test-a", "0", "set_transaction_id 0 1")
        with pytest.raises(NotSupported, match="used already"):
            open_small(home, run, pool="layerfs-test-a")
        assert not (home / "journal.db").exists()


def test_another_pool_of_the_same_name_is_refused(home: Path, run: Path, tmp_path: Path) -> None:
    """Also one whose transaction id is the same by chance: the file system tells."""
    with pool_upon_files("layerfs-test-a", tmp_path / "a"):
        open_small(home, run, pool="layerfs-test-a")
    forget(run)
    with pytest.raises(SystemFailure, match="not active"):
        open_small(home, run)
    with pool_upon_files("layerfs-test-a", tmp_path / "b"):
        with pytest.raises(StoreDamaged, match="transaction id 0"):
            open_small(home, run)
        open_small(tmp_path / "home2", tmp_path / "run2", pool="layerfs-test-a")
        with pytest.raises(StoreDamaged, match="UUID"):
            open_small(home, run)
        gone(home)
    with pool_upon_files("layerfs-test-a", tmp_path / "a"):
        open_small(home, run).create(BASE, None)


def test_a_pool_that_somebody_else_changed_is_not_changed(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create(BASE, None)
    row = Journal(home, True).pool()
    assert row is not None
    dmsetup("message", row.name, "0", f"set_transaction_id {row.transaction_id} {row.transaction_id + 7}")
    for change in (lambda: driver.create(TOP, None), lambda: driver.remove(BASE)):
        with pytest.raises(StoreDamaged, match="somebody else"):
            change()


def test_a_device_that_was_deleted_behind_our_back_is_named(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create(BASE, None)
    row, device = Journal(home, True).pool(), Journal(home, True).device(BASE)
    assert row is not None and device is not None
    dmsetup("message", row.name, "0", f"delete {device.id}")
    with pytest.raises(StoreDamaged, match=f"no device {device.id} any more, which held layer base"):
        driver.get(BASE)
    assert driver.mounted(BASE) == 0


def test_an_id_that_the_pool_has_already_is_left_alone(home: Path, run: Path) -> None:
    """As a journal that was brought back from an older moment would meet it."""
    driver = open_small(home, run)
    row = Journal(home, True).pool()
    assert row is not None
    for id in (row.next_id, row.next_id + 1):
        dmsetup("message", row.name, "0", f"create_thin {id}")
    driver.create(BASE, None)
    driver.create(TOP, None)
    assert device_ids(home) == list(range(row.next_id + 4))
    driver.remove(BASE)
    driver.remove(TOP)
    assert device_ids(home) == list(range(row.next_id + 2))


# Space


@pytest.mark.parametrize(("fs", "size"), [("ext4", "96M"), ("xfs", "256M")])
def test_a_full_pool_refuses_and_recovers(home: Path, run: Path, fs: str, size: str) -> None:
    """Nothing waits: a writer is told, also of metadata of xfs, and what is removed makes room again."""
    driver = open_small(home, run, fs, loopdatasize=size)
    make_layer(driver, BASE, [file(b"f", b"content")])
    for id in (TOP, OTHER):
        driver.create_read_write(id, BASE)
    roots = [driver.get(id) for id in (TOP, OTHER)]
    for root in roots:
        with contextlib.suppress(OSError):
            fill(root / "big")
    assert driver.status()["mode"] != "rw"
    for id in (TOP, OTHER):
        driver.put(id)
    with pytest.raises(NoSpace, match="thin pool") as caught:
        driver.create(GraphID("more"), BASE)
    assert caught.value.hint
    if fs == "xfs":  # writes to its log when it is mounted, also read-only
        with pytest.raises(NoSpace, match="mount layer base"):
            driver.get(BASE)
    else:
        assert_content(driver, BASE)
    for id in (TOP, OTHER):
        driver.remove(id)
    assert_content(driver, BASE)
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "g").write_bytes(bytes(MIB))


def assert_content(driver: Driver, id: GraphID) -> None:
    with mounted(driver, id, read_only=True) as root:
        assert (root / "f").read_bytes() == b"content"


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as out:
        while True:
            out.write(os.urandom(MIB))
            os.fsync(out.fileno())


def test_little_space_is_refused_before_it_hurts(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create(BASE, None)
    careful = open_small(home, run, min_free="95%")
    with pytest.raises(NoSpace, match=r"metadata free, below min_free=95%") as caught:
        careful.create(TOP, None)
    assert "prune" in caught.value.hint
    assert not careful.exists(TOP)
    driver.create(TOP, None)


@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_space_of_removed_layers_goes_back_to_the_file_system(home: Path, run: Path, fs: str) -> None:
    driver = open_small(home, run, fs)
    driver.create_read_write(TOP, None)
    before = blocks(home)
    with mounted(driver, TOP) as root:
        (root / "big").write_bytes(os.urandom(20 * MIB))
    assert blocks(home) > before + 19 * MIB
    driver.remove(TOP)
    assert blocks(home) < before + 4 * MIB


def blocks(home: Path) -> int:
    os.sync()
    return (home / "data").stat().st_blocks * 512


# Sizes


@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_the_base_can_grow_but_not_shrink(home: Path, run: Path, fs: str) -> None:
    small = open_small(home, run, fs)
    make_layer(small, BASE, [file(b"f", b"content")])
    before = capacity(small, BASE)
    big = open_small(home, run, fs, basesize="640M")
    for id, parent in ((TOP, None), (OTHER, BASE)):
        big.create_read_write(id, parent)
        assert capacity(big, id) > before + 250 * MIB
    assert capacity(big, BASE) == before
    with mounted(big, OTHER) as root:
        assert (root / "f").read_bytes() == b"content"
    with pytest.raises(InvalidOption, match="cannot shrink"):
        open_small(home, run, fs)
    with pytest.raises(InvalidOption, match="fs"):
        open_small(home, run, "xfs" if fs == "ext4" else "ext4", basesize="640M")


@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_a_size_is_that_of_the_file_system(home: Path, run: Path, fs: str) -> None:
    driver = open_small(home, run, fs)
    make_layer(driver, BASE, [file(b"f", b"content")])
    driver.create_read_write(TOP, BASE, options=CreateOptions(size=400 * MIB))
    assert 300 * MIB < capacity(driver, TOP) <= 400 * MIB
    with pytest.raises(NotSupported, match="can only grow") as caught:
        driver.create_read_write(OTHER, BASE, options=CreateOptions(size=32 * MIB))
    assert "basesize" in caught.value.hint
    assert not driver.exists(OTHER)
    with pytest.raises(NotSupported, match="inodes"):
        driver.create_read_write(OTHER, BASE, options=CreateOptions(inodes=100))


def capacity(driver: Driver, id: GraphID) -> int:
    with mounted(driver, id, read_only=True) as root:
        found = os.statvfs(root)
        return found.f_blocks * found.f_frsize


# Mounts


def test_a_filled_layer_is_mounted_read_only_however_it_is_asked_for(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    make_layer(driver, BASE, [file(b"f", b"content")])
    with mounted(driver, BASE) as root, pytest.raises(OSError) as caught:
        (root / "g").write_bytes(b"")
    assert caught.value.errno == errno.EROFS


def test_a_container_can_be_written_while_it_is_read_elsewhere(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create_read_write(TOP, None)
    with mounted(driver, TOP) as root:
        (root / "f").write_bytes(b"content")
    with driver.files(TOP) as open_file, mounted(driver, TOP) as root, open_file(b"f") as seen:
        assert seen.read() == b"content"
        (root / "g").write_bytes(b"")
        with driver.diff(TOP, None) as tar:
            assert tar.read(1)
            (root / "h").write_bytes(b"")


def test_a_container_that_runs_can_be_seen_by_who_writes_nothing(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create_read_write(TOP, None)
    with mounted(driver, TOP) as root:
        (root / "f").write_bytes(b"content")
        reader = open_small(home, run, read_only=True)
        assert [change.path for change in reader.changes(TOP, None)] == [b"", b"f"]
        with reader.files(TOP) as open_file, open_file(b"f") as seen:
            assert seen.read() == b"content"
        (root / "g").write_bytes(b"")


def test_xfs_gives_up_on_a_pool_without_space(home: Path, run: Path) -> None:
    driver = open_small(home, run, "xfs")
    driver.create_read_write(TOP, None)
    with mounted(driver, TOP) as root:
        number = os.stat(root).st_dev
        name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
        for kind in ("ENOSPC", "EIO"):
            setting = Path(f"/sys/fs/xfs/{name}/error/metadata/{kind}/max_retries")
            assert setting.read_text().strip() == "0"


def test_flush_brings_layers_past_a_power_cut(home: Path, run: Path, tmp_path: Path) -> None:
    """What the files hold after it is a whole pool."""
    driver = open_small(home, run)
    make_layer(driver, BASE, [file(b"f", b"content" * 1000)])
    root = driver.get(driver_top(driver))
    (root / "g").write_bytes(b"mounted")
    driver.flush()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", "--sparse=always", home, copy], check=True)
    driver.put(TOP)
    boot(home, run)
    with detached_afterwards(copy):
        copied = open_small(copy, run)
        with mounted(copied, BASE, read_only=True) as root:
            assert (root / "f").read_bytes() == b"content" * 1000
        with mounted(copied, TOP) as root:
            assert (root / "g").read_bytes() == b"mounted"


def driver_top(driver: Driver) -> GraphID:
    driver.create_read_write(TOP, BASE)
    return TOP


# Words


def test_the_status_warns_of_loop_files(home: Path, run: Path) -> None:
    facts = open_small(home, run).status()
    assert "trial" in facts["warning"]
    assert facts["file system"] == "ext4"
    assert facts["mode"] == "rw"


@pytest.mark.parametrize("options", [{"fs": "btrfs"}, {"basesize": "big"}, {"min_free": "100%"}, {"x": "y"}])
def test_options_that_cannot_be_are_refused_by_name(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        DRIVER.open(tmp_path / "home", tmp_path / "run", options)
    assert not (tmp_path / "home").exists()


def test_a_base_too_small_for_its_file_system_is_refused(home: Path, run: Path) -> None:
    with pytest.raises(InvalidOption, match="basesize"):
        open_small(home, run, "xfs", basesize="64M")


# What it needs


def probe(place: Path) -> None:
    DRIVER.probe(place / "home", place / "run")


def test_a_new_home_is_never_chosen_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_drivers(monkeypatch, DRIVER, vfs.DRIVER)
    root, runroot = tmp_path / "root", tmp_path / "run"
    with pytest.raises(NotSupported, match="no thin pool is named") as caught:
        DRIVER.probe(root / "devicemapper", runroot / "devicemapper")
    assert "devicemapper.pool=NAME" in caught.value.hint and "trial" in caught.value.hint
    assert registry.choose(root, runroot).info.name == "vfs"
    assert os.listdir(tmp_path) == []
    with detached_afterwards(root / "devicemapper"):
        open_small(root / "devicemapper", runroot / "devicemapper")
        DRIVER.probe(root / "devicemapper", runroot / "devicemapper")
        assert registry.choose(root, runroot).info.name == "devicemapper"


def test_without_root_the_probe_says_so(tmp_path: Path) -> None:
    def unprivileged() -> tuple[str, str]:
        os.setuid(65534)
        with pytest.raises(NotSupported) as caught:
            probe(tmp_path)
        return str(caught.value), caught.value.hint

    assert in_child(unprivileged) == (
        "devicemapper needs root of the host",
        "run as root, outside of user namespaces",
    )


def test_without_thin_pools_the_probe_says_so(tmp_path: Path) -> None:
    subprocess.run(["rmmod", "dm_thin_pool"], check=True)
    try:
        with pytest.raises(NotSupported, match="the kernel has no thin pools") as caught:
            probe(tmp_path)
        with pytest.raises(NotSupported, match="the kernel has no thin pools"):
            open_small(tmp_path / "home", tmp_path / "run")
        assert os.listdir(tmp_path) == []
    finally:
        module = f"/usr/lib/uml/modules/{os.uname().release}/kernel/drivers/md/dm-thin-pool.ko"
        subprocess.run(["insmod", module], check=True)
    assert caught.value.hint == "modprobe dm-thin-pool"


def test_without_its_tools_the_probe_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_PATH", str(tmp_path))
    with pytest.raises(NotSupported, match=r"neither mkfs.ext4 nor mkfs.xfs") as caught:
        probe(tmp_path)
    assert caught.value.hint == "install e2fsprogs or xfsprogs"
    monkeypatch.setattr(_probe, "has_udev", lambda: True)
    with pytest.raises(NotSupported, match="no program 'dmsetup'") as caught:
        probe(tmp_path)
    assert caught.value.hint.startswith("install dmsetup")


@pytest.mark.host("here", "no-overlay")
def test_without_a_device_mapper_the_probe_says_so(tmp_path: Path) -> None:
    need.root()
    with contextlib.suppress(OSError), Path("/dev/mapper/control").open("rb"):
        pytest.skip("this kernel has a device mapper")
    with pytest.raises(NotSupported, match="the kernel has no device mapper") as caught:
        probe(tmp_path)
    assert caught.value.hint == "modprobe dm-mod"


# udev


@pytest.fixture
def udev() -> Iterator[None]:
    daemon = need.tool("/lib/systemd/systemd-udevd")
    control = Path("/run/udev/control")
    with subprocess.Popen([daemon], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(control.exists)
            yield
        finally:
            process.terminate()
            process.wait()
            control.unlink(missing_ok=True)


def test_where_udev_runs_it_makes_the_nodes(home: Path, run: Path, udev: None) -> None:
    semaphores = Path("/proc/sysvipc/sem").read_text()
    driver = open_small(home, run)
    make_layer(driver, BASE, [file(b"f", b"content")])
    driver.create_read_write(TOP, BASE)
    node = Path(driver.metadata(TOP)["device"])
    with mounted(driver, TOP) as root:
        assert node.is_symlink(), "which is how udev makes them"
        (root / "g").write_bytes(b"x")
    assert [change.path for change in driver.changes(TOP, BASE)] == [b"", b"g"]
    driver.remove(TOP)
    gone(home)
    until(lambda: not node.is_symlink())
    assert Path("/proc/sysvipc/sem").read_text() == semaphores, "what dmsetup waits with"


# Words


def test_what_a_pool_tells_of_itself() -> None:
    """Lines of Documentation/admin-guide/device-mapper/thin-provisioning.rst."""
    line = "7 1659/16384 400/131072 - {} discard_passdown error_if_no_space {} 1024 "
    found = PoolStatus.parse(line.format("rw", "-"))
    assert (found.transaction_id, found.metadata_used, found.data_total) == (7, 1659, 131072)
    assert (found.mode, found.needs_check) == ("rw", False)
    found = PoolStatus.parse(line.format("out_of_data_space", "needs_check"))
    assert (found.mode, found.needs_check) == ("out_of_data_space", True)
    assert PoolStatus.parse("Fail").mode == "Fail"


def test_what_is_asked_of_a_layer_being_removed(home: Path, run: Path) -> None:
    driver = open_small(home, run)
    driver.create(BASE, None)
    device = Journal(home, False).device(BASE)
    assert device is not None
    Journal(home, False).removing(device.id)
    assert not driver.exists(BASE)
    assert list(driver.ids()) == []
    with pytest.raises(LayerNotFound):
        driver.get(BASE)

"""Mounts as drivers describe them, performed on this kernel, each overlay by every way there is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from layerfs.linux import mount, overlaymount
from layerfs.linux.mountinfo import is_mount, mounts_below
from layerfs.linux.umount import release, umount
from tests.require import need

# Before Linux 6.8 the layers of a mount are named differently.
pytestmark = pytest.mark.host("here", "overlay-6.1")

ODD_NAMES = ["plain", "\\" * 120, "a:b", "a,b", "a\\b", "a b", 'a"b', "a\\:b", "é\udcff", "ends\\"]


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    need.overlay(tmp_path)
    yield tmp_path
    for entry in reversed(mounts_below(tmp_path)):
        umount(Path(os.fsdecode(entry.mount_point)), lazy=True)


def by_any(source: str, options: Sequence[str], target: Path) -> None:
    mount.perform("overlay", source, options, target)


def by_fd(source: str, options: Sequence[str], target: Path) -> None:
    overlaymount.by_descriptor(source, options, target)


def by_layer(source: str, options: Sequence[str], target: Path) -> None:
    if not overlaymount.takes_single_layers():
        pytest.skip("this kernel does not take layers one by one")
    overlaymount.by_layer(source, options, target)


Perform = Callable[[str, Sequence[str], Path], None]
EVERY_WAY = pytest.mark.parametrize("perform", [by_any, by_fd, by_layer])


def make_layers(home: Path, names: Sequence[str]) -> list[Path]:
    """One directory for each name, holding a file of its own and one that all have."""
    layers = []
    for number, name in enumerate(names):
        layer = home / f"{number}" / name
        layer.mkdir(parents=True)
        (layer / f"own{number}").write_text(name, errors="surrogateescape")
        (layer / "same").write_text(str(number))
        layers.append(layer)
    return layers


def options_for(lower: Sequence[Path], upper: Path | None = None, work: Path | None = None) -> list[str]:
    options = ["index=off", "lowerdir=" + ":".join(overlaymount.escape_lower(path) for path in lower)]
    if upper and work:
        options += [
            f"upperdir={overlaymount.escape_lower(upper)}",
            f"workdir={overlaymount.escape_lower(work)}",
        ]
    return options


@pytest.mark.parametrize("name", ODD_NAMES)
def test_lower_paths_survive_escaping(name: str) -> None:
    joined = ":".join(overlaymount.escape_lower(f"/x/{part}") for part in (name, "next", name))
    assert overlaymount.split_lower(joined) == [f"/x/{name}", "/x/next", f"/x/{name}"]


@EVERY_WAY
def test_overlay_with_any_name(scratch: Path, perform: Perform) -> None:
    layers = make_layers(scratch / "lower", ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        base = scratch / f"{number}" / name
        upper, work, target = base / "upper", base / "work", base / "merged"
        for directory in (upper, work, target):
            directory.mkdir(parents=True)
        perform("overlay", options_for(layers, upper, work), target)
        assert sorted(os.listdir(target)) == sorted(["same", *(f"own{n}" for n in range(len(layers)))])
        assert (target / "same").read_text() == "0", "the first layer named is the topmost"
        (target / "new").write_text("x")
        assert (upper / "new").read_text() == "x"


@EVERY_WAY
def test_overlay_of_500_layers_with_long_paths(scratch: Path, perform: Perform) -> None:
    home = scratch / ("h" * 200)
    layers = make_layers(home, ["d" * 100] * 500)
    assert len(os.fsencode(layers[0])) > 255
    for name in ("u" * 100, "w" * 100, "merged"):
        (home / name).mkdir()
    perform("overlay", options_for(layers, home / ("u" * 100), home / ("w" * 100)), home / "merged")
    assert len(os.listdir(home / "merged")) == 501
    (home / "merged" / "new").touch()
    assert (home / ("u" * 100) / "new").exists()


@EVERY_WAY
def test_flags_and_read_only(scratch: Path, perform: Perform) -> None:
    layers = make_layers(scratch, ["a", "b"])
    target = scratch / "merged"
    target.mkdir()
    perform("overlay", [*options_for(layers), "ro", "nodev", "nosuid", "noexec"], target)
    (entry,) = mounts_below(target)
    assert {"ro", "nodev", "nosuid", "noexec"} <= set(entry.options)
    assert "ro" in entry.super_options
    with pytest.raises(OSError) as refused:
        (target / "new").touch()
    assert refused.value.errno == errno.EROFS


@EVERY_WAY
def test_a_lower_directory_that_is_missing(scratch: Path, perform: Perform) -> None:
    layers = [*make_layers(scratch, ["a"]), scratch / "gone"]
    (scratch / "merged").mkdir()
    with pytest.raises(FileNotFoundError) as failed:
        perform("overlay", options_for(layers), scratch / "merged")
    assert not is_mount(scratch / "merged")
    if perform is not by_any or overlaymount.takes_single_layers():
        assert str(scratch / "gone") in str(failed.value)


def test_the_reason_of_the_kernel_is_told(scratch: Path) -> None:
    layers = make_layers(scratch, ["a", "b"])
    (scratch / "merged").mkdir()
    with pytest.raises(OSError, match="Invalid argument") as failed:
        mount.perform("overlay", "overlay", [*options_for(layers), "nonsense=1"], scratch / "merged")
    assert failed.value.errno == errno.EINVAL
    if overlaymount.takes_single_layers():  # older kernels give their reasons to their log alone
        assert "Unknown parameter 'nonsense'" in str(failed.value)
    assert not is_mount(scratch / "merged")


def test_too_long_options_are_refused_not_cut(scratch: Path) -> None:
    with pytest.raises(OSError) as failed:
        mount.perform("tmpfs", "tmpfs", ["mode=0700," * 1000], scratch)
    assert failed.value.errno == errno.E2BIG


def test_a_path_with_a_null_byte_is_not_cut(scratch: Path) -> None:
    with pytest.raises(ValueError, match="null"):
        mount.perform("tmpfs", "tmpfs", [], scratch / "x\0y")


def test_many_threads_mount_at_once(scratch: Path) -> None:
    """The old way changes a working directory: only that of the thread that mounts."""
    here = os.getcwd()
    layers = make_layers(scratch, ["a:b", "c,d"])
    targets = [scratch / f"merged{number}" for number in range(16)]
    failures: list[BaseException] = []

    def work(target: Path) -> None:
        try:
            target.mkdir()
            for _ in range(5):
                overlaymount.by_descriptor("overlay", options_for(layers), target)
                assert (target / "same").read_text() == "0"
                umount(target)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.getcwd() == here
    assert mounts_below(scratch) == []


def test_no_descriptor_is_left_open(scratch: Path) -> None:
    layers = make_layers(scratch / ("x" * 250), ["a", "b"])
    target = scratch / "merged"
    target.mkdir()
    overlaymount.takes_single_layers()
    before = os.listdir("/proc/self/fd")
    for perform in (by_any, overlaymount.by_descriptor):
        perform("overlay", options_for(layers), target)
        umount(target)
        with pytest.raises(OSError):
            perform("overlay", [*options_for(layers), "nonsense"], target)
    assert os.listdir("/proc/self/fd") == before


@attrs.frozen
class Plan:
    fstype: str
    source: str
    options: tuple[str, ...] = ()


def test_several_mounts_are_all_or_none(scratch: Path) -> None:
    target = scratch / "target"
    target.mkdir()
    tmpfs = Plan("tmpfs", "tmpfs", ("size=1m", "nodev", "mode=0700"))
    mount.perform_all([tmpfs, tmpfs], target)
    first, second = mounts_below(target)
    assert (first.fstype, second.fstype) == ("tmpfs", "tmpfs")
    assert "nodev" in second.options and "size=1024k" in second.super_options
    release(target)
    assert not target.exists(), "release takes every mount away, and the mount point"

    target.mkdir()
    with pytest.raises(OSError) as failed:
        mount.perform_all([tmpfs, Plan("no-such-fs", "none")], target)
    assert failed.value.errno == errno.ENODEV
    assert mounts_below(target) == []


def test_bind_mounts(scratch: Path) -> None:
    source, target = scratch / "source", scratch / "target"
    (source / "below").mkdir(parents=True)
    target.mkdir()
    mount.perform("tmpfs", "tmpfs", [], source / "below")
    (source / "below" / "inner").touch()

    mount.perform("bind", str(source), ["bind"], target)
    assert os.listdir(target / "below") == [], "bind takes the directory without the mounts below it"
    umount(target)

    mount.perform("bind", str(source), ["rbind", "ro", "nodev"], target)
    assert os.listdir(target / "below") == ["inner"]
    for read_only in (target / "new", target / "below" / "new"):
        with pytest.raises(OSError) as refused:
            read_only.touch()
        assert refused.value.errno == errno.EROFS
    (source / "new").touch()
    umount(target, lazy=True)

    with pytest.raises(OSError, match="upperdir"):
        mount.perform("bind", str(source), ["bind", "upperdir=/x"], target)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        mount.perform("bind", str(scratch / "nowhere"), ["bind"], target)


def test_umount_follows_no_symlink_and_says_busy(scratch: Path) -> None:
    target = scratch / "target"
    target.mkdir()
    mount.perform("tmpfs", "tmpfs", [], target)
    (scratch / "link").symlink_to(target)
    with pytest.raises(OSError):
        umount(scratch / "link")
    with (target / "held").open("w"):
        with pytest.raises(OSError) as busy:
            umount(target)
        assert busy.value.errno == errno.EBUSY
        release(target)
        assert not target.exists()


def test_release_ends_copies_in_other_namespaces(scratch: Path) -> None:
    """A process that copied the mount namespace while a layer was mounted must not keep it for ever."""
    target = scratch / "target"
    target.mkdir()
    mount.perform("tmpfs", "layerfs-test-copy", [], target)
    copier = [need.tool("unshare"), "--mount", "--propagation", "private", "sh", "-c"]
    with subprocess.Popen([*copier, "echo up; read _"], stdin=-1, stdout=-1) as copy:
        assert copy.stdin and copy.stdout
        assert copy.stdout.readline() == b"up\n"
        assert b"layerfs-test-copy" in Path(f"/proc/{copy.pid}/mountinfo").read_bytes()
        release(target)
        assert b"layerfs-test-copy" not in Path(f"/proc/{copy.pid}/mountinfo").read_bytes()
        copy.stdin.close()


def test_release_keeps_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "target" / "kept").mkdir(parents=True)
    release(tmp_path / "target")
    assert (tmp_path / "target" / "kept").is_dir()
    release(tmp_path / "nowhere")


def test_overlay_in_a_user_namespace(tmp_path: Path) -> None:
    """Root of a user namespace mounts with userxattr, by the same ways."""
    need.overlay(tmp_path)
    layers = make_layers(tmp_path, ["a", "b:c"])
    (tmp_path / "merged").mkdir()
    script = (
        "import sys, pathlib; from layerfs.linux import mount, overlaymount, umount\n"
        "target = pathlib.Path(sys.argv[1])\n"
        "for perform in (lambda *a: mount.perform('overlay', *a), overlaymount.by_descriptor):\n"
        "    perform('overlay', ['userxattr', *sys.argv[2:]], target)\n"
        "    assert (target / 'same').read_text() == '0'\n"
        "    umount.umount(target)\n"
    )
    command = [need.tool("unshare"), "--user", "--map-root-user", "--mount", sys.executable, "-c", script]
    done = subprocess.run(
        [*command, tmp_path / "merged", *options_for(layers)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"needs user namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr

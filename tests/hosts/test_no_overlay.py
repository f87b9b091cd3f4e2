"""A kernel without overlay and the device mapper: the user is told so, and overlay's layers are mounted over
FUSE."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.cli.main import main
from layerfs.errors import NotSupported
from layerfs.linux.mountinfo import mount_of
from layerfs_drivers.overlay import DRIVER
from tests.cli.archives import layer, oci_layout
from tests.require import need

pytestmark = pytest.mark.host("no-overlay")

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line upon a store in ``tmp_path``."""

    def run(*words: str) -> str:
        capsys.readouterr()
        status = main(["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), *words])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return run


def test_overlay_works_all_the_same(run: Run, tmp_path: Path) -> None:
    told = {driver["name"]: driver for driver in json.loads(run("drivers", "--json"))}
    assert told["overlay"]["works"] and told["fuse"]["works"] and told["vfs"]["works"]
    assert all(driver["reason"] and driver["hint"] for driver in told.values() if not driver["works"])
    run("load", str(oci_layout(tmp_path / "layout", {"base:1": [layer({"file": b"x"})]})))
    assert json.loads(run("info", "--json"))["driver"] == "overlay"
    container = run("create", "base:1").strip()
    root = Path(run("mount", container).strip())
    assert mount_of(root).fstype == "fuse.layerfs"
    (root / "file").write_bytes(b"y")
    assert run("changes", container).split() == ["C", "/file"]
    run("umount", container)


@pytest.fixture
def kernel_learns_overlay() -> Iterator[Callable[[], None]]:
    """Loads the module into this kernel; afterwards it is gone again."""
    module = Path(f"/usr/lib/uml/modules/{os.uname().release}/kernel/fs/overlayfs/overlay.ko")

    def learn() -> None:
        subprocess.run([need.tool("insmod"), module], check=True)

    yield learn
    if Path("/sys/module/overlay").exists():
        subprocess.run([need.tool("rmmod"), "overlay"], check=True)


def test_a_store_made_without_overlay_opens_with_it(
    run: Run, tmp_path: Path, kernel_learns_overlay: Callable[[], None]
) -> None:
    """Load, mount, commit and save over FUSE, then the same store by the kernel."""
    base = layer({"file": b"x", "gone": b"", "dir/": b"", "dir/below": b""})
    run("load", str(oci_layout(tmp_path / "layout", {"base:1": [base]})))

    container = run("create", "base:1").strip()
    root = Path(run("mount", container).strip())
    assert mount_of(root).fstype == "fuse.layerfs"
    (root / "file").rename(root / "moved")
    (root / "file").write_text("new")
    (root / "gone").unlink()
    (root / "gone").mkdir()
    shutil.rmtree(root / "dir")
    (root / "dir").mkdir()
    (root / "dir" / "within").touch()
    run("umount", container)
    run("commit", container, "changed:1")
    run("save", "-o", str(tmp_path / "one.tar"), "changed:1")
    kept = run("create", "changed:1").strip()
    root = Path(run("mount", kept).strip())
    (root / "gone" / "kept").touch()
    run("umount", kept)
    kernel_learns_overlay()
    root = Path(run("mount", kept).strip())
    assert mount_of(root).fstype == "overlay"
    assert (root / "file").read_text() == "new"
    assert (root / "moved").read_text() == "x"
    assert os.listdir(root / "gone") == ["kept"]
    assert os.listdir(root / "dir") == ["within"]
    run("umount", kept)
    assert run("changes", kept).splitlines() == ["C /gone", "A /gone/kept"]
    run("save", "-o", str(tmp_path / "two.tar"), "changed:1")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_info_and_doctor_say_so_and_why(run: Run, tmp_path: Path) -> None:
    run("load", str(oci_layout(tmp_path / "layout", {"base:1": [layer({"file": b"x"})]})))
    for told in (run("info"), run("doctor")):
        assert "FUSE" in told
        assert "the kernel has no overlay" in told
        assert "modprobe overlay" in told


def test_without_fuse_both_reasons_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    with pytest.raises(NotSupported, match=r"the kernel has no overlay; nor over FUSE: no pyfuse3") as caught:
        DRIVER.probe(tmp_path / "home", tmp_path / "run")
    assert caught.value.hint == "modprobe overlay"

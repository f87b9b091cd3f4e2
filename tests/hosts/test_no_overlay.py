"""A kernel without overlay and the device mapper: the user is told so, and overlay's layers are mounted over
FUSE."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.cli.main import main
from layerfs.errors import NotSupported
from layerfs.linux.mountinfo import mount_of
from layerfs_drivers.overlay import DRIVER
from tests.cli.archives import layer, oci_layout

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

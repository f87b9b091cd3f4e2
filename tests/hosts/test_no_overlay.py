"""A kernel without overlay and the device mapper: the user is told so, and what works is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.cli.main import main
from layerfs.errors import NotSupported
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


def test_drivers_says_what_is_missing_and_the_mend(run: Run) -> None:
    told = {driver["name"]: driver for driver in json.loads(run("drivers", "--json"))}
    assert not told["overlay"]["works"]
    assert told["overlay"]["reason"] == "the kernel has no overlay"
    assert told["overlay"]["hint"] == "modprobe overlay"
    assert told["vfs"]["works"]
    assert all(driver["reason"] and driver["hint"] for driver in told.values() if not driver["works"])


def test_probing_says_the_same(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="the kernel has no overlay") as caught:
        DRIVER.probe(tmp_path / "home", tmp_path / "run")
    assert caught.value.hint == "modprobe overlay"


def test_an_image_is_loaded_with_vfs(run: Run, tmp_path: Path) -> None:
    run("load", str(oci_layout(tmp_path / "layout", {"base:1": [layer({"file": b"x"})]})))
    assert json.loads(run("info", "--json"))["driver"] == "vfs"
    root = Path(run("mount", run("create", "base:1").strip()).strip())
    assert (root / "file").read_bytes() == b"x"


def test_doctor_tells_why_the_first_choice_was_not_taken(run: Run) -> None:
    told = run("doctor")
    assert "the kernel has no overlay" in told, told
    assert "modprobe overlay" in told

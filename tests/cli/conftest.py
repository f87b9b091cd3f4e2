"""A store of its own for each test, worked through the command line, on each driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from layerfs.cli.main import main
from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from tests.cli.archives import layer, oci_layout
from tests.require import need

ROOT = Path(__file__).resolve().parents[2]

BASE = layer({"etc/": b"", "etc/passwd": b"root\n", "etc/hostname": b"base\n", "bin/": b"", "bin/sh": b"#!"})
APP = layer({"app/": b"", "app/main": b"x" * 5000, "etc/hostname": None})
OTHER = layer({"other/": b"", "other/file": b"other"})


def environment() -> dict[str, str]:
    """In which a process finds the layerfs that is tested."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "drivers"), *sys.path))}


@attrs.frozen
class Done:
    """What one command line did."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@attrs.frozen
class Cli:
    """Command lines upon one store."""

    base: Path
    driver: str
    capsys: pytest.CaptureFixture[str]

    @property
    def runroot(self) -> Path:
        return self.base / "run"

    @property
    def where(self) -> list[str]:
        return ["--root", str(self.base / "root"), "--runroot", str(self.runroot), "--driver", self.driver]

    def __call__(self, *words: str | Path, status: int = 0) -> Done:
        """Run in this process; the exit status must be ``status``."""
        self.capsys.readouterr()
        found = main([*self.where, *map(str, words)])
        captured = self.capsys.readouterr()
        assert found == status, captured.err
        return Done(found, captured.out, captured.err)

    def process(self, *words: str | Path, **keywords: Any) -> subprocess.CompletedProcess[bytes]:
        """Run as a process of its own."""
        options = {"capture_output": True, "env": environment(), **keywords}
        return subprocess.run(self._command(words), check=False, **options)

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """A process of its own, running."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self._command(words), env=environment(), stdin=pipe, stdout=pipe, stderr=pipe)

    def _command(self, words: Sequence[str | Path]) -> list[str]:
        return [sys.executable, "-m", "layerfs.cli", *self.where, *map(str, words)]

    def mounted(self) -> list[str]:
        """Every mount point of this store, the user's targets too."""
        return [os.fsdecode(entry.mount_point) for entry in mounts_below(self.base)]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user of this machine has set is not the test's."""
    for name in ("ROOT", "RUNROOT", "DRIVER", "DEBUG"):
        monkeypatch.delenv(f"LAYERFS_{name}", raising=False)


@pytest.fixture(params=["overlay", "vfs"])
def empty(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """No store yet."""
    need.root()
    if request.param == "overlay":
        need.overlay(tmp_path)
    yield Cli(tmp_path, request.param, capsys)
    for entry in reversed(mounts_below(tmp_path)):
        umount(Path(os.fsdecode(entry.mount_point)), lazy=True)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Three images; two share a layer, one has no name."""
    return oci_layout(
        tmp_path / "layout", {"base:1": [BASE], "quay.io/team/app:v2": [BASE, APP], "": [OTHER]}
    )


@pytest.fixture
def cli(empty: Cli, layout: Path) -> Cli:
    """A store with the images of ``layout``."""
    empty("load", layout)
    return empty

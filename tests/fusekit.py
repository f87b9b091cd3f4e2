"""Unions mounted over FUSE, as somebody at a shell mounts them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from layerfs.linux.fuseserver import server_of
from layerfs.linux.mountinfo import is_mount
from layerfs.linux.umount import umount
from tests.require import need


def layerfs_fuse(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-m", "layerfs.fuse", *map(str, words)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
    )


@attrs.frozen
class Ground:
    """Directories to stack, below ``place``."""

    place: Path

    @classmethod
    def make(cls, place: Path) -> Ground:
        ground = cls(place)
        for path in (*ground.lowers, ground.upper, ground.work, ground.root):
            path.mkdir(parents=True)
        return ground

    @property
    def lowers(self) -> tuple[Path, Path]:
        """Topmost first."""
        return self.place / "low1", self.place / "low2"

    @property
    def low(self) -> Path:
        return self.lowers[0]

    @property
    def upper(self) -> Path:
        return self.place / "upper"

    @property
    def work(self) -> Path:
        return self.place / "work"

    @property
    def root(self) -> Path:
        return self.place / "root"

    @property
    def log(self) -> Path:
        return self.place / "log"

    def options(self, *further: str) -> str:
        lower = ":".join(map(str, self.lowers))
        directories = f"lowerdir={lower},upperdir={self.upper},workdir={self.work},log={self.log}"
        return ",".join((directories, *further))

    def mount(self, *further: str) -> Path:
        done = layerfs_fuse("-o", self.options(*further), self.root)
        assert done.returncode == 0, done.stderr
        return self.root

    def umount(self) -> None:
        """And nothing went wrong meanwhile."""
        umount(self.root)
        assert not is_mount(self.root)
        deadline = time.monotonic() + 10
        while not (said := self.log.read_text()).endswith("ended with status 0\n"):
            assert time.monotonic() < deadline, said
            time.sleep(0.01)
        assert "Traceback" not in said, said

    @contextlib.contextmanager
    def by_us(self, *further: str) -> Iterator[Path]:
        yield self.mount(*further)
        self.umount()

    @contextlib.contextmanager
    def by_fuse_overlayfs(self, *further: str) -> Iterator[Path]:
        options = self.options(*further).replace(f",log={self.log}", "")
        subprocess.run([need.tool("fuse-overlayfs"), "-o", options, self.root], check=True)
        yield self.root
        umount(self.root)

    def again(self, *further: str) -> Path:
        self.umount()
        return self.mount(*further)

    @property
    def pid(self) -> int:
        server = server_of(self.root)
        assert server is not None
        return server.pid


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    need.root()
    need.fuse()
    return Ground.make(tmp_path)

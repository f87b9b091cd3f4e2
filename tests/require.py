"""What a test needs of the machine: skip with a reason where it is missing.

``LAYERFS_REQUIRE`` names needs, comma-separated, whose absence is a failure instead: ``all`` is every
one, ``-NAME`` excepts one. Continuous integration sets it, so a test that could run there can never be
skipped unseen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from layerfs.fuse.process import missing
from layerfs.linux.userns import in_user_namespace


class Need:
    """Each method returns when the need is met."""

    def __init__(self) -> None:
        self._has_overlay: set[int] = set()  # file systems where it was tried

    def missing(self, what: str, why: str) -> NoReturn:
        """Skip, or fail where ``what`` is required."""
        required = os.environ.get("LAYERFS_REQUIRE", "").split(",")
        if what in required or ("all" in required and f"-{what}" not in required):
            pytest.fail(f"{what} is required here but missing: {why}", pytrace=False)
        pytest.skip(f"needs {what}: {why}")

    def root(self) -> None:
        """Root of the host."""
        if os.geteuid() != 0:
            self.missing("root", f"running as uid {os.geteuid()}")
        if in_user_namespace():
            self.missing("root", "root of a user namespace only")

    def any_root(self) -> None:
        """Root of the host or of a user namespace."""
        if os.geteuid() != 0:
            self.missing("root", f"running as uid {os.geteuid()}")

    def tool(self, name: str) -> str:
        """The path of a program."""
        found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if found is None:
            self.missing(name, f"no program {name!r} on PATH")
        return found

    def overlay(self, where: Path) -> None:
        """Kernel overlay mounts with an upper directory below ``where``, by root of the host."""
        self.root()
        self.overlay_by_any_root(where)

    def overlay_by_any_root(self, where: Path) -> None:
        self.any_root()
        if where.stat().st_dev in self._has_overlay:
            return
        with tempfile.TemporaryDirectory(dir=where) as scratch:
            base = Path(scratch)
            for name in ("lower", "upper", "work", "merged"):
                (base / name).mkdir()
            options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
            if in_user_namespace():
                options += ",userxattr"
            done = subprocess.run(
                ["mount", "-t", "overlay", "overlay", "-o", options, str(base / "merged")],
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                self.missing("overlay", done.stderr.strip())
            subprocess.run(["umount", str(base / "merged")], check=True)
        self._has_overlay.add(where.stat().st_dev)

    def fuse(self) -> None:
        """Mounts by layerfs-fuse."""
        lacking, mend = missing()
        if lacking:
            self.missing("fuse", f"{lacking} ({mend})")

    def loop(self) -> None:
        self.root()
        if not Path("/dev/loop-control").exists():
            self.missing("loop", "no /dev/loop-control")

    def file_system(self, kind: str) -> None:
        """A file system of this ``kind`` (``btrfs``) can be made on a file and mounted."""
        self.loop()
        self.tool(f"mkfs.{kind}")
        if not _knows(kind):
            subprocess.run([self.tool("modprobe"), "-q", kind], capture_output=True)
            if not _knows(kind):
                self.missing(kind, "the kernel has no such file system")

    def selinux(self) -> None:
        """SELinux with a policy loaded."""
        if not Path("/sys/fs/selinux/enforce").exists():
            self.missing("selinux", "the kernel runs without it, or /sys/fs/selinux is not mounted")

    def userns(self) -> None:
        """An ordinary user can make a user namespace that maps a range of ids."""
        for tool in ("newuidmap", "unshare"):
            self.tool(tool)


def _knows(file_system: str) -> bool:
    return f"\t{file_system}\n" in Path("/proc/filesystems").read_text()


need = Need()

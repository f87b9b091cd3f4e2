"""A real image, made once from the machine's package mirror and kept below build/."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.plugin import HERE, INSIDE, host_of
from tests.require import need

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A kernel that runs tests in the background can read this machine's files, but not make any."""
    for item in items:
        if host_of(item) != HERE and not INSIDE and "debian_image" in getattr(item, "fixturenames", ()):
            with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
                make_image()
            return


@pytest.fixture(scope="session")
def debian_image() -> Path:
    """The OCI archive of ``make demo``: a Debian root, packages on top, files removed and replaced."""
    return make_image()


def make_image() -> Path:
    need.root()
    need.tool("mmdebstrap")
    archive = ROOT / "build/demo-image.tar"
    if not archive.exists():
        path = os.pathsep.join([str(ROOT), str(ROOT / "drivers")])
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts/demo_image.py"), str(archive)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        if done.returncode != 0:
            need.missing("mirror", done.stderr.strip()[-500:])
    return archive

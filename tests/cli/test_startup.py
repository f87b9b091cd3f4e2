"""Start-up is part of the product: what a warm ``layerfs mount`` may not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import Cli, environment

HEAVY = {
    # third parties, for drawing and for other formats
    "rich", "isal", "zstandard",
    # the standard library's dear ones
    "asyncio", "bz2", "concurrent.futures", "difflib", "email", "gzip", "http", "importlib.metadata", "json",
    "logging", "lzma", "shutil", "subprocess", "tarfile", "tempfile", "traceback", "unittest", "zipfile",
    # layers in and out
    "layerfs.archive.compression", "layerfs.archive.pack", "layerfs.archive.reader", "layerfs.archive.unpack",
    "layerfs.archive.writer", "layerfs.image.find", "layerfs.store.register",
    # other commands
    "layerfs.cli.containers", "layerfs.cli.host", "layerfs.cli.images", "layerfs.cli.progress",
}  # fmt: skip

_REPORT = """
import sys
before = set(sys.modules)
from layerfs.cli.main import main
status = main(sys.argv[1:])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


def loaded_by(cli: Cli, *words: str) -> set[str]:
    """The modules that one command line loads on top of the bare interpreter's."""
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, *cli.where, *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("command", ["mount", "umount"])
def test_a_warm_mount_loads_only_what_it_needs(cli: Cli, command: str) -> None:
    cli("create", "base:1", "--name", "c1")
    cli("mount", "c1")
    assert sorted(loaded_by(cli, command, "c1") & HEAVY) == []


def test_a_list_on_no_terminal_is_drawn_without_rich(cli: Cli) -> None:
    assert not {"rich", "importlib.metadata"} & loaded_by(cli, "images")

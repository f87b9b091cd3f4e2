"""Start-up is part of the product: what a warm ``layerfs mount`` may import (docs/benchmarks/startup.md)."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.conftest import Cli, environment

BUDGET = (
    "__future__", "argparse", "contextlib", "ctypes", "fcntl", "gc", "importlib", "locale", "pathlib",
    "sqlite3", "threading",
)  # fmt: skip
"""What a mount needs of the standard library; it may load whatever these load themselves. locale: argparse
loads it to translate its words."""

NOT_OURS = {
    # layers in and out
    "layerfs.archive.changes", "layerfs.archive.compression", "layerfs.archive.upperdiff",
    "layerfs.archive.mergedtree", "layerfs.archive.pack", "layerfs.archive.reader", "layerfs.archive.split",
    "layerfs.archive.unpack", "layerfs.archive.writer", "layerfs.image", "layerfs.linux.copytree",
    "layerfs.linux.command", "layerfs.linux.loop", "layerfs.linux.quota", "layerfs.linux.removetree",
    "layerfs.linux.zfsfuse", "layerfs.linux.fuseserver", "layerfs.fuse", "layerfs.union",
    # other journeys through the store
    "layerfs.store.check", "layerfs.store.images", "layerfs.store.layer", "layerfs.store.migration",
    "layerfs.store.pruning", "layerfs.store.recovery", "layerfs.store.register", "layerfs.store.removal",
    # other commands
    "layerfs.cli.complaint", "layerfs.cli.containers", "layerfs.cli.host", "layerfs.cli.images",
    "layerfs.cli.progress", "layerfs.cli.tables",
    # other sides of the driver
    "layerfs.overlay.limits", "layerfs.overlay.probe", "layerfs.archive.layerroot",
}  # fmt: skip
"""Modules of layerfs that a mount has no use for."""

_REPORT = """
import sys
before = set(sys.modules)
from layerfs.cli.main import main
status = main(sys.argv[1:])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=environment(), capture_output=True, text=True, check=True
    )


def loaded_by(cli: Cli, *words: str) -> set[str]:
    """The modules that one command line loads on top of the bare interpreter's."""
    return set(python("-c", _REPORT, *cli.where, *words).stderr.split())


def loaded_with_budget() -> set[str]:
    return set(python("-c", f"import sys, {', '.join(BUDGET)}; print(*sys.modules)").stdout.split())


def test_a_warm_mount_loads_only_what_it_needs(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    allowed = loaded_with_budget()
    # The first mounts and the second counts; so the other way round.
    for command in ("mount", "mount", "umount", "umount"):
        loaded = loaded_by(cli, command, "c1")
        foreign = {name for name in loaded - allowed if not name.startswith("layerfs")}
        assert sorted(foreign) == [], command
        assert sorted(loaded & NOT_OURS) == [], command


def test_a_list_on_no_terminal_is_drawn_without_rich(cli: Cli) -> None:
    assert not {"rich", "importlib.metadata"} & loaded_by(cli, "images")

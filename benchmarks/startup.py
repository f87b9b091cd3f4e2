"""How long the command line takes to start, beside the interpreter itself.

Runs, in turn, so that a noisy machine disturbs all alike: ``python -c pass``; the import of the standard
modules that a mount needs; a warm ``layerfs mount`` and its ``umount``, as installed beside the interpreter.
Prints medians, minima and the ratios of the minima, as the median tells more of what else the machine does.
Needs root, or a user namespace.

    python benchmarks/startup.py [RUNS]
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

STANDARD = "argparse, contextlib, ctypes, fcntl, gc, importlib, locale, pathlib, sqlite3, threading"
"""The budget that tests/cli/test_startup.py holds a mount to."""

LAYERFS = str(Path(sys.executable).with_name("layerfs"))

# Compiled modules are kept, as those of an installed package are.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(argv: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - begin


def make_container(root: Path) -> None:
    """A store with one container upon one small layer, by way of the library."""
    from layerfs import open_store

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("hello"))
    tar.seek(0)
    with open_store(root / "store", runroot=root / "run", driver="overlay") as store:
        layer = store.register(tar)
        store.create_rw("bench", layer.chain_id)


def measure(runs: int) -> dict[str, list[float]]:
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-") as scratch:
        root = Path(scratch)
        make_container(root)
        layerfs = [LAYERFS, "--root", str(root / "store"), "--runroot", str(root / "run")]
        commands = {
            "interpreter": [*python, "pass"],
            "standard modules": [*python, f"import {STANDARD}"],
            "mount": [*layerfs, "mount", "bench"],
            "umount": [*layerfs, "umount", "bench"],
        }
        for argv in commands.values():
            seconds(argv)  # compiles what is not compiled yet
        figures: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, argv in commands.items():
                figures[name].append(seconds(argv))
    return figures


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    figures = measure(runs)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    minima = {name: min(values) for name, values in figures.items()}
    result = {
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "processors": os.cpu_count(),
        "runs": runs,
        "median_ms": {name: round(value * 1000, 1) for name, value in medians.items()},
        "minimum_ms": {name: round(value * 1000, 1) for name, value in minima.items()},
        "mount_over_interpreter": round(minima["mount"] / minima["interpreter"], 2),
        "mount_over_standard_modules": round(minima["mount"] / minima["standard modules"], 2),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How long the command line takes to start, beside the interpreter itself.

Runs ``python -c pass`` and a warm ``layerfs mount`` (with its ``umount``, uncounted) in turn, so that a
noisy machine disturbs both alike, and prints the ratio of their medians. Needs root, or a user namespace.

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

LAYERFS = [sys.executable, "-m", "layerfs.cli.main"]


def seconds(argv: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def make_container(base: list[str], root: Path) -> None:
    """A store with one container upon one small layer, by way of the library."""
    from layerfs import open_store

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("hello"))
    tar.seek(0)
    with open_store(root / "store", runroot=root / "run", driver="overlay") as store:
        layer = store.register(tar)
        store.create_rw("bench", layer.chain_id)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-") as scratch:
        root = Path(scratch)
        base = [*LAYERFS, "--root", str(root / "store"), "--runroot", str(root / "run")]
        make_container(base, root)
        figures: dict[str, list[float]] = {"interpreter": [], "mount": []}
        for _ in range(runs):
            figures["interpreter"].append(seconds([sys.executable, "-c", "pass"]))
            figures["mount"].append(seconds([*base, "mount", "bench"]))
            seconds([*base, "umount", "bench"])
    medians = {name: statistics.median(values) for name, values in figures.items()}
    result = {
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "runs": runs,
        "median_ms": {name: round(value * 1000, 1) for name, value in medians.items()},
        "minimum_ms": {name: round(min(values) * 1000, 1) for name, values in figures.items()},
        "mount_over_interpreter": round(medians["mount"] / medians["interpreter"], 2),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Draws where the time of ``layerfs load`` goes, as one SVG to click into.

    python -m benchmarks.flame [OUTPUT.svg [IMAGE.tar]]

py-spy samples all threads that run, a hundred times a second, with the frames of Python and those of
libraries in C. What the kernel does is in the system call at the tip: ``openat``, ``write``, ``fchown``.
Without an image it is the Debian image of the benchmarks. The program stands still for each sample, so it
takes longer than alone: what counts are the shares. Needs root, for a file system of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "drivers")]

from benchmarks import images  # noqa: E402
from benchmarks.runner import own_ext4  # noqa: E402


def main(words: list[str]) -> None:
    sampler = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if sampler is None:
        sys.exit("no py-spy: pip install -e '.[bench]'")
    output = Path(words[0]) if words else ROOT / "build/benchmarks/load.svg"
    image = Path(words[1]) if len(words) > 1 else images.debian("gzip").tar
    output.parent.mkdir(parents=True, exist_ok=True)
    with own_ext4() as scratch:
        store = ["--root", f"{scratch}/store", "--runroot", f"{scratch}/run"]
        sample = [sampler, "record", "--native", "--subprocesses", "--nolineno", "--output", str(output)]
        load = [sys.executable, "-m", "layerfs.cli", *store, "load", str(image)]
        subprocess.run([*sample, "--", *load], check=True, stdout=subprocess.DEVNULL)
    output.write_text(output.read_text().replace(f"{ROOT}/", ""))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Tells where the time of ``layerfs load`` goes: a flame graph, as one SVG to click into, and the shares of
libraries and of the kernel, as a table.

    python -m benchmarks.flame [OUTPUT.svg [IMAGE.tar]]

py-spy draws: it samples all threads that run, a hundred times a second, with the frames of Python and those
of libraries in C. What the kernel does is in the system call at the tip: ``openat``, ``write``, ``fchown``.
The program stands still for each sample, so it takes longer than alone: what counts are the shares. perf,
where it is installed, counts the processor time of a second load. Without an image it is the Debian image of
the benchmarks. Needs root, for a file system of its own.
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

_LEAST = "1"
"""Per cent: smaller shares are left out of the table."""


def main(words: list[str]) -> None:
    sampler = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if sampler is None:
        sys.exit("no py-spy: pip install -e '.[bench]'")
    output = Path(words[0]) if words else ROOT / "build/benchmarks/load.svg"
    image = Path(words[1]) if len(words) > 1 else images.debian("gzip").tar
    output.parent.mkdir(parents=True, exist_ok=True)
    with own_ext4() as scratch:

        def load_under(*tool: str, store: str) -> None:
            base = ["--root", f"{scratch}/{store}", "--runroot", f"{scratch}/{store}-run"]
            argv = [*tool, "--", sys.executable, "-m", "layerfs.cli", *base, "load", str(image)]
            subprocess.run(argv, check=True, capture_output=True)

        drawing = ("record", "--native", "--subprocesses", "--nolineno", "--output", str(output))
        load_under(sampler, *drawing, store="drawn")
        output.write_text(output.read_text().replace(f"{ROOT}/", "").replace(f"{scratch}/", ""))
        sys.stdout.write(f"{output}\n")
        if shutil.which("perf"):
            data = f"{scratch}/perf"
            load_under("perf", "record", "-e", "cpu-clock", "-F", "997", "-o", data, store="counted")
            report = ("perf", "report", "-i", data, "--sort", "dso", "--percent-limit", _LEAST, "--stdio")
            lines = subprocess.run(report, check=True, capture_output=True, text=True).stdout.splitlines()
            sys.stdout.write("\n".join(line for line in lines if line and not line.startswith("#")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

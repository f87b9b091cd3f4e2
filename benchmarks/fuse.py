"""layerfs's union over FUSE beside fuse-overlayfs and the kernel's overlay, doing the same things.

    python benchmarks/fuse.py [--only NAME...] [--repeat N] [--files N] [--json]

All stack the same three lower directories. Each repetition does each thing once with each of them, one after
the other, so that a noisy machine disturbs all alike; ``cold`` ones start with empty caches. Prints
Markdown: milliseconds, the best of the repetitions, and how many times that of fuse-overlayfs. Needs root and
the packages that the tests need.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "drivers")]

from layerfs.linux.mount import perform  # noqa: E402
from layerfs.linux.umount import release  # noqa: E402

FIRST = "fuse-overlayfs"
OTHERS = ("layerfs", "kernel overlay")
MIB = 1 << 20


@frozen
class Ground:
    """The directories of one mount, and the tar that is unpacked in it."""

    place: Path
    lowers: tuple[Path, ...]
    tar: Path

    @property
    def root(self) -> Path:
        return self.place / "root"


def find(root: Path) -> None:
    """Every name with its attributes."""
    subprocess.run(["find", root / "tree", "-size", "+1000k"], check=True, stdout=subprocess.DEVNULL)


def list_names(root: Path) -> None:
    for directory, _, _ in os.walk(root / "tree"):
        os.listdir(directory)


def pack(root: Path) -> None:
    with subprocess.Popen(["tar", "-cC", root, "tree"], stdout=subprocess.PIPE) as tar:
        assert tar.stdout
        while tar.stdout.read(MIB):
            pass


def read_all(root: Path) -> None:
    for directory, _, names in os.walk(root / "tree"):
        for name in names:
            Path(directory, name).read_bytes()


def read_big(root: Path) -> None:
    with (root / "big").open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def write_big(root: Path) -> None:
    block = b"x" * MIB
    with (root / "written").open("wb", buffering=0) as file:
        for _ in range(256):
            file.write(block)


def write_small(root: Path) -> None:
    """4 KiB at a time."""
    block = b"x" * 4096
    with (root / "written").open("wb", buffering=0) as file:
        for _ in range(16 * 256):
            file.write(block)


def create(root: Path) -> None:
    """Files in one directory."""
    (root / "many").mkdir()
    for number in range(2000):
        os.close(os.open(root / "many" / str(number), os.O_CREAT | os.O_WRONLY))


def copy_up(root: Path) -> None:
    for directory, _, names in os.walk(root / "tree"):
        for name in names:
            os.chmod(os.path.join(directory, name), 0o600)


def remove(root: Path) -> None:
    shutil.rmtree(root / "tree")


@frozen
class Work:
    name: str
    do: Callable[[Path], None]
    cold: bool = False


def works(tar: Path) -> list[Work]:
    def unpack(root: Path) -> None:
        (root / "untar").mkdir()
        subprocess.run(["tar", "-xf", tar, "-C", root / "untar"], check=True)

    return [
        Work("find, cold", find, cold=True),
        Work("find, warm", find),
        Work("names alone, cold", list_names, cold=True),
        Work("tar, cold", pack, cold=True),
        Work("read all files, cold", read_all, cold=True),
        Work("read 256 MiB, cold", read_big, cold=True),
        Work("write 256 MiB by 1 MiB", write_big),
        Work("write 16 MiB by 4 KiB", write_small),
        Work("create 2000 files", create),
        Work("untar", unpack),
        Work("copy up all files", copy_up),
        Work("remove all files", remove),
    ]


@contextmanager
def mounted(how: str, ground: Ground) -> Iterator[Path]:
    for name in ("upper", "work", "root"):
        (ground.place / name).mkdir()
    lower = ":".join(map(str, ground.lowers))
    options = [f"lowerdir={lower}", f"upperdir={ground.place}/upper", f"workdir={ground.place}/work"]
    if how == FIRST:
        subprocess.run([FIRST, "-o", ",".join(options), ground.root], check=True, stderr=subprocess.DEVNULL)
    elif how == "layerfs":
        perform("fuse.layerfs", "layerfs", options, ground.root)
    else:
        perform("overlay", "overlay", options, ground.root)
    try:
        yield ground.root
    finally:
        release(ground.root)
        shutil.rmtree(ground.place)
        ground.place.mkdir()


def make_lowers(place: Path, files: int) -> tuple[Path, ...]:
    chance = random.Random(1)
    lowers = tuple(place / f"low{number}" for number in range(3))
    for number in range(files):
        directory = chance.choice(lowers) / "tree" / f"d{number % 50}" / f"e{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}").write_bytes(chance.randbytes(int(chance.expovariate(1 / 8000))))
    (lowers[0] / "big").write_bytes(bytes(256 * MIB))
    return lowers


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(ground: Ground, wanted: list[str], repeat: int) -> dict[str, dict[str, list[float]]]:
    chosen = [work for work in works(ground.tar) if not wanted or work.name in wanted]
    timed: dict[str, dict[str, list[float]]] = {work.name: {} for work in chosen}
    for _ in range(repeat):
        for work in chosen:
            for how in (FIRST, *OTHERS):
                with mounted(how, ground) as root:
                    if work.cold:
                        drop_caches()
                    elif work.do is find:
                        find(root)
                    start = time.perf_counter()
                    work.do(root)
                    timed[work.name].setdefault(how, []).append(time.perf_counter() - start)
    return timed


def table(timed: dict[str, dict[str, list[float]]]) -> str:
    lines = [f"| | {FIRST} | " + " | ".join(OTHERS) + " |", "|---|--:|" + "--:|" * len(OTHERS)]
    for name, by_how in timed.items():
        first = min(by_how[FIRST])
        cells = [f"{first * 1000:.0f}"]
        cells += [f"{min(by_how[how]) * 1000:.0f} ({min(by_how[how]) / first:.2f})" for how in OTHERS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-") as scratch:
        place = Path(scratch)
        lowers = make_lowers(place, args.files)
        tar = place / "tree.tar"
        subprocess.run(["tar", "-cf", tar, "-C", lowers[0], "tree"], check=True)
        ground = Ground(place / "mount", lowers, tar)
        ground.place.mkdir()
        timed = measure(ground, args.only, args.repeat)
    if args.json:
        told = {name: {how: [*map(float, t)] for how, t in by.items()} for name, by in timed.items()}
        medians = {name: {how: statistics.median(t) for how, t in by.items()} for name, by in timed.items()}
        sys.stdout.write(json.dumps({"host": platform.platform(), "runs": told, "medians": medians}))
    else:
        sys.stdout.write(table(timed) + "\n")


if __name__ == "__main__":
    main()

"""What each driver costs, beside overlay, and what the cost of ``changes`` follows.

    python benchmarks/drivers.py [--drivers NAME...] [--files N...] [--changes N...] [--repeat N]
                                 [--kernel HOST] [--plot FILE] [--json]

For every driver that works here a store is made in a place of its own (:mod:`benchmarks.places`), with an
image of one layer for each number of files. Then, in turn for all drivers so that a noisy machine disturbs
all alike, a container is made of it, mounted, changed, unmounted, compared, read as a tar, committed and
removed, each timed by itself: the calls of the library, with warm caches. ``--files`` and ``--changes`` are
varied one at a time, around the middle one of the other.

``--kernel thin`` runs the same on the user-mode kernel of that name in tests/hosts/machines.py, for drivers
that this machine's kernel has no module for. Its system calls are slow, so what can be compared are ratios to
overlay there.

Prints Markdown: milliseconds, the best of the repetitions, in brackets how many times overlay's. With
``--json`` all of it, medians and the facts of the host. Needs root, and the packages that the tests need.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "drivers")]

from benchmarks.places import place  # noqa: E402
from layerfs import Layer, LayerfsError, Store, open_store  # noqa: E402
from layerfs.linux.mountinfo import mount_of  # noqa: E402
from layerfs.registry import installed  # noqa: E402

OPERATIONS = ("create", "mount", "umount", "changes", "diff", "commit", "remove")
FIRST = "overlay"
"""What the others are compared with."""

FILES = (1_000, 4_000, 16_000)
CHANGES = (1, 100, 1_000)
IN_A_DIRECTORY = 100
CHANGED_IN_A_DIRECTORY = 25
CONTENT = bytes(range(256)) * 4

Seconds = dict[str, float]
Json = dict[str, Any]


@define
class Subject:
    """One driver being measured."""

    name: str
    fstype: str
    store: Store
    layers: dict[int, Layer] = field(factory=dict)
    """By number of files."""
    timed: dict[tuple[int, int], list[Seconds]] = field(factory=dict)
    """By number of files and of changes."""


def image(files: int) -> io.BytesIO:
    """The tar of a layer of so many files of a kilobyte each."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for number in range(files):
            if number % IN_A_DIRECTORY == 0:
                directory = tarfile.TarInfo(str(_path(number).parent))
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(directory)
            member = tarfile.TarInfo(str(_path(number)))
            member.size = len(CONTENT)
            tar.addfile(member, io.BytesIO(CONTENT))
    made.seek(0)
    return made


def _path(number: int) -> Path:
    return Path(f"d{number // IN_A_DIRECTORY:04}", f"f{number % IN_A_DIRECTORY:02}")


def change(root: Path, files: int, changes: int) -> int:
    """Write, remove and add files. The answer: how many changes that makes, with the directories they are in.

    The directories lie all over the tree, but how many there are depends on ``changes`` alone.
    """
    directories = math.ceil(changes / CHANGED_IN_A_DIRECTORY)
    apart = files // IN_A_DIRECTORY // directories * IN_A_DIRECTORY
    assert apart, f"{changes} changes need at least {directories * IN_A_DIRECTORY} files"
    for number in range(changes):
        directory, within = divmod(number, CHANGED_IN_A_DIRECTORY)
        file = root / _path(directory * apart + within)
        match number % 3:
            case 0:
                file.write_bytes(b"changed")
            case 1:
                file.unlink()
            case 2:
                file.with_name(f"new{number}").write_bytes(CONTENT)
    return changes + directories


def cycle(subject: Subject, files: int, changes: int) -> Seconds:
    """The life of one container."""
    store, layer = subject.store, subject.layers[files]
    seconds: Seconds = {}

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - begin

    with timed("create"):
        container = store.create_rw("bench", layer.chain_id)
    with timed("mount"):
        root = container.mount()
    expected = change(root, files, changes)
    with timed("umount"):
        container.umount()
    with timed("changes"):
        found = sum(1 for _ in container.changes())
    assert found == expected, (subject.name, files, changes, found)
    with timed("diff"), container.diff() as tar:
        while tar.read(1 << 20):
            pass
    with timed("commit"):
        committed = container.commit()
    with timed("remove"):
        container.remove()
    committed.release()
    store.prune([committed.chain_id])
    return seconds


@contextlib.contextmanager
def subjects(names: Sequence[str], files: Iterable[int]) -> Iterator[list[Subject]]:
    """The drivers that work here, each with its images. Why one does not goes to standard error."""
    with contextlib.ExitStack() as held:
        found = []
        for name in names:
            try:
                where = held.enter_context(place(name))
                store = open_store(
                    where.base / "store", runroot=where.base / "run", driver=name, options=where.options
                )
            except LayerfsError as error:
                sys.stderr.write(f"without {name}: {str(error).splitlines()[0]}\n")
                continue
            held.enter_context(store)
            found.append(Subject(name, where.fstype, store))
        for subject in found:
            for count in files:
                subject.layers[count] = held.enter_context(subject.store.register(image(count)))
        os.sync()
        yield found


def measure(names: Sequence[str], files: Sequence[int], changes: Sequence[int], repeat: int) -> Json:
    """``files`` and ``changes`` varied one at a time, for all drivers in turn."""
    middle = (files[len(files) // 2], changes[len(changes) // 2])
    pairs = sorted({(count, middle[1]) for count in files} | {(middle[0], count) for count in changes})
    with subjects(names, files) as found:
        for _, pair, subject in itertools.product(range(repeat), pairs, found):
            subject.timed.setdefault(pair, []).append(cycle(subject, *pair))
    return {
        "host": {
            "python": platform.python_version(),
            "kernel": os.uname().release,
            "processors": os.cpu_count(),
            "scratch": mount_of(Path(tempfile.gettempdir())).fstype,
        },
        "repeat": repeat,
        "middle": {"files": middle[0], "changes": middle[1]},
        "upon": {subject.name: subject.fstype for subject in found},
        "figures": [
            {
                "driver": subject.name,
                "files": pair[0],
                "changes": pair[1],
                "minimum_ms": {name: _ms(min(one[name] for one in cycles)) for name in OPERATIONS},
                "median_ms": {
                    name: _ms(statistics.median(one[name] for one in cycles)) for name in OPERATIONS
                },
            }
            for subject in found
            for pair, cycles in sorted(subject.timed.items())
        ],
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def measure_in(host: str, words: Sequence[str]) -> Json:
    """The same under another kernel."""
    import pytest

    from tests.hosts.machines import HOSTS
    from tests.hosts.uml import Kernel, check

    try:
        check(HOSTS[host])
    except pytest.skip.Exception as missing:
        sys.exit(f"no {host} here: {missing}")
    inside = "import sys; from benchmarks import drivers; from tests.hosts.uml import tell; "
    inside += "tell(drivers.measure(**drivers.arguments(sys.argv[1:]).measured))"
    kernel = Kernel(HOSTS[host], [sys.executable, "-c", inside, *words], "", {}, ROOT)
    try:
        while kernel.running():
            time.sleep(0.2)
        sys.stderr.write(kernel.console())
        told: list[Json] = list(kernel.told())
        return told[0] if told else sys.exit(f"{host} told nothing")
    finally:
        kernel.stop()


class Tables:
    """The figures as Markdown."""

    def __init__(self, result: Json) -> None:
        self.drivers = list(result["upon"])
        self.files, self.changes = result["middle"]["files"], result["middle"]["changes"]
        self.figures = {
            (one["driver"], one["files"], one["changes"]): one["minimum_ms"] for one in result["figures"]
        }
        self.varied = sorted({pair[1:] for pair in self.figures})

    def __str__(self) -> str:
        middle = (self.files, self.changes)
        return "\n\n".join(
            (
                f"{self.changes:,} changes in an image of {self.files:,} files, ms:",
                self._table("", {name: (middle, name) for name in OPERATIONS}),
                f"`changes`, {self.changes:,} of them, in images of more and more files, ms:",
                self._table(
                    "files", {f"{n:,}": ((n, k), "changes") for n, k in self.varied if k == self.changes}
                ),
                f"`changes`, more and more of them, in an image of {self.files:,} files, ms:",
                self._table(
                    "changes", {f"{k:,}": ((n, k), "changes") for n, k in self.varied if n == self.files}
                ),
            )
        )

    def _table(self, head: str, rows: dict[str, tuple[tuple[int, int], str]]) -> str:
        lines = [[head, *self.drivers], ["---", *["---:"] * len(self.drivers)]]
        for title, (pair, operation) in rows.items():
            lines.append([title, *(self._cell(name, pair, operation) for name in self.drivers)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def _cell(self, driver: str, pair: tuple[int, int], operation: str) -> str:
        figure = self.figures[driver, *pair][operation]
        shown = f"{figure:.1f}" if figure < 100 else f"{figure:,.0f}"
        if driver == FIRST or FIRST not in self.drivers:
            return shown
        ratio = figure / self.figures[FIRST, *pair][operation]
        return f"{shown} ({ratio:.1f})" if ratio < 10 else f"{shown} ({ratio:,.0f})"


def plot(result: Json, file: str) -> None:
    """``changes`` over the size of the image, and over the number of changes."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"
    tables = Tables(result)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, varied, fixed in ((axes[0], 0, tables.changes), (axes[1], 1, tables.files)):
        pairs = [pair for pair in tables.varied if pair[1 - varied] == fixed]
        for driver in tables.drivers:
            times = [tables.figures[driver, *pair]["changes"] for pair in pairs]
            axis.plot([pair[varied] for pair in pairs], times, marker="o", label=driver)
        axis.set(xscale="log", yscale="log", xlabel=("files in the image", "changes")[varied])
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="changes, ms", title=f"{tables.changes:,} changes")
    axes[1].set(title=f"{tables.files:,} files")
    axes[0].legend()
    figure.savefig(file, metadata={"Date": None})


class Arguments(argparse.Namespace):
    drivers: list[str]
    files: list[int]
    changes: list[int]
    repeat: int
    kernel: str | None
    plot: str | None
    json: bool

    @property
    def measured(self) -> dict[str, Any]:
        return {
            "names": sorted(self.drivers, key=lambda name: name != FIRST),
            "files": sorted(self.files),
            "changes": sorted(self.changes),
            "repeat": self.repeat,
        }


def arguments(words: Sequence[str]) -> Arguments:
    parser = argparse.ArgumentParser(description="What each driver costs.")
    known = [found.info.name for found in installed()]
    parser.add_argument("--drivers", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--files", nargs="+", type=int, default=FILES, metavar="N")
    parser.add_argument("--changes", nargs="+", type=int, default=CHANGES, metavar="N")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--kernel", metavar="HOST", help="on this host of tests/hosts/machines.py")
    parser.add_argument("--plot", metavar="FILE", help="draw how the cost of changes grows")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(words, namespace=Arguments())


def main() -> None:
    words = sys.argv[1:]
    args = arguments(words)
    result = measure_in(args.kernel, words) if args.kernel else measure(**args.measured)
    if args.plot:
        plot(result, args.plot)
    sys.stdout.write((json.dumps(result, indent=2) if args.json else str(Tables(result))) + "\n")


if __name__ == "__main__":
    main()

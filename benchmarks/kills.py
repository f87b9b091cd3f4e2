"""Kills a load at a random moment, over and over, and looks at what the store is then: layerfs beside
containers/storage, each by its own command line, on this machine::

    python -m benchmarks.kills --runs 100 --seed 1 [--place DIR] [SUBJECT ...]

A store holds one image. Another, of twelve layers that share nothing with it, is loaded in a process group
that is killed after a time drawn evenly from what an undisturbed load takes, until so many were killed: a
load may be done before. Then, with nothing but ordinary commands:

- the store must open, and the first image be whole, file by file;
- the second one, if it is listed, must be whole;
- to load it again must succeed, and it must then be whole;
- when it is removed again, and the store pruned, nothing may be left that was not there before.

Each run begins with a copy of the same store. ^C ends the runs of a subject early. Needs root, podman and
skopeo.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attrs import define, field, frozen

from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from layerfs.testing.entries import directory, file, tar_bytes
from tests.imaging import Layout

KEPT, NEW = "quay.io/kills/kept:1", "quay.io/kills/new:1"
_LAYERS = 12
_FILES = 60
_PATIENCE = 120.0
"""Seconds that any command may take before it counts as hung."""


class Broken(Exception):
    """What a user would see go wrong."""


def run(*words: str | Path) -> str:
    try:
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise Broken("a command hangs") from None
    if done.returncode:
        raise Broken(done.stderr.strip().splitlines()[-1][-300:] if done.stderr.strip() else "it failed")
    return done.stdout


@frozen
class Layerfs:
    """The overlay driver."""

    base: Path
    name: str = "layerfs load"

    def _words(self) -> list[str | Path]:
        program = Path(sys.executable).with_name("layerfs")
        return [program, "--root", self.base / "root", "--runroot", self.base / "run"]

    def prepare(self) -> None:
        """The first load makes it."""

    def load(self, archive: Path, name: str) -> list[str | Path]:
        return [*self._words(), "--driver", "overlay", "load", archive]

    def images(self) -> list[str]:
        listed = json.loads(run(*self._words(), "images", "--json"))
        return [name for image in listed for name in image["names"]]

    @contextlib.contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        root = Path(run(*self._words(), "mount", name).strip())
        try:
            yield root
        finally:
            run(*self._words(), "umount", name)

    def remove(self, name: str) -> None:
        run(*self._words(), "rmi", name)
        run(*self._words(), "prune")

    def held(self) -> set[str]:
        return {
            str(path.relative_to(self.base))
            for place in (
                "root/overlay",
                "root/overlay/.removing",
                "root/split",
                "root/tmp",
                "root/owners",
                "run/overlay/mnt",
            )
            for path in (self.base / place).glob("*")
            if path.name != ".removing"
        }


@frozen
class Podman:
    """containers/storage with its driver overlay, filled by Podman or by skopeo."""

    base: Path
    name: str = "podman load"
    skopeo: bool = False

    def _words(self) -> list[str | Path]:
        runroot = self.base / "run"
        return ["podman", "--root", self.base / "root", "--runroot", runroot, "--storage-driver", "overlay"]

    def prepare(self) -> None:
        run(*self._words(), "images")

    def load(self, archive: Path, name: str) -> list[str | Path]:
        if self.skopeo:
            where = f"[overlay@{self.base}/root+{self.base}/run]"
            policy = ["--insecure-policy"]
            return ["skopeo", *policy, "copy", f"oci-archive:{archive}", f"containers-storage:{where}{name}"]
        return [*self._words(), "load", "--input", archive]

    def images(self) -> list[str]:
        listed = json.loads(run(*self._words(), "images", "--format", "json") or "[]")
        return [name for image in listed or () for name in image.get("Names") or ()]

    @contextlib.contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        root = Path(run(*self._words(), "image", "mount", name).strip())
        try:
            yield root
        finally:
            run(*self._words(), "image", "umount", name)

    def remove(self, name: str) -> None:
        run(*self._words(), "rmi", name)
        run(*self._words(), "system", "prune", "--force")

    def held(self) -> set[str]:
        layers = self.base / "root/overlay-layers"
        known = {
            f"known layer {one['id']}" for one in json.loads((layers / "layers.json").read_text() or "[]")
        }
        files = {
            str(path.relative_to(self.base))
            for place in ("root/overlay", "root/overlay-layers", "root/overlay-images", "root/tmp")
            for path in (self.base / place).glob("*")
        }
        return files | known


Subject = Layerfs | Podman

SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "layerfs": Layerfs,
    "podman": Podman,
    "skopeo": lambda base: Podman(base, "skopeo copy", skopeo=True),
}


@define
class Tally:
    """What became of the runs of one subject."""

    runs: int = 0
    killed: int = 0
    outcomes: Counter[str] = field(factory=Counter)
    examples: dict[str, str] = field(factory=dict)

    def note(self, what: str, detail: str) -> None:
        self.outcomes[what] += 1
        self.examples.setdefault(what, detail)


# --- images ----------------------------------------------------------------------------------


def archive(path: Path, name: str, seed: int, layers: int) -> dict[str, str]:
    """An OCI archive of one image; what its root must hold, each file by its digest."""
    draw = random.Random(seed)
    expected: dict[str, str] = {}
    tars = []
    for number in range(layers):
        items = [directory(b"l%d" % number)]
        for n in range(_FILES):
            content = draw.randbytes(draw.choice((10, 1000, 20_000)))
            items.append(file(b"l%d/%d" % (number, n), content))
            expected[f"l{number}/{n}"] = hashlib.sha256(content).hexdigest()
        tars.append(tar_bytes(items))
    layout = Layout()
    layout.add(layout.image(tars), name)
    path.write_bytes(layout.tar())
    return expected


def found_in(root: Path) -> dict[str, str]:
    found = {}
    for path in root.rglob("*"):
        if stat.S_ISREG(path.lstat().st_mode):
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# --- runs ------------------------------------------------------------------------------------


def trial(
    subject: Subject, tally: Tally, delay: float, new: Path, expected: dict[str, dict[str, str]]
) -> None:
    """One run, upon a store as it was in the beginning."""
    before = subject.held()
    if kill(subject.load(new, NEW), delay):
        tally.killed += 1

    def whole(name: str) -> None:
        with subject.mounted(name) as root:
            if found_in(root) != expected[name]:
                raise Broken(f"{name} has other files")

    def step(what: str, do: Callable[[], None]) -> bool:
        try:
            do()
        except Broken as error:
            tally.note(what, str(error))
            return False
        return True

    listed: list[str] = []
    if not step("the store does not open", lambda: listed.extend(subject.images())):
        return
    if KEPT not in listed:
        tally.note("an image is lost", KEPT)
    else:
        step("an image is damaged", lambda: whole(KEPT))
    if NEW in listed:
        step("an image is listed, but not whole", lambda: whole(NEW))
    if not step("it cannot be loaded again", lambda: void(run(*subject.load(new, NEW)))):
        return
    step("loaded again, it is not whole", lambda: whole(NEW))
    if step("it cannot be removed", lambda: subject.remove(NEW)):
        left = subject.held() - before
        if left:
            tally.note("something is left for ever", ", ".join(sorted(left))[:300])


def void(_: object) -> None: ...


def kill(words: Sequence[str | Path], delay: float) -> bool:
    """Run a command and kill its process group after ``delay`` seconds. False: it was faster."""
    child = subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        child.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def unmounted(base: Path) -> None:
    for mount in reversed(mounts_below(base)):
        umount(Path(os.fsdecode(mount.mount_point)), lazy=True)


def measured(
    make: Callable[[Path], Subject], place: Path, runs: int, seed: int, archives: dict[str, Path],
    expected: dict[str, dict[str, str]],
) -> tuple[Subject, Tally, float]:  # fmt: skip
    base = place / "store"
    subject = make(base)
    base.mkdir()
    subject.prepare()
    run(*subject.load(archives[KEPT], KEPT))
    pristine = place / "pristine"
    unmounted(base)
    copy(base, pristine)

    def anew() -> None:
        unmounted(base)
        shutil.rmtree(base)
        copy(pristine, base)

    def timed() -> float:
        anew()
        begun = time.monotonic()
        run(*subject.load(archives[NEW], NEW))
        return time.monotonic() - begun

    takes = min(timed() for _ in range(3))
    draw = random.Random(seed)
    tally = Tally()
    try:
        while tally.killed < runs:
            anew()
            trial(subject, tally, draw.uniform(0, takes), archives[NEW], expected)
            tally.runs += 1
    except KeyboardInterrupt:
        pass  # what was found so far
    finally:
        unmounted(base)
        shutil.rmtree(base)
        shutil.rmtree(pristine)
    return subject, tally, takes


def copy(source: Path, target: Path) -> None:
    """With all attributes: overlay's marks are among them."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill loads and look at what the store is then.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--runs", type=int, default=100, help="loads to be killed, for each (100)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments to kill at")
    parser.add_argument("--place", type=Path, help="a directory to work in, on a file system for overlay")
    words = parser.parse_args()
    # Podman refuses a runroot of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="kills-", dir=words.place) as place:
        archives = {KEPT: Path(place) / "kept.tar", NEW: Path(place) / "new.tar"}
        expected = {
            KEPT: archive(archives[KEPT], KEPT, 1, 3),
            NEW: archive(archives[NEW], NEW, 2, _LAYERS),
        }
        for name in words.subjects or SUBJECTS:
            subject, tally, takes = measured(
                SUBJECTS[name], Path(place), words.runs, words.seed, archives, expected
            )
            sys.stdout.write(
                f"{subject.name}: {tally.killed} of {tally.runs} runs killed within {takes:.2f} s\n"
            )
            for what, count in tally.outcomes.most_common():
                sys.stdout.write(f"  {count} times {what}: {tally.examples[what]}\n")
            if not tally.outcomes:
                sys.stdout.write("  nothing wrong\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

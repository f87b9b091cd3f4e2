"""The union beside kernel overlay: after the same random system calls, the same answers and the same tree.

In the end each is mounted upon what the other wrote as well: the two upper directories mean the same.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from layerfs.union.overlay import TRUSTED, Overlay
from layerfs.union.union import Union
from tests.properties.profile import LONG
from tests.require import need
from tests.rootlesskit import ordinary_user, run_as, scratch_of
from tests.union.calls import Answer, OnKernel, OnUnion, answer, everything, paths_of
from tests.union.steps import Step, make_layers, some_steps

STEPS = 120
ROUNDS = 6000 if LONG else 300
ROUNDS_ON_DISK = 400 if LONG else 20

OPTIONS = ["redirect_dir=nofollow", "index=off", "metacopy=off", "xino=off"]


class Ground:
    """Lower directories made of a seed, and uppers upon them. ``prefix``: of the xattrs of overlay."""

    def __init__(self, base: Path, seed: int, prefix: bytes) -> None:
        self.base = base
        self.prefix = prefix
        rng = random.Random(f"layers {seed}")
        self.layers = make_layers(rng, base, rng.choice((1, 2, 2, 3, 4)), prefix=prefix)
        for name in ("union", "kernel"):
            for part in ("", "/upper", "/work", "/merged"):
                (base / f"{name}{part}").mkdir()

    def union(self, side: str) -> Union:
        upper, work = self.base / side / "upper", self.base / side / "work"
        return Union(self.layers, upper, work, dialect=Overlay((self.prefix,)), volatile=True)

    @contextlib.contextmanager
    def kernel(self, side: str) -> Iterator[OnKernel]:
        at = self.base / side
        lower = "lowerdir=" + ":".join(str(layer) for layer in self.layers)
        dirs = [lower, f"upperdir={at}/upper", f"workdir={at}/work"]
        options = OPTIONS if self.prefix == TRUSTED else [*OPTIONS, "userxattr"]
        perform("overlay", "overlay", [*dirs, *options], at / "merged")
        try:
            yield OnKernel(os.fsencode(at / "merged"))
        finally:
            umount(at / "merged", lazy=True)


def differences(
    base: Path, seed: int, prefix: bytes = TRUSTED, steps: Sequence[Step] | None = None
) -> tuple[list[Step], list[str]]:
    """``steps``, or the random ones of the seed, and where the two part: empty when they agree."""
    scratch = Path(tempfile.mkdtemp(dir=base))
    done: list[Step] = []
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        found = _run(Ground(scratch, seed, prefix), seed, steps, done)
        left = len(os.listdir("/proc/self/fd")) - descriptors
        return done, [*found, f"{left} descriptors are left"] if left else found
    except Exception:
        return done, [traceback.format_exc()]
    finally:
        shutil.rmtree(scratch)


def _run(ground: Ground, seed: int, given: Sequence[Step] | None, done: list[Step]) -> list[str]:
    found: list[str] = []
    union = ground.union("union")
    try:
        with ground.kernel("kernel") as kernel:
            live = OnUnion(union, forgetful=seed % 3 == 0)
            rng = random.Random(f"steps {seed}")
            privileged = ground.prefix == TRUSTED
            steps = some_steps(rng, STEPS, lambda: paths_of(kernel), privileged=privileged)
            for step in steps if given is None else given:
                done.append(step)
                here, there = answer(live, step), answer(kernel, step)
                if here != there:
                    return [f"{step}: union {here!r}, kernel {there!r}"]
            for slot in range(3):
                live.close(slot)
                kernel.close(slot)
            tree = everything(live)
            # In a user namespace neither can open a file by its handle.
            numbers = {path: live.ino(path) for path in tree} if ground.prefix == TRUSTED else {}
            found += _compare("union live", tree, "kernel live", everything(kernel))
            found += _entries(live, tree)
            live.drop_caches()
            if len(union._nodes) != 1:
                found.append(f"{len(union._nodes)} nodes are known that nobody counts on")
    finally:
        union.close()
    if found:
        return found
    union = ground.union("union")
    try:
        again = OnUnion(union)
        found += _compare("union again", everything(again), "union live", tree)
        for path, number in numbers.items():
            if again.ino(path) != number:
                found.append(f"{path!r}: st_ino {number} live, {again.ino(path)} after a remount")
    finally:
        union.close()
    with ground.kernel("union") as kernel:
        found += _compare("kernel upon the union's upper", everything(kernel), "union live", tree)
        for path, number in numbers.items():
            if kernel.ino(path) != number:
                found.append(f"{path!r}: st_ino {number}, but {kernel.ino(path)} by the kernel")
    union = ground.union("kernel")
    try:
        found += _compare("union upon the kernel's upper", everything(OnUnion(union)), "union live", tree)
    finally:
        union.close()
    return found


def _compare(one: str, ones: dict[bytes, Answer], two: str, twos: dict[bytes, Answer]) -> list[str]:
    return [
        f"{path!r}: {one} {ones.get(path)}\n    {two} {twos.get(path)}"
        for path in sorted({*ones, *twos})
        if ones.get(path) != twos.get(path)
    ]


def _entries(live: OnUnion, tree: dict[bytes, Answer]) -> list[str]:
    """A listing gives the numbers and types that stat gives."""
    found: list[str] = []
    for path, (_, content, _) in tree.items():
        if isinstance(content, list):
            live.drop_caches()
            for name, ino, _ in live.entries(path):
                there = live.ino(path + b"/" + name if path else name)
                if there != ino:
                    found.append(f"{path!r}/{name!r}: d_ino {ino}, st_ino {there}")
    return found


def _shortest(base: Path, seed: int, prefix: bytes, steps: list[Step]) -> tuple[list[Step], list[str]]:
    """Fewer steps that still show a difference, and the difference."""
    _, found = differences(base, seed, prefix, steps)
    chunk = len(steps) // 2
    while chunk:
        start = 0
        while start < len(steps):
            fewer = steps[:start] + steps[start + chunk :]
            _, now = differences(base, seed, prefix, fewer)
            if now:
                steps, found = fewer, now
            else:
                start += chunk
        chunk //= 2
    return steps, found


def check(base: Path, seed: int, prefix: bytes = TRUSTED) -> None:
    """Fail, with the fewest steps that show it, if the two part anywhere."""
    steps, found = differences(base, seed, prefix)
    if found:
        steps, found = _shortest(base, seed, prefix, steps)
        lines = [f"seed {seed}", *(f"  {step}" for step in steps), *found]
        pytest.fail("\n".join(lines), pytrace=False)


def seeds(count: int) -> Sequence[int]:
    return [random.randrange(1 << 32) for _ in range(count)] if LONG else range(count)


def test_the_same_calls_have_the_same_answers_and_leave_the_same_tree(memory: Path) -> None:
    need.overlay(memory)
    for seed in seeds(ROUNDS):
        check(memory, seed)


def test_on_a_disk_too(tmp_path: Path) -> None:
    need.overlay(tmp_path)
    for seed in seeds(ROUNDS_ON_DISK):
        check(tmp_path, seed)


def test_in_a_user_namespace() -> None:
    with ordinary_user() as user, scratch_of(user) as scratch:
        run_as(user, scratch, "tests/union/rootless.py")

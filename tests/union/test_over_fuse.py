"""Long random work through a mount of ``layerfs-fuse``: what is seen then is what is there."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from tests.fusekit import Ground
from tests.properties.profile import LONG
from tests.require import need
from tests.union.calls import OnKernel, answer, everything, paths_of
from tests.union.steps import make_layers, some_steps
from tests.union.test_differential import OPTIONS

STEPS = 20_000 if LONG else 2_000
SEEDS = 50 if LONG else 3


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_live_tree_is_that_after_a_remount_and_can_be_emptied(ground: Ground, seed: int) -> None:
    rng = random.Random(f"over FUSE {seed}")
    for lower in ground.lowers:
        lower.rmdir()
    for made, lower in zip(make_layers(rng, ground.place, 2), ground.lowers, strict=True):
        made.rename(lower)
    calls = OnKernel(os.fsencode(ground.mount()))
    for number, step in enumerate(some_steps(rng, STEPS, lambda: paths_of(calls))):
        answer(calls, step)
        if number % 200 == 0:
            Path("/proc/sys/vm/drop_caches").write_text("2")
    for slot in range(3):
        calls.close(slot)
    live = everything(calls)
    numbers = {path: calls.ino(path) for path in live}
    assert any(path.count(b"/") for path in live), "there is something to be compared"

    ground.again()
    assert everything(calls) == live
    assert {path: calls.ino(path) for path in live} == numbers
    ground.umount()
    need.overlay(ground.place)
    lower = ":".join(map(str, ground.lowers))
    directories = [f"lowerdir={lower}", f"upperdir={ground.upper}", f"workdir={ground.work}"]
    perform("overlay", "overlay", [*directories, *OPTIONS], ground.root)
    assert everything(calls) == live, "to the kernel it is the same"
    umount(ground.root)

    root = ground.mount()
    subprocess.run(["rm", "-rf", *root.iterdir()], check=True)
    assert os.listdir(root) == []
    root = ground.again()
    assert os.listdir(root) == []
    ground.umount()

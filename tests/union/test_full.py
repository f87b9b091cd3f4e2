"""An upper file system that is full: calls fail, and what is seen stays what is on the disk."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from layerfs.union.aufs import Aufs
from layerfs.union.overlay import Overlay
from layerfs.union.union import Union
from tests.properties.profile import LONG
from tests.union.calls import OnUnion, answer, everything, paths_of
from tests.union.steps import make_layers, some_steps, to_aufs

ROUNDS = 400 if LONG else 12


@pytest.mark.parametrize("room", ["size=12k", "nr_inodes=20"])
@pytest.mark.parametrize("dialect", [Overlay, Aufs])
def test_a_full_file_system_loses_nothing(memory: Path, dialect: type[Overlay | Aufs], room: str) -> None:
    failures = 0
    for seed in range(ROUNDS):
        base = memory / str(seed)
        small = base / "small"
        small.mkdir(parents=True)
        rng = random.Random(f"layers {seed}")
        layers = make_layers(rng, base, 2)
        if dialect is Aufs:
            for layer in layers:
                to_aufs(layer)
        perform("tmpfs", "tmpfs", [room], small)
        try:
            for part in ("upper", "work"):
                (small / part).mkdir()
            with contextlib.closing(
                Union(layers, small / "upper", small / "work", dialect=dialect())
            ) as union:
                live = OnUnion(union)
                steps = some_steps(random.Random(f"steps {seed}"), 150, lambda: paths_of(live))  # noqa: B023
                failures += [answer(live, step) for step in steps].count("ENOSPC")
                tree = everything(live)
                for slot in range(3):
                    live.close(slot)
                live.drop_caches()
                assert not os.listdir(small / "work/work")
            with contextlib.closing(
                Union(layers, small / "upper", small / "work", dialect=dialect())
            ) as union:
                assert everything(OnUnion(union)) == tree, seed
        finally:
            umount(small, lazy=True)
    assert failures

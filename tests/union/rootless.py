"""The union beside kernel overlay in a user namespace. Run by ``test_differential.py``, inside one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from layerfs.linux.mount import perform
from layerfs.union.attributes import Changes
from layerfs.union.overlay import USER, Overlay
from layerfs.union.union import Union
from tests.union.test_differential import ROUNDS_ON_DISK, check, seeds


def test_the_same_calls_as_root_of_a_user_namespace(tmp_path: Path) -> None:
    os.umask(0o022)
    root = tmp_path / "memory"
    root.mkdir()
    perform("tmpfs", "tmpfs", [], root)
    for seed in seeds(2 * ROUNDS_ON_DISK):
        check(root, seed, USER)
    for seed in seeds(ROUNDS_ON_DISK):
        check(tmp_path, seed, USER)


def test_numbers_of_copied_files_stay_over_a_remount(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").write_bytes(b"x")

    def union() -> Union:
        dialect = Overlay((USER,))
        return Union([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work", dialect=dialect)

    with contextlib.closing(union()) as first:
        found = first.lookup(Union.ROOT, b"f")
        first.setattr(found.id, Changes(mode=0o600))
    with contextlib.closing(union()) as second:
        assert second.lookup(Union.ROOT, b"f").attributes.ino == found.attributes.ino

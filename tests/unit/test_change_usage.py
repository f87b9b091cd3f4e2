"""What a changeset takes on disk."""

from __future__ import annotations

import os
from pathlib import Path

from layerfs.archive.changes import Change, ChangeKind
from layerfs.archive.changeusage import change_usage


def change(path: bytes, kind: ChangeKind = ChangeKind.ADDED) -> Change:
    return Change(path, kind)


def test_what_is_there_counts_and_what_is_deleted_does_not(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"x" * 100_000)
    (tmp_path / "untouched").write_bytes(b"x" * 100_000)
    changes = [change(b"d"), change(b"d/f"), change(b"gone", ChangeKind.DELETED)]
    size, inodes = change_usage(tmp_path, changes)
    expected = sum((tmp_path / name).lstat().st_blocks * 512 for name in ("d", "d/f"))
    assert (size, inodes) == (expected, 2)


def test_a_file_with_several_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to("a")
    _, inodes = change_usage(tmp_path, [change(b"a"), change(b"b"), change(b"c")])
    assert inodes == 2


def test_what_vanished_meanwhile_is_left_out(tmp_path: Path) -> None:
    assert change_usage(tmp_path, [change(b"nothing"), change(b"no/where")]) == (0, 0)

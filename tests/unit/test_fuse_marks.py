"""What fuse-overlayfs leaves where it cannot make devices is understood by ``layerfs-fuse``, by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.mountinfo import is_mount
from layerfs.linux.removetree import remove_tree
from layerfs.linux.umount import umount
from tests.fusekit import Ground
from tests.require import need


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    need.root()
    need.fuse()
    ground = Ground.make(tmp_path)
    below = ground.lowers[1]
    for name in ("gone", "kept", "gone above", "dir/hidden", "dir2/gone", "deep/dir/hidden"):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        (below / name).write_text(name)
    for name in (".wh.gone", "dir/.wh..wh..opq", "dir/seen", "dir2/.wh.gone", ".wh.deep"):
        (ground.low / name).parent.mkdir(parents=True, exist_ok=True)
        (ground.low / name).touch()
    (ground.upper / ".wh.gone above").touch()
    yield ground
    while is_mount(ground.root):
        umount(ground.root, lazy=True)


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


SEEN = {"kept", "dir", "dir/seen", "dir2"}


def test_its_marks_hide_as_in_its_own_mounts(ground: Ground) -> None:
    with ground.by_fuse_overlayfs() as root:
        assert names(root) == SEEN
    with ground.by_us() as root:
        for name in ("gone", "gone above", "dir/hidden", "deep", ".wh.gone"):
            assert not (root / name).exists()
        assert names(root) == SEEN
    with ground.by_us("whiteouts=overlay") as root:
        assert ".wh.gone" in os.listdir(root), "to the drivers they are files"


def test_what_is_made_over_them_stays(ground: Ground) -> None:
    (ground.upper / ".wh.kept").touch()
    with ground.by_us() as root:
        (root / "gone above").write_text("new")
        (root / "deep").mkdir()
        (root / "kept").mkdir()
        (root / "dir2" / "gone").touch()
        (root / "dir2" / "gone").rename(root / "gone")
        with pytest.raises(PermissionError):
            (root / ".wh.x").touch()
    made = SEEN | {"gone above", "deep", "gone"}
    with ground.by_us() as root:
        assert names(root) == made
        assert os.listdir(root / "kept") == []
        (root / "gone above").unlink()
    with ground.by_fuse_overlayfs() as root:
        assert names(root) == made - {"gone above"}
    with ground.by_us() as root:
        for name in os.listdir(root):
            path = root / name
            remove_tree(path) if path.is_dir() else path.unlink()
        assert os.listdir(root) == []
    with ground.by_us() as root:
        assert os.listdir(root) == []

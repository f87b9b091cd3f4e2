"""A full disk: the error says so, and what did not fit leaves nothing."""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import NoSpace
from tests.require import need
from tests.storekit import BASE, held, make_tar, open_store, stream


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    need.root()
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_layer_that_does_not_fit_leaves_nothing(small: Path) -> None:
    with open_store(small) as store:
        base = store.register(stream(BASE))
        before = held(store)
        for _ in range(3):
            with pytest.raises(NoSpace):
                store.register(stream({"big": os.urandom(4 << 20)}), base.chain_id)
            assert held(store) == before
            assert store.check() == []
        store.register(stream({"small": b"x"}), base.chain_id)


def test_work_in_hand_lies_in_the_store(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory for temporary files is often a small one in memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    replaced, left = (make_tar({"file": os.urandom(8 << 20)}) for _ in range(2))
    tar = replaced[: 512 + (8 << 20)] + left
    with open_store(tmp_path) as store, store.register(io.BytesIO(tar)) as layer, layer.tar() as again:
        assert again.read() == tar


def test_a_container_that_does_not_fit_leaves_nothing(small: Path) -> None:
    def init(root: Path) -> None:
        (root / "big").write_bytes(os.urandom(4 << 20))

    with open_store(small) as store:
        base = store.register(stream(BASE))
        before = held(store)
        with pytest.raises(NoSpace):
            store.create_rw("web", base.chain_id, init=init)
        assert held(store) == before
        store.create_rw("web", base.chain_id)

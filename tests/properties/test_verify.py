"""A layer that nobody touched has no damage, whatever its tar holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given

from layerfs.store.store import Store
from layerfs.testing.entries import tar_stream
from layerfs.testing.model import Item
from layerfs.testing.strategies import chains
from tests.properties.profile import examples
from tests.require import need
from tests.storekit import open_store


@pytest.fixture(scope="module", params=["vfs", "overlay"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    need.root()
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as scratch,
        open_store(Path(scratch), request.param) as store,
    ):
        yield store


@examples(60)
@given(chain=chains())
def test_what_was_registered_is_whole(store: Store, chain: list[list[Item]]) -> None:
    store.prune()  # what an example that failed left
    parent = None
    for items in chain:
        layer = store.register(tar_stream(items), parent)
        parent = layer.chain_id
        layer.release()
        assert store.check(deep=True) == []
    assert store.check(deep=True) == []
    assert store.prune().errors == ()

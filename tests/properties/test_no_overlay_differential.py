"""A few of the properties of all drivers upon the union over FUSE, in the kernel that has no overlay: its
system calls are slow, so there are few examples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.testing import strategies
from layerfs.testing.model import Item
from tests.properties import test_differential as every
from tests.properties.grounds import GROUNDS, Fresh
from tests.properties.profile import examples

pytestmark = pytest.mark.host("no-overlay")


@pytest.fixture(scope="module", params=["fuse", "aufs"])
def fresh(request: pytest.FixtureRequest) -> Iterator[Fresh]:
    with GROUNDS[request.param]() as fresh:
        yield fresh


@given(chain=strategies.chains())
@examples(6)
def test_trees_and_changes_are_those_of_the_model(fresh: Fresh, chain: list[list[Item]]) -> None:
    every.test_trees_and_changes_are_those_of_the_model.body(fresh, chain)  # type: ignore[attr-defined]


@given(chain=strategies.chains(3))
@examples(4)
def test_diffs_make_the_same_chain_elsewhere(fresh: Fresh, chain: list[list[Item]]) -> None:
    every.test_diffs_make_the_same_chain_elsewhere.body(fresh, chain)  # type: ignore[attr-defined]


@given(data=st.data())
@examples(8)
def test_what_a_container_does_is_found(fresh: Fresh, data: st.DataObject) -> None:
    every.test_what_a_container_does_is_found.body(fresh, data)  # type: ignore[attr-defined]

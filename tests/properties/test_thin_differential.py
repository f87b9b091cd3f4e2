"""A few of the properties of all drivers upon thin pools, in the kernel that has them: its system calls are
slow, so there are few examples, all in one pool for each file system."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.driver import Driver
from layerfs.testing import strategies
from layerfs.testing.model import Item
from tests.properties import test_differential as every
from tests.properties.grounds import Fresh
from tests.properties.profile import examples
from tests.require import need
from tests.thinkit import detached_afterwards, open_small

pytestmark = pytest.mark.host("thin")


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    need.root()
    place: Path = tmp_path_factory.mktemp(request.param)

    @contextlib.contextmanager
    def emptied() -> Iterator[Driver]:
        try:
            yield driver
        finally:
            for id in list(driver.ids()):
                driver.remove(id)

    with detached_afterwards(place / "home"):
        driver = open_small(place / "home", place / "run", request.param)
        yield emptied


@given(chain=strategies.chains())
@examples(10)
def test_trees_and_changes_are_those_of_the_model(fresh: Fresh, chain: list[list[Item]]) -> None:
    every.test_trees_and_changes_are_those_of_the_model.body(fresh, chain)  # type: ignore[attr-defined]


@given(chain=strategies.chains())
@examples(6)
def test_diffs_are_those_of_the_model(fresh: Fresh, chain: list[list[Item]]) -> None:
    every.test_diffs_are_those_of_the_model.body(fresh, chain)  # type: ignore[attr-defined]


@given(data=st.data())
@examples(10)
def test_what_a_container_does_is_found(fresh: Fresh, data: st.DataObject) -> None:
    every.test_what_a_container_does_is_found.body(fresh, data)  # type: ignore[attr-defined]

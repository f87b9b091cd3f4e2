"""The same layers on every driver and in the model: one tree, one changeset, one tar."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import pytest
from hypothesis import strategies as st

from layerfs.archive.entry import EntryType
from layerfs.archive.names import normalise
from layerfs.archive.whiteout import PREFIX
from layerfs.driver import Driver
from layerfs.errors import ArchiveError
from layerfs.ids import GraphID
from layerfs.testing import strategies
from layerfs.testing.actions import act
from layerfs.testing.conformance.base import assert_same, make_layer, mounted, tree_of
from layerfs.testing.conformance.edits import carried
from layerfs.testing.entries import tar_stream
from layerfs.testing.model import EMPTY, Item, Tree, apply, changes, read_items
from tests.properties.grounds import GROUNDS, Fresh, model
from tests.properties.profile import held


@pytest.fixture(scope="module", params=GROUNDS)
def fresh(request: pytest.FixtureRequest) -> Iterator[Fresh]:
    with GROUNDS[request.param]() as fresh:
        yield fresh


def layer_ids(chain: list[list[Item]]) -> list[GraphID]:
    return [GraphID(f"layer-{number}") for number in range(len(chain))]


def pairs(chain: list[list[Item]]) -> list[tuple[GraphID, GraphID | None]]:
    """Each layer of the chain with its parent."""
    ids = layer_ids(chain)
    return list(zip(ids, [None, *ids], strict=False))


def fill(driver: Driver, chain: list[list[Item]]) -> None:
    for (id, parent), items in zip(pairs(chain), chain, strict=True):
        make_layer(driver, id, items, parent)


def trees(chain: list[list[Item]]) -> list[Tree]:
    """What each layer of the chain shows, after the model."""
    found = [EMPTY]
    for items in chain:
        found.append(apply(found[-1], items))
    return found[1:]


def diffs(driver: Driver, chain: list[list[Item]]) -> list[bytes]:
    tars = []
    for id, parent in pairs(chain):
        with driver.diff(id, parent) as tar:
            tars.append(tar.read())
    return tars


@held(200, chain=strategies.chains())
def test_trees_and_changes_are_those_of_the_model(fresh: Fresh, chain: list[list[Item]]) -> None:
    with fresh() as driver:
        fill(driver, chain)
        expected = trees(chain)
        for (id, parent), tree, below in zip(pairs(chain), expected, [EMPTY, *expected], strict=False):
            assert_same(tree_of(driver, id), tree)
            assert list(driver.changes(id, parent)) == changes(tree, below if parent else None)


@held(80, chain=strategies.chains())
def test_diffs_are_those_of_the_model(fresh: Fresh, chain: list[list[Item]]) -> None:
    with fresh() as driver, model() as ideal:
        fill(driver, chain)
        fill(ideal, chain)
        for tar, expected in zip(diffs(driver, chain), diffs(ideal, chain), strict=True):
            assert list(read_items(io.BytesIO(tar))) == list(read_items(io.BytesIO(expected)))
            assert tar == expected


@held(60, chain=strategies.chains(3))
def test_diffs_make_the_same_chain_elsewhere(fresh: Fresh, chain: list[list[Item]]) -> None:
    with fresh() as driver, fresh() as elsewhere:
        fill(driver, chain)
        for id, parent in pairs(chain):
            elsewhere.create(id, parent)
            with driver.diff(id, parent) as tar:
                elsewhere.apply_diff(id, parent, tar)
            assert_same(tree_of(elsewhere, id), tree_of(driver, id))
        assert diffs(elsewhere, chain) == diffs(driver, chain)


@held(100, data=st.data())
def test_what_the_model_refuses_is_refused(fresh: Fresh, data: st.DataObject) -> None:
    lower, below, upper = draw_two(data, strategies.any_layers)
    with fresh() as driver:
        base = make_layer(driver, GraphID("base"), lower)
        top = GraphID("top")
        driver.create(top, base)
        try:
            expected = apply(below, upper)
        except ArchiveError:
            with pytest.raises(ArchiveError):
                driver.apply_diff(top, base, tar_stream(upper))
        else:
            driver.apply_diff(top, base, tar_stream(upper))
            assert_same(tree_of(driver, top), expected)
        assert_same(tree_of(driver, base), below)


def draw_two(
    data: st.DataObject, strategy: Callable[[int, Sequence[bytes]], st.SearchStrategy[list[Item]]]
) -> tuple[list[Item], Tree, list[Item]]:
    """A layer, its tree, and a layer upon it that ``strategy`` makes."""
    lower = data.draw(strategies.layers(8))
    below = apply(EMPTY, lower)
    return lower, below, data.draw(strategy(14, known(below)))


def known(tree: Tree) -> list[bytes]:
    return sorted(tree.nodes.keys() - {b""})


@held(100, data=st.data())
def test_content_is_told_as_displaced_or_can_be_read_by_name(fresh: Fresh, data: st.DataObject) -> None:
    lower, _, upper = draw_two(data, strategies.layers)
    told: dict[int, bytes] = {}

    def displaced(number: int, content: BinaryIO) -> None:
        told[number] = content.read()

    with fresh() as driver:
        base = make_layer(driver, GraphID("base"), lower)
        top = GraphID("top")
        driver.create(top, base)
        driver.apply_diff(top, base, tar_stream(upper), displaced=displaced)
        with driver.files(top) as open_file:
            for number, (entry, content) in enumerate(upper):
                path = normalise(entry.name)
                if entry.type is not EntryType.FILE or b"/" + PREFIX in b"/" + path:
                    continue
                if number in told:
                    assert told[number] == content
                else:
                    with open_file(path) as stream:
                        assert stream.read() == content


@held(150, data=st.data())
def test_what_a_container_does_is_found(fresh: Fresh, data: st.DataObject) -> None:
    chain = data.draw(strategies.chains(2))
    actions = data.draw(strategies.actions(known=known(trees(chain)[-1])))
    with fresh() as driver:
        fill(driver, chain)
        base, top, copy = layer_ids(chain)[-1], GraphID("top"), GraphID("copy")
        driver.create_read_write(top, base)
        with mounted(driver, top) as root:
            act(root, actions)
        below, edited = tree_of(driver, base), tree_of(driver, top)
        assert list(driver.changes(top, base)) == changes(edited, below)
        with driver.diff(top, base) as tar:
            items = list(read_items(tar))
        assert_same(apply(below, items), carried(edited))
        assert driver.diff_size(top, base) == sum(len(content) for _, content in items)
        make_layer(driver, copy, items, base)
        assert_same(tree_of(driver, copy), carried(edited))

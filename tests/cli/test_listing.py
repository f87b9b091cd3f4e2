"""What lists show beyond the bare facts."""

from __future__ import annotations

from layerfs.cli.layers import tree
from layerfs.ids import CacheID, ChainID, DiffID, GraphID
from layerfs.store.records import LayerInfo


def info(name: str, parent: str | None) -> LayerInfo:
    return LayerInfo(
        chain_id=ChainID(name),
        diff_id=DiffID(name),
        parent=None if parent is None else ChainID(parent),
        cache_id=CacheID(GraphID(name)),
        size=0,
        tar_size=0,
        depth=1,
        created_ns=0,
        durable=True,
    )


def test_a_tree_of_layers_shows_every_fork() -> None:
    layers = [
        info("base", None),
        info("alone", None),
        info("left", "base"),
        info("right", "base"),
        info("leaf", "left"),
        info("twig", "leaf"),
        info("end", "right"),
    ]
    assert [lines + layer.chain_id for lines, layer in tree(layers)] == [
        "base",
        "├─left",
        "│ └─leaf",
        "│   └─twig",
        "└─right",
        "  └─end",
        "alone",
    ]


def test_a_chain_of_hundreds_of_layers_is_no_deeper_a_call() -> None:
    chain = [info(str(number), str(number - 1) if number else None) for number in range(2000)]
    assert len(list(tree(chain))) == 2000

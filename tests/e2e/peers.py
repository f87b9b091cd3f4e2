"""What the exchange tests with other tools share."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import attrs

from layerfs.archive.compression import open_decompressed
from layerfs.ids import ChainID
from layerfs.image.find import find
from layerfs.store.store import Store
from layerfs.testing.model import Node, Tree, read_tree
from tests.imaging import Layout, real_layers


@attrs.frozen
class Identity:
    """What must be the same wherever an image goes."""

    id: str
    diff_ids: tuple[str, ...]


def run(*argv: str | Path) -> str:
    """Run a tool; its standard output. A failure shows what it said."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, argv))}\n{done.stdout}{done.stderr}"
    return done.stdout


def make_layout(where: Path, names: tuple[str, ...] = ("demo:v1",)) -> Path:
    """A layout with one image of real layers, called ``names``; with a second name, a second image of
    the lower layers."""
    layers = real_layers()
    layout = Layout()
    for name, tars in zip(names, (layers, layers[:1]), strict=False):
        layout.add(layout.image(tars), name)
    return layout.write(where)


def identity(store: Store, text: str) -> Identity:
    """An image in a store. Each layer is read to its end, which verifies it."""
    image = find(store, text)
    return Identity(image.id, tuple(_verified(store, chain_id) for chain_id in image.layers))


def _verified(store: Store, chain_id: ChainID) -> str:
    with store.get(chain_id) as layer, layer.tar() as tar:
        hashed = hashlib.sha256()
        while chunk := tar.read(1 << 20):
            hashed.update(chunk)
        assert f"sha256:{hashed.hexdigest()}" == layer.diff_id
        return layer.diff_id


def tree(store: Store, text: str) -> Tree:
    """The root file system of an image in a store."""
    with store.get(find(store, text).layers[-1]) as layer, layer.mounted() as root:
        return read_tree(root)


def kept(tree: Tree) -> Tree:
    """What every tool keeps of a tree: whole seconds, and the root's own time not at all."""
    files: dict[int, Node] = {}
    nodes = {}
    for path, node in tree.nodes.items():
        seconds = node.mtime_ns // 10**9 if path else 0
        nodes[path] = files.setdefault(id(node), attrs.evolve(node, mtime_ns=seconds))
    return Tree(nodes)


def layout_identity(layout: Path, name: str) -> Identity:
    """An image in a layout that another tool wrote, its layers decompressed and hashed."""
    index = json.loads((layout / "index.json").read_bytes())
    [entry] = [
        entry
        for entry in index["manifests"]
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == name
    ]
    manifest = json.loads(_blob(layout, entry).read_bytes())
    diff_ids = []
    for layer in manifest["layers"]:
        with _blob(layout, layer).open("rb") as file, open_decompressed(file) as plain:
            diff_ids.append("sha256:" + hashlib.sha256(plain.read()).hexdigest())
    config = json.loads(_blob(layout, manifest["config"]).read_bytes())
    assert config["rootfs"]["diff_ids"] == diff_ids
    return Identity(manifest["config"]["digest"], tuple(diff_ids))


def _blob(layout: Path, descriptor: dict[str, str]) -> Path:
    return layout / "blobs" / descriptor["digest"].replace(":", "/")

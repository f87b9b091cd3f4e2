"""layerfs: the storage half of a container engine.

::

    from layerfs import commit, load, open_store, save

    with open_store("/var/lib/layerfs") as store:
        (image,) = load(store, "debian.tar")               # an OCI layout or docker-archive comes in
        container = store.create_rw("web", image.layers[-1], image=image.id)
        with container.mounted() as root:                  # its root file system, a directory
            ...
        commit(store, "web", "web:1")                      # what was written, as a layer on a new image
        save(store, ["web:1"], "web.tar")

A store works upon layers, too: :meth:`Store.register`, :meth:`Store.get`, :meth:`RWLayer.commit`.

Names are imported when they are first used, so that ``import layerfs`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself would be the dearest import here; type checkers know the name

if TYPE_CHECKING:
    from layerfs.driver import Capabilities as Capabilities
    from layerfs.driver import CreateOptions as CreateOptions
    from layerfs.driver import Driver as Driver
    from layerfs.driver import DriverInfo as DriverInfo
    from layerfs.driver import Mount as Mount
    from layerfs.driver import ProtoDriver as ProtoDriver
    from layerfs.driver import Usage as Usage
    from layerfs.errors import LayerfsError as LayerfsError
    from layerfs.ids import ChainID as ChainID
    from layerfs.ids import DiffID as DiffID
    from layerfs.ids import Digest as Digest
    from layerfs.ids import chain_id as chain_id
    from layerfs.image.commit import commit as commit
    from layerfs.image.load import Loaded as Loaded
    from layerfs.image.load import load as load
    from layerfs.image.save import save as save
    from layerfs.naivediff import NaiveDiff as NaiveDiff
    from layerfs.opening import default_paths as default_paths
    from layerfs.opening import migrate_store as migrate_store
    from layerfs.opening import open_store as open_store
    from layerfs.store.images import ImageInfo as ImageInfo
    from layerfs.store.images import ImageRecord as ImageRecord
    from layerfs.store.layer import Layer as Layer
    from layerfs.store.migration import Migrated as Migrated
    from layerfs.store.records import LayerInfo as LayerInfo
    from layerfs.store.records import RWLayerInfo as RWLayerInfo
    from layerfs.store.rwlayer import RWLayer as RWLayer
    from layerfs.store.store import Store as Store

_HOMES = {
    "Capabilities": "layerfs.driver",
    "ChainID": "layerfs.ids",
    "CreateOptions": "layerfs.driver",
    "DiffID": "layerfs.ids",
    "Digest": "layerfs.ids",
    "Driver": "layerfs.driver",
    "DriverInfo": "layerfs.driver",
    "ImageInfo": "layerfs.store.images",
    "ImageRecord": "layerfs.store.images",
    "Layer": "layerfs.store.layer",
    "LayerInfo": "layerfs.store.records",
    "LayerfsError": "layerfs.errors",
    "Loaded": "layerfs.image.load",
    "Migrated": "layerfs.store.migration",
    "Mount": "layerfs.driver",
    "NaiveDiff": "layerfs.naivediff",
    "ProtoDriver": "layerfs.driver",
    "RWLayer": "layerfs.store.rwlayer",
    "RWLayerInfo": "layerfs.store.records",
    "Store": "layerfs.store.store",
    "Usage": "layerfs.driver",
    "chain_id": "layerfs.ids",
    "commit": "layerfs.image.commit",
    "default_paths": "layerfs.opening",
    "load": "layerfs.image.load",
    "migrate_store": "layerfs.opening",
    "open_store": "layerfs.opening",
    "save": "layerfs.image.save",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

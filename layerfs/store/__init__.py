"""The layer store: layers by content, containers by name, images, and what keeps what.

It is given an open driver and asks of it only what :mod:`layerfs.driver` says.
"""

from layerfs.store.store import Store as Store

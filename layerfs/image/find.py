"""Finds an image in a store by what a person calls it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from layerfs.errors import ImageNotFound, InvalidID
from layerfs.image.names import normalise

if TYPE_CHECKING:
    from layerfs.store.images import ImageRecord
    from layerfs.store.store import Store

_FULL_ID = re.compile(r"sha256:[0-9a-f]{64}|[0-9a-f]{64}")


def find(store: Store, text: str) -> ImageRecord:
    """The image with that id, that name (familiar or full) or that beginning of its id, in this order.

    :class:`~layerfs.errors.ImageNotFound` with the names that look alike;
    :class:`~layerfs.errors.InvalidID` for a beginning that several ids have.
    """
    if not _FULL_ID.fullmatch(text):
        try:
            return store.image(normalise(text))
        except InvalidID:
            pass
        except ImageNotFound as unknown:
            try:
                return store.image(text)
            except ImageNotFound:
                raise unknown from None
    return store.image(text)

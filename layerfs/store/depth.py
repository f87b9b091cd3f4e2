"""How many layers of an image a driver takes."""

from __future__ import annotations

from layerfs.driver import ProtoDriver
from layerfs.errors import DepthExceeded

_ABOVE = 2
"""Room in a chain for an init layer and a writable layer: a layer without it could never be run."""


def refuse_deep(driver: ProtoDriver, depth: int, what: str) -> None:
    """:class:`DepthExceeded` when a container upon ``depth`` layers would not fit. ``what`` has them: "layer
    sha256:...", "image debian:12"."""
    limit = driver.capabilities.max_depth
    if limit is not None and depth + _ABOVE > limit:
        raise DepthExceeded(
            f"{what} is {depth} layers deep, but driver {driver.name} stacks at most {limit}, two of them a"
            " container's own"
        )

"""All workloads, in the order of the report."""

from __future__ import annotations

from benchmarks.workload import REGISTERED, Workload
from benchmarks.workloads import container, depth, files, image, scale, start

__all__ = ["ALL", "container", "depth", "files", "image", "scale", "start"]

_ORDER = (
    "image", "large-image", "container", "mount", "read", "copy-up", "storm", "tree", "big", "concurrency",
    "scale", "huge", "start",
)  # fmt: skip
ALL: dict[str, Workload] = {name: REGISTERED[name] for name in _ORDER}
assert ALL.keys() == REGISTERED.keys()

"""The driver in memory does what every driver must: what is tested with it holds for the others."""

from __future__ import annotations

from pathlib import Path

from layerfs.driver import Driver
from layerfs.testing.conformance import DriverConformance
from layerfs.testing.memory import MemoryDriver


class TestMemory(DriverConformance):
    persistent = False
    protects = False
    holes = False

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return MemoryDriver(runroot)

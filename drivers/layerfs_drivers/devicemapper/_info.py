"""How the devicemapper driver is found and opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from layerfs.driver import Driver, DriverInfo, Option, parse_options
from layerfs.errors import NotSupported, translated
from layerfs.values import frozen


@frozen
class DeviceMapperInfo:
    name: str = "devicemapper"
    priority: int = 50
    summary: str = "snapshots in a thin pool of the device mapper: a block is copied when it is first written"

    @property
    def options(self) -> Sequence[Option]:
        from layerfs_drivers.devicemapper._options import OPTIONS

        return OPTIONS

    def probe(self, home: Path, runroot: Path) -> None:
        """Never for a new home by itself: the pool is to be named, or loop files are to be asked for."""
        from layerfs_drivers.devicemapper._journal import Journal
        from layerfs_drivers.devicemapper._probe import refuse_without_what_it_needs

        refuse_without_what_it_needs()
        if not Journal(home, True).path.exists():
            raise NotSupported(
                "no thin pool is named",
                hint="name an empty one: --driver devicemapper --option devicemapper.pool=NAME; without the "
                "option loop files are made, for trial use",
            )

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        from layerfs_drivers.devicemapper._journal import Journal
        from layerfs_drivers.devicemapper._options import Options
        from layerfs_drivers.devicemapper._pool import Pool
        from layerfs_drivers.devicemapper._probe import refuse_without_what_it_needs
        from layerfs_drivers.devicemapper.driver import DeviceMapperDriver

        parsed: Options = parse_options(Options, options, self.name)
        home, runroot = Path(os.path.abspath(home)), Path(os.path.abspath(runroot))
        with translated(f"open the devicemapper driver in {home}"):
            if not read_only and not Journal(home, True).path.exists():
                refuse_without_what_it_needs()
            driver = DeviceMapperDriver(Pool.open(home, runroot, parsed, read_only=read_only))
            driver.sweep()
        return driver.whole()


DRIVER: DriverInfo = DeviceMapperInfo()

"""How the devicemapper driver is found and opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from layerfs.driver import Driver, DriverInfo, Option, parse_options
from layerfs.errors import CommandFailed, LayerfsError, NotSupported, translated
from layerfs.linux.userns import has_capability, in_user_namespace
from layerfs.values import frozen

_CONTROL = Path("/dev/mapper/control")


@frozen
class DeviceMapperInfo:
    name: str = "devicemapper"
    priority: int = -10
    """Never chosen by itself, behind the driver that works anywhere: it has not been through the whole of the
    conformance suite."""
    summary: str = "experimental: snapshots in a thin pool of the device mapper"

    @property
    def options(self) -> Sequence[Option]:
        from layerfs_drivers.devicemapper._options import OPTIONS

        return OPTIONS

    def probe(self, home: Path, runroot: Path) -> None:
        """What any pool needs; what one of our own needs besides is told when it is set up."""
        from layerfs.linux.command import find, run
        from layerfs_drivers.devicemapper import _dmsetup

        if not has_capability("CAP_SYS_ADMIN") or in_user_namespace():
            raise NotSupported(
                "devicemapper needs root of the host", hint="run as root, outside of user namespaces"
            )
        if find("dmsetup") is None:
            raise NotSupported("no program 'dmsetup' is installed", hint=_dmsetup.HINT)
        if not _CONTROL.exists():
            raise NotSupported(
                "the kernel has no device mapper: there is no /dev/mapper/control", hint="modprobe dm-mod"
            )
        try:
            known = "thin-pool" in _dmsetup.Dmsetup().targets()
        except CommandFailed as error:
            raise NotSupported("the kernel has no device mapper", hint="modprobe dm-mod") from error
        if not known:
            try:
                run(
                    ["modprobe", "--dry-run", "--quiet", "dm-thin-pool"],
                    doing="look for the module dm-thin-pool",
                )
            except LayerfsError as error:
                raise NotSupported("the kernel has no thin pools", hint="modprobe dm-thin-pool") from error
        if find("mkfs.ext4") is None and find("mkfs.xfs") is None:
            raise NotSupported("neither mkfs.ext4 nor mkfs.xfs is installed", hint="install e2fsprogs")

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        from layerfs.naivediff import NaiveDiff
        from layerfs_drivers.devicemapper._options import Options
        from layerfs_drivers.devicemapper._pool import Pool
        from layerfs_drivers.devicemapper.driver import DeviceMapperDriver

        parsed: Options = parse_options(Options, options, self.name)
        home, runroot = Path(os.path.abspath(home)), Path(os.path.abspath(runroot))
        with translated(f"open the devicemapper driver in {home}"):
            if not read_only and not home.exists():
                self.probe(home, runroot)
            driver = DeviceMapperDriver(Pool.open(home, runroot, parsed, read_only=read_only))
        return NaiveDiff(driver, driver.view)


DRIVER: DriverInfo = DeviceMapperInfo()

"""Opening a store: where it lies, which driver it gets, and the driver's options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from layerfs import registry
from layerfs.errors import InvalidOption, PriorDrivers, StoreDamaged, translated
from layerfs.store import metadata
from layerfs.store.store import Store, make_directories
from layerfs.values import frozen


@frozen
class Paths:
    """Where a store lies."""

    root: Path
    """What is to be kept."""
    runroot: Path
    """What must not outlive a boot."""


def default_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """``/var/lib/layerfs`` and ``/run/layerfs`` for root; for others ``layerfs`` in the XDG data and runtime
    directories, which ``environ`` may name, with the defaults of the XDG Base Directory Specification.

    An ordinary user who is root in a user namespace counts as an ordinary user."""
    if _is_root():
        return Paths(Path("/var/lib/layerfs"), Path("/run/layerfs"))
    environ = environ or {}
    data = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or _home()) / ".local" / "share"
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Paths(Path(data) / "layerfs", Path(runtime) / "layerfs")


def open_store(
    root: Path | str | None = None,
    *,
    runroot: Path | str | None = None,
    driver: str | None = None,
    options: Mapping[str, str] | None = None,
    read_only: bool = False,
) -> Store:
    """Open the store in ``root``, or make one, with its driver or the best that works here.

    ``root`` and ``runroot`` default to :func:`default_paths`. ``options`` of the driver have its name in
    front: ``{"overlay.size": "10G"}``. ``read_only``: the store must exist; nothing below ``root`` is
    written.

    Errors: :class:`PriorDrivers` when the store belongs to another driver than ``driver``;
    :class:`DriverNotFound`; :class:`NotSupported` with each driver's reason when none works;
    :class:`InvalidOption`.
    """
    root = Path(root or default_paths().root).absolute()
    runroot = Path(runroot or default_paths().runroot).absolute()
    found = _driver_of(root, driver) or _driver_for(root, runroot, driver, read_only=read_only)
    name = found.info.name
    own_options = _options_of(name, options or {})
    if not read_only and not root.is_dir():
        make_directories(root)
    with translated(f"open driver {name}"):
        (runroot / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = found.info.open(root / name, runroot / name, own_options, read_only=read_only)
    try:
        return Store.open(root, opened, entry_point=found.entry_point, read_only=read_only)
    except BaseException:
        opened.cleanup()
        raise


def _driver_of(root: Path, name: str | None) -> registry.Found | None:
    """The driver that an existing store belongs to."""
    recorded = metadata.driver_of(root)
    if recorded is None:
        return None
    if name not in (None, recorded[0]):
        raise PriorDrivers(
            f"the store in {root} belongs to driver {recorded[0]}, not to {name}",
            hint="use that driver, or another directory",
        )
    return registry.load(*recorded)


def _driver_for(root: Path, runroot: Path, name: str | None, *, read_only: bool) -> registry.Found:
    """A driver for a store that is to be made."""
    if read_only:
        raise StoreDamaged(f"no store in {root}", hint="a store that is opened read-only must exist")
    return registry.choose(root, runroot, name)


def _options_of(driver: str, options: Mapping[str, str]) -> dict[str, str]:
    """The driver's own options, without its name in front."""
    own = {}
    for key, value in options.items():
        prefix, dot, name = key.partition(".")
        if not dot or not name:
            raise InvalidOption(f"not a driver option: {key!r}", hint=f"write '{driver}.NAME'")
        if prefix != driver:
            raise InvalidOption(f"option {key!r} is for driver {prefix}, but the store uses {driver}")
        own[name] = value
    return own


def _is_root() -> bool:
    """Root of the host, or of a container that has a system of its own."""
    from layerfs.linux.userns import in_user_namespace

    return os.geteuid() == 0 and (not in_user_namespace() or os.access("/var/lib", os.W_OK))


def _home() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"

"""Opening a store: where it lies, which driver it gets, and the driver's options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from layerfs import registry
from layerfs.errors import (
    Conflict,
    InvalidOption,
    LayerfsError,
    NotFound,
    PriorDrivers,
    StoreDamaged,
    translated,
)
from layerfs.progress import Progress, silent
from layerfs.store import metadata, reserve
from layerfs.store.store import Store, make_directories
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.driver import Driver
    from layerfs.store.migration import Migrated


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
    exclusive: bool = False,
) -> Store:
    """Open the store in ``root``, or make one, with its driver or the best that works here.

    ``root`` and ``runroot`` default to :func:`default_paths`. ``options`` of the driver have its name in
    front: ``{"overlay.size": "10G"}``. ``read_only``: the store must exist; nothing below ``root`` is
    written. ``exclusive``: while nobody else has it open.

    Errors: :class:`PriorDrivers` when the store belongs to another driver than ``driver``;
    :class:`DriverNotFound`; :class:`NotSupported` with each driver's reason when none works;
    :class:`InvalidOption`; :class:`StoreLocked` for one that is not to be had ``exclusive``.
    """
    root = Path(root or default_paths().root).absolute()
    runroot = Path(runroot or default_paths().runroot).absolute()
    if not read_only:
        reserve.give_up_if_full(root)
    found = _driver_of(root, driver) or _driver_for(root, runroot, driver, read_only=read_only)
    own_options = _options_of(options or {}, found.info.name)[found.info.name]
    with translated(f"open the store in {root}"):
        is_missing = not read_only and not root.is_dir()
    if is_missing:
        make_directories(root)
    opened = _open_driver(found, Paths(root, runroot), own_options, read_only=read_only)
    try:
        return Store.open(
            root, opened, entry_point=found.entry_point, read_only=read_only, exclusive=exclusive
        )
    except BaseException:
        opened.cleanup()
        raise


def migrate_store(
    root: Path | str | None,
    to: str,
    *,
    runroot: Path | str | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Migrated:
    """Move the store in ``root`` with all its images and containers to the driver called ``to``.

    Every layer is given to the new driver from its exact bytes and read back, every container's changes are
    compared; ids, names and digests stay. Nobody else may have the store open, and nothing may be mounted.
    Until the new driver holds everything nothing is removed, and the store works as before; after an error
    or a kill the same call goes on where it stopped. ``to`` the driver that the store has already gives up an
    unfinished move to another one, or removes what a former driver still holds.

    ``root``, ``runroot`` and ``options`` as for :func:`open_store`; the options may be of either driver.
    ``progress`` and errors: see :meth:`Store.migrate`. Further errors: :class:`NotFound` when no store is
    there, :class:`DriverNotFound`, :class:`NotSupported` when the driver does not work here,
    :class:`StoreLocked` naming who has the store open, :class:`Conflict` when it has that driver already.
    """
    paths = Paths(
        Path(root or default_paths().root).absolute(), Path(runroot or default_paths().runroot).absolute()
    )
    present = _driver_of(paths.root, None)
    if present is None:
        raise NotFound(
            f"there is no store in {paths.root}", hint="a new one gets its driver when it is made: --driver"
        )
    target = registry.find(to)
    own_options = _options_of(options or {}, present.info.name, to)
    source = _open_driver(present, paths, own_options[present.info.name])
    try:
        store = Store.open(paths.root, source, entry_point=present.entry_point, exclusive=True)
    except BaseException:
        source.cleanup()
        raise
    with store:
        tidied = _end_unfinished(store, to, paths)
        if to == source.name:
            if tidied is None:
                raise Conflict(f"the store in {paths.root} belongs to driver {to} already")
            return tidied
        opened = _open_driver(target, paths, own_options[to])
        try:
            migrated = store.migrate(opened, entry_point=target.entry_point, progress=progress)
        except BaseException:
            opened.cleanup()
            raise
        try:
            store.end_migration(source)
        except LayerfsError as error:
            import attrs

            left = f"driver {source.name} still holds what was moved: {error}"
            return attrs.evolve(migrated, warnings=(*migrated.warnings, left))
        finally:
            source.cleanup()
        return migrated


def _end_unfinished(store: Store, to: str, paths: Paths) -> Migrated | None:
    """End what stands in the way of a move to the driver ``to``: what another one holds that the store has
    left, or, when the store is to stay where it is, a move away that was begun."""
    from layerfs.store.migration import Migrated

    pending = store.migration()
    if pending is None or (pending.copying and to == pending.driver):
        return None
    if pending.copying and to != store.driver.name:
        raise Conflict(
            f"the store in {paths.root} is on its way to driver {pending.driver}",
            hint=f"'layerfs migrate --to {pending.driver}' goes on, "
            f"'layerfs migrate --to {store.driver.name}' gives it up",
        )
    other = _open_driver(registry.load(pending.driver, pending.entry_point), paths, {})
    try:
        store.end_migration(other)
    finally:
        other.cleanup()
    return Migrated(source=pending.driver, target=store.driver.name)


def _open_driver(
    found: registry.Found, paths: Paths, options: Mapping[str, str], *, read_only: bool = False
) -> Driver:
    """The driver upon its home below ``root``."""
    name = found.info.name
    with translated(f"open driver {name}"):
        (paths.runroot / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        return found.info.open(paths.root / name, paths.runroot / name, options, read_only=read_only)


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


def _options_of(options: Mapping[str, str], *drivers: str) -> dict[str, dict[str, str]]:
    """The options of each driver, without its name in front."""
    own: dict[str, dict[str, str]] = {driver: {} for driver in drivers}
    for key, value in options.items():
        prefix, dot, name = key.partition(".")
        if not dot or not name:
            raise InvalidOption(f"not a driver option: {key!r}", hint=f"write '{drivers[0]}.NAME'")
        if prefix not in own:
            uses = " and ".join(drivers)
            raise InvalidOption(f"option {key!r} is for driver {prefix}, but the store uses {uses}")
        own[prefix][name] = value
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

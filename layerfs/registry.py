"""Which drivers are installed, which work here, and which one a store gets.

Drivers are found by the entry points of the group ``layerfs.drivers``; none is named here. Each names a
:class:`~layerfs.driver.DriverInfo`::

    [project.entry-points."layerfs.drivers"]
    mine = "my_package.driver:DRIVER"

Looking through what is installed takes tens of milliseconds. A store that exists remembers the entry point
of its driver and needs only :func:`load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from layerfs.driver import Driver, DriverInfo, Fallback, Option
from layerfs.errors import DriverNotFound, LayerfsError, NotSupported, PriorDrivers, translated
from layerfs.values import frozen

GROUP = "layerfs.drivers"

_DRIVER_INFO = ("name", "priority", "summary", "options", "probe", "open")
"""What a :class:`DriverInfo` has. Asking ``isinstance`` of a protocol would load all of inspect."""


@frozen
class Found:
    """A driver and where it was found."""

    info: DriverInfo
    entry_point: str
    """``module:attribute``."""


@frozen
class Probe:
    """Whether a driver works here."""

    info: DriverInfo
    reason: str | None
    """Why it does not; None: it does."""
    hint: str = ""
    """How to mend that."""
    fallback: str = ""
    """Why it works otherwise than it is meant to."""


@frozen
class Broken:
    """Stands for a driver that cannot even be imported: it never works, and says why."""

    name: str
    reason: str
    priority: int = -1
    summary: str = "cannot be loaded"
    options: Sequence[Option] = ()

    def probe(self, home: Path, runroot: Path) -> Fallback | None:
        raise NotSupported(self.reason, hint="reinstall or remove the package that brings it")

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        raise NotSupported(self.reason, hint="reinstall or remove the package that brings it")


def installed() -> list[Found]:
    """Every driver that an installed package brings, the highest priority first. One that cannot be
    imported is there as :class:`Broken`."""
    from importlib.metadata import entry_points

    found = {
        point.name: Found(_load(point.name, point.value), point.value) for point in entry_points(group=GROUP)
    }
    return sorted(found.values(), key=lambda one: (-one.info.priority, one.info.name))


def drivers() -> list[DriverInfo]:
    """The same, without where they were found."""
    return [found.info for found in installed()]


def find(name: str) -> Found:
    """The driver called ``name``; :class:`DriverNotFound` with near names."""
    return _named(name, installed())


def load(name: str, entry_point: str) -> Found:
    """The driver called ``name`` by the entry point it had, without looking through all; where it has
    moved since, through all."""
    info = _load(name, entry_point) if entry_point else None
    if info is None or isinstance(info, Broken):
        return find(name)
    return Found(info, entry_point)


def probe_all(home_of: Callable[[DriverInfo], Path], runroot: Path) -> list[Probe]:
    """Ask every driver whether it works here, each with the home it would have."""
    return [_probe(info, home_of(info), runroot / info.name) for info in drivers()]


def choose(root: Path, runroot: Path, name: str | None = None) -> Found:
    """The driver for a store in ``root`` that does not say yet whose it is.

    ``name`` if given; else the driver whose home is there already; else the first that works here.

    Errors: :class:`PriorDrivers` when the state of another driver is there, or of two;
    :class:`DriverNotFound`; :class:`NotSupported` when none works, with each one's reason. Only
    :class:`NotSupported` of a probe, or a :class:`~layerfs.driver.Fallback`, gives the next one a turn.
    """
    known = installed()
    prior = [found for found in known if _has_state(root / found.info.name)]
    if name is not None:
        chosen = _named(name, known)
        _refuse_prior(root, [found for found in prior if found.info.name != name], name)
        return chosen
    if len(prior) > 1:
        _refuse_prior(root, prior, None)
    if prior:
        return prior[0]
    return _first_that_works(known, root, runroot)


def _first_that_works(known: Iterable[Found], root: Path, runroot: Path) -> Found:
    reasons = []
    second: tuple[int, Found] | None = None
    for found in known:
        if second is not None and second[0] >= found.info.priority:
            break
        name = found.info.name
        try:
            with translated(f"try the driver {name} in {root}"):
                fallback = found.info.probe(root / name, runroot / name)
        except NotSupported as error:
            reasons.append(f"{name}: {error}")
            continue
        if fallback is None:
            return found
        if second is None or second[0] < fallback.priority:
            second = fallback.priority, found
    if second is not None:
        return second[1]
    raise NotSupported(
        "no driver works here" + "".join(f"\n  {reason}" for reason in reasons or ["none is installed"]),
        hint="'layerfs drivers' tells how to mend each",
    )


def _probe(info: DriverInfo, home: Path, runroot: Path) -> Probe:
    try:
        with translated(f"probe driver {info.name}"):
            fallback = info.probe(home, runroot)
    except LayerfsError as error:
        return Probe(info, str(error), error.hint)
    return Probe(info, None, fallback="" if fallback is None else fallback.because)


def _load(name: str, entry_point: str) -> DriverInfo:
    """What an entry point names. Somebody else's module may raise anything while it is imported."""
    from importlib import import_module

    module, _, attribute = entry_point.partition(":")
    try:
        info: DriverInfo = getattr(import_module(module), attribute)
        is_driver = all(hasattr(info, member) for member in _DRIVER_INFO)
    except Exception as error:
        return Broken(name, f"{entry_point} cannot be loaded: {type(error).__name__}: {error}")
    if not is_driver:
        return Broken(name, f"{entry_point} is not a DriverInfo")
    if info.name != name:
        return Broken(name, f"{entry_point} calls itself {info.name!r}")
    return info


def _named(name: str, known: Sequence[Found]) -> Found:
    for found in known:
        if found.info.name == name:
            return found
    import difflib

    names = [found.info.name for found in known]
    raise DriverNotFound(
        f"no driver {name!r} is installed",
        near=difflib.get_close_matches(name, names),
        hint="" if difflib.get_close_matches(name, names) else f"installed: {', '.join(names) or 'none'}",
    )


def _has_state(home: Path) -> bool:
    with translated(f"look for a driver's state in {home}"):
        try:
            return next(home.iterdir(), None) is not None
        except (FileNotFoundError, NotADirectoryError):
            return False


def _refuse_prior(root: Path, prior: Sequence[Found], name: str | None) -> None:
    if prior:
        names = ", ".join(found.info.name for found in prior)
        wanted = f", not of {name}" if name else ""
        raise PriorDrivers(
            f"{root} holds the state of driver {names}{wanted}",
            hint="use that driver, use another directory, or move that state away",
        )

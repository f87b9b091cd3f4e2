"""The contract between the layer store and the drivers.

Words
    A *driver* keeps layers. It knows each by a :data:`~layerfs.ids.GraphID` and by its parent's;
    digests, images and names are the store's affair. A *read-only layer* is filled once, by
    :meth:`DiffDriver.apply_diff`, and never changes again. A *writable layer* is a container's
    copy-on-write top. *Home* is the driver's durable directory, its own alone; *runroot* holds what
    must not outlive a boot: mount points and mount counts.

Life of a read-only layer
    ``create(id, parent)`` makes it empty upon its parent; ``apply_diff(id, parent, tar)`` fills it.
    From then on it may be a parent, be mounted read-only, and be read through ``files``. A layer
    whose ``apply_diff`` raised or never returned is worth nothing: the store removes it.

Life of a writable layer
    ``create_read_write(id, parent)``; then any number of ``get`` ... ``put``; at last ``remove``.

A container, whole::

    driver.create(base, None);            driver.apply_diff(base, None, tar)
    driver.create_read_write(init, base)
    root = driver.get(init);              ...fill /etc/hosts...;          driver.put(init)
    driver.create_read_write(top, init)
    root = driver.get(top);               ...the container runs...;       driver.put(top)
    changed = list(driver.changes(top, init))
    tar = driver.diff(top, init)          # what a commit registers
    driver.remove(top);                   driver.remove(init)

Parents and children
    A layer with children is not removed: the caller removes children first. A parent must exist when
    a child is created (:class:`~layerfs.errors.LayerNotFound`). One exception heals a damaged layer: with a
    driver whose layers show what their parents have now (:attr:`CopyOnWrite.FILE`) it is removed and made
    anew under the same id below its children, while nothing is mounted that stands upon it.

Errors, for every method
    ``LayerNotFound`` an id that is not there; ``LayerExists`` an id that is there already;
    ``NotSupported`` what this host cannot do, saying why; ``SystemFailure`` (and ``NoSpace``,
    ``PermissionRefused``, ``MountFailed``) what the kernel refused. A method that raises leaves the
    state as it was, or a layer that ``remove`` can still remove.

Threads and processes
    A driver is used by many threads and many processes at once, upon different ids. Upon one id the
    store lets one caller at a time create, apply or remove; ``get`` and ``put`` of one id may come
    from anywhere at once.

Units: sizes in bytes, times in nanoseconds, names inside layers ``bytes``, host paths ``Path``.

The field's equivalents: Docker's ``graphdriver.ProtoDriver``/``DiffDriver``, containers/storage's
``drivers.Driver``, containerd's ``Snapshotter``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from layerfs.errors import InvalidOption
from layerfs.ids import GraphID
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Protocol

    from layerfs.archive.changes import Change
else:
    Protocol = object


class CopyOnWrite(enum.Enum):
    """What the first write to a file of a lower layer costs."""

    NONE = "none"  # the copy was made when the layer was created
    FILE = "file"  # the whole file is copied up
    BLOCK = "block"  # the blocks written


@frozen(kw_only=True)
class Capabilities:
    """What the store and the user may rely on."""

    independent_layers: bool = False
    """A layer's bytes do not depend on its parent's: the layers of an image may be filled in any
    order and at the same time."""
    copy_on_write: CopyOnWrite = CopyOnWrite.NONE
    native_diff: bool = False
    """The cost of ``changes`` and ``diff`` follows the changes, not the image."""
    size_limit: bool = False
    inode_limit: bool = False
    no_limits_because: str = ""
    """Why a limit that is False above is, and what would mend it."""
    labels: bool = False
    """``label`` (an SELinux mount context) has an effect."""
    id_maps: bool = False
    max_depth: int | None = None
    """Most layers in one chain, init and writable layer included; None: no limit."""
    rootless: bool = False
    """Works without privilege over the host, inside a user namespace."""


@frozen(kw_only=True)
class CreateOptions:
    """What a writable layer is created with."""

    size: int | None = None
    """Most bytes the layer itself may hold; None: no limit. A driver that cannot hold to it raises
    ``NotSupported`` rather than let it pass. One whose limit is the size of a whole file system
    (devicemapper) counts what lies below as well, so that less may be written, never more."""
    inodes: int | None = None
    """Most inodes the layer itself may hold; None: no limit."""
    label: str = ""
    """SELinux context, as given to ``get``."""


NO_OPTIONS = CreateOptions()


@frozen
class Mount:
    """One mount as data: print it, hand it to a runtime, or let ``layerfs.linux.mount`` perform it.

    ``options`` are single options as mount(8) has them (``ro``, ``lowerdir=/a:/b``), each value
    escaped the way the file system type wants but not for joining with commas. ``fstype`` is
    ``"bind"`` for a bind mount.
    """

    fstype: str
    source: str
    options: tuple[str, ...] = ()


@frozen
class Usage:
    """Space that one layer takes by itself: of a copy-on-write layer what it changed, of a copy
    (:attr:`CopyOnWrite.NONE`) the whole of it."""

    bytes: int
    inodes: int


@frozen
class Leak:
    """What a driver holds in the kernel that belongs to no use of any layer."""

    kind: str
    """``mount``, ``count``, ``device``, ``snapshot``, ``qgroup``."""
    what: str
    """A path, or the name of the device, snapshot or group."""
    detail: str


FileOpener = Callable[[bytes], "BinaryIO"]
"""Opens one regular file of a layer by its path inside the layer (``b"etc/passwd"``)."""

Displaced = Callable[[int, "BinaryIO"], None]
"""Called while a tar is applied, with the number of an earlier entry of the same tar (0 for the
first) and its content, when a later entry is about to replace that content. The store keeps it, so
that also such a tar can be given back byte for byte. Pass it on to ``archive.unpack``."""


class ProtoDriver(Protocol):
    """The least a driver supplies. :func:`layerfs.naivediff.NaiveDiff` makes a :class:`Driver` of it."""

    @property
    def name(self) -> str:
        """The name it is chosen by: ``overlay``."""

    @property
    def capabilities(self) -> Capabilities: ...

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        """Make an empty layer upon ``parent`` (None: upon nothing), to be filled by ``apply_diff``."""

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        """Make a writable layer upon ``parent``. :class:`NotSupported` for a limit it cannot keep."""

    def remove(self, id: GraphID, /) -> None:
        """Remove a layer and all it holds. An id that is not there is no error: removal can be
        repeated after a crash. A mounted layer raises :class:`~layerfs.errors.MountBusy`."""

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        """The mounts, in order, that put the layer's root at one target. Performs none."""

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        """The layer's root file system as a directory, mounted if need be.

        Counted: a second ``get`` answers the same path, the last ``put`` unmounts. The count
        survives the process. A read-only mount that is asked for again as writable raises
        :class:`~layerfs.errors.MountBusy`; the other way round shares the writable mount. Between
        ``create`` and the end of ``apply_diff`` a writable ``get`` is how the layer is filled.
        """

    def put(self, id: GraphID, /) -> None:
        """Give one ``get`` back. Without one it does nothing."""

    def mounted(self, id: GraphID, /) -> int:
        """How many ``get`` are not given back; 0 also for an id that is not there."""

    def exists(self, id: GraphID, /) -> bool: ...

    def ids(self) -> Iterator[GraphID]:
        """Every layer that is really there, half-made ones too: checks and prunes need it."""

    def usage(self, id: GraphID, /) -> Usage: ...

    def flush(self) -> None:
        """Bring to the disk all that was written to layers so far: after it a power cut harms none."""

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        """Facts about a layer for a person or a runtime: directories, devices, datasets."""

    def status(self) -> Mapping[str, str]:
        """Facts about the driver here, for ``layerfs info``."""

    def cleanup(self) -> None:
        """Release what the driver holds in this process. Mounts that are counted stay."""


class DiffDriver(Protocol):
    """Changes in and out. ``parent`` is always the parent the layer was created with."""

    def diff(self, id: GraphID, parent: GraphID | None, /) -> BinaryIO:
        """The changes as an uncompressed tar, the same bytes from every driver: deterministic pax,
        paths sorted, explicit whiteouts. The caller closes it."""

    def changes(self, id: GraphID, parent: GraphID | None, /) -> Iterator[Change]:
        """The changeset, sorted by path. A directory above a change is itself listed as modified."""

    def diff_size(self, id: GraphID, parent: GraphID | None, /) -> int:
        """Bytes of file content that ``diff`` would carry."""

    def apply_diff(
        self,
        id: GraphID,
        parent: GraphID | None,
        tar: BinaryIO,
        /,
        *,
        displaced: Displaced | None = None,
    ) -> int:
        """Fill a layer from an uncompressed tar, reading it to its end. Returns the bytes of file
        content. :class:`~layerfs.errors.ArchiveError` names the entry that could not be applied."""

    def files(self, id: GraphID, /) -> AbstractContextManager[FileOpener]:
        """Reads the files that the layer itself holds, for giving its exact tar back."""


class Parental(Protocol):
    """What a driver may have besides: it is held to what the store says a layer stands upon."""

    def parent(self, id: GraphID, /) -> GraphID | None:
        """The layer that ``id`` was made upon, None: upon nothing."""


class Leaky(Protocol):
    """What a driver may have besides, for checks of a store."""

    def leaks(self, *, remove: bool = False) -> Sequence[Leak]:
        """What belongs to no use of any layer: mounts that nobody counts, counts without a mount, devices
        without a user, snapshots and quota groups without a layer. ``remove``: release it; the answer is then
        what was found, and an error what could not be released. Others may use the driver meanwhile: what
        they are about to count, or to give back, is no leak."""


class Driver(ProtoDriver, DiffDriver, Protocol):
    """All of it: what the store is given."""


@frozen
class Option:
    """One option of a driver, as the command line and ``layerfs drivers`` tell of it."""

    name: str
    help: str


@frozen
class Fallback:
    """A driver works, but not by what it is there for: overlay over FUSE."""

    because: str
    priority: int
    """Automatic selection takes it for a driver of this priority."""


class DriverInfo(Protocol):
    """What an entry point in the group ``layerfs.drivers`` names: how to find and open a driver."""

    @property
    def name(self) -> str: ...

    @property
    def priority(self) -> int:
        """Automatic selection tries the highest first. overlay 100, btrfs 80, zfs 70,
        devicemapper 50, fuse 40, aufs 30, vfs 0."""

    @property
    def summary(self) -> str:
        """One line for ``layerfs drivers``."""

    @property
    def options(self) -> Sequence[Option]: ...

    def probe(self, home: Path, runroot: Path) -> Fallback | None:
        """Return when the driver can work with ``home`` here; raise :class:`NotSupported` saying
        why not and, in its hint, how to mend it. Leaves nothing behind, needs no ``home`` to exist."""

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        """A driver upon ``home``, which it makes (0700) if need be. ``options`` have no driver prefix;
        unknown ones raise :class:`~layerfs.errors.InvalidOption`. ``read_only``: the home is never
        written; all state goes to ``runroot``."""


def parse_options(cls: type[Any], options: Mapping[str, str], driver: str) -> Any:
    """Fill a driver's attrs class of options from strings.

    The class's fields are the options; each field's ``converter`` turns text into its value and raises
    ``ValueError`` for what it does not take. :class:`~layerfs.errors.InvalidOption` names the option.
    """
    import attrs

    known = {field.name: field for field in attrs.fields(cls)}
    values: dict[str, object] = {}
    for name, text in options.items():
        field = known.get(name)
        if field is None:
            raise _unknown_option(driver, name, known)
        values[name] = text  # converted once more, by the class
        try:
            if callable(field.converter):
                field.converter(text)
        except ValueError as error:
            raise InvalidOption(f"option {driver}.{name}={text!r}: {error}") from error
    return cls(**values)


def refuse_options(options: Mapping[str, str], driver: str) -> None:
    """For a driver that has none: :class:`~layerfs.errors.InvalidOption` for the first of ``options``."""
    for name in options:
        raise _unknown_option(driver, name, ())


def _unknown_option(driver: str, name: str, known: Iterable[str]) -> InvalidOption:
    return InvalidOption(
        f"driver {driver} has no option {name!r}", hint="its options: " + (", ".join(known) or "none")
    )

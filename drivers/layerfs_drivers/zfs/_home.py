"""The home of the zfs driver: which dataset holds its layers, and how they are known as its own.

::

    home/dataset        two lines: the dataset, and a random token

Layers are the datasets ``DATASET/ID``. Each carries the property ``layerfs:layer``, "TOKEN ID STATE": it is
``writable``, or read-only and ``unfilled`` until it is ``filled``. Datasets inherit such properties from
those above them; the id in it tells the one that it was given to. A dataset without it, or with another
token, was not made by this store and is never changed or removed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from layerfs.errors import InvalidOption, NotSupported, StoreDamaged
from layerfs.ids import GraphID
from layerfs.values import frozen

PROPERTY = "layerfs:layer"
WRITABLE = "writable"
UNFILLED = "unfilled"
FILLED = "filled"

_FILE = "dataset"


@frozen
class Home:
    """The dataset that holds the layers of one store, and the store's token."""

    dataset: str
    token: str

    def name(self, id: GraphID) -> str:
        """The dataset of a layer."""
        return f"{self.dataset}/{id}"

    def snapshot(self, id: GraphID) -> str:
        """The snapshot of a layer that never changes again: all layers upon it are its clones."""
        return f"{self.name(id)}@layerfs-{self.token}"

    def passing_snapshot(self, id: GraphID) -> str:
        """A fresh name for the snapshot of a layer that may still change: one clone is made of it."""
        return f"{self.snapshot(id)}-{os.urandom(4).hex()}"

    def owns_snapshot(self, snapshot: str, id: GraphID) -> bool:
        return snapshot.startswith(self.snapshot(id))

    def layer_of(self, snapshot: str) -> GraphID:
        """The layer that a snapshot was made of."""
        return GraphID(snapshot.partition("@")[0].removeprefix(f"{self.dataset}/"))

    def is_passing(self, snapshot: str) -> bool:
        return snapshot.startswith(f"{self.snapshot(self.layer_of(snapshot))}-")

    def mark(self, id: GraphID, state: str) -> str:
        """The property of a layer's dataset."""
        return f"{self.token} {id} {state}"

    def state(self, id: GraphID, mark: str) -> str | None:
        """The state of layer ``id`` by the ``mark`` of its dataset; None: it is no layer of this store."""
        token, _, rest = mark.partition(" ")
        marked, _, state = rest.partition(" ")
        return state if token == self.token and marked == id else None

    def id_of(self, dataset: str, mark: str) -> GraphID | None:
        """The layer in a dataset below ours; None when it is none of this store."""
        id = GraphID(dataset.removeprefix(f"{self.dataset}/"))
        return id if self.state(id, mark) else None


@frozen
class Opened:
    home: Home
    is_new: bool


def open_home(home: Path, wanted: str, *, read_only: bool) -> Opened:
    """Read the home, or make it: upon the dataset ``wanted`` or, if that is empty, the one that ``home`` lies
    on. :class:`InvalidOption` when ``wanted`` is not the one that holds the layers."""
    found = _read(home)
    if found is not None:
        if wanted not in ("", found.dataset):
            raise InvalidOption(
                f"the layers of {home} are in dataset {found.dataset}, not in {wanted}",
                hint="leave the option out, or move the dataset with zfs rename and edit that file",
            )
        return Opened(found, False)
    if read_only:
        raise NotSupported(f"there are no layers in {home}, and it is opened read-only")
    from layerfs_drivers.zfs._probe import dataset_of, probe

    dataset = wanted or dataset_of(home)
    probe(dataset)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Home(dataset, os.urandom(4).hex())
    if _write(home, made):
        return Opened(made, True)
    return open_home(home, wanted, read_only=read_only)


def _read(home: Path) -> Home | None:
    try:
        lines = (home / _FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    if len(lines) != 2:
        raise StoreDamaged(f"{home / _FILE} does not hold a dataset and a token")
    return Home(*lines)


def _write(home: Path, made: Home) -> bool:
    """Write the file, whole and on the disk; False when another process was faster."""
    scratch = home / f".{_FILE}-{made.token}"
    with scratch.open("x", encoding="utf-8") as file:
        file.write(f"{made.dataset}\n{made.token}\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(scratch, home / _FILE)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return True

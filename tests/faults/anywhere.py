"""What the tests share that kill a process, or make a call fail, anywhere: a store, what may be done to it,
and looking at the disk afterwards."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from layerfs.errors import ContainerNotFound, ImageNotFound, LayerNotFound
from layerfs.ids import ChainID, DiffID, chain_id, digest_of
from layerfs.image.commit import commit
from layerfs.image.load import load
from layerfs.linux.mountinfo import mounts_below
from layerfs.opening import open_store
from layerfs.store.images import ImageRecord
from layerfs.store.store import Store
from layerfs.testing.entries import directory, file, hard_link, opaque, symlink, tar_bytes, whiteout
from tests.cli.archives import oci_layout
from tests.migrationkit import BOTTOM, MIDDLE
from tests.places import Place

OWN = tar_bytes([directory(b"own"), file(b"own/big", b"x" * 200_000), file(b"etc/shadow", b"another\n")])
FIRST = tar_bytes([file(b"first", b"1" * 5000), symlink(b"link", b"first"), hard_link(b"again", b"first")])
SECOND = tar_bytes([whiteout(b"first"), directory(b"dir"), opaque(b"dir"), file(b"dir/file", b"2" * 70_000)])
NEIGHBOUR = tar_bytes([file(b"neighbour", b"n" * 300_000), file(b"more", b"m" * 10_000)])

LONG = bool(os.environ.get("LAYERFS_LONG"))
SEED = int(os.environ.get("LAYERFS_SEED", random.randrange(1 << 32) if LONG else 1))
"""What is picked at random: the same each time in a sample."""

_SAMPLE = {"fuse": 8, "aufs": 12, "zfs": 6, "devicemapper": 6}
"""How often a driver is tried in a sample; where each mount starts a process, or runs a tool, seldom."""


SECONDS = float(os.environ.get("LAYERFS_FAULT_SECONDS", 900 if LONG else 0))
"""How long a driver is tried; 0: a sample."""

LIMIT = SECONDS * 2 + 600


def rounds(driver: str) -> Iterator[int]:
    """As many as are to be tried."""
    deadline, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < deadline if SECONDS else number < _SAMPLE.get(driver, 25):
        yield number
        number += 1


@contextlib.contextmanager
def tally(of: str) -> Iterator[Counter[str]]:
    """What is counted is told, however the block ends."""
    counts: Counter[str] = Counter()
    try:
        yield counts
    finally:
        sys.stdout.write(f"{of}: {', '.join(f'{count} {what}' for what, count in counts.items())}\n")


APP, COMMITTED = "docker.io/library/app:1", "docker.io/library/committed:1"

Tell = Callable[[str], None]


def chains(*tars: bytes, upon: ChainID | None = None) -> list[ChainID]:
    found: list[ChainID] = []
    for tar in tars:
        found.append(chain_id(found[-1] if found else upon, DiffID(digest_of(tar))))
    return found


KEPT = chains(BOTTOM, MIDDLE)
TARS: Mapping[ChainID, bytes] = {
    **dict(zip(KEPT, (BOTTOM, MIDDLE), strict=True)),
    **dict(zip(chains(OWN, upon=KEPT[-1]), (OWN,), strict=True)),
    **dict(zip(chains(BOTTOM, FIRST, SECOND), (BOTTOM, FIRST, SECOND), strict=True)),
}
"""The exact bytes of every layer whose bytes are known beforehand."""


@attrs.define
class Ground:
    """A store of some driver with an image and a container, which stay whatever happens."""

    driver: str
    place: Place
    before: list[str] = attrs.field(factory=list)
    mounts: list[str] = attrs.field(factory=list)
    """Of others, which stay."""

    @property
    def base(self) -> Path:
        return self.place.base

    @property
    def root(self) -> Path:
        return self.base / "root"

    def open(self) -> Store:
        return open_store(
            self.root, runroot=self.base / "run", driver=self.driver, options=self.place.options
        )

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """With what stays in it; temporary files lie where they are looked for."""
        temporary = self.base / "tmp"
        temporary.mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(temporary)
        try:
            self._fill()
            yield
        finally:
            tempfile.tempdir = before

    def _fill(self) -> None:
        oci_layout(self.base / "layout", {"app:1": [BOTTOM, FIRST, SECOND]})
        with self.open() as store:
            layers = []
            for tar in (BOTTOM, MIDDLE):
                layers.append(store.register(io.BytesIO(tar), layers[-1] if layers else None).chain_id)
            assert layers == KEPT
            store.flush()
            store.add_image(ImageRecord(id=digest_of(b"{}"), config=b"{}", layers=tuple(layers)), ["kept:1"])
            with store.create_rw("kept", layers[-1]).mounted() as root:
                (root / "kept").write_text("kept")

    def look(self) -> list[str]:
        """Everything there is of the store in the world, mounts apart."""
        found = {*files_below(self.base), *loops(self.base), *self.elsewhere()}
        return sorted(found - {EMPTY_JOURNAL})

    def elsewhere(self) -> list[str]:
        """What is not a file below the base."""
        if self.driver == "zfs":
            from tests.zfskit import zfs

            dataset = self.place.options["zfs.dataset"]
            return zfs("list", "-H", "-o", "name", "-t", "all", "-r", dataset).split()
        if self.driver == "btrfs":
            words = ["btrfs", "subvolume", "list", "-o", self.root / "btrfs"]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            return [f"subvolume {line.split(' path ')[1]}" for line in done.stdout.splitlines()]
        if self.driver == "devicemapper":
            from layerfs_drivers.devicemapper._journal import Journal
            from tests.thinkit import active, device_ids

            home = self.root / self.driver
            layers = {device.id: device.layer for device in Journal(home, True).devices()}
            found = [f"thin of {layers.get(id, id)}" for id in device_ids(home)]
            return found + [f"active {name}" for name in active(home)]
        return []


def files_below(base: Path) -> Iterator[str]:
    """Every path below ``base``, without what is mounted there."""
    mounted = {os.fsdecode(entry.mount_point) for entry in mounts_below(base)} - {str(base)}
    for directory_, directories, files in os.walk(base):
        directories[:] = [name for name in directories if f"{directory_}/{name}" not in mounted]
        for name in (*directories, *files):
            if not name.startswith(".qgroup-"):  # of btrfs: goes with the last block of a removed subvolume
                yield os.path.relpath(f"{directory_}/{name}", base)


def loops(base: Path) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(str(base)):
                yield backing.read_text().strip()


def mounted(base: Path) -> list[str]:
    """What is mounted below ``base``."""
    found = [(os.fsdecode(entry.mount_point), entry.fstype) for entry in mounts_below(base)]
    return [f"{place} {fstype}" for place, fstype in found if place != str(base)]


def processes(base: Path) -> list[str]:
    """Others that were started for something below ``base``: tools, and servers of FUSE mounts."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            log = os.readlink(f"/proc/{pid}/fd/2")
            if (os.fsencode(base) in words or log.startswith(f"{base}/")) and int(pid) != os.getpid():
                found.append(f"{pid} {words!r}")
    return found


def settled(look: Callable[[], list[str]], expected: list[str] = [], seconds: float = 10) -> list[str]:  # noqa: B006
    """What ``look`` finds, when it is ``expected`` or time is up: a process ends a moment after its mount."""
    deadline = time.monotonic() + seconds
    while (found := look()) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


# --- what is done ----------------------------------------------------------------------------


@attrs.frozen
class Work:
    """One thing that a process does with a store."""

    prepare: Callable[[Store], None]
    do: Callable[[Store, Path], None]
    done: Callable[[Store], bool]
    """Whether it is done, wholly; and whatever is seen of it is whole."""


def nothing(store: Store) -> None: ...


def make_web(store: Store) -> None:
    """A container with changes."""
    with store.create_rw("web", KEPT[-1]).mounted() as root:
        (root / "new").write_text("new")
        (root / "etc/passwd").unlink()


def make_unreferenced(store: Store) -> None:
    with store.register(io.BytesIO(OWN), KEPT[-1]) as own:
        store.register(io.BytesIO(FIRST), own.chain_id).release()


def has_layer(store: Store, chain: ChainID) -> bool:
    try:
        store.layer_info(chain)
    except LayerNotFound:
        return False
    return True


def has_container(store: Store, name: str) -> bool:
    try:
        store.get_rw(name)
    except ContainerNotFound:
        return False
    return True


def has_image(store: Store, name: str) -> bool:
    try:
        image = store.image(name)
    except ImageNotFound:
        return False
    assert all(has_layer(store, layer) for layer in image.layers)
    return True


def register(store: Store, base: Path) -> None:
    store.register(io.BytesIO(OWN), KEPT[-1], expected=DiffID(digest_of(OWN))).release()


def mount(store: Store, base: Path) -> None:
    with store.get_rw("web").mounted() as root, contextlib.suppress(OSError):  # is told to whoever writes
        (root / "written").write_text("written")


def mount_layer(store: Store, base: Path) -> None:
    with store.get(KEPT[-1]) as layer, layer.mounted():
        pass


def prune(store: Store, base: Path) -> None:
    for error in store.prune().errors:
        raise error


WORKS: Mapping[str, Work] = {
    "register": Work(nothing, register, lambda store: has_layer(store, chains(OWN, upon=KEPT[-1])[0])),
    "load": Work(
        nothing, lambda store, base: void(load(store, base / "layout")), lambda store: has_image(store, APP)
    ),
    "create": Work(
        nothing,
        lambda store, base: void(store.create_rw("web", KEPT[-1])),
        lambda store: has_container(store, "web"),
    ),
    "mount": Work(make_web, mount, lambda store: has_container(store, "web")),
    "mount a layer": Work(nothing, mount_layer, lambda store: True),
    "commit": Work(
        make_web,
        lambda store, base: void(commit(store, "web", "committed:1")),
        lambda store: has_image(store, COMMITTED),
    ),
    "remove": Work(
        make_web, lambda store, base: store.remove_rw("web"), lambda store: not has_container(store, "web")
    ),
    "prune": Work(
        make_unreferenced, prune, lambda store: not has_layer(store, chains(OWN, upon=KEPT[-1])[0])
    ),
}


def void(_: object) -> None: ...


# --- what must hold --------------------------------------------------------------------------


def is_whole(store: Store, *, thorough: bool) -> None:
    """Each layer that the store offers is what it was, to the byte."""
    for info in store.layers():
        with store.get(info.chain_id) as layer, layer.tar() as tar:
            data = tar.read()
        assert digest_of(data) == info.diff_id
        assert TARS.get(info.chain_id, data) == data
    assert store.image("kept:1").layers == tuple(KEPT)
    kept = store.get_rw("kept")
    if thorough:
        with kept.mounted() as root:
            assert (root / "kept").read_text() == "kept"
            assert (root / "etc/hosts").exists()
        if has_container(store, "web"):
            with store.get_rw("web").mounted() as root:
                assert (root / "etc/hosts").exists()


def give_back_mounts(store: Store) -> None:
    """Mounts are meant to outlive the process that made them: whose count stands is no leak."""
    for id in store.driver.ids():
        while store.driver.mounted(id):
            store.driver.put(id)


def nobodys(ground: Ground, store: Store) -> list[str]:
    """Of all that is there now and was not before, what no row of the database accounts for."""
    db = store._core.db
    known = {
        str(id)
        for (id,) in db.rows(
            "SELECT cache_id FROM layers WHERE state = 'ready' UNION"
            " SELECT mount_id FROM containers WHERE state = 'ready' UNION"
            " SELECT init_id FROM containers WHERE state = 'ready' AND init_id IS NOT NULL"
            " UNION SELECT id FROM owners"
        )
    }
    new = set(ground.look()) - set(ground.before)
    return sorted(path for path in new if not any(id in path for id in known) and path not in DATABASE)


EMPTY_JOURNAL = "root/devicemapper/journal.db-journal"
"""SQLite rolls back by it at the next opening, but one with nothing in it stays until the next change."""
DATABASE = {"root/layerfs.db-wal", "root/layerfs.db-shm"}


def tidy(store: Store) -> None:
    """Back to what it was."""
    for image in (APP, COMMITTED):
        with contextlib.suppress(ImageNotFound):
            store.remove_image(image, force=True)
    with contextlib.suppress(ContainerNotFound):
        store.remove_rw("web")
    assert store.prune().errors == ()


def quick_mounts(driver: str) -> contextlib.AbstractContextManager[None]:
    """Mounts over FUSE spare the start of an interpreter, unless it is a sample: thousands are to be made."""
    from tests.fusestart import loaded_once

    return loaded_once() if SECONDS and driver in ("fuse", "aufs") else contextlib.nullcontext()


@contextlib.contextmanager
def scratch_memory(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be: what is killed hundreds of times need not be flushed each time."""
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path))
    try:
        yield place
    finally:
        from layerfs.linux.removetree import remove_tree
        from layerfs.linux.umount import umount

        for entry in reversed(mounts_below(place)):
            umount(Path(os.fsdecode(entry.mount_point)), lazy=True)
        remove_tree(place)


def prepare(ground: Ground, work: Work) -> None:
    with ground.open() as store:
        work.prepare(store)


def nothing_is_left(ground: Ground, store: Store) -> None:
    """There is nothing that no row accounts for, and nothing mounted. Then all goes that was made."""
    give_back_mounts(store)
    assert settled(lambda: nobodys(ground, store)) == []
    assert settled(lambda: mounted(ground.base), ground.mounts) == ground.mounts
    tidy(store)


def is_as_before(ground: Ground) -> None:
    """When the store is closed again."""
    now = settled(ground.look, ground.before)
    assert now == ground.before, {*now} ^ {*ground.before}
    assert settled(lambda: processes(ground.base)) == []

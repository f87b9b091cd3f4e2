"""A call to the kernel that fails, anywhere: the error has a type and says what was wanted, what was there is
as before, and the same work succeeds when the cause is gone.

Either one call fails, as when something was short for a moment, or from one on all of its kind, as on a full
disk, until the error was told.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import pytest

from layerfs.errors import LayerfsError, SystemFailure
from layerfs.opening import open_store
from layerfs.store import durability
from tests.faults.anywhere import (
    LIMIT,
    SEED,
    WORKS,
    Ground,
    Tell,
    Work,
    is_as_before,
    is_whole,
    nothing_is_left,
    prepare,
    quick_mounts,
    rounds,
    scratch_memory,
    tally,
    tidy,
)
from tests.places import place_for
from tests.systemcalls import Call, need_tracing, over, watched

# Numbers of x86-64.
READ = {"read": 0, "pread64": 17, "getdents64": 217}
LOOK = {"newfstatat": 262, "statx": 332, "readlink": 89}
WRITE = {"write": 1, "pwrite64": 18, "writev": 20, "ftruncate": 77, "fallocate": 285, "copy_file_range": 326}
SYNC = {"fsync": 74, "fdatasync": 75, "syncfs": 306}
MAKE = {
    "mkdir": 83, "link": 86, "symlink": 88, "mknod": 133, "mkdirat": 258, "mknodat": 259, "linkat": 265,
    "symlinkat": 266, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
}  # fmt: skip
MOVE = {"rename": 82, "renameat": 264, "renameat2": 316}
TAKE = {"rmdir": 84, "unlink": 87, "unlinkat": 263}
ADORN = {
    "chmod": 90,
    "fchmod": 91,
    "fchmodat": 268,
    "fchown": 93,
    "lchown": 94,
    "fchownat": 260,
    "utimensat": 280,
}
OPEN = {"open": 2, "openat": 257, "openat2": 437}
MORE = {"dup": 32, "socket": 41, "pipe2": 293, "memfd_create": 319, "pidfd_open": 434, "open_tree": 428,
        "fsopen": 430, "fsmount": 432}  # fmt: skip
KERNEL = {"ioctl": 16, "mount": 165, "umount2": 166, "move_mount": 429, "fsconfig": 431, "mount_setattr": 442}

NAMES = {
    number: name
    for group in (READ, LOOK, WRITE, SYNC, MAKE, MOVE, TAKE, ADORN, OPEN, MORE, KERNEL)
    for name, number in group.items()
}
_OPENAT = OPEN["openat"]


@attrs.frozen
class Cause:
    """Why calls fail, and which."""

    errno: int
    calls: frozenset[int]
    creating: bool = False
    """Opening fails when it makes a file."""
    writing: bool = False
    """And when it may write."""

    def hits(self, call: Call) -> bool:
        if call.number == _OPENAT and (self.creating or self.writing):
            flags = call.argument(2)
            return bool(flags & os.O_CREAT) or (self.writing and flags & os.O_ACCMODE != os.O_RDONLY)
        return call.number in self.calls


def cause(number: int, *groups: Mapping[str, int], creating: bool = False, writing: bool = False) -> Cause:
    return Cause(number, frozenset(one for group in groups for one in group.values()), creating, writing)


CAUSES = {
    "ENOSPC": cause(errno.ENOSPC, WRITE, MAKE, MOVE, SYNC, creating=True),
    "EDQUOT": cause(errno.EDQUOT, WRITE, MAKE, MOVE, creating=True),
    "EIO": cause(errno.EIO, READ, LOOK, WRITE, SYNC, MAKE, MOVE, TAKE, ADORN, OPEN, KERNEL),
    "ENOMEM": cause(errno.ENOMEM, LOOK, MAKE, MOVE, OPEN, MORE, KERNEL),
    "EMFILE": cause(errno.EMFILE, OPEN, MORE),
    "EROFS": cause(errno.EROFS, MAKE, MOVE, TAKE, ADORN, writing=True),
}


@attrs.define
class Failing:
    """Lets the ``at``-th call that the cause hits fail, and for good all that follow."""

    cause: Cause
    at: int
    for_good: bool
    count: int = 0

    def __call__(self, call: Call) -> int:
        if not self.cause.hits(call):
            return 0
        self.count += 1
        return (
            self.cause.errno if self.count == self.at or (self.for_good and self.count > self.at > 0) else 0
        )


@pytest.fixture(autouse=True)
def written_back_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images here are too small to be written to the disk beside the work otherwise."""
    monkeypatch.setattr(durability, "PORTION", 1)


@pytest.mark.parametrize("driver", ["overlay", "vfs", "btrfs", "fuse", "aufs", "zfs"])
@pytest.mark.timeout(LIMIT)
def test_every_error_has_a_type_and_leaves_what_was(driver: str, tmp_path: Path) -> None:
    need_tracing()
    with (
        scratch_memory(tmp_path) as scratch,
        quick_mounts(driver),
        place_for(driver, scratch, seconds=LIMIT) as place,
    ):
        fail_for(Ground(driver, place))


def test_what_could_not_be_written_beside_the_work_is_told(tmp_path: Path) -> None:
    """The kernel tells it once: the flush at the end would not hear of it."""
    need_tracing()
    failing = Failing(cause(errno.EIO, {"syncfs": SYNC["syncfs"]}), 1, for_good=False)

    def child(tell: Tell) -> None:
        with open_store(tmp_path / "store", runroot=tmp_path / "run", driver="vfs") as store:
            try:
                with store.writing_back() as read:
                    read(durability.PORTION)
            except SystemFailure as error:
                tell(f"{error.errno}")

    assert watched(child, fault=failing).told == (str(errno.EIO),)


@pytest.mark.host("thin")
@pytest.mark.timeout(LIMIT)
def test_every_error_has_a_type_and_leaves_what_was_in_a_thin_pool(tmp_path: Path) -> None:
    need_tracing()
    with place_for("devicemapper", tmp_path) as place:
        fail_for(Ground("devicemapper", place))


def fail_for(ground: Ground) -> None:
    pick = random.Random(f"{SEED} {ground.driver}")
    with ground.filled(), tally(ground.driver) as counts:
        most = {(name, why): count for name in WORKS for why, count in rehearse(ground, name).items()}
        ground.before = ground.look()
        for _ in rounds(ground.driver):
            name, why = pick.choice([key for key, count in most.items() if count])
            at = pick.randrange(1, most[name, why] + 1)
            failing = Failing(CAUSES[why], at, for_good=pick.random() < 0.4)
            try:
                counts["told as errors"] += one_error(ground, WORKS[name], failing)
            except BaseException as error:
                often = "for good" if failing.for_good else "once"
                error.add_note(
                    f"LAYERFS_SEED={SEED}: {name!r} with {why} {often} at {at} of {most[name, why]}"
                )
                raise
            counts["faults"] += 1


def rehearse(ground: Ground, name: str) -> dict[str, int]:
    """How many calls each cause hits. It is done here first, so that all modules are there: what an import
    raises is Python's affair."""
    work = WORKS[name]
    prepare(ground, work)
    with ground.open() as store:
        work.do(store, ground.base)
        tidy(store)
    for _ in range(2):
        prepare(ground, work)
        counts = {why: Failing(one, 0, False) for why, one in CAUSES.items()}
        outcome = watched(
            attempt(ground, work), fault=lambda call, counts=counts: sum(one(call) for one in counts.values())
        )
        assert outcome.status == 0 and outcome.told[0] == "done", outcome
        with ground.open() as store:
            tidy(store)
    return {why: one.count for why, one in counts.items()}


def attempt(ground: Ground, work: Work) -> Callable[[Tell], None]:
    """Do it once, and again without fault if it was not done."""

    def child(tell: Tell) -> None:
        try:
            with ground.open() as store:
                work.do(store, ground.base)
        except LayerfsError as error:
            over()
            words = str(error)
            assert words and "\n" not in words.rstrip("\n"), words
            tell(f"{type(error).__name__}: {words}")
        else:
            over()
            tell("done")
        with ground.open() as store:
            if not work.done(store):
                assert store.prune().errors == ()
                work.do(store, ground.base)
            assert work.done(store)

    return child


def one_error(ground: Ground, work: Work, failing: Failing) -> bool:
    """Whether it was told as an error."""
    prepare(ground, work)
    outcome = watched(attempt(ground, work), fault=failing)
    try:
        assert outcome.status == 0
        if outcome.last == SYNC["syncfs"]:
            assert outcome.told[0] != "done", "what is not on the disk is not done"
        with ground.open() as store:
            assert store.prune().errors == ()
            assert store.check() == []
            is_whole(store, thorough=False)
            nothing_is_left(ground, store)
        is_as_before(ground)
    except BaseException as error:
        error.add_note(f"at {NAMES.get(outcome.last, outcome.last)}; told: {outcome.told}")
        raise
    return outcome.told[0] != "done"

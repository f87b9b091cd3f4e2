"""What a server of files relies on, beyond what kernel overlay answers as well."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.errors import NotSupported
from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
from layerfs.union.attributes import Caller, Changes
from layerfs.union.aufs import Aufs
from layerfs.union.overlay import FUSE, TRUSTED, USER, Overlay
from layerfs.union.union import Union
from tests.require import need

ROOT = Union.ROOT
US = Caller()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    need.root()
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def lower(base: Path) -> Path:
    return base / "lower"


@pytest.fixture
def upper(base: Path) -> Path:
    return base / "upper"


@pytest.fixture
def make(base: Path) -> Iterator[Callable[[], Union]]:
    """Unions over what the test has put into ``lower``, closed in the end."""
    with contextlib.ExitStack() as stack:

        def make() -> Union:
            union = Union([base / "lower"], base / "upper", base / "work")
            stack.callback(union.close)
            return union

        yield make


def names(union: Union, id: int) -> list[bytes]:
    dh = union.opendir(id)
    try:
        return [entry.name for entry in union.readdir(dh)]
    finally:
        union.releasedir(dh)


@contextlib.contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


# Handles


def test_a_reader_from_before_copy_up_sees_what_is_written_after(
    lower: Path, make: Callable[[], Union]
) -> None:
    (lower / "f").write_bytes(b"old")
    union = make()
    id = union.lookup(ROOT, b"f").id
    reading = union.open(id, os.O_RDONLY)
    assert os.pread(reading, 10, 0) == b"old"
    writing = union.open(id, os.O_WRONLY)
    os.pwrite(writing, b"new!", 0)
    assert os.pread(reading, 10, 0) == b"new!"
    assert (lower / "f").read_bytes() == b"old"


def test_truncation_by_open_is_seen_by_readers(lower: Path, make: Callable[[], Union]) -> None:
    (lower / "f").write_bytes(b"old")
    union = make()
    id = union.lookup(ROOT, b"f").id
    reading = union.open(id, os.O_RDONLY)
    union.open(id, os.O_WRONLY | os.O_TRUNC)
    assert os.pread(reading, 10, 0) == b""
    assert union.getattr(id).size == 0


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_a_deleted_file_that_is_open_stays_whole(base: Path, where: str, make: Callable[[], Union]) -> None:
    (base / where / "f").write_bytes(b"content")
    union = make()
    id = union.lookup(ROOT, b"f").id
    fh = union.open(id, os.O_RDONLY)
    union.unlink(ROOT, b"f")
    union.forget(id)
    assert os.pread(fh, 10, 0) == b"content"
    assert union.getattr(id).nlink == 0
    other = union.open(id, os.O_RDWR)  # through /proc/self/fd
    os.pwrite(other, b"C", 0)
    union.setattr(id, Changes(mode=0o600, mtime_ns=5))
    union.setxattr(id, b"user.x", b"y")
    assert os.pread(fh, 10, 0) == b"Content"
    assert stat.S_IMODE(union.getattr(id).mode) == 0o600
    assert union.getxattr(id, b"user.x") == b"y"
    with fails(errno.ENOENT):
        union.link(id, ROOT, b"again")
    union.release(fh)
    union.release(other)
    with fails(errno.ESTALE):
        union.getattr(id)
    assert names(union, ROOT) == [b".", b".."]


def test_a_file_that_is_renamed_over_stays_whole_for_who_has_it_open(
    lower: Path, make: Callable[[], Union]
) -> None:
    (lower / "f").write_bytes(b"old")
    union = make()
    created = union.create(ROOT, b"g", 0o644, os.O_RDWR, US)
    os.pwrite(created.fh, b"new", 0)
    old = union.lookup(ROOT, b"f").id
    fh = union.open(old, os.O_RDONLY)
    union.rename(ROOT, b"g", ROOT, b"f")
    assert os.pread(fh, 10, 0) == b"old"
    assert union.getattr(old).nlink == 0
    assert union.lookup(ROOT, b"f").id == created.id


def test_a_deleted_link_can_still_be_read(make: Callable[[], Union]) -> None:
    union = make()
    id = union.symlink(ROOT, b"l", b"target", US).id
    union.unlink(ROOT, b"l")
    assert union.readlink(id) == b"target"


# Hard links


def test_names_of_one_file_in_the_upper_branch_have_one_id(upper: Path, make: Callable[[], Union]) -> None:
    (upper / "a").write_bytes(b"x")
    os.link(upper / "a", upper / "b")
    union = make()
    first, second = union.lookup(ROOT, b"a"), union.lookup(ROOT, b"b")
    assert first.id == second.id
    assert first.attributes.nlink == 2
    union.unlink(ROOT, b"a")
    assert union.getattr(first.id).nlink == 1
    fh = union.open(first.id, os.O_RDWR)
    os.pwrite(fh, b"y", 0)
    assert (upper / "b").read_bytes() == b"y"


def test_a_name_that_was_not_known_is_found_again_after_the_known_one_went(
    upper: Path, make: Callable[[], Union]
) -> None:
    (upper / "a").write_bytes(b"x")
    os.link(upper / "a", upper / "b")
    union = make()
    id = union.lookup(ROOT, b"a").id
    union.unlink(ROOT, b"a")
    assert union.lookup(ROOT, b"b").id == id
    union.rename(ROOT, b"b", ROOT, b"c")
    assert union.lookup(ROOT, b"c").id == id


def test_hard_links_of_a_lower_branch_are_told_as_such_and_part_when_written(
    lower: Path, make: Callable[[], Union]
) -> None:
    (lower / "a").write_bytes(b"x")
    os.link(lower / "a", lower / "b")
    union = make()
    first, second = union.lookup(ROOT, b"a"), union.lookup(ROOT, b"b")
    assert first.attributes.ino == second.attributes.ino
    assert first.attributes.nlink == second.attributes.nlink == 2
    assert first.id != second.id
    os.pwrite(union.open(first.id, os.O_WRONLY), b"y", 0)
    assert os.pread(union.open(second.id, os.O_RDONLY), 9, 0) == b"x"
    assert union.getattr(first.id).nlink == 1
    assert union.getattr(first.id).ino != union.getattr(second.id).ino


# Numbers


@contextlib.contextmanager
def file_systems(base: Path, count: int) -> Iterator[list[Path]]:
    """File systems in memory, whose inode numbers are the same."""
    roots = [base / f"fs{number}" for number in range(count)]
    with contextlib.ExitStack() as stack:
        for root in roots:
            root.mkdir()
            perform("tmpfs", "tmpfs", [], root)
            stack.callback(umount, root, lazy=True)
        yield roots


def test_files_of_equal_number_on_different_devices_are_different_files(tmp_path: Path) -> None:
    need.root()
    with file_systems(tmp_path, 3) as (one, two, three):
        for root, name in ((one, "a"), (two, "b"), (three, "c")):
            (root / "d").mkdir()
            (root / "d" / name).write_bytes(name.encode())
        assert (one / "d/a").stat().st_ino == (two / "d/b").stat().st_ino == (three / "d/c").stat().st_ino
        (one / "work").mkdir()
        union = Union([two / "d", three / "d"], one / "d", one / "work")
        with contextlib.closing(union):
            found = [union.lookup(ROOT, name) for name in (b"a", b"b", b"c")]
            assert len({each.id for each in found}) == len({each.attributes.ino for each in found}) == 3
            dh = union.opendir(ROOT)
            told = {entry.name: entry.ino for entry in union.readdir(dh)}
            assert [told[b"a"], told[b"b"], told[b"c"]] == [each.attributes.ino for each in found]
            os.pwrite(union.open(found[1].id, os.O_WRONLY), b"B", 0)
            assert union.getattr(found[1].id).ino == found[1].attributes.ino
            assert os.pread(union.open(found[2].id, os.O_RDONLY), 9, 0) == b"c"
        union = Union([two / "d", three / "d"], one / "d", one / "work")
        with contextlib.closing(union):
            assert union.lookup(ROOT, b"b").attributes.ino == found[1].attributes.ino


@pytest.mark.parametrize("memory_too", [False, True])
def test_a_copy_tells_its_origin_in_the_words_of_the_kernel(base: Path, memory_too: bool) -> None:
    need.overlay(base)
    with file_systems(base, 1) as (root,):
        top = root if memory_too else base
        for name in ("low", "up1", "up2", "w1", "w2", "merged"):
            (top / name).mkdir()
        (top / "low/f").write_bytes(b"x")
        with contextlib.closing(Union([top / "low"], top / "up1", top / "w1")) as union:
            union.setattr(union.lookup(ROOT, b"f").id, Changes(mode=0o600))
        dirs = [f"lowerdir={top}/low", f"upperdir={top}/up2", f"workdir={top}/w2"]
        perform("overlay", "overlay", [*dirs, "index=off", "xino=off"], top / "merged")
        (top / "merged/f").chmod(0o600)
        umount(top / "merged")
        for name, file in (("origin", "f"), ("impure", ".")):
            one, two = (os.getxattr(top / up / file, f"trusted.overlay.{name}") for up in ("up1", "up2"))
            assert one == two


# Names


def test_the_longest_names_and_paths(lower: Path, make: Callable[[], Union]) -> None:
    union = make()
    here = ROOT
    for number in range(40):  # 10,000 bytes
        name = b"%03d" % number + b"n" * 252
        here = union.mkdir(here, name, 0o755, US).id
    created = union.create(here, b"f" * 255, 0o644, os.O_RDWR, US)
    os.pwrite(created.fh, b"deep", 0)
    union.release(created.fh)
    with fails(errno.ENAMETOOLONG):
        union.lookup(here, b"f" * 256)
    with fails(errno.ENAMETOOLONG):
        union.mkdir(here, b"f" * 256, 0o755, US)
    union.close()
    again = make()
    here = ROOT
    for number in range(40):
        here = again.lookup(here, b"%03d" % number + b"n" * 252).id
    file = again.lookup(here, b"f" * 255).id
    assert os.pread(again.open(file, os.O_RDONLY), 9, 0) == b"deep"
    again.unlink(here, b"f" * 255)
    assert names(again, here) == [b".", b".."]


def test_names_that_aufs_could_not_mark_as_deleted_are_too_long(base: Path, lower: Path, upper: Path) -> None:
    long = b"n" * 252
    (lower / os.fsdecode(long)).touch()
    with contextlib.closing(Union([lower], upper, base / "work", dialect=Aufs())) as union:
        assert union.statfs().f_namemax == 251
        with fails(errno.ENAMETOOLONG):
            union.mkdir(ROOT, b"m" * 252, 0o755, US)
        union.mkdir(ROOT, b"m" * 251, 0o755, US)
        union.lookup(ROOT, long)
        with fails(errno.ENAMETOOLONG):
            union.unlink(ROOT, long)
        with fails(errno.ENAMETOOLONG):
            union.rename(ROOT, long, ROOT, b"short")
        assert set(names(union, ROOT)) == {b".", b"..", b"m" * 251, long}


@pytest.mark.parametrize("name", [b".", b"..", b"", b"d/f", b"../upper"])
def test_what_is_no_name_leads_nowhere(lower: Path, make: Callable[[], Union], name: bytes) -> None:
    (lower / "d").mkdir()
    (lower / "d/f").touch()
    union = make()
    with fails(errno.EINVAL):
        union.lookup(ROOT, name)
    with fails(errno.EINVAL):
        union.mkdir(ROOT, name, 0o755, US)
    with fails(errno.EINVAL):
        union.rename(ROOT, b"d", ROOT, name)


def test_what_is_made_belongs_to_the_caller(upper: Path, make: Callable[[], Union]) -> None:
    union = make()
    caller = Caller(uid=7, gid=8, umask=0o027)
    all_made = {
        0o750: union.mkdir(ROOT, b"d", 0o777, caller).attributes,
        0o640: union.mknod(ROOT, b"p", stat.S_IFIFO | 0o666, 0, caller).attributes,
        0o4750: union.create(ROOT, b"f", 0o4777, os.O_RDWR, caller).attributes,
        0o777: union.symlink(ROOT, b"l", b"x", caller).attributes,
    }
    for mode, made in all_made.items():
        assert (made.uid, made.gid, oct(stat.S_IMODE(made.mode))) == (7, 8, oct(mode))


def test_a_setgid_directory_hands_on_its_group(lower: Path, make: Callable[[], Union]) -> None:
    (lower / "d").mkdir()
    os.chown(lower / "d", 0, 9)
    (lower / "d").chmod(0o2775)
    (lower / "d/gone").mkdir()
    union = make()
    d = union.lookup(ROOT, b"d").id
    union.rmdir(d, b"gone")
    for name in (b"gone", b"new"):  # over a whiteout, and not
        made = union.mkdir(d, name, 0o755, Caller(7, 8))
        assert (made.attributes.gid, oct(made.attributes.mode)) == (9, oct(stat.S_IFDIR | 0o2755))
    created = union.create(d, b"f", 0o644, os.O_RDWR, Caller(7, 8))
    assert (created.attributes.uid, created.attributes.gid) == (7, 9)


# Listings


def test_a_listing_can_be_taken_up_where_it_was_left_and_things_removed_meanwhile(
    lower: Path, make: Callable[[], Union]
) -> None:
    for number in range(50):
        (lower / f"f{number}").touch()
    union = make()
    dh = union.opendir(ROOT)
    seen: list[bytes] = []
    offset = 0
    while True:
        some = []
        for entry in union.readdir(dh, offset):
            some.append(entry)
            if len(some) == 7:
                break
        if not some:
            break
        offset = some[-1].next
        for entry in some:
            seen.append(entry.name)
            if entry.name not in (b".", b".."):
                union.unlink(ROOT, entry.name)
    assert sorted(seen) == sorted([b".", b"..", *(b"f%d" % number for number in range(50))])
    assert len(list(union.readdir(dh, 0))) == 2  # rewound


def test_a_removed_directory_is_empty_for_who_is_in_it(lower: Path, make: Callable[[], Union]) -> None:
    (lower / "d").mkdir()
    union = make()
    d = union.lookup(ROOT, b"d").id
    dh = union.opendir(d)
    union.rmdir(ROOT, b"d")
    assert union.getattr(d).nlink == 0
    assert [entry.name for entry in union.readdir(dh)] == [b".", b".."]
    with fails(errno.ENOENT):
        union.lookup(d, b"x")
    with fails(errno.ENOENT):
        union.mkdir(d, b"x", 0o755, US)
    union.fsyncdir(dh)
    union.releasedir(dh)
    union.forget(d)


# Forgetting


def test_forgetting_too_much_or_what_is_unknown_does_no_harm(lower: Path, make: Callable[[], Union]) -> None:
    (lower / "d").mkdir()
    (lower / "d/f").write_bytes(b"x")
    union = make()
    for _ in range(3):
        d = union.lookup(ROOT, b"d").id
        f = union.lookup(d, b"f").id
        union.forget(d, 5)  # f is known beneath it
        assert union.getattr(d).nlink
        union.forget(f, 100)
        for id in (d, f, 0, -1, 1 << 70, ROOT):
            union.forget(id, 1 << 40)
        with fails(errno.ESTALE):
            union.getattr(f)
    assert union.lookup(ROOT, b"d").id != d


def test_no_descriptor_is_left_when_all_is_forgotten_and_closed(base: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        (base / f"lower/d{number}").mkdir()
        (base / f"lower/d{number}/f").write_bytes(b"x")
    union = Union([base / "lower"], base / "upper", base / "work")
    open_at_first = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        d = union.lookup(ROOT, b"d%d" % number).id
        f = union.lookup(d, b"f").id
        fh = union.open(f, os.O_RDWR)
        union.unlink(d, b"f")
        union.forget(f)
        union.release(fh)
        union.rmdir(ROOT, b"d%d" % number)
        union.forget(d)
    assert len(os.listdir("/proc/self/fd")) == open_at_first
    union.close()
    assert len(os.listdir("/proc/self/fd")) == before


# Marks


@pytest.mark.parametrize("prefix", [TRUSTED, USER, FUSE])
def test_every_spelling_of_opaque_is_heeded_and_none_is_shown(base: Path, prefix: bytes) -> None:
    for name in ("lower/d", "upper/d"):
        (base / name).mkdir()
    (base / "lower/d/below").touch()
    os.setxattr(base / "upper/d", prefix + b"opaque", b"y")
    os.setxattr(base / "upper/d", b"user.mine", b"z")
    dialect = Overlay((USER, FUSE, TRUSTED))
    union = Union([base / "lower"], base / "upper", base / "work", dialect=dialect)
    with contextlib.closing(union):
        d = union.lookup(ROOT, b"d").id
        assert names(union, d) == [b".", b".."]
        assert union.listxattr(d) == [b"user.mine"]
        with fails(errno.ENODATA):
            union.getxattr(d, prefix + b"opaque")


def test_a_copy_without_data_is_refused_as_by_the_kernel(base: Path, make: Callable[[], Union]) -> None:
    need.overlay(base)
    (base / "lower/f").write_bytes(b"content")
    (base / "merged").mkdir()
    dirs = [f"lowerdir={base}/lower", f"upperdir={base}/upper", f"workdir={base}/work"]
    perform("overlay", "overlay", [*dirs, "metacopy=on"], base / "merged")
    (base / "merged/f").chmod(0o600)
    umount(base / "merged")
    perform("overlay", "overlay", [*dirs, "metacopy=off", "redirect_dir=nofollow"], base / "merged")
    with fails(errno.EPERM):
        (base / "merged/f").read_bytes()
    umount(base / "merged")
    union = make()
    id = union.lookup(ROOT, b"f").id
    with fails(errno.EPERM):
        union.open(id, os.O_RDONLY)


def test_a_directory_that_was_renamed_alone_is_refused_as_by_the_kernel(
    base: Path, make: Callable[[], Union]
) -> None:
    need.overlay(base)
    (base / "lower/d").mkdir()
    (base / "lower/d/f").touch()
    (base / "merged").mkdir()
    dirs = [f"lowerdir={base}/lower", f"upperdir={base}/upper", f"workdir={base}/work"]
    perform("overlay", "overlay", [*dirs, "redirect_dir=on"], base / "merged")
    (base / "merged/d").rename(base / "merged/moved")
    umount(base / "merged")
    perform("overlay", "overlay", [*dirs, "metacopy=off", "redirect_dir=nofollow"], base / "merged")
    with fails(errno.EPERM):
        (base / "merged/moved").stat()
    umount(base / "merged")
    union = make()
    assert names(union, ROOT) == [b".", b"..", b"moved"]
    with fails(errno.EPERM):
        union.lookup(ROOT, b"moved")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_descriptors")
def test_hundreds_of_branches(base: Path) -> None:
    count = 600
    for number in range(count):
        (base / f"lower/{number}/d").mkdir(parents=True)
        (base / f"lower/{number}/e").mkdir(parents=True)
        (base / f"lower/{number}/d/f{number}").write_bytes(b"%d" % number)
    branches = [base / f"lower/{number}" for number in range(count)]
    union = Union(branches, base / "upper", base / "work", volatile=True)
    with contextlib.closing(union):
        d, e = union.lookup(ROOT, b"d").id, union.lookup(ROOT, b"e").id
        assert len(names(union, d)) == count + 2
        made = union.mkdir(d, b"made", 0o755, US)
        union.rename(d, b"made", e, b"moved")
        union.rename(d, b"f599", e, b"f599")
        union.rename(d, b"f598", e, b"f599", 2)
        union.unlink(d, b"f0")
        assert sorted(names(union, e)) == [b".", b"..", b"f599", b"moved"]
        fh = union.open(union.lookup(e, b"f599").id, os.O_RDONLY)
        assert os.pread(fh, 9, 0) == b"598"
        assert union.lookup(e, b"moved").id == made.id
    with contextlib.closing(Union(branches, base / "upper", base / "work", volatile=True)) as union:
        assert len(names(union, union.lookup(ROOT, b"d").id)) == count
        assert sorted(names(union, union.lookup(ROOT, b"e").id)) == [b".", b"..", b"f599", b"moved"]


# Read-only


def test_without_an_upper_branch_nothing_can_be_changed(lower: Path) -> None:
    need.root()
    (lower / "f").write_bytes(b"x")
    (lower / "d").mkdir()
    with contextlib.closing(Union([lower])) as union:
        f, d = union.lookup(ROOT, b"f").id, union.lookup(ROOT, b"d").id
        calls: list[Callable[[], object]] = [
            lambda: union.open(f, os.O_RDWR),
            lambda: union.open(f, os.O_TRUNC),
            lambda: union.create(ROOT, b"n", 0o644, os.O_RDWR, US),
            lambda: union.mkdir(d, b"n", 0o755, US),
            lambda: union.mknod(d, b"n", stat.S_IFIFO | 0o600, 0, US),
            lambda: union.symlink(d, b"n", b"x", US),
            lambda: union.link(f, d, b"n"),
            lambda: union.unlink(ROOT, b"f"),
            lambda: union.rmdir(ROOT, b"d"),
            lambda: union.rename(ROOT, b"f", d, b"f"),
            lambda: union.setattr(f, Changes(mode=0o600)),
            lambda: union.setattr(d, Changes(uid=3)),
            lambda: union.setxattr(f, b"user.x", b"y"),
            lambda: union.removexattr(f, b"user.x"),
            lambda: union.access(f, os.W_OK),
        ]
        for call in calls:
            with fails(errno.EROFS):
                call()
        union.access(f, os.R_OK)
        union.syncfs()
        assert os.pread(union.open(f, os.O_RDONLY), 9, 0) == b"x"
        assert union.statfs().f_namemax == 255


# The rest


def test_reading_leaves_no_trace_in_a_lower_branch(lower: Path, make: Callable[[], Union]) -> None:
    (lower / "f").write_bytes(b"x")
    os.utime(lower / "f", ns=(5, 5))
    union = make()
    os.pread(union.open(union.lookup(ROOT, b"f").id, os.O_RDONLY), 9, 0)
    assert (lower / "f").stat().st_atime_ns == 5


def test_holes_are_kept_by_copy_up_and_can_be_sought_and_punched(
    lower: Path, upper: Path, make: Callable[[], Union]
) -> None:
    with (lower / "f").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    union = make()
    fh = union.open(union.lookup(ROOT, b"f").id, os.O_RDWR)
    assert (upper / "f").stat().st_blocks * 512 < 1 << 20
    assert union.seek(fh, 0, os.SEEK_DATA) == 8 << 20
    union.fallocate(fh, 0, 0, 1 << 20)
    union.fallocate(fh, 3, 8 << 20, 4096)  # KEEP_SIZE | PUNCH_HOLE
    assert os.pread(fh, 9, 8 << 20) == b"\0\0\0"
    with fails(errno.ENXIO):
        union.seek(fh, 1 << 40, os.SEEK_HOLE)
    union.flush(fh)
    union.fsync(fh)
    union.fsync(fh, datasync=True)
    union.syncfs()


def test_a_strangers_write_clears_setuid(upper: Path, lower: Path, make: Callable[[], Union]) -> None:
    union = make()
    for name, mode, left in ((b"a", 0o6755, 0o755), (b"b", 0o2644, 0o2644), (b"c", 0o644, 0o644)):
        (lower / name.decode()).touch()
        (lower / name.decode()).chmod(mode)
        id = union.lookup(ROOT, name).id
        union.clear_privileges(id)
        assert oct(stat.S_IMODE(union.getattr(id).mode)) == oct(left)
    assert not (upper / "c").exists()


def test_what_a_killed_process_left_in_the_work_directory_is_cleared(
    base: Path, make: Callable[[], Union]
) -> None:
    (base / "work/work/#1/deep").mkdir(parents=True)
    (base / "work/work/#2").touch()
    make()
    assert os.listdir(base / "work/work") == []


def test_an_upper_that_a_volatile_mount_left_unflushed_is_refused(
    base: Path, make: Callable[[], Union]
) -> None:
    (base / "work/work/incompat/volatile").mkdir(parents=True)
    with pytest.raises(NotSupported, match="volatile"):
        make()


def test_a_failed_copy_up_leaves_nothing_behind(base: Path) -> None:
    with file_systems(base, 1) as (small,):
        umount(small)
        perform("tmpfs", "tmpfs", ["size=1m"], small)
        for name in ("up", "work"):
            (small / name).mkdir()
        (base / "lower/big").write_bytes(b"x" * (2 << 20))
        with contextlib.closing(Union([base / "lower"], small / "up", small / "work")) as union:
            id = union.lookup(ROOT, b"big").id
            fh = union.open(id, os.O_RDONLY)
            with fails(errno.ENOSPC):
                union.open(id, os.O_WRONLY)
            assert os.listdir(small / "up") == os.listdir(small / "work/work") == []
            assert os.pread(fh, 1, 0) == b"x"
            assert union.getattr(id).size == 2 << 20
            union.open(id, os.O_WRONLY | os.O_TRUNC)  # which has nothing to copy

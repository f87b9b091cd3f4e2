"""A union over FUSE under stress, and where FUSE is easily got wrong."""

from __future__ import annotations

import contextlib
import errno
import mmap
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux.mount import perform
from layerfs.linux.opened import opened
from layerfs.linux.removetree import remove_tree
from layerfs.linux.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_at
from layerfs.linux.umount import umount
from layerfs.testing.model import differences, read_tree
from tests.fusekit import Ground
from tests.require import need

LOREM = b"some text that fills a line or two of a file, and more than one page when it is repeated\n" * 200


@pytest.fixture
def root(ground: Ground) -> Iterator[Path]:
    """A mount of a few files. In the end it is unmounted, and nothing went wrong in it."""
    (ground.low / "file").write_bytes(LOREM)
    (ground.low / "other").write_bytes(b"other")
    (ground.low / "dir").mkdir()
    (ground.low / "dir" / "inside").write_bytes(b"inside")
    yield ground.mount()
    ground.umount()


def as_stranger(root: Path, code: str) -> str:
    """Run Python in ``root`` as somebody who owns nothing: what it says. The way there is closed to them."""
    done = subprocess.run(
        [sys.executable, "-c", f"import os\nos.setgroups([]); os.setgid(12345); os.setuid(12345)\n{code}"],
        capture_output=True,
        text=True,
        cwd=root,
    )
    return done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2")


def test_the_kernel_forgets_everything_again_and_again(ground: Ground) -> None:
    """Floods of FORGET, while names are looked up, made, renamed and removed."""
    for number in range(300):
        directory = ground.lowers[number % 2] / f"d{number % 20}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(b"%d" % number)
    root = ground.mount()
    ends = threading.Event()

    def forget() -> None:
        while not ends.wait(0.02):
            drop_caches()

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        for turn in range(6):
            names = {path.name for path in root.glob("d*/f*")}
            assert names == {f"f{number}" for number in range(300)}
            for number in range(300):
                path = root / f"d{number % 20}" / f"f{number}"
                assert path.read_bytes() == b"%d" % number
                if number % 7 == turn:
                    path.unlink()
                    path.write_bytes(b"%d" % number)
                elif number % 11 == turn:
                    path.rename(path.with_name("moved"))
                    path.with_name("moved").rename(path)
    finally:
        ends.set()
        thread.join()
    before = read_tree(root)
    root = ground.again()
    assert not differences(read_tree(root), before)
    ground.umount()


def test_forgotten_does_not_mean_closed(root: Path) -> None:
    with (root / "dir" / "inside").open("rb") as file, opened(root / "dir", os.O_RDONLY) as directory:
        drop_caches()
        assert file.read() == b"inside"
        assert os.listdir(directory) == ["inside"]
        with opened("inside", os.O_RDWR, dir_fd=directory) as written:
            drop_caches()
            os.pwrite(written, b"INSIDE", 0)
        file.seek(0)
        assert file.read() == b"INSIDE"


def _work(root: Path, number: int, turns: int) -> None:
    mine = root / f"of-{number}"
    mine.mkdir()
    chance = random.Random(number)
    for turn in range(turns):
        path = mine / f"f{chance.randrange(20)}"
        kind = chance.randrange(6)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if kind == 0:
                path.write_bytes(b"%d" % turn * chance.randrange(2000))
            elif kind == 1:
                path.unlink()
            elif kind == 2:
                path.rename(mine / f"f{chance.randrange(20)}")
            elif kind == 3:
                os.link(path, mine / f"f{chance.randrange(20)}")
            elif kind == 4:
                path.read_bytes()
            else:
                os.listdir(root)
        with contextlib.suppress(FileNotFoundError):
            (root / "shared" / f"s{chance.randrange(5)}").rename(root / "shared" / f"s{chance.randrange(5)}")
        with (root / "shared" / f"s{chance.randrange(5)}").open("ab") as file:
            file.write(b"x")


def test_many_processes_at_once(ground: Ground) -> None:
    (ground.low / "shared").mkdir()
    (ground.low / "shared" / "s1").write_bytes(b"1")
    root = ground.mount()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(root, number, 150)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    before = read_tree(root)
    root = ground.again()
    assert not differences(read_tree(root), before), "the live tree is the tree after a remount"
    remove_tree(root / "shared")
    for number in range(8):
        remove_tree(root / f"of-{number}")
    assert os.listdir(root) == []
    ground.umount()


def test_appends_of_many_are_all_there(root: Path) -> None:
    def append(mark: bytes) -> None:
        with (root / "log").open("ab", buffering=0) as file:
            for _ in range(200):
                file.write(mark * 10 + b"\n")

    threads = [threading.Thread(target=append, args=(b"%x" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (root / "log").read_bytes().splitlines()
    assert sorted(lines) == sorted((b"%x" % number) * 10 for number in range(8) for _ in range(200))


def test_names_of_255_bytes_and_paths_as_long_as_the_kernel_takes(root: Path) -> None:
    long = "n" * 255
    (root / long).write_bytes(b"long")
    assert (root / long).read_bytes() == b"long"
    with pytest.raises(OSError) as caught:
        (root / (long + "n")).touch()
    assert caught.value.errno == errno.ENAMETOOLONG
    here = os.open(root, os.O_RDONLY)
    try:
        for _ in range(30):  # past PATH_MAX, one directory at a time
            os.mkdir(long[:200], dir_fd=here)
            below = os.open(long[:200], os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        with opened("deep", os.O_WRONLY | os.O_CREAT, dir_fd=here) as fd:
            os.write(fd, b"deep")
        with opened("deep", os.O_RDONLY, dir_fd=here) as fd:
            assert os.read(fd, 10) == b"deep"
    finally:
        os.close(here)
    remove_tree(root / long[:200])


def test_an_open_file_that_is_deleted_lives_on(root: Path) -> None:
    for name in ("file", "new"):  # of a lower branch, of the upper
        (root / "new").write_bytes(LOREM)
        with (root / name).open("r+b") as file:
            (root / name).unlink()
            assert os.fstat(file.fileno()).st_nlink == 0
            assert file.read() == LOREM
            file.seek(0)
            file.write(b"ghost")
            file.flush()
            os.fchmod(file.fileno(), 0o600)
            os.ftruncate(file.fileno(), 5)
            assert os.fstat(file.fileno()).st_size == 5
            file.seek(0)
            assert file.read() == b"ghost"
        assert not (root / name).exists()


def test_an_open_file_that_is_renamed_over_lives_on(root: Path) -> None:
    with (root / "file").open("rb") as file:
        (root / "other").rename(root / "file")
        assert file.read() == LOREM
        assert os.fstat(file.fileno()).st_nlink == 0
    assert (root / "file").read_bytes() == b"other"


def test_a_reader_from_before_the_copy_sees_what_is_written_after(root: Path) -> None:
    with (root / "file").open("rb", buffering=0) as reader:
        reader.read(10)
        with (root / "file").open("r+b") as writer:
            writer.write(b"CHANGED")
        reader.seek(0)
        assert reader.read(20) == b"CHANGED" + LOREM[7:20]


def test_memory_maps_and_writes_are_one(root: Path) -> None:
    with (
        (root / "file").open("rb") as reader,
        mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as seen,
    ):
        assert seen[:4] == LOREM[:4]
        with (root / "file").open("r+b") as writer, mmap.mmap(writer.fileno(), 0) as shared:
            shared[:4] = b"MMAP"
            assert seen[:4] == b"MMAP"
            assert (root / "file").read_bytes()[:4] == b"MMAP"
            os.pwrite(writer.fileno(), b"WRITE", 5000)
            assert seen[5000:5005] == shared[5000:5005] == b"WRITE"


def test_what_a_memory_map_wrote_is_on_disk_after_the_end(ground: Ground) -> None:
    (ground.low / "file").write_bytes(LOREM)
    root = ground.mount()
    with (root / "file").open("r+b") as writer, mmap.mmap(writer.fileno(), 0) as shared:
        shared[-4:] = b"MMAP"
    ground.umount()
    assert (ground.upper / "file").read_bytes() == LOREM[:-4] + b"MMAP"


def test_programs_run_from_it(ground: Ground) -> None:
    (ground.low / "true").write_bytes(Path("/bin/true").resolve().read_bytes())
    (ground.low / "true").chmod(0o755)
    root = ground.mount()
    subprocess.run([root / "true"], check=True)
    ground.umount()


@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777])
def test_a_strangers_write_clears_setuid(root: Path, mode: int) -> None:
    for change in (
        "os.write(os.open('file', os.O_WRONLY), b'x')",
        "os.truncate('file', 3)",
        "os.close(os.open('file', os.O_WRONLY | os.O_TRUNC))",
    ):
        (root / "file").chmod(mode)
        assert as_stranger(root, change) == ""
        assert stat.S_IMODE((root / "file").stat().st_mode) == 0o777, change


def test_a_strangers_write_clears_file_capabilities(root: Path) -> None:
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    (root / "file").chmod(0o777)
    os.setxattr(root / "file", "security.capability", capability)
    assert os.getxattr(root / "file", "security.capability") == capability
    as_stranger(root, "os.write(os.open('file', os.O_WRONLY), b'x')")
    assert "security.capability" not in os.listxattr(root / "file")


def test_permissions_are_the_kernels(root: Path) -> None:
    (root / "file").chmod(0o600)
    (root / "dir").chmod(0o711)
    assert "Permission denied" in as_stranger(root, "open('file')")
    assert "Permission denied" in as_stranger(root, "os.listdir('dir')")
    assert as_stranger(root, "print(open('dir/inside').read())") == "inside"
    assert "Permission denied" in as_stranger(root, "open('dir/new', 'w')")


def test_access_lists_are_obeyed(root: Path) -> None:
    setfacl = need.tool("setfacl")
    (root / "file").chmod(0o600)
    subprocess.run([setfacl, "-m", "u:12345:r", root / "file"], check=True)
    assert as_stranger(root, "print(len(open('file').read()))") == str(len(LOREM))
    subprocess.run([setfacl, "-m", "d:u:12345:rw", root / "dir"], check=True)
    before = os.umask(0)  # FUSE as pyfuse3 has it heeds the umask also where a list says otherwise
    (root / "dir" / "child").touch()
    os.umask(before)
    assert as_stranger(root, "print(open('dir/child', 'r+').read())") == ""


def test_what_a_user_makes_is_the_users(root: Path) -> None:
    (root / "dir").chmod(0o3777)
    os.chown(root / "dir", 0, 77)
    making = "open('mine', 'w'); os.mkdir('mine.d'); os.symlink('x', 'mine.s')"
    assert as_stranger(root, f"os.chdir('dir'); os.umask(0o027); {making}") == ""
    for name, mode in (("mine", 0o640), ("mine.d", 0o2750), ("mine.s", 0o777)):
        status = (root / "dir" / name).lstat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 77, mode), name
    assert "Operation not permitted" in as_stranger(root, "os.unlink('dir/inside')")


def test_equal_inode_numbers_on_two_devices_are_two_files(ground: Ground) -> None:
    for number, low in enumerate(ground.lowers):
        perform("tmpfs", "tmpfs", ("size=1m", "inode64"), low)
        (low / f"file{number}").write_bytes(b"%d" % number)
        (low / f"linked{number}").write_bytes(b"linked %d" % number)
        os.link(low / f"linked{number}", low / f"link{number}")
    assert (ground.low / "file0").stat().st_ino == (ground.lowers[1] / "file1").stat().st_ino
    root = ground.mount()
    try:
        numbers = {path.name: path.stat().st_ino for path in root.iterdir()}
        assert numbers["file0"] != numbers["file1"] and numbers["linked0"] != numbers["linked1"]
        assert len({(root / name).stat().st_ino for name in ("file0", "file1")}) == 2
        (root / "file0").write_bytes(b"changed")
        assert (root / "file1").read_bytes() == b"1"
        assert (root / "linked0").read_bytes() == b"linked 0"
        assert (root / "link1").read_bytes() == b"linked 1"
        assert (root / "file0").stat().st_ino == numbers["file0"], "kept over the copy"
    finally:
        ground.umount()
        for low in ground.lowers:
            umount(low)


def test_numbers_stay_over_remounts(ground: Ground, root: Path) -> None:
    before = {name: (root / name).stat().st_ino for name in ("file", "other", "dir", "dir/inside")}
    (root / "file").write_bytes(b"changed")
    (root / "dir" / "inside").chmod(0o600)
    ground.again()
    assert {name: (root / name).stat().st_ino for name in before} == before
    listed = {entry.name: entry.inode() for entry in os.scandir(root)}
    assert listed == {name: before[name] for name in ("file", "other", "dir")}


def test_renames(root: Path) -> None:
    with opened(root, os.O_RDONLY) as fd:
        with pytest.raises(FileExistsError):
            rename_at(fd, b"file", fd, b"other", RENAME_NOREPLACE)
        rename_at(fd, b"file", fd, b"other", RENAME_EXCHANGE)
    assert (root / "file").read_bytes() == b"other"
    assert (root / "other").read_bytes() == LOREM
    with pytest.raises(OSError) as caught:
        (root / "dir").rename(root / "elsewhere")
    assert caught.value.errno == errno.EXDEV
    subprocess.run(["mv", root / "dir", root / "elsewhere"], check=True)
    assert (root / "elsewhere" / "inside").read_bytes() == b"inside"
    (root / "made").mkdir()
    (root / "made").rename(root / "dir")
    assert sorted(os.listdir(root)) == ["dir", "elsewhere", "file", "other"]
    assert os.listdir(root / "dir") == []


def test_a_large_directory_is_listed_whole_while_it_changes(root: Path) -> None:
    (root / "large").mkdir()
    for number in range(3000):
        (root / "large" / f"{number:04}").touch()
    seen = []
    for number, entry in enumerate(os.scandir(root / "large")):
        seen.append(entry.name)
        if number % 10 == 0:
            (root / "large" / f"new{number}").touch()
        if number % 3 == 0:
            (root / "large" / entry.name).unlink()
    stayed = {name for name in seen if not name.startswith("new")}
    assert stayed == {f"{number:04}" for number in range(3000)} and len(seen) == len(set(seen))
    remove_tree(root / "large")


def test_a_full_disk_is_told_and_survived(ground: Ground) -> None:
    perform("tmpfs", "tmpfs", ("size=4m",), ground.place / "upper")
    (ground.upper / "up").mkdir()
    (ground.upper / "work").mkdir()
    (ground.low / "big").write_bytes(b"x" * (6 << 20))
    from tests.fusekit import layerfs_fuse

    options = f"lowerdir={ground.low},upperdir={ground.upper}/up,workdir={ground.upper}/work,log={ground.log}"
    assert layerfs_fuse("-o", options, ground.root).returncode == 0
    with pytest.raises(OSError) as caught:
        (ground.root / "big").chmod(0o600)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as caught, opened(ground.root / "new", os.O_WRONLY | os.O_CREAT) as fd:
        for _ in range(8):
            os.write(fd, b"x" * (1 << 20))
        os.fsync(fd)
    assert caught.value.errno == errno.ENOSPC
    (ground.root / "new").unlink()
    (ground.root / "small").write_bytes(b"fits")
    assert (ground.root / "big").read_bytes()[:4] == b"xxxx"
    ground.umount()
    assert (ground.upper / "up" / "small").read_bytes() == b"fits"
    umount(ground.upper)


def test_special_files_work(root: Path) -> None:
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "null").write_bytes(b"gone")
    assert (root / "null").read_bytes() == b""

    def write() -> None:
        (root / "fifo").write_bytes(b"through")

    writer = threading.Thread(target=write)
    writer.start()
    assert (root / "fifo").read_bytes() == b"through"
    writer.join()
    with pytest.raises(OSError) as caught:
        os.open(root / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    assert caught.value.errno == errno.ENXIO


def test_locks_are_kept_among_processes(root: Path) -> None:
    import fcntl

    with (root / "file").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fcntl.lockf(held, fcntl.LOCK_EX)
        code = f"import fcntl; fcntl.lockf(open({str(root / 'file')!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "BlockingIOError" in done.stderr


def test_xattrs(root: Path) -> None:
    for name in ("user.one", "trusted.two"):
        os.setxattr(root / "file", name, b"1", os.XATTR_CREATE)
        with pytest.raises(FileExistsError):
            os.setxattr(root / "file", name, b"2", os.XATTR_CREATE)
        os.setxattr(root / "file", name, b"3" * 1000, os.XATTR_REPLACE)
        assert os.getxattr(root / "file", name) == b"3" * 1000
    assert sorted(os.listxattr(root / "file")) == ["trusted.two", "user.one"]
    os.removexattr(root / "file", "user.one")
    with pytest.raises(OSError) as caught:
        os.getxattr(root / "file", "user.one")
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError) as caught:
        os.setxattr(root / "file", "user.new", b"", os.XATTR_REPLACE)
    assert caught.value.errno == errno.ENODATA


def test_a_stuck_user_does_not_stop_the_rest(root: Path) -> None:
    """A reader that is stopped half-way."""
    code = "import os, signal; f = open('file'); f.read(1); os.kill(os.getpid(), signal.SIGSTOP)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as process:
        os.waitpid(process.pid, os.WUNTRACED)
        (root / "file").write_bytes(b"new")
        assert (root / "file").read_bytes() == b"new"
        process.send_signal(signal.SIGKILL)

"""Files in a container."""

from __future__ import annotations

import os
import shutil
import subprocess

from benchmarks import images, trees
from benchmarks.clock import Clock
from benchmarks.subjects import Roots, Subject, run, size_of_output
from benchmarks.workload import (
    KIB,
    MIB,
    Evidence,
    Parameter,
    drop_caches,
    is_roots,
    read_all,
    root_of,
    workload,
)
from layerfs.linux.syncfs import syncfs

_SIZES = (4 * KIB, 1 * MIB, 8 * MIB, 256 * MIB)


@workload(
    "The first write to a file",
    {"write": "append one byte to a file of the image"},
    short=[{"size": size} for size in _SIZES[:-1]],
    full=[{"size": _SIZES[-1]}],
    takes=is_roots,
)
def copy_up(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """A container appends one byte to a file of its image. Overlay copies the whole file first, btrfs and zfs
    write a block."""
    assert isinstance(subject, Roots)
    size = int(parameter["size"])
    with root_of(subject, images.sized(_SIZES if size == _SIZES[-1] else _SIZES[:-1])) as root:
        file = root / f"size{size}"
        syncfs(subject.place)
        with clock.lap("write"), file.open("ab", buffering=0) as opened:
            opened.write(b"+")
        return {"content": trees.digest_of(file)} if check else {}


@workload(
    "Many small files",
    {"create": "create them", "stat": "look at them", "read": "read them", "unlink": "remove them"},
    short=[{"files": 1_000}],
    full=[{"files": 20_000}],
    takes=is_roots,
)
def storm(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """Files of a kilobyte, 100 in a directory, made in a container, looked at, read and removed."""
    assert isinstance(subject, Roots)
    files = int(parameter["files"])
    with root_of(subject, images.many_files(1_000)) as root:
        top = root / "storm"
        names = [f"{top}/{images.path_of(number)}" for number in range(files)]
        syncfs(subject.place)
        with clock.lap("create"):
            top.mkdir()
            for number, name in enumerate(names):
                if number % images.IN_A_DIRECTORY == 0:
                    os.mkdir(os.path.dirname(name))
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, images.FILE)
                os.close(fd)
        with clock.lap("stat"):
            sizes = sum(os.stat(name).st_size for name in names)
        with clock.lap("read"):
            read = read_all(names)
        with clock.lap("unlink"):
            for name in names:
                os.unlink(name)
        return {"bytes": [sizes, read], "left": sum(len(found) for _, _, found in os.walk(top))}


@workload(
    "A tree of files",
    {
        "find": "find with empty caches",
        "again": "find again",
        "pack": "tar it with empty caches",
        "unpack": "untar a third of it beside it",
        "chmod": "change the mode of every file",
        "remove": "remove it",
    },
    short=[{"files": 300}],
    full=[{"files": 4_000}],
    takes=is_roots,
)
def tree(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """Files of 8 KiB on average, spread over three layers of the image that have the same directories. GNU
    find looks at all of them and GNU tar reads them; then each is copied up, as its mode is changed."""
    assert isinstance(subject, Roots)
    stack = images.tree(int(parameter["files"]))
    with root_of(subject, stack) as root:
        top, beside = root / "tree", root / "beside"
        drop_caches(subject)
        for lap in ("find", "again"):
            with clock.lap(lap):
                run("find", top, "-size", "+1000k")
        drop_caches(subject)
        with clock.lap("pack"):
            size = size_of_output("tar", "--create", "--directory", root, "tree")
        beside.mkdir()
        with clock.lap("unpack"):
            subprocess.run(["tar", "--extract", "--directory", beside], input=stack.tars[0], check=True)
        with clock.lap("chmod"):
            changed = 0
            for directory, _, names in os.walk(top):
                for name in names:
                    os.chmod(os.path.join(directory, name), 0o600)
                    changed += 1
        with clock.lap("remove"):
            shutil.rmtree(top)
        unpacked = sum(len(names) for _, _, names in os.walk(beside))
        return {"bytes": size, "changed": changed, "left": [top.exists(), unpacked]}


@workload(
    "One big file",
    {
        "write": "write it",
        "fsync": "have it on the disk",
        "read": "read it again",
        "cold": "read it with empty caches",
        "small": "write 16 MiB, 4 KiB at a time",
    },
    short=[{"size": 64 * MIB}],
    full=[{"size": 512 * MIB}],
    takes=is_roots,
)
def big(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """Written and read in a container from beginning to end, a mebibyte at a time, and then begun anew in
    small pieces."""
    assert isinstance(subject, Roots)
    piece = os.urandom(MIB)
    with root_of(subject, images.many_files(1_000)) as root:
        syncfs(subject.place)
        fd = os.open(root / "big", os.O_RDWR | os.O_CREAT)
        try:
            with clock.lap("write"):
                for _ in range(int(parameter["size"]) // MIB):
                    os.write(fd, piece)
            with clock.lap("fsync"):
                os.fsync(fd)
            size, buffer = 0, bytearray(MIB)
            for lap in ("read", "cold"):
                if lap == "cold":
                    drop_caches(subject)
                os.lseek(fd, 0, os.SEEK_SET)
                with clock.lap(lap):
                    while got := os.readv(fd, [buffer]):
                        size += got
            os.lseek(fd, 0, os.SEEK_SET)
            with clock.lap("small"):
                for _ in range(16 * MIB // (4 * KIB)):
                    os.write(fd, piece[: 4 * KIB])
        finally:
            os.close(fd)
    return {"bytes": size, "end": bytes(buffer) == piece}

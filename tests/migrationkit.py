"""What the tests of moving a store share: one with something of everything in it, and what its user sees."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from layerfs import registry
from layerfs.driver import NO_OPTIONS, CreateOptions, Driver, DriverInfo
from layerfs.errors import LayerfsError
from layerfs.ids import GraphID
from layerfs.image.commit import commit
from layerfs.image.load import load
from layerfs.image.save import save
from layerfs.linux.xattr import HOSTS_OWN, read_all
from layerfs.naivediff import NaiveDiff
from layerfs.registry import Found
from layerfs.store.store import Store
from layerfs.testing.entries import (
    ACL,
    CAP_NET_RAW,
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    symlink,
    tar_bytes,
    whiteout,
)
from tests import zfskit
from tests.cli.archives import oci_layout
from tests.dirdriver import DirInfo, DirProto
from tests.filesystems import file_system
from tests.require import need

BOTTOM = tar_bytes(
    [
        directory(b"etc"),
        file(b"etc/passwd", b"root\n"),
        file(b"etc/shadow", b"secret\n", mode=0o600),
        directory(b"bin"),
        file(b"bin/su", b"\x7fELF" * 3000, mode=0o4755),
        file(b"bin/ping", b"ping", xattrs={b"security.capability": CAP_NET_RAW}),
        hard_link(b"bin/ping6", b"bin/ping"),
        directory(b"tmp", mode=0o1777),
        directory(b"srv/old/deep"),
        file(b"srv/old/deep/file", b"old"),
        directory(b"shared", mode=0o775, xattrs={b"system.posix_acl_access": ACL}),
        symlink(b"lib", b"usr/lib"),
        device(b"dev/null", 1, 3),
        fifo(b"run/pipe"),
        file(b"name-\xff", b"not UTF-8"),
        file(b"twice", b"first"),
        file(b"twice", b"second, which counts"),
    ]
)
MIDDLE = tar_bytes(
    [
        whiteout(b"etc/shadow"),
        directory(b"srv/old"),
        opaque(b"srv/old"),
        file(b"srv/old/new", b"new"),
        file(b"lib/libc.so", b"a directory where a link was"),
        file(b"etc/passwd", b"root\nuser\n", uid=3, gid=4),
    ]
)
TOP = tar_bytes([file(b"app/main", os.urandom(300_000)), hard_link(b"app/alias", b"app/main")])


def fill(store: Store, scratch: Path) -> None:
    """Two images that share layers, one of them with two names; a layer that no image has; containers:
    changed, untouched, upon nothing."""
    layout = oci_layout(scratch / "layout", {"app:1": [BOTTOM, MIDDLE, TOP], "base:1": [BOTTOM]})
    app, _ = load(store, layout)
    store.tag("docker.io/library/again:1", app.id)
    alone = tar_bytes([file(b"alone", b"alone")])
    (scratch / "alone").write_bytes(alone)
    with (scratch / "alone").open("rb") as tar:
        store.register(tar).release()
    web = store.create_rw("web", app.layers[-1], image=app.id)
    with web.mounted() as root:
        change(root)
    commit(store, "web", "committed:1")
    with web.mounted() as root:
        (root / "etc/late").write_text("after the commit")
    store.create_rw("untouched", app.layers[0])
    with store.create_rw("bare", None, init=None).mounted() as root:
        (root / "file").write_text("upon nothing")


def change(root: Path) -> None:
    """What a container may do."""
    (root / "etc/hosts").write_text("127.0.0.1 web\n")
    (root / "bin/su").unlink()
    (root / "bin/ping").chmod(0o711)
    (root / "app/main").unlink()
    (root / "app/main").mkdir(mode=0o711)
    (root / "app/main/inside").write_bytes(b"x" * 5000)
    os.link(root / "app/main/inside", root / "app/main/linked")
    for path in ("srv/old/new", "srv/old"):
        (root / path).unlink() if (root / path).is_file() else (root / path).rmdir()
    (root / "srv/old").write_text("a file where a directory was")
    (root / "lib/libc.so").unlink()
    (root / "lib").rmdir()
    (root / "lib").symlink_to("elsewhere")
    os.mkfifo(root / "pipe")
    os.mknod(root / "node", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.setxattr(root / "etc/passwd", "user.mark", b"set")
    os.chown(root / "etc/passwd", 5, 6)
    (root / os.fsdecode(b"odd-\xfe")).write_text("odd")
    os.utime(root / "tmp", ns=(1, 1_234_567_890_123_456_789))


def seen(store: Store, scratch: Path) -> dict[str, object]:
    """Everything that its user can see of a store, which no move may change."""
    picture: dict[str, object] = {
        "images": list(store.images()),
        "records": [store.image(image.id) for image in store.images()],
        "layers": [attrs_of(layer) for layer in store.layers()],
        "containers": list(store.rw_layers()),
    }
    for image in store.images():
        archive = scratch / "saved.tar"
        save(store, [image.id], archive)
        picture[f"archive of {image.id}"] = digest(archive.read_bytes())
        archive.unlink()
    for info in store.layers():
        with store.get(info.chain_id) as layer:
            with layer.tar() as tar:
                assert "sha256:" + digest(tar.read()) == info.diff_id
            with layer.mounted() as root:
                picture[f"tree of {info.chain_id}"] = tree(root)
    for info in store.rw_layers():
        web = store.get_rw(info.name)
        with web.diff() as tar:
            picture[f"diff of {web.name}"] = digest(tar.read())
        picture[f"changes of {web.name}"] = list(web.changes())
        with web.mounted() as root:
            picture[f"tree of {web.name}"] = tree(root)
    return picture


def attrs_of(value: object) -> object:
    """A layer, without whether it was flushed: that may become true."""
    return {name: found for name, found in vars(value).items() if name != "durable"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree(root: Path) -> dict[bytes, object]:
    """Every file below ``root`` with all that a layer keeps of it."""
    found: dict[bytes, object] = {}
    for directory_, directories, files in os.walk(os.fsencode(root)):
        for name in [b".", *directories, *files]:
            path = os.path.join(directory_, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                content = digest(Path(os.fsdecode(path)).read_bytes())
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            xattrs: object = None
            if kind != stat.S_IFLNK:
                fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
                try:
                    xattrs = {k: v for k, v in read_all(fd).items() if k not in HOSTS_OWN}
                finally:
                    os.close(fd)
            found[os.path.relpath(path, os.fsencode(root))] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_rdev,
                content,
                xattrs,
            )
    return found


@contextlib.contextmanager
def place_for(drivers: Sequence[str], scratch: Path) -> Iterator[Path]:
    """Where a store of each of these installed drivers can be; skips where there is no such place."""
    need.root()
    with contextlib.ExitStack() as held:
        base = scratch
        if "btrfs" in drivers:
            base = held.enter_context(file_system("btrfs"))
        if "zfs" in drivers:
            held.enter_context(zfskit.pool(scratch))
            base = held.enter_context(zfskit.mounted_dataset(scratch))
        if "overlay" in drivers:
            need.overlay(base)
        for name in drivers:
            try:
                registry.find(name).info.probe(base / "root" / name, base / "run" / name)
            except LayerfsError as error:
                pytest.skip(f"driver {name} does not work in {base}: {error}")
        yield base


# drivers of no privilege, for what does not depend on the driver


@attrs.frozen
class LimitsProto(DirProto):
    """Takes limits, and keeps none."""

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        self.create(id, parent)


@attrs.frozen
class LimitsInfo(DirInfo):
    def open(self, home, runroot, options, /, *, read_only=False) -> Driver:  # type: ignore[no-untyped-def]
        home.mkdir(mode=0o700, exist_ok=True)
        return NaiveDiff(LimitsProto(home, name=self.name))


def use_drivers(monkeypatch: pytest.MonkeyPatch, *infos: DriverInfo) -> None:
    """These are what is installed."""
    monkeypatch.setattr(registry, "installed", lambda: [Found(info, "") for info in infos])

"""Others who do the same work: container engines with private roots, single tools, bare system calls.

All of them work on one ext4, the one that layerfs' overlay and vfs drivers have.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import define, field

from benchmarks.images import NAME, TAG, Archive, Stack, of_stack
from benchmarks.subjects import Failed, Subject, run, size_of_output
from layerfs.driver import Mount
from layerfs.errors import NotSupported
from layerfs.linux.mount import perform
from layerfs.linux.overlaymount import escape_lower
from layerfs.linux.umount import umount
from tests.engines import containerd, containers_storage, dockerd

_numbers = itertools.count()


def _new_name() -> str:
    return f"bench{next(_numbers)}"


# Engines


@define
class Docker:
    """dockerd, storage driver overlay2, with the containerd that it starts."""

    place: Path
    address: str
    daemons: tuple[int, ...]
    prefix: tuple[str, ...] = ()
    deepest: int = 120

    name = "docker"
    in_process = False
    mounts = False  # only a running container has a mount

    def run(self, *words: str | Path) -> str:
        return run(*self.prefix, "docker", "--host", self.address, *words)

    def load(self, archive: Archive) -> None:
        self.run("load", "--quiet", "--input", archive.tar)

    def identity(self, archive: Archive) -> Mapping[str, object]:
        [told] = json.loads(self.run("image", "inspect", archive.id))
        return {"id": told["Id"], "diff_ids": told["RootFS"]["Layers"]}

    @contextlib.contextmanager
    def root(self, archive: Archive) -> Iterator[Path]:
        [told] = json.loads(self.run("image", "inspect", archive.id))
        place = told["GraphDriver"]["Data"]
        lower = [place["UpperDir"], *place.get("LowerDir", "").split(":")]
        target = self.place / "docker-root"
        target.mkdir(exist_ok=True)
        # Overlay itself takes no single directory.
        lower = [directory for directory in [*lower, str(_empty(self.place))] if directory]
        perform("overlay", "overlay", (f"lowerdir={_joined(lower)}",), target)
        try:
            yield target
        finally:
            umount(target)

    def save(self, archive: Archive, dest: Path) -> None:
        self.run("save", "--output", dest, archive.id)

    def forget(self, archive: Archive) -> None:
        self.run("image", "rm", "--force", archive.id)

    def prepare(self, stack: Stack) -> None:
        self.load(of_stack(stack))

    def create(self, stack: Stack) -> DockerContainer:
        return DockerContainer(self, self.run("create", of_stack(stack).id).strip())


@define
class DockerContainer:
    _docker: Docker
    _id: str

    def mount(self) -> Path:
        """What dockerd does when it starts a container."""
        [told] = json.loads(self._docker.run("container", "inspect", self._id))
        place = told["GraphDriver"]["Data"]
        lower = _joined(place["LowerDir"].split(":"))
        options = (f"lowerdir={lower}", f"upperdir={place['UpperDir']}", f"workdir={place['WorkDir']}")
        target = Path(place["MergedDir"])
        target.mkdir(exist_ok=True)
        perform("overlay", "overlay", options, target)
        return target

    def umount(self) -> None:
        [told] = json.loads(self._docker.run("container", "inspect", self._id))
        umount(Path(told["GraphDriver"]["Data"]["MergedDir"]))

    def changes(self) -> list[str]:
        return self._docker.run("diff", self._id).splitlines()

    def commit(self) -> Undo:
        image = self._docker.run("commit", self._id).strip()
        return Undo(lambda: self._docker.run("image", "rm", image))

    def remove(self) -> None:
        self._docker.run("rm", self._id)


@define
class Undo:
    _command: Callable[[], object]

    def prune(self) -> None:
        self._command()


@define
class Podman:
    """Podman, storage driver overlay."""

    place: Path
    where: Sequence[str]
    prefix: tuple[str, ...] = ()
    daemons: tuple[int, ...] = ()
    deepest: int = 120

    name = "podman"
    in_process = False
    mounts = True

    def run(self, *words: str | Path) -> str:
        return run(*self.prefix, "podman", *self.where, *words)

    def load(self, archive: Archive) -> None:
        self.run("load", "--quiet", "--input", archive.tar)

    def identity(self, archive: Archive) -> Mapping[str, object]:
        [told] = json.loads(self.run("image", "inspect", archive.id[7:]))
        return {"id": f"sha256:{told['Id']}", "diff_ids": told["RootFS"]["Layers"]}

    @contextlib.contextmanager
    def root(self, archive: Archive) -> Iterator[Path]:
        yield Path(self.run("image", "mount", archive.id[7:]).strip())
        self.run("image", "umount", archive.id[7:])

    def save(self, archive: Archive, dest: Path) -> None:
        self.run("save", "--quiet", "--format", "docker-archive", "--output", dest, archive.id[7:])

    def forget(self, archive: Archive) -> None:
        self.run("image", "rm", "--force", archive.id[7:])

    def prepare(self, stack: Stack) -> None:
        self.load(of_stack(stack))

    def create(self, stack: Stack) -> PodmanContainer:
        # The networks that Podman sets up in /etc are none of this.
        return PodmanContainer(self, self.run("create", "--network=none", of_stack(stack).id[7:]).strip())


@define
class PodmanContainer:
    _podman: Podman
    _id: str

    def mount(self) -> Path:
        return Path(self._podman.run("mount", self._id).strip())

    def umount(self) -> None:
        self._podman.run("umount", self._id)

    def changes(self) -> list[str]:
        return self._podman.run("diff", self._id).splitlines()

    def commit(self) -> Undo:
        image = self._podman.run("commit", "--quiet", self._id).strip()
        return Undo(lambda: self._podman.run("image", "rm", image))

    def remove(self) -> None:
        self._podman.run("rm", self._id)


@define
class Skopeo:
    """skopeo copies into a containers-storage, storage driver overlay; Podman looks into that."""

    place: Path
    where: Sequence[str]
    prefix: tuple[str, ...] = ()
    daemons: tuple[int, ...] = ()

    name = "skopeo"

    @property
    def _target(self) -> str:
        _, root, _, runroot, _, driver = self.where
        return f"containers-storage:[{driver}@{root}+{runroot}]{NAME}"

    def _copy(self, source: str, target: str) -> None:
        run(*self.prefix, "skopeo", "copy", "--quiet", "--insecure-policy", source, target)

    def load(self, archive: Archive) -> None:
        self._copy(f"oci-archive:{archive.tar}:{TAG}", self._target)

    def save(self, archive: Archive, dest: Path) -> None:
        self._copy(self._target, f"docker-archive:{dest}:{NAME}")

    def forget(self, archive: Archive) -> None:
        run(*self.prefix, "skopeo", "delete", self._target)

    def identity(self, archive: Archive) -> Mapping[str, object]:
        return Podman(self.place, self.where).identity(archive)

    def root(self, archive: Archive) -> contextlib.AbstractContextManager[Path]:
        return Podman(self.place, self.where).root(archive)


@define
class Umoci:
    """umoci unpacks all layers into one directory, and keeps nothing to give them back from."""

    place: Path
    prefix: tuple[str, ...] = ()
    daemons: tuple[int, ...] = ()

    name = "umoci"

    @property
    def _bundle(self) -> Path:
        return self.place / "umoci"

    def load(self, archive: Archive) -> None:
        run(*self.prefix, "umoci", "unpack", "--image", f"{archive.layout}:{TAG}", self._bundle)

    def identity(self, archive: Archive) -> Mapping[str, object]:
        return {}

    @contextlib.contextmanager
    def root(self, archive: Archive) -> Iterator[Path]:
        yield self._bundle / "rootfs"

    def forget(self, archive: Archive) -> None:
        run("rm", "-rf", self._bundle)


@define
class Ctr:
    """containerd, snapshotter overlayfs. It keeps the packed layers beside the unpacked ones."""

    place: Path
    address: str
    daemons: tuple[int, ...]
    prefix: tuple[str, ...] = ()

    name = "containerd"

    def run(self, *words: str | Path) -> str:
        return run(*self.prefix, "ctr", "--address", self.address, *words)

    def load(self, archive: Archive) -> None:
        self.run("image", "import", archive.tar)

    def identity(self, archive: Archive) -> Mapping[str, object]:
        manifest = json.loads(self.run("content", "get", self._digest()))
        config = json.loads(self.run("content", "get", manifest["config"]["digest"]))
        return {"id": manifest["config"]["digest"], "diff_ids": config["rootfs"]["diff_ids"]}

    def _digest(self) -> str:
        for line in self.run("image", "ls", f"name=={NAME}").splitlines()[1:]:
            return line.split()[2]
        raise Failed(f"ctr: no image {NAME}")

    @contextlib.contextmanager
    def root(self, archive: Archive) -> Iterator[Path]:
        target = self.place / "ctr-root"
        target.mkdir(exist_ok=True)
        self.run("image", "mount", NAME, target)
        try:
            yield target
        finally:
            umount(target)
            self.run("snapshots", "rm", str(target))

    def save(self, archive: Archive, dest: Path) -> None:
        """The layers as they are kept: packed."""
        self.run("image", "export", dest, NAME)

    def forget(self, archive: Archive) -> None:
        self.run("image", "rm", "--sync", NAME)


# Tools and system calls


@define
class _Directories:
    """The layers of stacks as directories, unpacked by GNU tar."""

    place: Path
    _layers: dict[bytes, Path] = field(factory=dict)
    """By their tars."""

    def of(self, stack: Stack) -> list[Path]:
        """First layer first."""
        return [self._layers.get(tar) or self._unpack(tar) for tar in stack.tars]

    def _unpack(self, tar: bytes) -> Path:
        layer = self._layers[tar] = self.place / "layers" / _new_name()
        layer.mkdir(parents=True)
        subprocess.run(["tar", "--extract", "--directory", str(layer)], input=tar, check=True)
        return layer


@define
class BareOverlay:
    """Overlay directories made by hand and mounted by the bare system calls; GNU tar reads what changed."""

    place: Path
    directories: _Directories
    daemons: tuple[int, ...] = ()

    name = "bare mount(2)"
    in_process = True
    mounts = True
    deepest = 500

    def prepare(self, stack: Stack) -> None:
        self.directories.of(stack)

    def create(self, stack: Stack) -> BareContainer:
        lower = [str(layer) for layer in reversed(self.directories.of(stack))]
        return BareContainer(_upper(self.place), lower)

    def export(self, stack: Stack) -> int:
        return _tar(self.directories.of(stack)[-1])


@define
class BareContainer:
    _base: Path
    _lower: Sequence[str]

    def plan(self) -> Mount:
        options = (f"lowerdir={_joined(self._lower)}", *_upper_options(self._base))
        return Mount("overlay", "overlay", options)

    def mount(self) -> Path:
        plan, target = self.plan(), self._base / "merged"
        perform(plan.fstype, plan.source, plan.options, target)
        return target

    def umount(self) -> None:
        umount(self._base / "merged")

    def diff(self) -> int:
        return _tar(self._base / "upper")

    def remove(self) -> None:
        shutil.rmtree(self._base)


@define
class FuseOverlayfs:
    """The FUSE file system that rootless Podman uses."""

    place: Path
    directories: _Directories
    daemons: tuple[int, ...] = ()
    """Its processes that are mounted now."""

    name = "fuse-overlayfs"
    in_process = False
    mounts = True
    deepest = 120

    def prepare(self, stack: Stack) -> None:
        self.directories.of(stack)

    def create(self, stack: Stack) -> FuseContainer:
        lower = [str(layer) for layer in reversed(self.directories.of(stack))]
        return FuseContainer(self, _upper(self.place), lower)


@define
class FuseContainer:
    _owner: FuseOverlayfs
    _base: Path
    _lower: Sequence[str]

    def mount(self) -> Path:
        target = self._base / "merged"
        options = ",".join((f"lowerdir={_joined(self._lower)}", *_upper_options(self._base)))
        run("fuse-overlayfs", "-o", options, target)
        self._owner.daemons = tuple(_pids_with(str(target)))
        return target

    def umount(self) -> None:
        umount(self._base / "merged")
        self._owner.daemons = ()

    def remove(self) -> None:
        shutil.rmtree(self._base)


@define
class PlainDirectory:
    """A copy by ``cp -a``: nothing is stacked, so nothing stands between a program and ext4."""

    place: Path
    directories: _Directories
    daemons: tuple[int, ...] = ()

    name = "plain directory"
    in_process = False
    mounts = False
    deepest = 1

    def prepare(self, stack: Stack) -> None:
        self.directories.of(stack)

    def create(self, stack: Stack) -> PlainContainer:
        [layer] = self.directories.of(stack)
        target = self.place / _new_name()
        run("cp", "-a", layer, target)
        return PlainContainer(target)


@define
class PlainContainer:
    _root: Path

    def mount(self) -> Path:
        return self._root

    def umount(self) -> None:
        pass

    def remove(self) -> None:
        shutil.rmtree(self._root)


def _upper(place: Path) -> Path:
    base = place / _new_name()
    for name in ("upper", "work", "merged"):
        (base / name).mkdir(parents=True)
    return base


def _upper_options(base: Path) -> tuple[str, str]:
    return f"upperdir={base}/upper", f"workdir={base}/work"


def _joined(directories: Sequence[str]) -> str:
    return ":".join(map(escape_lower, directories))


def _empty(place: Path) -> Path:
    empty = place / "empty"
    empty.mkdir(exist_ok=True)
    return empty


def _tar(directory: Path) -> int:
    return size_of_output("tar", "--create", "--xattrs", "--directory", directory, ".")


def _pids_with(word: str) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and os.fsencode(word) in (process / "cmdline").read_bytes().split(
                b"\0"
            ):
                yield int(process.name)


# All of them

Maker = Callable[[Path, contextlib.ExitStack], Subject]


def _docker(place: Path, held: contextlib.ExitStack) -> Subject:
    daemon = held.enter_context(dockerd(place, "overlay2"))
    return Docker(place, daemon.address, (daemon.pid,))


def _podman(place: Path, held: contextlib.ExitStack) -> Subject:
    return Podman(place, held.enter_context(containers_storage(place, "overlay")))


def _skopeo(place: Path, held: contextlib.ExitStack) -> Subject:
    return Skopeo(place, held.enter_context(containers_storage(place, "overlay")))


def _ctr(place: Path, held: contextlib.ExitStack) -> Subject:
    daemon = held.enter_context(containerd(place))
    return Ctr(place, daemon.address, (daemon.pid,))


PEERS: dict[str, tuple[tuple[str, ...], Maker]] = {
    Docker.name: (("docker", "dockerd"), _docker),
    Podman.name: (("podman",), _podman),
    Skopeo.name: (("skopeo", "podman"), _skopeo),
    Umoci.name: (("umoci",), lambda place, _: Umoci(place)),
    Ctr.name: (("containerd", "ctr"), _ctr),
    BareOverlay.name: (("tar",), lambda place, _: BareOverlay(place, _Directories(place))),
    FuseOverlayfs.name: (("fuse-overlayfs",), lambda place, _: FuseOverlayfs(place, _Directories(place))),
    PlainDirectory.name: (("cp", "tar"), lambda place, _: PlainDirectory(place, _Directories(place))),
}
"""By name: the programs it needs, and what makes it."""


@contextlib.contextmanager
def peer(name: str, place: Path, *, full: bool) -> Iterator[Subject]:
    """One of :data:`PEERS` with a directory of its own below ``place``; in a run that is not ``full`` without
    what takes it long to prepare."""
    tools, make = PEERS[name]
    for tool in tools:
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            raise NotSupported(f"no program {tool!r} on PATH")
    own = place / "".join(filter(str.isalnum, name))
    own.mkdir()
    with contextlib.ExitStack() as held:
        subject = make(own, held)
        if not full and isinstance(subject, Docker | Podman):
            subject.deepest = 15
        yield subject

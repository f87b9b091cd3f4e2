"""Others mount by ``layerfs-fuse``, and real work is done upon it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs import load, open_store
from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from tests.fusekit import Ground
from tests.require import need


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs podman with layerfs-fuse as its mount_program, on a storage of its own."""
    need.root()
    need.fuse()
    tool = need.tool("podman")
    program = tmp_path / "layerfs-fuse"
    path = f"sys.path[:0] = {sys.path!r}"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n{path}\nfrom layerfs.fuse.program import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="podman-") as runroot:
        where = [tool, "--root", str(tmp_path / "root"), "--runroot", runroot, "--cgroup-manager=cgroupfs"]
        where += ["--storage-driver", "overlay", "--storage-opt", f"overlay.mount_program={program}"]

        def run(*words: str | Path) -> str:
            done = subprocess.run([*where, *map(str, words)], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run
        for mount in reversed([*mounts_below(tmp_path / "root"), *mounts_below(Path(runroot))]):
            umount(Path(os.fsdecode(mount.mount_point)), lazy=True)


def test_podman_runs_a_container_on_it(podman: Callable[..., str], tmp_path: Path) -> None:
    busybox = need.tool("busybox")
    (tmp_path / "image" / "bin").mkdir(parents=True)
    shutil.copy(busybox, tmp_path / "image" / "bin" / "busybox")
    subprocess.run(["tar", "-cf", tmp_path / "image.tar", "-C", tmp_path / "image", "."], check=True)
    podman("import", tmp_path / "image.tar", "test:1")
    script = "busybox mkdir /d && echo written > /d/f && busybox cat /d/f && busybox grep ' / ' /proc/mounts"
    options = ["--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--name=one"]
    out = podman(
        "run", *options, f"--runtime={need.tool('runc')}", "test:1", "/bin/busybox", "sh", "-c", script
    )
    assert out.startswith("written\nlayerfs[")
    assert " fuse.layerfs rw" in out
    assert "A /d/f" in podman("diff", "one")
    podman("commit", "-q", "one", "test:2")
    podman("rm", "one")
    root = Path(podman("image", "mount", "test:2").strip())
    assert (root / "d" / "f").read_text() == "written\n"
    podman("image", "umount", "test:2")


def test_a_program_is_cloned_built_and_unpacked_in_it(ground: Ground, tmp_path: Path) -> None:
    git, compiler = need.tool("git"), need.tool("gcc")
    source = tmp_path / "source"
    (source / "many").mkdir(parents=True)
    (source / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    for number in range(200):
        (source / "many" / f"file{number}").write_text(f"{number}\n" * number)
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "safe.directory=*"]

    def run(*words: str | Path) -> str:
        return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout

    run(git, "-C", source, "init", "-q")
    run(git, "-C", source, "add", ".")
    run(git, *identity, "-C", source, "commit", "-qm", "one")
    root = ground.mount()
    run(git, "clone", "-q", "--no-local", source, root / "clone")
    assert run(git, "-C", root / "clone", "status", "--porcelain") == ""
    run(git, "-C", root / "clone", "fsck", "--full")
    run(compiler, "-o", root / "clone" / "hello", root / "clone" / "hello.c")
    assert run(root / "clone" / "hello") == "hello\n"
    run("tar", "-cf", root / "all.tar", "-C", root / "clone", "many")
    run("tar", "-xf", root / "all.tar", "-C", root)
    run("diff", "-r", root / "many", root / "clone" / "many")
    root = ground.again()
    assert run(git, "-C", root / "clone", "status", "--porcelain") == "?? hello\n"
    assert run(root / "clone" / "hello") == "hello\n"
    run("rm", "-rf", root / "clone", root / "many", root / "all.tar")
    assert os.listdir(root) == []
    ground.umount()


# The machine's devices and proc, in a mount namespace that ends with the command.
_IN_ROOT = """
for place in dev proc; do mount --rbind /$place "$1/$place"; done
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
exec chroot "$1" sh -ec "$2"
"""
_PACKAGES = ("jq", "libjq1", "libonig5")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A program and its libraries as Debian has them: from the mirror, or what apt kept of it here."""
    directory = tmp_path / "packages"
    directory.mkdir()
    command = [need.tool("apt-get"), "-qq", "-o", "APT::Sandbox::User=root", "download", *_PACKAGES]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    for name in _PACKAGES:
        if not list(directory.glob(f"{name}_*.deb")):
            kept = sorted(Path("/var/cache/apt/archives").glob(f"{name}_*.deb"))
            if not kept:
                need.missing("mirror", done.stderr.strip()[-500:])
            shutil.copy(kept[-1], directory)
    return directory


def test_apt_installs_and_removes_packages_in_it(debian_image: Path, packages: Path, tmp_path: Path) -> None:
    need.fuse()

    def run_in(root: Path, script: str) -> str:
        command = ["unshare", "--mount", "sh", "-ec", _IN_ROOT, "sh", str(root), script]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with open_store(tmp_path / "store", runroot=tmp_path / "run", driver="fuse") as store:
        (image,) = load(store, debian_image)
        container = store.create_rw("apt", image.layers[-1], image=image.id)
        with container.mounted() as root:
            for package in packages.iterdir():
                shutil.copy(package, root / "tmp")
            # The image has a file there: it shows how a file comes in the place of a directory.
            run_in(root, "rm /var/log/apt && mkdir /var/log/apt")
            run_in(root, "apt-get -qq -o APT::Sandbox::User=root install -y /tmp/*.deb && rm /tmp/*.deb")
        with container.mounted() as root:
            assert run_in(root, f"dpkg -V {' '.join(_PACKAGES)}; dpkg --audit") == ""
            assert run_in(root, "echo '[1, 2]' | jq -c 'map(. + 1)'") == "[2,3]\n"
        changed = {(change.kind.value, change.path) for change in container.changes()}
        assert {("A", b"usr/bin/jq"), ("C", b"var/lib/dpkg/status")} <= changed
        with container.mounted() as root:
            run_in(root, "apt-get -qq purge -y jq libjq1 libonig5 && ! command -v jq")
        assert not [change for change in container.changes() if change.path.startswith(b"usr/bin/")]

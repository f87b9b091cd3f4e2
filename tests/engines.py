"""Other container engines with directories and daemons of their own, for tests and benchmarks.

Each is started for a block and stopped by its process; what it left mounted is unmounted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from tests.require import need

_START_SECONDS = 60


@attrs.frozen
class Daemon:
    pid: int
    address: str
    """The socket, as the client wants it."""


@contextlib.contextmanager
def dockerd(base: Path, storage_driver: str = "vfs") -> Iterator[Daemon]:
    """Docker with a containerd of its own and no network, all below ``base``."""
    need.root()
    daemon, client = need.tool("dockerd"), need.tool("docker")
    address = f"unix://{base}/socket"
    argv = [
        daemon, "--data-root", f"{base}/root", "--exec-root", f"{base}/run", "--pidfile", f"{base}/pid",
        "--host", address, "--iptables=false", "--ip6tables=false", "--bridge=none",
        "--storage-driver", storage_driver,
    ]  # fmt: skip
    with _serving(argv, [client, "--host", address, "version"], base) as pid:
        yield Daemon(pid, address)


@contextlib.contextmanager
def containerd(base: Path) -> Iterator[Daemon]:
    """containerd without its part for Kubernetes, all below ``base``."""
    need.root()
    daemon, client = need.tool("containerd"), need.tool("ctr")
    config = {"root": base / "root", "state": base / "state"}
    lines = ["version = 2", 'disabled_plugins = ["io.containerd.grpc.v1.cri"]']
    lines += [f'{key} = "{value}"' for key, value in config.items()]
    lines += ["[grpc]", f'address = "{base}/socket"']
    (base / "config.toml").write_text("\n".join(lines))
    argv = [daemon, "--config", str(base / "config.toml")]
    with _serving(argv, [client, "--address", f"{base}/socket", "version"], base) as pid:
        yield Daemon(pid, f"{base}/socket")


@contextlib.contextmanager
def containers_storage(base: Path, storage_driver: str = "vfs") -> Iterator[list[str]]:
    """A storage for Podman, buildah and skopeo below ``base``: the options that name it."""
    need.root()
    # Podman refuses a runroot of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="podman-") as runroot:
        try:
            yield ["--root", str(base), "--runroot", runroot, "--storage-driver", storage_driver]
        finally:
            _unmount_below(base, Path(runroot))


@contextlib.contextmanager
def _serving(argv: Sequence[str], probe: Sequence[str], base: Path) -> Iterator[int]:
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        _wait(process, probe, base / "log")
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        _unmount_below(base)


def _wait(process: subprocess.Popen[bytes], probe: Sequence[str], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    need.missing(Path(str(process.args[0])).name, log.read_text()[-500:])  # type: ignore[index]


def _unmount_below(*places: Path) -> None:
    for place in places:
        for mount in reversed(mounts_below(place)):
            umount(Path(os.fsdecode(mount.mount_point)), lazy=True)


Client = Callable[..., str]
"""Runs a client with these words; its standard output."""

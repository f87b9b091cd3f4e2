"""Images go to containerd and come from it, as the archive that is both a layout and a docker-archive."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.image.load import load
from layerfs.image.save import Format, save
from layerfs.linux.mount import umount
from layerfs.linux.mountinfo import mounts_below
from layerfs.store.store import Store
from tests.e2e.peers import identity, make_layout, run
from tests.require import need
from tests.storekit import open_store

Ctr = Callable[..., str]

_START_SECONDS = 30


@pytest.fixture
def ctr(tmp_path: Path) -> Iterator[Ctr]:
    """Runs ctr on a daemon of its own."""
    need.root()
    daemon, client = need.tool("containerd"), need.tool("ctr")
    base = tmp_path / "containerd"
    base.mkdir()
    config = {"root": base / "root", "state": base / "state"}
    lines = ["version = 2", 'disabled_plugins = ["io.containerd.grpc.v1.cri"]']
    lines += [f'{key} = "{value}"' for key, value in config.items()]
    lines += ["[grpc]", f'address = "{base}/socket"']
    (base / "config.toml").write_text("\n".join(lines))
    with (base / "log").open("wb") as log:
        process = subprocess.Popen([daemon, "--config", str(base / "config.toml")], stdout=log, stderr=log)
    try:
        _wait(process, [client, "--address", f"{base}/socket", "version"], base / "log")
        yield lambda *words: run(client, "--address", f"{base}/socket", *words)
    finally:
        process.terminate()
        process.wait()
        for mount in reversed(mounts_below(base)):
            umount(Path(os.fsdecode(mount.mount_point)), lazy=True)


def _wait(process: subprocess.Popen[bytes], probe: list[str], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    need.missing("containerd", log.read_text()[-500:])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, "overlay") as store:
        yield store


@pytest.mark.parametrize("format", ["oci", "docker"])
def test_images_go_to_containerd_and_back(store: Store, ctr: Ctr, tmp_path: Path, format: Format) -> None:
    names = ["docker.io/library/demo:v1", "quay.io/team/base:v2"]
    load(store, make_layout(tmp_path / "layout", ("demo:v1", "quay.io/team/base:v2")))
    save(store, names, tmp_path / "there.tar", format=format)

    ctr("image", "import", tmp_path / "there.tar")
    assert ctr("image", "ls", "--quiet").split() == names

    ctr("image", "export", tmp_path / "back.tar", *names)
    with tarfile.open(tmp_path / "back.tar") as tar:
        assert {"index.json", "manifest.json"} <= set(tar.getnames())
    (tmp_path / "other").mkdir()
    with open_store(tmp_path / "other", "overlay") as other:
        loaded = load(other, tmp_path / "back.tar")
        assert sorted(name for image in loaded for name in image.names) == names
        for name in names:
            assert identity(other, name) == identity(store, name)
            assert json.loads(other.image(name).config) == json.loads(store.image(name).config)

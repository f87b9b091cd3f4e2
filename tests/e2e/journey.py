"""The main job, whole, on a real image: in, up, changed by a container, out, and in again elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

from layerfs import Store, commit, load, open_store, save
from layerfs.ids import ChainID
from tests.e2e.containers import run_in_container

_SCRIPT = "cat /etc/motd; echo new >/etc/motd; rm /etc/debian_version; id -u"


def main_job(store: Store, image_file: Path, scratch: Path) -> None:
    """Every digest is the same at each step, and a container finds a root file system it can use."""
    (image,) = load(store, image_file)
    verify(store, image.layers)

    container = store.create_rw("web", image.layers[-1], image=image.id)
    with container.mounted() as root:
        said = run_in_container(root, scratch / "bundle", _SCRIPT)
    assert said == "A demonstration of layerfs.\n0\n"
    changed = {(c.kind.value, c.path) for c in container.changes()}
    assert {("C", b"etc/motd"), ("D", b"etc/debian_version"), ("C", b"etc")} <= changed
    assert all(path == b"" or path.split(b"/")[0] in (b"etc", b"root", b"run", b"var") for _, path in changed)

    committed = commit(store, "web", "changed")
    assert committed.layers[:-1] == image.layers
    with store.get(committed.layers[-1]) as layer, layer.mounted() as root:
        assert (root / "etc/motd").read_text() == "new\n"
        assert not (root / "etc/debian_version").exists()

    save(store, ["changed"], scratch / "changed.tar")
    with open_store(scratch / "other", runroot=scratch / "other-run", driver="overlay") as other:
        (again,) = load(other, scratch / "changed.tar")
        assert (again.id, again.layers) == (committed.id, committed.layers)
        verify(other, again.layers)


def verify(store: Store, layers: tuple[ChainID, ...]) -> None:
    """Each layer comes out with the bytes that went in."""
    for chain_id in layers:
        with store.get(chain_id) as layer, layer.tar() as tar:
            assert layer.diff_id == "sha256:" + hashlib.file_digest(tar, "sha256").hexdigest()  # type: ignore[arg-type]

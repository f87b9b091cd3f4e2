"""The process behind a FUSE mount is stopped: whoever waits for it is told so, by a typed error that names
it. When it goes on, or is killed, all works again and nothing is left.

What a container's own processes do there waits as long as it is stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.cli.main import main
from layerfs.errors import LayerfsError, MountBusy, MountFailed, SystemFailure
from layerfs.linux import fuseserver
from layerfs.linux.mountinfo import mounts_below
from layerfs.opening import open_store
from layerfs.store.store import Store
from tests.faults.anywhere import processes, settled
from tests.overlaykit import unmounted
from tests.require import need
from tests.storekit import BASE, stream

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["fuse", "aufs"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """With a layer, and a container upon it that is mounted. Nobody waits longer than half a second."""
    need.root()
    need.fuse()
    with (
        unmounted(tmp_path),
        open_store(tmp_path / "store", runroot=tmp_path / "run", driver=request.param) as store,
    ):
        layer = store.register(stream(BASE))
        root = store.create_rw("web", layer.chain_id).mount()
        (root / "written").write_text("before")
        monkeypatch.setattr(fuseserver, "PATIENCE", 0.5)
        yield store
    assert mounts_below(tmp_path) == []
    assert settled(lambda: processes(tmp_path)) == []


def server(store: Store) -> int:
    found = fuseserver.server_of(Path(store.get_rw("web").metadata()["merged"]))
    assert found is not None
    return found.pid


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def everything(store: Store) -> dict[str, Callable[[], object]]:
    """What asks the process."""
    web = store.get_rw("web")
    return {
        "mount": web.mount,
        "umount": web.umount,
        "changes": lambda: list(web.changes()),
        "diff": web.diff,
        "diff_size": web.diff_size,
        "usage": web.usage,
        "commit": web.commit,
    }


def test_whoever_asks_it_is_told(store: Store) -> None:
    pid = server(store)
    with stopped(pid):
        for name, ask in everything(store).items():
            with pytest.raises(SystemFailure, match=f"FUSE process {pid}, .* is stopped") as caught:
                ask()
            assert f"kill -CONT {pid}" in caught.value.hint, name
        with pytest.raises(MountBusy):
            store.remove_rw("web")
        assert store.check() == []
        assert "is stopped" in store.get_rw("web").metadata()["process"]
    web = store.get_rw("web")
    assert "/written" in {f"/{change.path.decode()}" for change in web.changes()}
    web.commit().release()
    web.umount()
    assert store.check(deep=True) == []
    store.remove_rw("web")


def test_others_go_on(store: Store) -> None:
    with stopped(server(store)):
        layer = next(iter(store.layers()))
        with store.create_rw("db", layer.chain_id).mounted() as root:
            (root / "file").touch()
        assert store.check(deep=True) == []
        store.remove_rw("db")
    store.get_rw("web").umount()


def test_killed_it_is_dead_as_any(store: Store) -> None:
    web, pid = store.get_rw("web"), server(store)
    with stopped(pid):
        with pytest.raises(SystemFailure, match="is stopped"):
            web.umount()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(MountFailed, match=f"FUSE process {pid} ended with signal 9"):
            web.umount()
    with web.mounted() as root:
        assert (root / "written").read_text() == "before"


def test_at_the_command_line(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    pid = server(store)
    place = [f"--root={store.root}", f"--runroot={store.root.parent / 'run'}"]
    with stopped(pid):
        assert main([*place, "umount", "web"]) == SystemFailure.exit_code
        assert f"FUSE process {pid}" in capfd.readouterr().err
        for words in (["containers"], ["check"], ["info"]):
            assert main([*place, *words]) == 0, capfd.readouterr().err
        assert main([*place, "rm", "web"]) == MountBusy.exit_code
    assert main([*place, "umount", "web"]) == 0


def test_mounted_elsewhere_too(store: Store, tmp_path: Path) -> None:
    place = [f"--root={store.root}", f"--runroot={store.root.parent / 'run'}"]
    target = tmp_path / "target"
    target.mkdir()
    assert main([*place, "mount", "web", str(target)]) == 0
    with stopped(server(store)):
        assert main([*place, "umount", "web"]) == SystemFailure.exit_code
    assert main([*place, "umount", "web"]) == 0
    store.get_rw("web").umount()


def test_while_an_init_layer_is_filled(store: Store) -> None:
    """Nobody but us waits there, so it is ended."""
    layer = next(iter(store.layers()))

    def init(root: Path) -> None:
        found = fuseserver.server_of(root)
        assert found is not None
        os.kill(found.pid, signal.SIGSTOP)
        (root / "etc").mkdir()

    with pytest.raises(LayerfsError, match="FUSE process"):
        store.create_rw("db", layer.chain_id, init=init)
    assert store.prune().errors == ()
    assert store.check(deep=True) == []
    store.create_rw("db", layer.chain_id).remove()
    store.get_rw("web").umount()


def test_a_layer_is_not_damaged_because_nobody_answers(store: Store) -> None:
    layer = next(iter(store.layers()))
    with store.get(layer.chain_id) as handle:
        found = fuseserver.server_of(handle.mount())
        assert found is not None
        with stopped(found.pid), pytest.raises(SystemFailure, match=f"FUSE process {found.pid}"):
            store.check(deep=True)
        assert store.check(deep=True) == []
        handle.umount()
    store.get_rw("web").umount()


def test_nobody_who_waits_is_left(store: Store) -> None:
    with stopped(server(store)), pytest.raises(SystemFailure):
        store.get_rw("web").usage()
    assert settled(_threads, ["MainThread"]) == ["MainThread"]
    store.get_rw("web").umount()


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]

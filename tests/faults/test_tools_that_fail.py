"""A tool of the host that hangs or dies: the error names it, all is as before, and later it works."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.errors import LayerfsError
from layerfs.linux import command
from layerfs.opening import open_store
from layerfs.store.store import Store
from layerfs_drivers.devicemapper import _block
from tests.places import place_for
from tests.storekit import BASE, held, stream

HOW = {
    "hangs": ("exec sleep 1000", "did not end within"),
    "dies": ("kill -KILL $$", "status -9"),
    "complains": ("echo out of order >&2; exit 1", "out of order"),
}

Break = Callable[[str], contextlib.AbstractContextManager[None]]


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broken(how: str, tmp_path: Path) -> Break:
    """In the block a program of that name stands before the real one; nobody waits longer than 3 seconds."""

    @contextlib.contextmanager
    def broken(tool: str) -> Iterator[None]:
        place = tmp_path / "tools"
        place.mkdir(exist_ok=True)
        program = place / tool
        program.write_text(f"#!/bin/sh\n{HOW[how][0]}\n")
        program.chmod(0o755)
        wait = command._wait
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "_PATH", f"{place}:{command._PATH}")
            patch.setattr(command, "_wait", lambda pid, longest: wait(pid, 3.0))
            patch.setattr(sys, "executable", str(place / "python3"))
            yield

    return broken


def refused(how: str, tool: str, work: Callable[[], object]) -> None:
    with pytest.raises(LayerfsError) as caught:
        work()
    assert HOW[how][1] in str(caught.value)
    assert how == "complains" or tool in str(caught.value)


def opened(driver: str, base: Path, options: dict[str, str]) -> Store:
    return open_store(base / "store", runroot=base / "run", driver=driver, options=options)


def test_zfs(tmp_path: Path, how: str, broken: Break) -> None:
    with place_for("zfs", tmp_path) as place, opened("zfs", place.base, place.options) as store:
        base = store.register(stream(BASE))
        before = held(store)
        with broken("zfs"):
            refused(how, "zfs", lambda: store.register(stream({"more": b""}), base.chain_id))
            refused(how, "zfs", lambda: store.create_rw("web", base.chain_id))
        assert store.prune().errors == ()
        assert held(store) == before
        assert store.check(deep=True) == []
        store.register(stream({"more": b""}), base.chain_id).release()
        store.create_rw("web", base.chain_id)
        with broken("zfs"):
            refused(how, "zfs", lambda: store.remove_rw("web"))
        assert store.prune().errors == ()
        assert store.check(deep=True) == []


@pytest.mark.parametrize("driver", ["fuse", "aufs"])
def test_the_program_that_mounts_over_fuse(driver: str, tmp_path: Path, how: str, broken: Break) -> None:
    with place_for("fuse", tmp_path) as place, opened(driver, place.base, {}) as store:
        base = store.register(stream(BASE))
        web = store.create_rw("web", base.chain_id)
        with broken("python3"):
            refused(how, "python3", web.mount)
            refused(how, "python3", base.mount)
        assert store.check(deep=True) == []
        with web.mounted() as root:
            (root / "written").touch()
        assert b"written" in [change.path for change in web.changes()]


@pytest.mark.host("thin")
def test_making_the_file_system_of_a_thin_pool(tmp_path: Path, how: str, broken: Break) -> None:
    with place_for("devicemapper", tmp_path) as place:
        with broken("mkfs.ext4"):
            refused(how, "mkfs.ext4", lambda: opened("devicemapper", place.base, place.options))
        with opened("devicemapper", place.base, place.options) as store:
            store.register(stream(BASE)).release()
            assert store.check(deep=True) == []
        assert _block.all_mapped()

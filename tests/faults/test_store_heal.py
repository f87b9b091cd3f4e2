"""Healing that meets resistance: no source, a source that lies, mounts, others, a kill at any step."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.errors import MountBusy, StoreDamaged, StoreLocked
from layerfs.ids import digest_of
from layerfs.image.layersource import layers_of
from layerfs.image.load import load
from layerfs.store.damaged import mark
from layerfs.store.images import ImageRecord
from layerfs.store.records import LayerInfo
from layerfs.store.store import Store
from tests.cli.archives import oci_layout
from tests.faults.stepping import Step, Stepping, killed
from tests.storekit import ABOVE, BASE, held, make_tar, open_driver, stream

TARS = [make_tar(BASE), make_tar(ABOVE)]


@pytest.fixture(params=["dir", "vfs", "overlay"])
def place(request: pytest.FixtureRequest, scratch: Path) -> tuple[str, Path]:
    """A store with an image of two layers, the lower one damaged, and two containers."""
    with opened(request.param, scratch) as store:
        base = store.register(stream(BASE))
        above = store.register(stream(ABOVE), base.chain_id)
        image = ImageRecord(id=digest_of(b"{}"), config=b"{}", layers=(base.chain_id, above.chain_id))
        store.add_image(image, ["app:1"])
        for name, parent in (("low", base.chain_id), ("high", above.chain_id)):
            with store.create_rw(name, parent).mounted() as root:
                (root / "mine").write_text(f"{name} {os.urandom(4).hex()}")
        harm(store, base.info)
    return request.param, scratch


def opened(
    name: str, base: Path, *, exclusive: bool = True, driver: Callable[[Driver], Driver] = lambda one: one
) -> Store:
    return Store.open(base / "root", driver(open_driver(name, base)), exclusive=exclusive)


def harm(store: Store, layer: LayerInfo) -> None:
    home = store.root / store.driver.name / layer.cache_id
    (home / "diff/bin/sh" if store.driver.name == "overlay" else home / "bin/sh").write_bytes(b"!" * 10000)


def honest(layer: LayerInfo) -> io.BytesIO | None:
    return next((io.BytesIO(tar) for tar in TARS if digest_of(tar) == layer.diff_id), None)


def mine(store: Store) -> dict[str, str]:
    found = {}
    for name in ("low", "high"):
        with store.get_rw(name).mounted(read_only=True) as root:
            found[name] = (root / "mine").read_text()
    return found


def is_whole(store: Store) -> bool:
    if store.check(deep=True):
        return False
    for chain, expected in zip(store.image("app:1").layers, TARS, strict=True):
        with store.get(chain) as layer, layer.tar() as tar:
            assert tar.read() == expected
    for name in ("low", "high"):
        with store.get_rw(name).mounted(read_only=True) as root:
            assert (root / "bin/sh").read_bytes() == BASE["bin/sh"]
    return True


def test_without_a_source_everything_stays(place: tuple[str, Path]) -> None:
    with opened(*place) as store:
        before, kept = held(store), mine(store)
        [done] = store.repair(deep=True)
        assert "nowhere" in done.error and "'bin/sh'" in done.error
        assert (held(store), mine(store)) == (before, kept)
        assert [problem.kind for problem in store.check(deep=True)] == ["damaged-layer"]


def test_a_source_that_lies_changes_nothing(place: tuple[str, Path]) -> None:
    with opened(*place) as store:
        before, kept = held(store), mine(store)
        for lie in (TARS[1], b"", TARS[0][:-700], TARS[0] + bytes(1 << 20), os.urandom(5000)):
            [done] = store.repair(lambda _, lie=lie: io.BytesIO(lie))  # type: ignore[misc]
            assert done.error
            assert (held(store), mine(store)) == (before, kept)


@pytest.mark.parametrize("lie", [False, True])
def test_what_a_source_gave_is_closed(place: tuple[str, Path], lie: bool) -> None:
    given: list[io.BytesIO] = []

    def source(layer: LayerInfo) -> io.BytesIO | None:
        given.append(io.BytesIO(b"lie") if lie else honest(layer) or io.BytesIO())
        return given[-1]

    with opened(*place) as store:
        store.repair(source, deep=True)
    assert given and all(stream.closed for stream in given)


def test_a_damaged_layer_is_not_taken_for_one_that_is_there(place: tuple[str, Path]) -> None:
    with opened(*place) as store:
        base = store.layer_info(store.image("app:1").layers[0])
        mark(store._core.db, base.cache_id, "it was looked at")
        with pytest.raises(StoreDamaged, match="it was looked at") as caught:
            store.register(stream(BASE), expected=base.diff_id)
        assert "repair --from" in caught.value.hint
        assert {one.error for one in store.repair(honest, deep=True)} == {""}
        store.register(stream(BASE), expected=base.diff_id).release()


def test_the_same_layer_upon_another_parent_is_a_source(place: tuple[str, Path]) -> None:
    with opened(*place) as store:
        above = store.image("app:1").layers[1]
        store.register(stream(BASE), above).release()
        assert {one.error for one in store.repair(deep=True)} == {""}
        assert is_whole(store)


def test_containers_keep_what_they_changed(place: tuple[str, Path]) -> None:
    with opened(*place) as store:
        kept = mine(store)
        ids = {info.chain_id for info in store.layers()}
        assert {one.error for one in store.repair(honest)} == {""}
        assert is_whole(store)
        assert mine(store) == kept
        assert {info.chain_id for info in store.layers()} == ids
        assert len(held(store)) == 2 * 2 + 2 * 2, "two layers with records, two containers with init layers"


def test_what_is_mounted_is_not_made_anew(place: tuple[str, Path]) -> None:
    if place[0] == "dir":
        pytest.skip("the least driver counts no mounts")
    with opened(*place) as store:
        high = store.get_rw("high")
        high.mount()
        [done] = store.repair(honest)
        assert "container high" in done.error
        high.umount()
        assert {one.error for one in store.repair(honest)} == {""}
        assert is_whole(store)


def test_nobody_else_may_have_the_store_open(place: tuple[str, Path]) -> None:
    with opened(*place, exclusive=False) as store:
        for arguments in ({"source": honest}, {"drop": True}):
            with pytest.raises(StoreLocked):
                store.repair(**arguments)  # type: ignore[arg-type]
        [done] = store.repair(deep=True)
        assert "exclusive" in done.error


def test_what_cannot_be_healed_is_given_up_when_told(place: tuple[str, Path]) -> None:
    with opened(*place) as store:
        other = store.register(stream({"other": b"other"}))
        [done] = store.repair(deep=True, drop=True)
        assert not done.error
        assert "container low" in done.note and "container high" in done.note
        assert "image app:1" in done.note
        assert [info.chain_id for info in store.layers()] == [other.chain_id]
        assert not list(store.images()) and not list(store.rw_layers())
        assert store.check(deep=True) == []


def heal(name: str, base: Path, step: Step) -> None:
    store = opened(name, base, driver=lambda driver: Stepping(driver, step))  # type: ignore[arg-type, return-value]
    store._core.db._connection.set_trace_callback(lambda _: step())
    store.repair(honest)


def test_a_kill_at_any_step_loses_nothing(place: tuple[str, Path]) -> None:
    name, base = place
    with opened(name, base) as store:
        kept, size = mine(store), len(held(store))
    at, kills = 1, 0
    while killed(at, lambda step, _: heal(name, base, step))[1]:
        kills += 1
        with opened(name, base) as store:
            for id in store.driver.ids():
                store.driver.put(id)
            check_never_half(store, kept)
            assert {one.error for one in store.repair(honest)} <= {""}
            assert is_whole(store) and mine(store) == kept
            assert len(held(store)) == size
            harm(store, store.layer_info(store.image("app:1").layers[0]))
        at += 1 if name == "dir" else 4
    assert kills > 10


def check_never_half(store: Store, kept: dict[str, str]) -> None:
    """A container shows what it held upon a whole layer, or upon the damaged one; or it says why not."""
    for name in ("low", "high"):
        with contextlib.suppress(StoreDamaged), store.get_rw(name).mounted(read_only=True) as root:
            assert (root / "mine").read_text() == kept[name]
            assert (root / "bin/sh").read_bytes() in (BASE["bin/sh"], b"!" * 10000)


def test_an_image_loaded_over_a_damaged_layer_says_what_heals_it(scratch: Path) -> None:
    layout = oci_layout(scratch / "layout", {"app:1": TARS})
    with opened("overlay", scratch) as store:
        [image] = load(store, layout)
        mark(store._core.db, store.layer_info(image.layers[0]).cache_id, "rotten")
        with pytest.raises(StoreDamaged, match="rotten") as caught:
            load(store, layout)
        assert "layerfs repair --from" in caught.value.hint
        with layers_of(layout, scratch) as source:
            assert {one.error for one in store.repair(source)} == {""}
        assert load(store, layout) == [image]


def test_a_layer_half_made_anew_is_not_mounted(scratch: Path) -> None:
    """Where children show what their parent has now."""
    with opened("overlay", scratch) as store:
        base = store.register(stream(BASE))
        web = store.create_rw("web", store.register(stream(ABOVE), base.chain_id).chain_id)
        mark(store._core.db, base.info.cache_id, "half")
        for mount in (web.mount, web.mounts, base.mount):
            with pytest.raises(StoreDamaged, match="half"):
                mount()
        with pytest.raises(StoreDamaged):
            store.create_rw("another", base.chain_id)
        assert [problem.kind for problem in store.check()] == ["damaged-layer"]
        base.release()
        assert {one.error for one in store.repair()} == {""}, "it was whole after all"
        with web.mounted() as root, contextlib.suppress(MountBusy):
            assert (root / "bin/sh").exists()

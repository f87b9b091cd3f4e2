"""A crowd upon thin pools, and what others reach there: ``test_many_at_once.py`` and ``test_private.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.ids import ChainID
from layerfs.store.store import Store
from tests.crowdkit import Ground
from tests.faults import test_many_at_once as many
from tests.faults import test_private as private

pytestmark = pytest.mark.host("thin")


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with many.ground_of("devicemapper", tmp_path) as found:
        yield found


@pytest.fixture
def base(ground: Ground) -> ChainID:
    return many.base_in(ground)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with private.store_of("devicemapper", tmp_path) as store:
        yield store


@pytest.mark.timeout(8 * many.SECONDS + 600)
def test_a_crowd(ground: Ground) -> None:
    many.test_a_crowd(ground)


def test_what_many_bring_is_unpacked_once(ground: Ground, tmp_path: Path) -> None:
    many.test_what_many_bring_is_unpacked_once(ground, tmp_path)


def test_nobody_waits_for_what_is_unpacked(ground: Ground, base: ChainID) -> None:
    many.test_nobody_waits_for_what_is_unpacked(ground, base)


def test_nobody_waits_for_an_image_that_is_loaded(ground: Ground, base: ChainID) -> None:
    many.test_nobody_waits_for_an_image_that_is_loaded(ground, base)


def test_who_mounts_what_is_just_removed_is_told_so(
    ground: Ground, base: ChainID, monkeypatch: pytest.MonkeyPatch
) -> None:
    many.test_who_mounts_what_is_just_removed_is_told_so(ground, base, monkeypatch)


def test_nobody_else_reaches_a_file_of_a_layer(store: Store) -> None:
    private.test_nobody_else_reaches_a_file_of_a_layer(store)


def test_what_a_mount_forbids(store: Store) -> None:
    private.test_what_a_mount_forbids(store)

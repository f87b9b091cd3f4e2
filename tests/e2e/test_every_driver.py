"""A real Debian image through the main job, on every driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store, open_store
from tests.e2e.journey import main_job
from tests.places import place_for


@pytest.fixture
def store(driver: str, tmp_path: Path) -> Iterator[Store]:
    with place_for(driver, tmp_path) as place:
        root, runroot = place.base / "store", place.base / "run"
        with open_store(root, runroot=runroot, driver=driver, options=place.options) as store:
            yield store


@pytest.mark.parametrize("driver", ["overlay", "vfs", "btrfs", "zfs"])
def test_a_real_image_through_the_main_job(store: Store, debian_image: Path, tmp_path: Path) -> None:
    main_job(store, debian_image, tmp_path)


@pytest.mark.host("thin")
@pytest.mark.parametrize("driver", ["devicemapper"])
def test_a_real_image_upon_a_thin_pool(store: Store, debian_image: Path, tmp_path: Path) -> None:
    main_job(store, debian_image, tmp_path)

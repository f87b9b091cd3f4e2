"""An image for several platforms gives the one that runs here, or the one asked for."""

from __future__ import annotations

import pytest

from layerfs.errors import InvalidOption
from layerfs.image.platform import Platform, host_platform, parse_platform


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm/7", "linux/arm"),
        ("armhf", "linux/arm"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("Linux/AMD64/v1", "linux/amd64"),
    ],
)
def test_a_platform_is_spelt_one_way(text: str, spelt: str) -> None:
    assert str(parse_platform(text)) == spelt


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux/arm/v7/x", "linux amd64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption):
        parse_platform(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "distance"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/386", None),
        ("linux/amd64", "windows/amd64", None),
        ("linux/amd64", "linux/amd64/v2", None),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/arm/v7", "linux/arm/v6", 1),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/ppc64le", "linux/ppc64le", 0),
        ("linux/ppc64le", "linux/ppc64le/power9", None),
    ],
)
def test_an_older_generation_fits_but_is_farther(wanted: str, offered: str, distance: int | None) -> None:
    assert parse_platform(wanted).distance(parse_platform(offered)) == distance


def test_the_host_has_a_platform() -> None:
    assert host_platform().distance(host_platform()) == 0
    assert isinstance(host_platform(), Platform)

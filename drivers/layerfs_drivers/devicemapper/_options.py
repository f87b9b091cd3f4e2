"""The options of the driver."""

from __future__ import annotations

import re

import attrs

from layerfs.driver import Option
from layerfs_drivers.devicemapper._filesystem import FILE_SYSTEMS, MIB

OPTIONS = (
    Option(
        "pool", "name of an existing, empty thin pool for layerfs alone (default: loop files, for trial use)"
    ),
    Option("fs", "file system of the layers: ext4 (default) or xfs"),
    Option("basesize", "size of a layer's file system, default 10G; can be raised later"),
    Option("min_free", "part of the pool, data and metadata, that new layers leave free, default 10%"),
    Option("loopdatasize", "most that the loop files may take, default 100G"),
)


def _fs(text: str) -> str:
    if text not in FILE_SYSTEMS:
        raise ValueError("is ext4 or xfs")
    return text


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if found is None:
        raise ValueError("is a size such as 10G")
    size = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()]
    return size // MIB * MIB


def _percent(text: str) -> int:
    number = text.removesuffix("%")
    if not number.isdecimal() or int(number) >= 100:
        raise ValueError("is a part such as 10%, and below 100%")
    return int(number)


def _size_or_none(value: int | str | None) -> int | None:
    """What was read already stays as it is."""
    return _size(value) if isinstance(value, str) else value


def _percent_or_number(value: int | str) -> int:
    return _percent(value) if isinstance(value, str) else value


@attrs.frozen
class Options:
    """None: as the home was set up, or else the default."""

    pool: str | None = None
    fs: str | None = attrs.field(default=None, converter=attrs.converters.optional(_fs))
    basesize: int | None = attrs.field(default=None, converter=_size_or_none)
    min_free: int = attrs.field(default=10, converter=_percent_or_number)
    loopdatasize: int | None = attrs.field(default=None, converter=_size_or_none)

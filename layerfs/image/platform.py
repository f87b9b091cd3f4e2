"""Which of an image's variants runs where: operating system, architecture, variant.

Values are Go's (``GOOS``, ``GOARCH``), as the OCI image-spec has them.
"""

from __future__ import annotations

import os
import re

import attrs

from layerfs.errors import InvalidOption

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "loongarch64": ("loong64", ""),
}
"""What the kernel (``uname -m``) and distributions call them."""

_DEFAULT_VARIANT = {"amd64": 1, "arm": 7, "arm64": 8}
"""The generation that goes without saying."""


@attrs.frozen
class Platform:
    """``linux/arm/v7``. An empty variant is the architecture's usual one."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def of(cls, os: str, architecture: str, variant: str = "") -> Platform:
        """Spelt the one way: ``aarch64`` is ``arm64``, ``arm64/v8`` is ``arm64``."""
        architecture = architecture.lower()
        if architecture in _ARCHITECTURES:
            architecture, implied = _ARCHITECTURES[architecture]
            variant = variant or implied
        if variant.isdigit():
            variant = f"v{variant}"
        if variant == f"v{_DEFAULT_VARIANT.get(architecture)}":
            variant = ""
        return cls(os.lower(), architecture, variant)

    def distance(self, offered: Platform) -> int | None:
        """How far ``offered`` is from this wish: 0 the same, None unfit. An older generation of the
        architecture (``arm/v6`` for ``arm/v7``) runs, too, but is farther."""
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return None
        mine, theirs = self._generation(), offered._generation()
        if mine is None or theirs is None:
            return 0 if self.variant == offered.variant else None
        return mine - theirs if theirs <= mine else None

    def _generation(self) -> int | None:
        if not self.variant:
            return _DEFAULT_VARIANT.get(self.architecture)
        found = re.fullmatch(r"v([0-9]{1,2})", self.variant)
        return int(found[1]) if found else None


def parse_platform(text: str) -> Platform:
    """``linux/arm64``, ``linux/arm/v7``, or an architecture alone (``arm64``), which means Linux.

    :class:`~layerfs.errors.InvalidOption` for anything else.
    """
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(re.fullmatch(r"[A-Za-z0-9_.-]+", part) for part in parts):
        raise InvalidOption(f"not a platform: {text!r}", hint="write OS/ARCHITECTURE, like linux/arm64")
    return Platform.of(*parts)


def host_platform() -> Platform:
    """This machine."""
    return Platform.of("linux", os.uname().machine)

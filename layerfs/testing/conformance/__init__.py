"""What every driver must do, as tests: subclass, open your driver, run pytest.

::

    class TestMyDriver(DriverConformance):
        def open_driver(self, home, runroot, *, read_only=False):
            return DRIVER.open(home, runroot, {}, read_only=read_only)

Each test gets a fresh home and runroot from the fixture ``place``; override that to put them on another
file system. Whatever is still mounted there afterwards is unmounted. What a driver does not claim in its
:class:`~layerfs.driver.Capabilities` is skipped, saying so.

The tests need root. Of a user namespace that maps a range of ids will do for a driver that is ``rootless``;
what cannot be there, device nodes and ``trusted.*`` attributes, has stand-ins then
(:mod:`layerfs.testing.privilege`), or is skipped, saying so.

What else a test class may say of its driver, each described where it is defined:

``persistent``, ``protects``, ``holes``
    False where the driver cannot do what nearly every driver does.
``size_limit``
    A limit in bytes that the driver can set.
``free_space(place)``
    How much room is left, so that the suite can see whether removal gives it back.
"""

from __future__ import annotations

import pytest

_PARTS = ("base", "content", "edits", "endings", "life", "limits", "mounting", "space", "together")
pytest.register_assert_rewrite(
    *(f"{__name__}.{part}" for part in _PARTS)
)  # before the modules below are imported

# ruff: noqa: E402
from layerfs.testing.conformance.base import Base, Place
from layerfs.testing.conformance.content import Content
from layerfs.testing.conformance.edits import Edits
from layerfs.testing.conformance.endings import Endings
from layerfs.testing.conformance.life import Life
from layerfs.testing.conformance.limits import Limits
from layerfs.testing.conformance.mounting import Mounting
from layerfs.testing.conformance.space import Space
from layerfs.testing.conformance.together import Together

__all__ = ["DriverConformance", "Place"]


class DriverConformance(Life, Mounting, Content, Edits, Endings, Limits, Space, Together, Base):
    """All of the suite."""

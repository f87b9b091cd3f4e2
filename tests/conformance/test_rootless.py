"""Drivers keep the contract for an ordinary user, in a user namespace: the suites beside this, run there."""

from __future__ import annotations

import pytest

from tests.require import need
from tests.rootlesskit import ordinary_user, run_as, scratch_of

MAY_SKIP = (
    "needs root of the host: trusted.* attributes are the only ones that any file can have",
    "the driver keeps no size limit",
    "the driver keeps no inode limit",
    "the driver knows no greatest depth",
    "a layer of this driver is a copy, or a snapshot, of its parent",
)
SUITES = {
    "vfs": "test_vfs.py::TestVfs",
    "overlay": "test_overlay.py::TestOverlay",
    "overlay in fallback": "test_overlay_fallback.py::TestOverlayInFallback",
    "fuse": "test_fuse.py::TestFuse",
    "aufs": "test_aufs.py::TestAufs",
}


@pytest.mark.parametrize("suite", SUITES)
def test_an_ordinary_user_in_a_user_namespace(suite: str) -> None:
    need.fuse()
    with ordinary_user() as user, scratch_of(user) as scratch:
        tests = f"tests/conformance/{SUITES[suite]}"
        run_as(user, scratch, tests, "-k", "not overlay-6.1", may_skip=MAY_SKIP)

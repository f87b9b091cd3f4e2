"""The union over FUSE for an ordinary user: the tests of ``rootless_fuse.py`` beside this, run in a user
namespace."""

from __future__ import annotations

from tests.require import need
from tests.rootlesskit import ordinary_user, run_as, scratch_of


def test_an_ordinary_user_in_a_user_namespace() -> None:
    need.fuse()
    with ordinary_user() as user, scratch_of(user) as scratch:
        run_as(user, scratch, "tests/unit/rootless_fuse.py")

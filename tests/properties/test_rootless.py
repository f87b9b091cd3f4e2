"""The same properties for an ordinary user, in a user namespace."""

from __future__ import annotations

import pytest

from tests.properties import test_differential
from tests.require import need
from tests.rootlesskit import ordinary_user, run_as, scratch_of

PROPERTIES = [name for name in vars(test_differential) if name.startswith("test_")]


@pytest.mark.parametrize("driver", ["overlay", "fuse"])
def test_layers_are_those_of_the_model_in_a_user_namespace(driver: str) -> None:
    need.fuse()
    with ordinary_user() as user, scratch_of(user) as scratch:
        run_as(user, scratch, *[f"{test_differential.__file__}::{name}[{driver}]" for name in PROPERTIES])

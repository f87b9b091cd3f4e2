"""How long property tests search: the same examples every time, or ``LAYERFS_LONG=1`` for many new ones."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from layerfs.linux.userns import in_user_namespace
from tests.properties.grounds import SLOW, Fresh

LONG = os.environ.get("LAYERFS_LONG") == "1"


def examples(few: int) -> settings:
    """``few`` examples, always the same; forty times as many, always others, in a long run."""
    return settings(
        max_examples=few * 40 if LONG else few,
        derandomize=not LONG,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def held(
    few: int, **drawn: st.SearchStrategy[object]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a property of the fixture ``fresh`` and what is ``drawn`` a test of ``few`` examples, of a twelfth
    upon what is slow, a quarter in a user namespace."""

    def test_of(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def test(fresh: Fresh, request: pytest.FixtureRequest) -> None:
            slow = request.node.callspec.params["fresh"] in SLOW
            part = 12 if slow else 4 if in_user_namespace() else 1
            examples(few // part)(given(**drawn)(body))(fresh=fresh)

        del test.__wrapped__  # pytest would ask for the arguments of ``body``
        test.body = body  # type: ignore[attr-defined]
        return test

    return test_of

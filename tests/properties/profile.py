"""How long property tests search: the same examples every time, or ``LAYERFS_LONG=1`` for many new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

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

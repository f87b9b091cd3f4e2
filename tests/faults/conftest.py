"""What the tests of faults have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.faults.anywhere", "tests.crowdkit")

from tests.faults.anywhere import scratch_memory  # noqa: E402


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be."""
    with scratch_memory(tmp_path) as place:
        yield place

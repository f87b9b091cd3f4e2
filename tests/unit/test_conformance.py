"""What the conformance suite itself stands upon."""

from __future__ import annotations

import os
import signal

import pytest

from layerfs.testing.conformance.base import each, in_killed_child


def test_all_cases_of_a_group_run_and_each_failure_names_its_case() -> None:
    seen = []

    def check(name: str, error: BaseException | None) -> None:
        seen.append(name)
        if error is not None:
            raise error

    cases = {"asserts": AssertionError(), "passes": None, "fails": pytest.fail.Exception(), "ends": OSError()}
    with pytest.raises(BaseExceptionGroup, match="3 of 4") as caught:
        each(cases, check)
    assert seen == [*cases]
    notes = [failure.__notes__ for failure in caught.value.exceptions]
    assert notes == [["the case: asserts"], ["the case: fails"], ["the case: ends"]]


def test_a_group_without_failures_raises_nothing() -> None:
    each({"first": 1}, lambda name, case: None)


def test_a_killed_child_has_done_its_work() -> None:
    reader, writer = os.pipe()
    in_killed_child(lambda: os.write(writer, b"worked"))
    assert os.read(reader, 10) == b"worked"
    in_killed_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        in_killed_child(lambda: 1 // 0)
    os.close(reader)
    os.close(writer)

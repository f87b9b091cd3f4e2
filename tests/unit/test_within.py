"""Waiting with an end: what is done in time, what is not, and who shows that it goes on."""

from __future__ import annotations

import itertools
import threading

import pytest

from layerfs.linux.within import within


def test_what_it_returns_or_raises() -> None:
    assert within(10, lambda: "done") == "done"
    with pytest.raises(KeyError):
        within(10, lambda: {}["nothing"])


def test_what_takes_too_long_is_left_to_itself() -> None:
    go = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, go.wait)
    go.set()


def test_who_goes_on_is_waited_for() -> None:
    go = threading.Event()
    signs = itertools.chain(range(5), itertools.repeat(5))

    def sign() -> int:
        found = next(signs)
        if found == 4:
            go.set()
        return found

    assert within(0.05, go.wait, sign)

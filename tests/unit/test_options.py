"""Options of drivers, from text."""

from __future__ import annotations

import attrs
import pytest

from layerfs.driver import parse_options
from layerfs.errors import InvalidOption


def _doubled(text: str) -> str:
    if not text.islower():
        raise ValueError("small letters only")
    return text * 2


@attrs.frozen
class Options:
    word: str = attrs.field(default="x", converter=_doubled)


def test_a_value_is_what_the_converter_makes_of_the_text() -> None:
    assert parse_options(Options, {"word": "ab"}, "mine") == Options("ab")
    assert parse_options(Options, {"word": "ab"}, "mine").word == "abab"


def test_a_value_that_is_not_taken_is_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match=r"mine\.word='A': small letters only"):
        parse_options(Options, {"word": "A"}, "mine")


def test_an_option_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match="no option 'w'") as caught:
        parse_options(Options, {"w": ""}, "mine")
    assert "word" in caught.value.hint

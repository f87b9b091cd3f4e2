"""Classes of values made by ``frozen``."""

from __future__ import annotations

import copy
import pickle

import pytest

from layerfs.driver import CreateOptions, Mount
from layerfs.linux.mountinfo import Holder
from layerfs.values import field_names, frozen

BIND = Mount("bind", "/a", ("ro",))


@frozen
class Twin:
    fstype: str
    source: str
    options: tuple[str, ...] = ()


def test_fields_are_given_in_order_or_by_name() -> None:
    assert Mount("bind", source="/a", options=("ro",)) == BIND
    assert (BIND.fstype, BIND.source, BIND.options) == ("bind", "/a", ("ro",))
    assert field_names(Mount) == ("fstype", "source", "options")


def test_a_field_that_is_not_given_has_its_default() -> None:
    assert Mount("bind", "/a").options == ()
    assert CreateOptions() == CreateOptions(size=None, inodes=None, label="")


@pytest.mark.parametrize(
    ("args", "fields", "said"),
    [
        (("bind",), {}, "lacks source"),
        (("bind", "/a", (), 4), {}, "takes 3 values in order, not 4"),
        (("bind", "/a"), {"source": "/b"}, "given twice: source"),
        (("bind", "/a"), {"label": ""}, "has no label"),
    ],
)
def test_wrong_fields_are_named(args: tuple[object, ...], fields: dict[str, object], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Mount(*args, **fields)  # type: ignore[arg-type]


def test_fields_by_name_alone() -> None:
    with pytest.raises(TypeError, match="takes 0 values in order"):
        CreateOptions(1)  # type: ignore[call-arg]


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        BIND.source = "/b"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        del BIND.source
    assert BIND.source == "/a"


def test_values_are_equal_when_class_and_fields_are() -> None:
    same, other = Mount("bind", "/a", ("ro",)), Mount("bind", "/b", ("ro",))
    assert {BIND, same, other} == {BIND, other}
    twin: object = Twin("bind", "/a", ("ro",))
    assert twin != BIND


def test_a_value_shows_its_fields() -> None:
    assert repr(BIND) == "Mount(fstype='bind', source='/a', options=('ro',))"
    assert str(Holder(1, "init", 2)) == "1 (init), mount namespace 2"


def test_values_can_be_copied_and_pickled() -> None:
    assert copy.deepcopy(BIND) == BIND
    assert pickle.loads(pickle.dumps(BIND)) == BIND

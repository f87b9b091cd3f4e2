"""``frozen``: value classes for the modules that a mount loads.

Everywhere else values are attrs classes. Importing attrs takes longer than mounting a container (it
imports inspect, ast and more, and compiles methods for each class), and start-up is part of the product:
see docs/benchmarks/startup.md. The methods here are written once, for all classes.
"""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform, overload

    _Class = TypeVar("_Class", bound=type)

_FIELDS = "__frozen_fields__"


if TYPE_CHECKING:

    @overload
    @dataclass_transform(frozen_default=True)
    def frozen(cls: _Class, /) -> _Class: ...
    @overload
    def frozen(*, kw_only: bool = False) -> Callable[[_Class], _Class]: ...


def frozen(cls: _Class | None = None, /, *, kw_only: bool = False) -> _Class | Callable[[_Class], _Class]:
    """Make a class of values of its annotations: each is a field, what is assigned to it the default.

    Values cannot be changed, are equal when class and fields are, and hash if their fields do. Fields are
    given in order or by name; ``kw_only``: by name alone. Fields of a base class are not inherited.
    """

    def complete(cls: _Class) -> _Class:
        names = tuple(cls.__annotations__)
        defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}
        members: dict[str, object] = {
            _FIELDS: names,
            "__init__": _initialiser(cls.__name__, names, () if kw_only else names, defaults),
            "__setattr__": _refuse_change,
            "__delattr__": _refuse_change,
            "__eq__": _equal,
            "__hash__": _hash,
            "__repr__": _repr,
        }
        for name, member in members.items():
            setattr(cls, name, member)
        return cls

    return complete if cls is None else complete(cls)


def field_names(cls: type) -> tuple[str, ...] | None:
    """The fields of a class made by :func:`frozen`; None for any other."""
    names: tuple[str, ...] | None = getattr(cls, _FIELDS, None)
    return names


def _initialiser(
    name: str, names: tuple[str, ...], in_order: tuple[str, ...], defaults: dict[str, object]
) -> Callable[..., None]:
    required = set(names) - set(defaults)

    def __init__(self: object, /, *args: object, **by_name: object) -> None:
        if len(args) > len(in_order):
            raise TypeError(f"{name} takes {len(in_order)} values in order, not {len(args)}")
        given = dict(zip(in_order, args, strict=False))
        if twice := given.keys() & by_name:
            raise TypeError(f"{name} is given twice: {', '.join(sorted(twice))}")
        given |= by_name
        if unknown := given.keys() - set(names):
            raise TypeError(f"{name} has no {', '.join(sorted(unknown))}")
        if missing := required - given.keys():
            raise TypeError(f"{name} lacks {', '.join(sorted(missing))}")
        # Past __setattr__, which refuses.
        vars(self).update(defaults | given)

    return __init__


def _values(self: object) -> tuple[Any, ...]:
    names = field_names(type(self)) or ()
    return tuple(getattr(self, name) for name in names)


def _refuse_change(self: object, name: str, value: object = None) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be changed")


def _equal(self: object, other: object) -> object:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: object) -> int:
    return hash((type(self), _values(self)))


def _repr(self: object) -> str:
    fields = zip(field_names(type(self)) or (), _values(self), strict=True)
    return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"

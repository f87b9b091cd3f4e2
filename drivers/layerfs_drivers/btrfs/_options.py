"""The options of the driver, as text from outside."""

from __future__ import annotations

import attrs


def _to_enable(text: str | bool) -> bool:
    if text not in (False, "enable"):
        raise ValueError("the one value is 'enable'")
    return bool(text)


@attrs.frozen
class Options:
    quota: bool = attrs.field(default=False, converter=_to_enable)

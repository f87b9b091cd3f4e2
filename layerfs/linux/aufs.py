"""Mount options of aufs, which take more than one call when there are many branches.

mount(2) takes a page of data. What does not fit is appended, one branch a call, by remounting; a branch
that is appended lies below all others. The field does the same (Docker's aufs driver).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

_BRANCHES = "br:"
_SEPARATORS = frozenset(":,=")


def join_branches(branches: Sequence[tuple[str, str]]) -> str:
    """The option ``br``: each branch a path and what may be done with it (``rw``, ``ro+wh``), topmost first.

    EINVAL for a path that the option cannot hold: aufs knows no escape.
    """
    for path, _ in branches:
        if _SEPARATORS & set(path):
            raise OSError(errno.EINVAL, "aufs takes no branch with ':', ',' or '=' in its path", path)
    return _BRANCHES + ":".join(f"{path}={mode}" for path, mode in branches)


def steps(options: Sequence[str], page: int) -> list[tuple[str, ...]]:
    """The options of each call, in order, when one takes less than ``page`` bytes. All but the first are
    remounts."""
    branches = next(option for option in options if option.startswith(_BRANCHES))
    first, *further = branches.removeprefix(_BRANCHES).split(":")
    others = [option for option in options if option is not branches]
    room = page - 1 - len(os.fsencode(",".join([_BRANCHES + first, *others])))
    fitting = 0
    for branch in further:
        room -= len(os.fsencode(branch)) + 1
        if room < 0:
            break
        fitting += 1
    together = _BRANCHES + ":".join([first, *further[:fitting]])
    read_only = ("ro",) if "ro" in others else ()
    remounts = [("remount", *read_only, f"append:{branch}") for branch in further[fitting:]]
    return [(together, *others), *remounts]

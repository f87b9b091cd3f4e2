"""Errors as words on standard error: ``layerfs: what``, and ``  hint: what to do`` below it."""

from __future__ import annotations

import os
import sys
from errno import EACCES, EPERM

from layerfs.errors import (
    ContainerNotFound,
    DriverNotFound,
    ImageNotFound,
    LayerfsError,
    LayerNotFound,
    NoSpace,
    SystemFailure,
)


def complain(error: LayerfsError) -> int:
    """Tell of an error; returns the exit status it stands for."""
    if os.environ.get("LAYERFS_DEBUG"):
        import traceback

        traceback.print_exception(error)
    say(str(error), error.hint or _hint_for(error))
    return error.exit_code


def say(message: str, hint: str) -> None:
    print(f"layerfs: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


_LISTS: dict[type[LayerfsError], str] = {
    ContainerNotFound: "'layerfs containers' lists them",
    ImageNotFound: "'layerfs images' lists them",
    LayerNotFound: "'layerfs layers' lists them",
    DriverNotFound: "'layerfs drivers' lists them",
}


def _hint_for(error: LayerfsError) -> str:
    """What to do about an error that knows no better itself."""
    if isinstance(error, NoSpace):
        return "'layerfs du' shows what takes the space, 'layerfs prune' removes layers that nothing uses"
    if isinstance(error, SystemFailure) and os.geteuid() != 0:
        if error.errno == EPERM:
            return "this needs root, or: unshare --map-auto --map-root-user --mount layerfs ..."
        if error.errno == EACCES:
            return "it belongs to somebody else: become that user, or choose another place with --root"
    return _LISTS.get(type(error), "")

"""Errors as words on standard error: ``layerfs: what``, and ``  hint: what to do`` below it."""

from __future__ import annotations

import os
import sys
from errno import EACCES, EPERM

from layerfs.errors import LayerfsError, SystemFailure


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


def _hint_for(error: LayerfsError) -> str:
    """What to do about a refusal that knows no better itself."""
    if isinstance(error, SystemFailure) and error.errno in (EPERM, EACCES) and os.geteuid() != 0:
        return (
            "this needs root, or a user namespace with a mount namespace: "
            "unshare --map-auto --map-root-user --mount layerfs ..."
        )
    return ""

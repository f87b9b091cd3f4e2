"""The command line: the only reader of argv and environment, the only printer."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """The installed ``layerfs``: :func:`layerfs.cli.main.main` as a process of its own."""
    # What modules make while they load stays: looking through it for garbage is in vain.
    gc.set_threshold(100_000)
    try:
        from layerfs.cli.main import main

        status = main()
    except KeyboardInterrupt:  # while modules load, or once more while the first is dealt with
        os._exit(130)
    for stream in (sys.stdout, sys.stderr):
        # main() has told of what goes wrong here; a stream that the caller closed is None.
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
    # Python would take every module apart first, which takes longer than to mount a container. What has
    # to be put in order is: the store is closed, and closing it is what a driver's cleanup() is for.
    os._exit(status)

"""The clock that time stamps of files are taken from."""

from __future__ import annotations

import time


def wait_for_tick() -> None:
    """Return when whatever is changed from now on gets a later change time than all before: 10 ms at most.

    The kernel stamps inodes with CLOCK_REALTIME_COARSE, which moves with the timer interrupt. A driver
    of snapshots waits after it made one, so that an equal change time means an equal file.
    """
    before = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) == before:
        time.sleep(time.clock_getres(_COARSE) / 4)


_COARSE = 5
"""CLOCK_REALTIME_COARSE of <linux/time.h>, which Python does not name."""

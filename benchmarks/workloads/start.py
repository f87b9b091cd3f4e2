"""The command line."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks import images
from benchmarks.clock import Clock
from benchmarks.subjects import CommandLine, Subject, run
from benchmarks.workload import Evidence, Parameter, workload

STANDARD = "argparse, contextlib, ctypes, fcntl, gc, importlib, locale, pathlib, sqlite3, threading"
"""The budget that tests/cli/test_startup.py holds a mount to."""


@workload(
    "Starting the command line",
    {
        "interpreter": "python -c pass",
        "modules": "and the standard modules of the budget",
        "mount": "and layerfs: warm mount",
        "umount": "the same: umount",
    },
    short=[{}],
    takes=lambda subject: isinstance(subject, CommandLine) and subject.driver == "overlay",
)
def start(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """What a script pays for ``layerfs mount`` of a container that is there, beside the interpreter alone."""
    assert isinstance(subject, CommandLine)
    name = "start"
    stack = images.of_stack(images.many_files(1_000))
    subject.load(stack)
    if name not in run(*subject.argv("containers")):
        run(*subject.argv("create", stack.id, "--name", name))
    commands = {
        "interpreter": [sys.executable, "-c", "pass"],
        "modules": [sys.executable, "-c", f"import {STANDARD}"],
        "mount": subject.argv("mount", name),
        "umount": subject.argv("umount", name),
    }
    # Compiled modules are kept, as those of an installed package are.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for lap, argv in commands.items():
        with clock.lap(lap):
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
    return {}

"""What this process may do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from layerfs.linux.userns import has_capability, in_user_namespace
from tests.require import need

TELL = "from layerfs.linux.userns import *; print(in_user_namespace(), has_capability('CAP_SYS_ADMIN'))"


def told_by(*wrapper: str) -> str:
    """What a process started by ``wrapper`` says of itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [need.tool(wrapper[0]), *wrapper[1:], sys.executable, "-c", TELL]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "unshare failed" in done.stderr:
        need.missing("userns", done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_root_of_a_user_namespace_has_capabilities_there_alone() -> None:
    assert told_by("unshare", "--user", "--map-root-user") == "True True"
    assert told_by("unshare", "--user") == "True False"


def test_a_capability_that_was_dropped() -> None:
    need.root()
    dropped = told_by("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    assert dropped.endswith(" False")


def test_this_process() -> None:
    if in_user_namespace():
        pytest.skip("needs the initial user namespace")
    assert has_capability("CAP_CHOWN") is (os.geteuid() == 0)

"""Running tests as an ordinary user, as root of a user namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.require import need

USER = "layerfs-test"
CHECKOUT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def ordinary_user() -> Iterator[str]:
    """An ordinary user with a range of subordinate ids, made for the test."""
    need.root()
    need.userns()
    useradd, userdel = need.tool("useradd"), need.tool("userdel")
    subprocess.run([useradd, "--no-create-home", "--no-log-init", USER], check=True, capture_output=True)
    try:
        if f"{USER}:" not in Path("/etc/subuid").read_text():
            need.missing("userns", "useradd gives no subordinate ids here")
        yield USER
    finally:
        subprocess.run([userdel, USER], check=True, capture_output=True)


@contextlib.contextmanager
def scratch_of(user: str, where: Path | None = None) -> Iterator[Path]:
    """A directory of the user's; pytest's own are closed to others."""
    scratch = Path(tempfile.mkdtemp(prefix="layerfs-rootless-", dir=where))
    try:
        shutil.chown(scratch, user)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_as(user: str, scratch: Path, *tests: str, may_skip: Sequence[str] = ()) -> None:
    """Run ``tests``, as pytest is given them, in a user namespace of ``user``: all of them pass, nothing is
    skipped but for the reasons ``may_skip``."""
    become = [need.tool("setpriv"), f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "TMPDIR": str(scratch)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    enter = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount", "--propagation=private"]
    test = [_interpreter(become, environment), "-B", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-ra"]
    done = subprocess.run(
        [*become, *enter, *test, f"--basetemp={scratch}/pytest", *tests],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert not [line for line in skipped if not line.endswith(tuple(may_skip))], done.stdout


def _interpreter(become: list[str], environment: dict[str, str]) -> str:
    """This Python, or the system's of the same version where this one lies in a closed directory."""
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, system):
        if Path(python).exists():
            # Not by setpriv itself, which still has root's way into closed directories.
            command = [*become, "env", python, "-c", "import pytest, zstandard"]
            if subprocess.run(command, env=environment, cwd="/", capture_output=True).returncode == 0:
                return python
    need.missing("userns", f"ordinary users can run neither {sys.executable} nor {system}")

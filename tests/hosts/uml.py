"""Runs part of the test suite under another kernel, on this machine.

The Debian package user-mode-linux is a Linux kernel that runs as an ordinary process. It boots in a few
seconds with this machine's own file tree as its root (hostfs), so the same interpreter and checkout run
inside unchanged. hostfs holds no xattrs, device nodes or overlay uppers: scratch space is an xfs with project
quota, in a file in memory.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.require import need

ROOT = Path(__file__).resolve().parents[2]
MODULES = Path("/usr/lib/uml/modules")

# In loading order: insmod does not resolve dependencies.
LOOP = ("drivers/block/loop",)
OVERLAY = ("fs/overlayfs/overlay",)
EXT4_QUOTA = ("fs/quota/quota_tree", "fs/quota/quota_v2")

_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o size=3500M run /run
for module in {modules}; do
    insmod {modules_root}/$(uname -r)/kernel/$module.ko || exit 1
done
truncate -s 3G /run/scratch.img && mkfs.xfs -q /run/scratch.img || exit 1
mount -o loop,prjquota /run/scratch.img {scratch} || exit 1
{selinux}
export TMPDIR={scratch} HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
export LAYERFS_REQUIRE=all
cd {root}
{command} >{out} 2>&1
echo $? >{status}
sync
halt -f
"""


def run_pytest(
    tests: Sequence[str],
    work: Path,
    *,
    modules: Sequence[str],
    selinux: bool = False,
    timeout: float = 1500,
) -> None:
    """Run ``tests`` (pytest arguments) inside; fail unless each passes or cannot apply: what a test
    needs of a kernel must be there.

    ``selinux``: with the policy of ``selinux.cil`` loaded, permissive.
    """
    kernel = need.tool("linux.uml")
    need.tool("insmod")
    need.root()
    scratch, out, status, report = (work / n for n in ("scratch", "out", "status", "report.xml"))
    scratch.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "--timeout=600",
        "-o",
        "tmp_path_retention_policy=none",
    ]
    command += [f"--basetemp={scratch}/pytest", f"--junitxml={report}", *tests]
    init = work / "init"
    init.write_text(
        _INIT.format(
            scratch=shlex.quote(str(scratch)),
            modules=" ".join(modules),
            modules_root=MODULES,
            selinux=_load_policy(work) if selinux else "",
            root=shlex.quote(str(ROOT)),
            command=shlex.join(command),
            out=shlex.quote(str(out)),
            status=shlex.quote(str(status)),
        )
    )
    init.chmod(0o755)
    # A run that is killed takes the kernel and all its processes along.
    argv = [need.tool("setpriv"), "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"]
    argv += [kernel, "rootfstype=hostfs", "rw", f"init={init}", "mem=4G", "con0=null,fd:1", "con=null"]
    argv += ["quiet", "security=selinux" if selinux else "security=none"]
    # The kernel keeps its memory in a file below TMPDIR, which must not be a noexec mount.
    console = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        env={**os.environ, "TMPDIR": "/var/tmp"},
    )
    if not status.exists():
        pytest.fail("the kernel stopped early:\n" + console.stdout.decode(errors="replace")[-4000:])
    _check(report, out.read_text(errors="replace"))


def _load_policy(work: Path) -> str:
    """Shell commands that load the policy of ``selinux.cil``, compiled here."""
    source, policy = Path(__file__).with_name("selinux.cil"), work / "policy"
    compile = [need.tool("secilc"), "-c", "33", "-o", str(policy), "-f", "/dev/null", str(source)]
    subprocess.run(compile, check=True)
    load = f"cat {shlex.quote(str(policy))} >/sys/fs/selinux/load"
    return f"mount -t selinuxfs selinuxfs /sys/fs/selinux && {load}"


def _check(report: Path, out: str) -> None:
    if not report.exists():
        pytest.fail(f"no test ran inside:\n{out[-6000:]}", pytrace=False)
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [c for c in cases if any(c.find(k) is not None for k in ("failure", "error"))]
    if bad or not cases:
        names = "\n".join(f"{c.get('classname')}::{c.get('name')}" for c in bad) or "no test was collected"
        pytest.fail(f"inside the other kernel:\n{names}\n\n{out[-12000:]}", pytrace=False)

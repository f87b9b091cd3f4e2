"""Another kernel as a process of this machine.

The Debian package user-mode-linux is a Linux kernel that runs as an ordinary process. It boots in a few
seconds with this machine's own file tree as its root (hostfs), read-only, so the same interpreter and
checkout run inside unchanged. What happens inside stays in memory and goes with the process; what it has to
say goes out through two consoles: one for people, one for the test reports.
"""

from __future__ import annotations

import base64
import os
import pickle
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerfs.linux.userns import has_capability
from tests.hosts.machines import Host
from tests.require import need

KERNEL = "linux.uml"
_MODULES = Path("/usr/lib/uml/modules")

_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
set -e
trap {halt} EXIT
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs -o mode=755,size=90% run /run
mkdir /dev/pts /dev/shm /run/scratch /run/home
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ln -s /proc/self/fd /dev/fd
ip link set lo up 2>/dev/null || true
for module in {modules}; do
    insmod {root}/$(uname -r)/kernel/$module.ko
done
truncate -s 3G /run/scratch.img
mkfs.xfs -q /run/scratch.img
mount -o loop,prjquota /run/scratch.img /run/scratch
{policy}
stty raw </dev/tty1
export {environment}
cat >/run/job <<'END OF THE JOB'
{job}
END OF THE JOB
cd {directory}
{command} </dev/null
"""

_HALT = "import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)"  # RB_POWER_OFF of <sys/reboot.h>

# A page fault costs a hundred times what it does outside: keep memory once it is there.
_KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def check(host: Host) -> None:
    """Return when ``host`` can be booted here; else skip or fail, as all needs do."""
    need.root()
    for tool in (KERNEL, "insmod", "mkfs.xfs", "setpriv", "unshare", *host.tools):
        need.tool(tool)
    if host.selinux:
        need.tool("secilc")
    if not has_capability("CAP_SYS_ADMIN"):
        need.missing("root", "a root without CAP_SYS_ADMIN")


class Kernel:
    """A running host; ``command`` inside finds ``job`` in the file :data:`JOB`, answers with :func:`tell`."""

    def __init__(
        self, host: Host, command: Sequence[str], job: str, environment: Mapping[str, str], directory: Path
    ) -> None:
        self.host = host
        everything = {
            "TMPDIR": "/run/scratch",
            "HOME": "/run/home",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            **_KEEP_MEMORY,
            **host.environment,
            **environment,
        }
        init = _INIT.format(
            halt=shlex.quote(shlex.join([sys.executable, "-ISc", _HALT])),
            modules=" ".join(host.modules),
            root=_MODULES,
            policy=_load_policy() if host.selinux else "",
            environment=" ".join(f"{key}={shlex.quote(value)}" for key, value in everything.items()),
            job=job,
            directory=shlex.quote(str(directory)),
            command=shlex.join(command),
        )
        # Files without names: nobody has to read them for the kernel to go on, and they go with us.
        self._console = os.memfd_create("console")
        self._told = os.memfd_create("told")
        self._read = 0
        self._rest = b""
        # The tmpfs, which nobody else sees, holds the script and the kernel's memory: on a disk file the
        # memory would be written back all the time. Who kills the run takes the kernel along.
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        argv += ["sh", "-ec", 'mount -t tmpfs run /run; cat >/run/init; chmod +x /run/init; exec "$@"', "sh"]
        argv += [need.tool(KERNEL), "rootfstype=hostfs", "ro", "init=/run/init", f"mem={host.memory}M"]
        argv += ["con0=null,fd:1", f"con1=null,fd:{self._told}", "con=null", "uml_dir=/run/"]
        argv += ["quiet", "security=selinux" if host.selinux else "security=none"]
        with tempfile.TemporaryFile() as script:
            script.write(init.encode())
            script.seek(0)
            self._process = subprocess.Popen(
                argv,
                stdin=script,
                stdout=self._console,
                stderr=self._console,
                pass_fds=[self._told],
                env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "TMPDIR": "/run", "HOME": "/run"},
                start_new_session=True,  # Ctrl-C is for us
            )

    def told(self) -> Iterator[Any]:
        """What :func:`tell` was given inside since the last call."""
        while chunk := os.pread(self._told, 1 << 20, self._read):
            self._read += len(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            yield from (pickle.loads(base64.b64decode(line)) for line in lines)

    def running(self) -> bool:
        return self._process.poll() is None

    def console(self) -> str:
        """The last that it printed."""
        size = os.fstat(self._console).st_size
        return os.pread(self._console, 8000, max(0, size - 8000)).decode(errors="replace").replace("\r", "")

    def stop(self) -> None:
        pid = self._process.pid
        # The kernel, not unshare, which is to reap it.
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if self.running() else ():
            os.kill(int(child), signal.SIGKILL)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._console)
        os.close(self._told)


def tell(what: object) -> None:
    """Inside: give ``what`` to :meth:`Kernel.told` outside."""
    with open("/dev/tty1", "wb") as out:
        out.write(base64.b64encode(pickle.dumps(what)) + b"\n")


JOB = Path("/run/job")


def _load_policy() -> str:
    """Shell commands that compile and load ``selinux.cil``."""
    source = shlex.quote(str(Path(__file__).with_name("selinux.cil")))
    return f"""secilc -c 33 -o /run/policy -f /dev/null {source}
mount -t selinuxfs selinuxfs /sys/fs/selinux
cat /run/policy >/sys/fs/selinux/load"""

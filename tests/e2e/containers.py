"""Containers started by a runtime upon a root file system that layerfs made."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

from tests.require import need

# crun refuses a host with version 1 and 2 of cgroups side by side, so it is shown one with version 2 alone.
_CRUN = """umount -R /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null
exec crun --cgroup-manager=disabled run {name}"""


def run_in_container(root: Path, bundle: Path, script: str, *, runtime: str = "crun") -> str:
    """Run a shell script in a container whose root file system is ``root``; what it prints."""
    need.tool(runtime)
    bundle.mkdir()
    subprocess.run([runtime, "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/bin/sh", "-ec", script]}
    spec["root"] = {"path": str(root), "readonly": False}
    (bundle / "config.json").write_text(json.dumps(spec))
    name = f"layerfs-test-{root.name[:12]}"
    argv = [runtime, "run", name]
    if runtime == "crun":
        argv = ["unshare", "--mount", "sh", "-c", _CRUN.format(name=shlex.quote(name))]
    done = subprocess.run(argv, cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, f"{runtime}: {done.stderr.strip()}"
    return done.stdout

"""Facts about the host, which figures mean little without."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from layerfs.linux.mountinfo import mount_of

_VERSIONS = {
    "docker": ["dockerd", "--version"],
    "podman": ["podman", "--version"],
    "skopeo": ["skopeo", "--version"],
    "umoci": ["umoci", "--version"],
    "containerd": ["containerd", "--version"],
    "fuse-overlayfs": ["fuse-overlayfs", "--version"],
    "tar": ["tar", "--version"],
    "cp": ["cp", "--version"],
    "mkfs.btrfs": ["mkfs.btrfs", "--version"],
}


def facts(scratch: Path) -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_mib": memory >> 20,
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "kernel": os.uname().release,
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "python": platform.python_version(),
        "scratch": mount_of(scratch).fstype,
        "load": [round(value, 1) for value in os.getloadavg()],
        "versions": {name: version for name, argv in _VERSIONS.items() if (version := _version(argv))},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware"):
            return value.strip()
    return platform.machine()


def _version(argv: list[str]) -> str:
    found = shutil.which(argv[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        return ""
    said = subprocess.run([found, *argv[1:]], capture_output=True, text=True).stdout.strip()
    return said.splitlines()[0] if said else "?"

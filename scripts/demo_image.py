"""Makes a real image for the demonstration: Debian or Ubuntu from this machine's own package mirror.

    python scripts/demo_image.py DEST.tar [--large]

Layer 1 is mmdebstrap's; layer 2 installs packages with apt; layer 3 removes, replaces and makes anew.
Layers 2 and 3 are made the way anybody would: ``layerfs create``, ``mount``, work in it, ``commit``.
``--large``: 13 layers of packages in place of one, set up as Debian's slim images are: without
documentation. The images of developers look like that. Runs as root or as root of a user namespace.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LAYERFS = [sys.executable, "-m", "layerfs.cli"]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# The machine's devices, proc and name resolution, in a mount namespace that ends with the command.
IN_ROOT = """
for place in dev proc sys; do mount --rbind /$place "$1/$place"; done
mount --bind /etc/resolv.conf "$1/etc/resolv.conf"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
exec chroot "$1" sh -ec "$2"
"""
INSTALL = """
apt-get -o APT::Sandbox::User=root -qq update
apt-get -o APT::Sandbox::User=root -qq install -y --no-install-recommends {} >/dev/null
apt-get clean
rm -rf /var/lib/apt/lists/*
"""
SMALL = ("ca-certificates file",)
LARGE = (
    "ca-certificates curl file gnupg",
    "git openssh-client",
    "gcc libc6-dev make",
    "g++",
    "python3-dev python3-pip python3-venv",
    "clang",
    "llvm",
    "nodejs",
    "cmake gdb ninja-build",
    "fonts-dejavu fonts-noto-cjk",
    "default-jre-headless",
    "postgresql-client sqlite3 vim",
    "jq less rsync",
)
SLIM = [
    "--dpkgopt=force-unsafe-io",
    *(f"--dpkgopt=path-exclude=/usr/share/{place}/*" for place in ("doc", "info", "locale")),
]
CHANGE = """
rm -rf /usr/share/doc /usr/share/locale
mkdir /usr/share/locale
echo 'A demonstration of layerfs.' >/etc/motd
ln -f /etc/motd /etc/motd.copy
mv /etc/issue /etc/issue.old
rm -rf /var/log/apt && echo 'no longer a directory' >/var/log/apt
"""


def mirror() -> tuple[str, str]:
    """The release and the mirror that apt on this machine uses."""
    out = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in sorted(set(out.splitlines())):
        origin, codename, uri = line.split(maxsplit=2)
        if origin in ("Debian", "Ubuntu") and "-" not in codename:
            return codename, uri
    sys.exit("apt knows no Debian or Ubuntu mirror: apt-get update, or give an image: make demo IMAGE=FILE")


def blob(layout: Path, data: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def write_layout(layout: Path, tar: bytes, name: str) -> None:
    """An OCI image layout with one layer."""
    oci = "application/vnd.oci.image"
    layer = blob(layout, gzip.compress(tar, compresslevel=1, mtime=0), f"{oci}.layer.v1.tar+gzip")
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/bash"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
        "history": [{"created_by": "mmdebstrap --variant=minbase"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": blob(layout, json.dumps(config).encode(), f"{oci}.config.v1+json"),
        "layers": [layer],
    }
    entry = blob(layout, json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def main() -> None:
    dest, large = Path(sys.argv[1]), "--large" in sys.argv[2:]
    release, uri = mirror()
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="demo-image-", dir=dest.parent) as scratch:
        work = Path(scratch)
        base = [*LAYERFS, "--root", str(work / "store"), "--runroot", str(work / "run")]

        def layerfs(*argv: str) -> str:
            return subprocess.run(
                [*base, *argv], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.strip()

        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", "--skip=output/dev"),
                *(SLIM if large else ()),
                *(release, str(work / "base.tar"), uri),
            ],
            check=True,
        )
        write_layout(work / "layout", (work / "base.tar").read_bytes(), "base")
        layerfs("load", str(work / "layout"))
        below = "base"
        steps = [INSTALL.format(packages) for packages in (LARGE if large else SMALL)]
        for name, script in (*((f"packages{n}", step) for n, step in enumerate(steps)), ("demo", CHANGE)):
            layerfs("create", below, "--name", name)
            root = layerfs("mount", name)
            try:
                subprocess.run(["unshare", "-m", "sh", "-ec", IN_ROOT, "sh", root, script], check=True)
            finally:
                layerfs("umount", name)
            layerfs("commit", name, name)
            below = name
        layerfs("save", "demo", "-o", str(work / "demo.tar"))
        shutil.move(work / "demo.tar", dest)


if __name__ == "__main__":
    main()

"""The main job, end to end, on a real image: load, mount, run, look, commit, save, load again, compare.

    python scripts/demo.py [IMAGE]

IMAGE is an OCI layout or a docker-archive; without one, ``demo_image.py`` makes one (once). Everything
happens below ``build/demo``, which is gone at the end; run as root, or as root of a user namespace.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from layerfs.linux.userns import in_user_namespace

LAYERFS = [sys.executable, "-m", "layerfs.cli"]
WORK = Path("build/demo").resolve()
COMMAND = (
    'set -e; . /etc/os-release; echo "inside: $PRETTY_NAME, $(ls /usr/bin | wc -l) programs"; '
    "mkdir -p /srv/app; echo hello >/srv/app/greeting; echo changed >/etc/motd; rm -f /etc/debian_version"
)


class Store:
    """One store and the ``layerfs`` command upon it, each call shown as a person would type it."""

    def __init__(self, place: Path, *options: str) -> None:
        self.base = ["--root", str(place), "--runroot", str(place) + "-run", *options]

    def __call__(self, *argv: str, show: bool = True) -> str:
        if show:
            say(f"$ layerfs {shlex.join(argv)}")
        done = subprocess.run([*LAYERFS, *self.base, *argv], stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(done.returncode)
        if show and done.stdout:
            lines = done.stdout.splitlines()
            say("\n".join(lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])))
        return done.stdout

    def digests(self, image: str) -> list[str]:
        """The image's own digest, then its layers' diffIDs and chainIDs."""
        facts = json.loads(self("inspect", image, show=False))
        layers = facts["layers"]
        return [facts["id"], *(x["diff_id"] for x in layers), *(x["chain_id"] for x in layers)]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_inside(root: Path) -> None:
    """Change the container from inside: with a runtime where one works, else by chroot."""
    if not (root / "bin/sh").exists():
        say("(the image has no shell: changing it from outside)")
        (root / "greeting").write_text("hello\n")
        return
    if not in_user_namespace():
        for runtime in ("runc", "crun"):
            if shutil.which(runtime) and run_bundle(runtime, root):
                return
    say(f"$ chroot {root} sh -c ...")
    subprocess.run(["chroot", str(root), "/bin/sh", "-c", COMMAND], check=True)


def run_bundle(runtime: str, root: Path) -> bool:
    """Run the command as an OCI bundle upon ``root``; False when the runtime cannot run here."""
    with tempfile.TemporaryDirectory(dir=WORK) as bundle:
        subprocess.run([runtime, "spec"], cwd=bundle, check=True)
        file = Path(bundle, "config.json")
        spec = json.loads(file.read_text())
        spec["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", COMMAND]}
        spec["root"] = {"path": str(root), "readonly": False}
        file.write_text(json.dumps(spec))
        done = subprocess.run(
            [runtime, "run", f"layerfs-demo-{os.getpid()}"], cwd=bundle, capture_output=True, text=True
        )
    if done.returncode != 0:
        say(f"({runtime} does not run here: {done.stderr.strip().splitlines()[-1:]})")
        return False
    say(f"$ {runtime} run layerfs-demo   # root file system: {root}\n{done.stdout.rstrip()}")
    return True


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) > 1:
        image_file = Path(sys.argv[1])
    else:
        image_file = WORK.parent / "demo-image.tar"
        if not image_file.exists():
            say("making a real image from this machine's package mirror (a minute or two)")
            subprocess.run([sys.executable, "scripts/demo_image.py", str(image_file)], check=True)
    shutil.rmtree(WORK)
    WORK.mkdir()
    first, second = Store(WORK / "first"), Store(WORK / "second", "--driver", "vfs")

    say("\n# 1. An image in")
    image = json.loads(first("load", str(image_file), "--json", show=False))[0]["id"]
    say(f"$ layerfs load {image_file}")
    first("images")
    first("layers", "--tree")

    say("\n# 2. A container's root file system up")
    first("create", image, "--name", "demo")
    root = Path(first("mount", "demo").strip())
    try:
        run_inside(root)
    finally:
        first("umount", "demo")

    say("\n# 3. Its changes out, as a layer on a new image")
    first("changes", "demo")
    first("commit", "demo", "changed")
    first("save", "changed", "-o", str(WORK / "changed.tar"))

    say("\n# 4. The saved image in again, into a store of another driver")
    second("load", str(WORK / "changed.tar"))
    ours, theirs = first.digests("changed"), second.digests("changed")
    for mine, other in zip(ours, theirs, strict=True):
        say(f"{'same' if mine == other else 'DIFFERENT'}  {mine}")
    first("rm", "demo")
    shutil.rmtree(WORK)
    if ours != theirs:
        sys.exit("the digests differ")
    say(
        f"\nall {len(ours)} digests are the same: config, {len(ours) // 2} diffIDs, {len(ours) // 2} chainIDs"
    )


if __name__ == "__main__":
    main()

"""Somebody else's driver in somebody else's package: installed, found, used, without a line here about it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

ENTRY_POINTS = "[layerfs.drivers]\ntheirs = their_package.driver:DRIVER\n"

USE = """
import io, json, sys, tarfile
from layerfs import registry
from layerfs.opening import open_store

def tar(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        out.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()

root, runroot = sys.argv[1:]
with open_store(root, runroot=runroot, driver="theirs", options={"theirs.depth": "10"}) as store:
    data = tar("from-the-image")
    layer = store.register(io.BytesIO(data))
    web = store.create_rw("web", layer.chain_id)
    with web.mounted() as mounted:
        names = sorted(path.name for path in mounted.iterdir())
        (mounted / "new").write_text("x")
    committed = web.commit()
    with layer.tar() as again:
        same = again.read() == data

with open_store(root, runroot=runroot) as store:
    web = store.get_rw("web")
    changed = [change.path.decode() for change in web.changes()]
    web.remove()
    left = store.check()

print(json.dumps({
    "installed": "theirs" in [info.name for info in registry.drivers()],
    "driver": store.driver.name, "names": names, "changed": changed, "same": same, "left": len(left),
    "parent": committed.parent == layer.chain_id,
}))
"""


def install(site: Path) -> None:
    """What pip leaves behind of a package that brings a driver."""
    package = site / "their_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    source = (REPOSITORY / "tests" / "dirdriver.py").read_text()
    (package / "driver.py").write_text(source.replace('name: str = "dir"', 'name: str = "theirs"'))
    info = site / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


def test_a_driver_of_another_package_works_from_end_to_end(tmp_path: Path) -> None:
    install(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", USE, tmp_path / "root", tmp_path / "run"],
        env={"PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "installed": True,
        "driver": "theirs",
        "names": [".dockerenv", "dev", "etc", "from-the-image", "proc", "sys"],
        "changed": ["", "new"],
        "same": True,
        "left": 0,
        "parent": True,
    }

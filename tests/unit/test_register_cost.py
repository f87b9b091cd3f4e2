"""What a layer costs to register: counted in system calls, not measured in time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.cli.archives import oci_layout
from tests.require import need
from tests.storekit import make_tar

A_FILE = {"openat", "write", "newfstatat", "utimensat", "close"}
"""The system calls of one small file."""

SCRIPT = """
import sys
from pathlib import Path
from layerfs import open_store
base = Path(sys.argv[1])
with open_store(base / "store", runroot=base / "run", driver="overlay") as store:
    store.register((base / "warm.tar").open("rb"))
    print("now", file=sys.stderr, flush=True)
    store.register((base / "layer.tar").open("rb"))
    print("done", file=sys.stderr, flush=True)
"""


LOADING = """
import sys
from pathlib import Path
from layerfs import open_store
from layerfs.image.load import load
base = Path(sys.argv[1])
with open_store(base / "store", runroot=base / "run", driver="overlay") as store:
    store.layers()
    print("now", file=sys.stderr, flush=True)
    load(store, base / "layout")
    print("done", file=sys.stderr, flush=True)
"""


def calls(where: Path, files: int) -> Counter[str]:
    """How often each system call was made to register a layer of so many small files, in ten directories."""
    where.mkdir()
    content = {f"d{number}": None for number in range(10)}
    layer = content | {f"d{number % 10}/f{number}": b"content" for number in range(files)}
    (where / "warm.tar").write_bytes(make_tar({"warm": b"imports what is imported once"}))
    (where / "layer.tar").write_bytes(make_tar(layer))
    return traced(SCRIPT, where)


def traced(script: str, where: Path) -> Counter[str]:
    log = where / "strace"
    done = subprocess.run(
        [need.tool("strace"), "-f", "-o", log, "-e", "trace=file,desc", sys.executable, "-c", script, where],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    between = log.read_text().partition('"now')[2].partition('"done')[0]
    return Counter(re.findall(r"^\d+ +(\w+)\(", between, re.M))


def test_an_image_waits_for_the_disk_as_often_as_a_layer(tmp_path: Path) -> None:
    need.overlay(tmp_path)
    waits = []
    for layers in (1, 12):
        where = tmp_path / str(layers)
        where.mkdir()
        oci_layout(where / "layout", {"app:1": [make_tar({f"f{n}": b"content"}) for n in range(layers)]})
        made = traced(LOADING, where)
        waits.append({name: made[name] for name in ("fsync", "fdatasync", "sync", "syncfs") if made[name]})
    assert waits[0] == waits[1]


def test_a_small_file_takes_no_more_system_calls_than_it_needs(tmp_path: Path) -> None:
    need.overlay(tmp_path)
    few, many = calls(tmp_path / "few", 100), calls(tmp_path / "many", 1_100)
    more = {name: many[name] - few[name] for name in many}
    assert {name for name, count in more.items() if count > 100} <= A_FILE
    assert max(more.values()) < 1_100
    assert [more.get(name, 0) for name in ("fsync", "fdatasync", "syncfs")] == [0, 0, 0]

"""Any input ends in success or in an error that blames the input, in bounded memory, and touches nothing
outside. Always the same inputs in a short run; in a long one a search guided by coverage, minutes each."""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, TARS, mended, scratch_in, seeds
from tests.properties.profile import LONG
from tests.require import need

SECONDS = int(os.environ.get("LAYERFS_FUZZ_SECONDS", 180))
MEMORY = 512 << 20
"""Address space that a target may take beyond what the test itself has."""

pytestmark = pytest.mark.timeout(SECONDS + 300)


@pytest.mark.parametrize("name", TARGETS)
def test_written_and_random_inputs(name: str) -> None:
    need.root()
    run(name, [*seeds(name), *mutations(name, 300)])


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.skipif(not LONG, reason="minutes each: make test-long")
def test_a_search(name: str, tmp_path: Path) -> None:
    need.root()
    if importlib.util.find_spec("atheris") is None:
        need.missing("atheris", "pip install atheris")
    words = [f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, *words], capture_output=True, text=True, errors="replace"
    )
    found = [path.read_bytes()[:2000] for path in tmp_path.iterdir()]
    assert done.returncode == 0, f"{done.stderr[-5000:]}\nthe input: {found}"
    (count,) = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed" in line]
    sys.stdout.write(f"{name}: {count} inputs\n")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_takes_what_it_may_not_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: memory without bound ends the child."""
    monkeypatch.setitem(TARGETS, name, lambda data, scratch: bytearray(2 * MEMORY))  # type: ignore[misc]
    with pytest.raises(pytest.fail.Exception, match="MemoryError"):
        run(name, [b""])


def run(name: str, inputs: Sequence[bytes]) -> None:
    """In a child, so that its memory can be limited."""
    with tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if child == 0:
            try:
                limit_memory()
                for data in inputs:
                    once(name, data)
                os._exit(0)
            except BaseException:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                told.write(f"{traceback.format_exc()[-5000:]}\nthe input: {data[:2000]!r}")
                told.flush()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        told.seek(0)
        if status:
            pytest.fail(f"{name} ended with {status}\n{told.read()}", pytrace=False)


def once(name: str, data: bytes) -> None:
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place,
        scratch_in(Path(place)) as scratch,
    ):
        TARGETS[name](data, scratch)


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def mutations(name: str, count: int) -> Iterator[bytes]:
    """Sound inputs and attacks, cut, patched and spliced: the same ones each time."""
    given = seeds(name)
    draw = random.Random(name)
    for _ in range(count):
        data = bytearray(draw.choice(given))
        for _ in range(draw.randint(1, 4)):
            at = draw.randint(0, len(data))
            match draw.randrange(5):
                case 0:
                    data[at : at + 1] = draw.randbytes(1)
                case 1:
                    data[at : at + draw.choice((1, 8, 12, 512))] = draw.choice(PIECES)
                case 2:
                    del data[at : at + draw.choice((1, 100, 512, 5000))]
                case 3:
                    other = draw.choice(given)
                    data[at:at] = other[: draw.choice((512, 1024, len(other)))]
                case 4:
                    data[at : at + 1] = bytes([draw.randrange(256) | 0x80])
        yield mended(bytes(data)) if name in TARS and draw.random() < 0.8 else bytes(data)


PIECES = (
    b"",
    b"\0" * 12,
    b"\xff" * 12,
    b"77777777777\0",
    b"\x80" + b"\xff" * 11,
    b"../",
    b"-1",
    b"x",
    b"g",
    b"L",
)

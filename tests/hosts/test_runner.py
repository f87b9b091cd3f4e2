"""Tests that run under another kernel report as if they had run here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.hosts.machines import HOSTS
from tests.hosts.uml import KERNEL, check

ROOT = Path(__file__).resolve().parents[2]
HOST = "no-overlay"

SAMPLE = """
import ctypes, time
import pytest

pytestmark = pytest.mark.host("no-overlay")

def test_passes(tmp_path):
    pass

@pytest.mark.host("here", "no-overlay")
def test_in_both_places():
    pass

def test_fails():
    print("what it said")
    one = 1
    assert one == 2

def test_skips():
    pytest.skip("because")

@pytest.fixture
def broken():
    yield
    raise OSError("torn")

def test_breaks_afterwards(broken):
    pass

@pytest.mark.xfail
def test_is_expected_to_fail():
    assert 0

@pytest.mark.timeout(1)
def test_takes_too_long():
    time.sleep(100)

def test_stops_the_kernel():
    print("last words", file=open("/dev/console", "w"))
    ctypes.CDLL(None).reboot(0x4321FEDC)

def test_has_no_kernel_left():
    pass
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts pytest with these arguments upon a project whose only file holds ``sample``."""
    check(HOSTS[HOST])
    for name in [name for name in os.environ if name.startswith(("LAYERFS_", "PYTEST_"))]:
        monkeypatch.delenv(name)
    project = tmp_path / "project"
    project.mkdir()
    (project / "conftest.py").write_text('pytest_plugins = ["tests.hosts.plugin"]')
    paths = " ".join(f"{ROOT / part}" for part in (".", "drivers"))
    (project / "pytest.ini").write_text(f"[pytest]\npythonpath = {paths}\ntimeout = 60\n")
    started = []

    def start(
        *arguments: str, sample: str = SAMPLE, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        (project / "test_sample.py").write_text(sample)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--junitxml=report.xml",
            *arguments,
        ]
        started.append(
            subprocess.Popen(
                command,
                cwd=project,
                env={**os.environ, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def outcomes(project: Path) -> dict[str, tuple[str, str]]:
    """By name: what pytest reported, and the text."""
    found = {}
    for case in ElementTree.parse(project / "report.xml").getroot().iter("testcase"):
        told = list(case)
        kind = told[0].tag if told else "passed"
        found[case.get("name", "")] = (
            kind,
            (told[0].get("message") or "") + (told[0].text or "") if told else "",
        )
    return found


def kernels(pid: int) -> list[int]:
    """Those that descend from a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [kernel for child in children for kernel in kernels(int(child))]
    return [pid, *found] if lives(pid) else found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == KERNEL
    except FileNotFoundError:
        return False


def test_each_item_has_its_own_report(start: Start, tmp_path: Path) -> None:
    out, _ = start("-v").communicate()
    found = outcomes(tmp_path / "project")
    assert {name: kind for name, (kind, _) in found.items()} == {
        "test_in_both_places": "passed",
        "test_passes[no-overlay]": "passed",
        "test_in_both_places[no-overlay]": "passed",
        "test_fails[no-overlay]": "failure",
        "test_skips[no-overlay]": "skipped",
        "test_breaks_afterwards[no-overlay]": "error",
        "test_is_expected_to_fail[no-overlay]": "skipped",
        "test_takes_too_long[no-overlay]": "failure",
        "test_stops_the_kernel[no-overlay]": "failure",
        "test_has_no_kernel_left[no-overlay]": "failure",
    }
    assert "because" in found["test_skips[no-overlay]"][1]
    assert "Timeout" in found["test_takes_too_long[no-overlay]"][1]
    assert "stopped while this test ran" in found["test_stops_the_kernel[no-overlay]"][1]
    assert "last words" in found["test_stops_the_kernel[no-overlay]"][1]
    assert "did not run this test" in found["test_has_no_kernel_left[no-overlay]"][1]
    assert "assert one == 2" in out and "what it said" in out and "torn" in out
    assert "4 failed, 4 passed, 1 skipped, 1 xfailed, 1 error" in out


def test_items_can_be_chosen_and_the_first_failure_ends_the_run(start: Start) -> None:
    chosen = [f"test_sample.py::test_{name}[no-overlay]" for name in ("passes", "fails", "skips")]
    out, _ = start("-x", *chosen).communicate()
    assert "1 failed, 1 passed in" in out and "stopping after 1 failures" in out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_early_takes_the_kernel_along(start: Start, how: signal.Signals) -> None:
    process = start("-v", sample=SAMPLE.replace("timeout(1)", "timeout(1000)"))
    assert process.stdout
    assert any("test_fails[no-overlay] FAILED" in line for line in process.stdout), "it ended by itself"
    ours = kernels(process.pid)
    assert ours
    process.send_signal(how)
    process.communicate()
    deadline = time.monotonic() + 30
    while any(map(lives, ours)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(lives, ours))


@pytest.mark.parametrize(("required", "outcome"), [("", "skipped"), ("all", "error")])
def test_a_machine_without_such_a_kernel(start: Start, required: str, outcome: str, tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "LAYERFS_REQUIRE": required}
    out, _ = start("-ra", "-k", "passes", environment=environment).communicate()
    assert f"1 {outcome}" in out and "no program 'linux.uml' on PATH" in out


def test_a_host_that_nobody_declared(start: Start) -> None:
    out, _ = start(sample=SAMPLE.replace('host("no-overlay")', 'host("dos")')).communicate()
    assert "no host is named dos" in out

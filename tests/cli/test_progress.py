"""How far long work is, for those who watch and for logs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from layerfs.cli import progress
from tests.cli.conftest import environment

DIGEST = "sha256:" + "0123456789ab" + "c" * 52


def test_a_log_gets_a_line_now_and_then_and_stdout_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.reporting() as report:
        report(DIGEST, 1, 10)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with progress.reporting() as report:
        report(DIGEST, 1024, 2048)
        report("archive", 2048, None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "0123456789ab: 1.0 KiB of 2.0 KiB\narchive: 2.0 KiB\n"


def test_a_terminal_gets_a_live_display_that_is_gone_at_the_end() -> None:
    leader, follower = pty.openpty()
    script = (
        "from layerfs.cli.progress import reporting\n"
        "import time\n"
        "with reporting() as report:\n"
        f"    report({DIGEST!r}, 1, 10); time.sleep(0.3); report({DIGEST!r}, 10, 10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=follower,
        check=True,
    )
    os.close(follower)
    shown = os.read(leader, 65536)
    os.close(leader)
    assert done.stdout == b""
    assert b"0123456789ab" in shown
    assert b"0123456789ab" not in shown.rpartition(b"\x1b[2K")[2]

"""A change after a tick has a later change time."""

from __future__ import annotations

from pathlib import Path

from layerfs.linux.clock import wait_for_tick


def test_a_change_after_the_tick_can_be_told(tmp_path: Path) -> None:
    file = tmp_path / "f"
    for number in range(20):
        file.write_bytes(b"before")
        before = file.stat().st_ctime_ns
        wait_for_tick()
        file.chmod(0o600 + number % 2)
        assert file.stat().st_ctime_ns > before

"""The README and the tutorial do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import debian_image as debian_image
from tests.require import need

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.fixture
def place(tmp_path: Path, debian_image: Path) -> Path:
    """A directory with an image in it, to type the commands in."""
    need.overlay(tmp_path)
    os.link(debian_image, tmp_path / "debian.tar")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/layerfs"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m layerfs.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def run(argv: list[str], place: Path) -> str:
    env = {
        **os.environ,
        "PATH": f"{place}/bin:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "drivers")]),
    }
    done = subprocess.run(argv, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_tutorial_in_the_shell_then_in_python(place: Path) -> None:
    script = "set -e\n" + "\n".join(blocks("docs/tutorial.md", "sh"))
    out = run(["bash", "-c", script], place)
    assert "C /etc/motd" in out
    assert "D /etc/issue.old" in out
    shutil.rmtree(place / "store")
    for block in blocks("docs/tutorial.md", "python"):
        out = run([sys.executable, "-c", block], place)
    assert "etc" in out


def test_the_readme_in_python(place: Path) -> None:
    (block,) = blocks("README.md", "python")
    block = block.replace('"/var/lib/layerfs"', '"store", runroot="run"')
    assert "C /etc/motd" in run([sys.executable, "-c", block], place)

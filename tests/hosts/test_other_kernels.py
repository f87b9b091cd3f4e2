"""The parts that this machine's own kernel may lack, on a Linux 6.1 that has them.

6.1 has project quota on xfs and ext4, and knows no ``lowerdir+``: the older ways to mount overlay are
tried there for real.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import uml

pytestmark = pytest.mark.timeout(1800)  # one processor, slow system calls

MODULES = uml.LOOP + uml.OVERLAY + uml.EXT4_QUOTA


def test_project_quota_on_xfs_and_ext4(tmp_path: Path) -> None:
    uml.run_pytest(
        ["tests/unit/test_quota.py", "tests/unit/test_overlay_limits.py"], tmp_path, modules=MODULES
    )


def test_overlay_where_the_kernel_takes_all_layers_in_one_page(tmp_path: Path) -> None:
    uml.run_pytest(
        ["tests/unit/test_mount.py", "tests/conformance/test_overlay.py"], tmp_path, modules=MODULES
    )


def test_selinux_labels(tmp_path: Path) -> None:
    uml.run_pytest(["tests/unit/test_selinux_label.py"], tmp_path, modules=MODULES, selinux=True)

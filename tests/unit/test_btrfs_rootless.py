"""btrfs for an ordinary user: the tests of ``rootless_btrfs.py`` beside this, run in a user namespace."""

from __future__ import annotations

import pytest

from tests.btrfskit import subvolumes
from tests.filesystems import file_system
from tests.rootlesskit import ordinary_user, run_as, scratch_of


@pytest.mark.parametrize("options", ["", "user_subvol_rm_allowed"])
def test_an_ordinary_user_in_a_user_namespace(options: str) -> None:
    with (
        ordinary_user() as user,
        file_system("btrfs", options=options) as root,
        scratch_of(user, root) as scratch,
    ):
        run_as(user, scratch, "tests/unit/rootless_btrfs.py")
        assert subvolumes(root) == []

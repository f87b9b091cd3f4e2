"""``renameat2``: renames that exchange, refuse to replace, or leave a whiteout (Linux 3.15, 3.18)."""

from __future__ import annotations

from layerfs.linux.syscall import call

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


def rename_at(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """Rename one component to another, each in its open directory.

    EINVAL: the file system does not know a flag. EPERM for ``RENAME_WHITEOUT`` where no device may be made.
    """
    call("renameat2", old_fd, old, new_fd, new, flags, path=new)

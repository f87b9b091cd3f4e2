"""What tells whether two subjects did the same: the digest of a directory tree."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from layerfs.linux.xattr import HOSTS_OWN


def digest(root: Path) -> str:
    """Of names, types, owners, permissions, times of files to the second, links, extended attributes and
    content. Equal trees have equal digests, whoever made them."""
    hashed = hashlib.sha256()
    names: dict[tuple[int, int], str] = {}  # of files with hard links: the first
    for path in sorted(_paths(os.fsencode(root))):
        status = os.lstat(path)
        relative = os.path.relpath(path, os.fsencode(root))
        kind = stat.S_IFMT(status.st_mode)
        facts: list[object] = [relative, status.st_mode, status.st_uid, status.st_gid]
        if kind == stat.S_IFREG:
            facts += [status.st_size, int(status.st_mtime), _content(path)]
        elif kind == stat.S_IFLNK:
            facts.append(os.readlink(path))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            facts.append(status.st_rdev)
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            facts.append(names.setdefault((status.st_dev, status.st_ino), os.fsdecode(relative)))
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            if os.fsencode(name) not in HOSTS_OWN and not name.startswith("trusted.overlay"):
                facts += [name, os.getxattr(path, name, follow_symlinks=False)]
        hashed.update(repr(facts).encode())
    return hashed.hexdigest()


def _paths(root: bytes) -> list[bytes]:
    found = []
    for directory, directories, files in os.walk(root):
        found += [os.path.join(directory, name) for name in (*directories, *files)]
    return found


def digest_of(file: Path) -> str:
    """Of one file's content."""
    return _content(os.fsencode(file)).hex()


def _content(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

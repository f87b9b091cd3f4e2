"""Limits of a writable layer, kept by the project quota of the file system below."""

from __future__ import annotations

import contextlib
import errno
import functools
from pathlib import Path

from layerfs.driver import CreateOptions, Usage
from layerfs.errors import InvalidOption, NotSupported
from layerfs.values import frozen

_OWN_INODES = 4
"""Inodes of a layer's directory that are not the container's: itself, ``lower``, ``work``, ``work/work``."""


@frozen
class Limits:
    """Limits for the layers in ``home``. What the host can do is looked at when first asked for, as no
    mount depends on it."""

    home: Path
    impossible: str = ""
    """Why none can be kept, whatever the host can do."""

    @functools.cached_property
    def missing(self) -> str:
        """What the host lacks, and how to mend it; empty when limits can be kept."""
        from layerfs.linux import quota

        if self.impossible:
            return self.impossible
        if not self.home.exists():
            return f"{self.home} does not exist"
        missing = quota.missing(self.home)
        if not missing and quota.project_of(self.home):
            # Its layers would inherit that project, and the kernel moves none of another one about in it.
            return f"{self.home} itself belongs to a quota project; take it out: chattr -P -p 0 {self.home}"
        return missing

    def check(self, options: CreateOptions) -> None:
        """Refuse limits that cannot be kept."""
        for name, limit in (("size", options.size), ("inodes", options.inodes)):
            if limit is not None and limit <= 0:
                raise InvalidOption(f"{name}={limit}: a limit is above 0")
        if _wanted(options) and self.missing:
            raise NotSupported("a layer cannot be limited here", hint=self.missing)

    def set(self, layer: Path, options: CreateOptions) -> None:
        """Limit ``layer``, the directory of a new layer in which nothing is yet: what is made in it
        from now on belongs to its project."""
        if _wanted(options):
            from layerfs.linux import quota

            inodes = None if options.inodes is None else options.inodes + _OWN_INODES
            quota.assign(self.home, layer, size=options.size, inodes=inodes)

    def usage(self, layer: Path) -> Usage | None:
        """What counts against the limits of ``layer``; None when it has none."""
        from layerfs.linux import quota

        used = quota.usage(layer) if self._has_own_project(layer) else None
        return None if used is None else Usage(used.bytes, used.inodes)

    def remove(self, layer: Path) -> None:
        """Remove the directory of a layer, and its limits first: an id that nothing has is free again."""
        from layerfs.linux import quota
        from layerfs.linux.removetree import remove_tree

        # Who opens the store meanwhile helps to remove it, and may be faster.
        with contextlib.suppress(FileNotFoundError):
            if self._has_own_project(layer):
                quota.clear(layer)
        remove_tree(layer)

    def _has_own_project(self, layer: Path) -> bool:
        from layerfs.linux import quota

        try:
            return quota.project_of(layer) not in (0, quota.project_of(self.home))
        except OSError as error:
            # A file system without projects.
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                return False
            raise


def _wanted(options: CreateOptions) -> bool:
    return options.size is not None or options.inodes is not None

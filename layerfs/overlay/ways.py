"""The two ways to mount layers that lie in one layout: by the kernel's overlayfs, or over FUSE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layerfs.driver import Mount
from layerfs.linux.mount import perform_all
from layerfs.overlay.stack import Stack
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class Way(Protocol):
    """How a stack of directories becomes a mount."""

    @property
    def name(self) -> str:
        """As a person is told: "the kernel", "FUSE"."""

    def missing(self) -> tuple[str, str]:
        """What this host lacks for it, as far as is seen at once, and the mend; empty for nothing."""

    def mount(self, stack: Stack, *, user_xattrs: bool, label: str) -> Mount: ...

    def perform(self, mount: Mount, target: Path, log: Path, keep: Sequence[int] = ()) -> None:
        """Perform it at ``target``; a process that serves it writes to ``log``, and a program that mounts it
        keeps the descriptors ``keep``. ``OSError``, or :class:`~layerfs.errors.SystemFailure` with what a
        program says."""


@frozen
class ByKernel:
    name: str = "the kernel"

    def missing(self) -> tuple[str, str]:
        return "", ""

    def mount(self, stack: Stack, *, user_xattrs: bool, label: str) -> Mount:
        options = [*stack.filled().directories(), *_FIXED]
        if user_xattrs:
            options.append("userxattr")
        if label:
            options.append(f'context="{label}"')
        return Mount("overlay", "overlay", tuple(options))

    def perform(self, mount: Mount, target: Path, log: Path, keep: Sequence[int] = ()) -> None:
        perform_all([mount], target)


# A directory that is renamed, or a file whose attributes alone are copied up, would leave a layer that
# cannot be understood without those below, and the host may have both switched on for all mounts.
# Redirects are not followed either, and not "off": that stands for "follow" on most kernels, which
# refuse it together with userxattr. An index would tie a layer to one host.
_FIXED = ("redirect_dir=nofollow", "metacopy=off", "index=off")


BY_KERNEL = ByKernel()


@frozen
class ByFuse:
    whiteouts: str = "overlay"
    """Whose marks the layers have."""
    name: str = "FUSE"

    def missing(self) -> tuple[str, str]:
        from layerfs.fuse.process import missing

        return missing()

    def mount(self, stack: Stack, *, user_xattrs: bool, label: str) -> Mount:
        options = [*stack.directories(), "allow_other"]
        if user_xattrs:
            options.append("userxattr")
        options.append(f"whiteouts={self.whiteouts}")
        return Mount("fuse.layerfs", "layerfs", tuple(options))

    def perform(self, mount: Mount, target: Path, log: Path, keep: Sequence[int] = ()) -> None:
        from layerfs.fuse.process import start

        start(mount.source, mount.options, target, log, keep)

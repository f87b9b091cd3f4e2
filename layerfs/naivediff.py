"""Changes in and out for a driver that knows no better way than to compare two mounted trees."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from layerfs.driver import (
    NO_OPTIONS,
    Capabilities,
    CreateOptions,
    Displaced,
    FileOpener,
    Leak,
    Mount,
    ProtoDriver,
    Usage,
)
from layerfs.errors import translated
from layerfs.ids import GraphID
from layerfs.linux.privatemount import private_mount
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from layerfs.archive.changes import Change


View = Callable[[GraphID, bool], AbstractContextManager[Path]]
"""Shows a layer's root during a block, read-only if told so: not counted, beside any other mount of the
layer, and gone when the process dies."""

Compared = Callable[[GraphID, GraphID | None], AbstractContextManager[tuple[Path, "Iterable[Change]"]]]
"""Shows a layer's root like a :data:`View`, and tells what leads there from its parent's."""

Filled = Callable[[GraphID], None]
"""Told that a layer was filled to its end and never changes again."""


@frozen
class NaiveDiff:
    """A whole :class:`~layerfs.driver.Driver` made of a ``ProtoDriver``.

    ``changes`` and ``diff`` see the layer and its parent, read-only, and look at every file of
    both: their cost follows the image, not the changes. They see them by ``view``; without one, by
    performing the driver's ``mounts`` at a place that nobody else sees. What a ``diff`` sees stays until
    the stream is read to its end or closed. A driver that knows where changes are finds them in its own
    ``compared``; what is made of them stays the same. One that protects what is filled is told by ``filled``.

    What reads or writes archives is imported where it is needed: mounting should not wait for it.
    """

    proto: ProtoDriver
    view: View | None = None
    compared: Compared | None = None
    filled: Filled | None = None

    def changes(self, id: GraphID, parent: GraphID | None, /) -> Iterator[Change]:
        with translated(f"compare layer {id} with its parent"), self._compared(id, parent) as (_, changes):
            return iter(list(changes))

    def diff(self, id: GraphID, parent: GraphID | None, /) -> BinaryIO:
        from layerfs.archive.pack import pack
        from layerfs.archive.streams import CHUNK

        with contextlib.ExitStack() as held, translated(f"pack layer {id}"):
            root, changes = held.enter_context(self._compared(id, parent))
            inner = pack(root, changes)
            held.callback(inner.close)
            return io.BufferedReader(_Held(inner, held.pop_all().close, f"pack layer {id}"), CHUNK)

    def diff_size(self, id: GraphID, parent: GraphID | None, /) -> int:
        from layerfs.archive.pack import content_size

        with translated(f"measure the changes of layer {id}"), self._compared(id, parent) as compared:
            return content_size(*compared)

    def changed_usage(self, id: GraphID, parent: GraphID | None) -> Usage:
        """What the layer has on disk that its parent has not: for the ``usage`` of a driver whose layers
        are snapshots, and whose kernel does not tell."""
        from layerfs.archive.changeusage import change_usage

        with translated(f"measure layer {id}"), self._compared(id, parent) as compared:
            return Usage(*change_usage(*compared))

    def apply_diff(
        self,
        id: GraphID,
        parent: GraphID | None,
        tar: BinaryIO,
        /,
        *,
        displaced: Displaced | None = None,
    ) -> int:
        from layerfs.archive.unpack import unpack
        from layerfs.archive.whiteout import WhiteoutFormat

        with translated(f"fill layer {id}"), self._mounted(id, read_only=False) as root:
            done = unpack(tar, root, whiteouts=WhiteoutFormat.APPLY, displaced=displaced)
        if self.filled is not None:
            with translated(f"seal layer {id}"):
                self.filled(id)
        return done.size

    @contextlib.contextmanager
    def files(self, id: GraphID, /) -> Iterator[FileOpener]:
        from layerfs.archive.layerfile import layer_files

        with self._mounted(id) as root, layer_files(root) as open_file:
            yield open_file

    @contextlib.contextmanager
    def _mounted(self, id: GraphID, *, read_only: bool = True) -> Iterator[Path]:
        view = self.view or self._perform
        with contextlib.ExitStack() as held:
            with translated(f"mount layer {id}"):
                root = held.enter_context(view(id, read_only))
            yield root

    def _perform(self, id: GraphID, read_only: bool) -> AbstractContextManager[Path]:
        return private_mount(self.proto.mounts(id, read_only=read_only))

    def _compared(
        self, id: GraphID, parent: GraphID | None
    ) -> AbstractContextManager[tuple[Path, Iterable[Change]]]:
        return (self.compared or self._walk)(id, parent)

    @contextlib.contextmanager
    def _walk(self, id: GraphID, parent: GraphID | None) -> Iterator[tuple[Path, Iterable[Change]]]:
        from layerfs.archive.changes import walk_changes

        with contextlib.ExitStack() as held:
            below = held.enter_context(self._mounted(parent)) if parent is not None else None
            root = held.enter_context(self._mounted(id))
            yield root, walk_changes(root, below)

    # What the driver itself does

    @property
    def name(self) -> str:
        return self.proto.name

    @property
    def capabilities(self) -> Capabilities:
        return self.proto.capabilities

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        self.proto.create(id, parent)

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        self.proto.create_read_write(id, parent, options=options)

    def remove(self, id: GraphID, /) -> None:
        self.proto.remove(id)

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        return self.proto.mounts(id, read_only=read_only, label=label)

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        return self.proto.get(id, read_only=read_only, label=label)

    def put(self, id: GraphID, /) -> None:
        self.proto.put(id)

    def mounted(self, id: GraphID, /) -> int:
        return self.proto.mounted(id)

    def exists(self, id: GraphID, /) -> bool:
        return self.proto.exists(id)

    def ids(self) -> Iterator[GraphID]:
        return self.proto.ids()

    def usage(self, id: GraphID, /) -> Usage:
        return self.proto.usage(id)

    def flush(self) -> None:
        self.proto.flush()

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        return self.proto.metadata(id)

    def status(self) -> Mapping[str, str]:
        return self.proto.status()

    def cleanup(self) -> None:
        self.proto.cleanup()

    # Of a driver that lacks one of these, this one lacks it, too.

    @property
    def leaks(self) -> Callable[..., Sequence[Leak]]:
        return self.proto.leaks  # type: ignore[attr-defined, no-any-return]

    @property
    def parent(self) -> Callable[[GraphID], GraphID | None]:
        return self.proto.parent  # type: ignore[attr-defined, no-any-return]


class _Held(io.RawIOBase):
    """A stream that gives something back at its end, or when it is closed."""

    def __init__(self, inner: BinaryIO, release: Callable[[], None], doing: str) -> None:
        super().__init__()
        self._inner = inner
        self._release: Callable[[], None] | None = release
        self._doing = doing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        if self._release is None:
            return 0
        with translated(self._doing):
            data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        if not data:
            self._give_back()
        return len(data)

    def close(self) -> None:
        try:
            self._give_back()
        finally:
            super().close()

    def _give_back(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            with translated(self._doing):
                release()

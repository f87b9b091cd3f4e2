"""The home of the aufs driver: that of Docker's and containers/storage's aufs drivers, and ``work``.

::

    home/layers/ID            the ids of all layers below, nearest first, one a line
    home/diff/ID/             what the layer itself holds; the root carries the image's attributes
    home/work/ID/             scratch room, there as long as the layer may be written
    home/mnt/ID/              where Docker mounts; only ever removed from here

``layers/ID`` is written last, and appears whole. Of what Docker left nothing may be written, as it has no
``work``: which of its layers were containers only its own database knows. What it was removing when it was
killed (``diff/ID-removing``) is a layer that is not whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from layerfs.ids import GraphID, parse_graph_id

_PARTS = ("layers", "diff", "work")


class AufsShape:
    """A :class:`layerfs.overlay.layout.Shape`."""

    def make(self, home: Path) -> None:
        for part in _PARTS:
            (home / part).mkdir(mode=0o700, exist_ok=True)

    def names(self, home: Path) -> Iterable[str]:
        names: set[str] = set()
        for part in _PARTS:
            with contextlib.suppress(FileNotFoundError):
                names.update(os.listdir(home / part))
        return names

    def exists(self, home: Path, id: GraphID) -> bool:
        return any((home / part / id).exists() for part in _PARTS)

    def places(self, home: Path, id: GraphID) -> Sequence[Path]:
        return self.diff(home, id), self.work(home, id), home / "mnt" / id

    def diff(self, home: Path, id: GraphID) -> Path:
        return home / "diff" / id

    def work(self, home: Path, id: GraphID) -> Path:
        return home / "work" / id

    def claim(self, home: Path, id: GraphID) -> None:
        if self.exists(home, id):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), id)

    def below(self, home: Path, id: GraphID) -> list[str] | None:
        if not self.diff(home, id).is_dir():
            return None
        try:
            lines = (home / "layers" / id).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        return [parse_graph_id(line) for line in lines if line]

    def write_below(self, home: Path, id: GraphID, ids: Sequence[GraphID], *, durable: bool) -> None:
        """Syncing a new file makes what was made before it durable as well, where there is a journal: one
        wait for the disk, where each directory would cost another."""
        new = home / "layers" / f".{id}"
        with new.open("w", encoding="utf-8") as file:
            file.writelines(f"{below}\n" for below in ids)
            file.flush()
            new.rename(home / "layers" / id)
            if durable:
                os.fsync(file.fileno())

    def detach(self, home: Path, id: GraphID, gone: Path) -> None:
        if not self.exists(home, id):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), id)
        gone.mkdir(mode=0o700)
        (home / "layers" / f".{id}").unlink(missing_ok=True)  # of a layer that was never whole
        for part in _PARTS:
            _move(home / part / id, gone, part)
        with contextlib.suppress(FileNotFoundError):
            (home / "mnt" / id).rmdir()


def _move(path: Path, gone: Path, part: str) -> None:
    while True:
        try:
            path.rename(gone / part)
            return
        except FileNotFoundError:
            if not path.exists():
                return
        # Whoever opened the home meanwhile took it for what a dead process left, and removed it.
        gone.mkdir(mode=0o700, exist_ok=True)

"""The changeset between two trees: what was added, modified and deleted."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from pathlib import Path

import attrs


class ChangeKind(enum.Enum):
    """The values are the letters that ``docker diff`` prints."""

    ADDED = "A"
    MODIFIED = "C"
    DELETED = "D"


@attrs.frozen
class Change:
    """One path of a changeset. ``path`` is relative to the root of the layer; ``b""`` is the root."""

    path: bytes
    kind: ChangeKind

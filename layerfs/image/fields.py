"""JSON from outside, read field by field: every complaint names the file and the field."""

from __future__ import annotations

import json
from typing import NoReturn

import attrs

from layerfs.errors import ImageError, InvalidID
from layerfs.ids import Digest, parse_digest

MAX_JSON = 8 << 20
"""Most bytes of one manifest, index or config. The distribution-spec obliges registries to take
4 MiB of manifest; real ones have a few kB."""

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


@attrs.frozen
class Field:
    """One value of a JSON document. ``file`` is what errors call the document, ``at`` the way to the
    value inside it. All methods raise :class:`~layerfs.errors.ImageError` for a value of another kind."""

    file: str
    value: object
    at: str = ""

    @classmethod
    def parse(cls, data: bytes, file: str) -> Field:
        """The whole document: UTF-8 JSON, at most :data:`MAX_JSON` bytes."""
        if len(data) > MAX_JSON:
            raise ImageError(f"{file}: more than {MAX_JSON} bytes of JSON")
        try:
            return cls(file, json.loads(data.decode()))
        except RecursionError:
            raise ImageError(f"{file}: JSON nested too deep") from None
        except ValueError as error:
            raise ImageError(f"{file}: not JSON: {error}") from error

    def fail(self, why: str) -> NoReturn:
        raise ImageError(f"{self.file}: {self.at}: {why}" if self.at else f"{self.file}: {why}")

    def get(self, name: str) -> Field | None:
        """A member of an object; None when it is missing or null."""
        value = self.members().get(name)
        return None if value is None else self._child(name, value)

    def need(self, name: str) -> Field:
        """A member that must be there."""
        return self.get(name) or self._child(name, None).fail("missing")

    def members(self) -> dict[str, object]:
        """The members of an object, as they are."""
        if not isinstance(self.value, dict):
            self._wrong("an object")
        return self.value

    def items(self) -> list[Field]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            self._wrong("a list")
        return [Field(self.file, value, f"{self.at}[{n}]") for n, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            self._wrong("a string")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            self.fail("half of a surrogate pair")
        return self.value

    def size(self) -> int:
        """A number of bytes: an integer from 0 to 2^63 - 1."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self._wrong("an integer")
        if not 0 <= self.value < 1 << 63:
            self.fail(f"{self.value} cannot be a size")
        return self.value

    def digest(self) -> Digest:
        """A sha256 digest, the only algorithm read here."""
        try:
            return parse_digest(self.text())
        except InvalidID as error:
            self.fail(str(error))

    def texts(self) -> list[str]:
        """A list of strings."""
        return [item.text() for item in self.items()]

    def mapping(self) -> dict[str, str]:
        """An object whose values are strings."""
        return {name: self._child(name, value).text() for name, value in self.members().items()}

    def text_or(self, name: str, default: str = "") -> str:
        """The text of a member that may be missing."""
        member = self.get(name)
        return default if member is None else member.text()

    def _child(self, name: str, value: object) -> Field:
        return Field(self.file, value, f"{self.at}.{name}" if self.at else name)

    def _wrong(self, wanted: str) -> NoReturn:
        self.fail(f"{wanted} is wanted, this is {_KINDS.get(type(self.value), 'a number')}")

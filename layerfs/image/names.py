"""Names of images: ``debian``, ``docker.io/library/debian:latest``, ``quay.io:8443/team/tool:v2``.

The store knows an image by its *full* name only: registry, path and tag. People write and read the
*familiar* one, which leaves out what goes without saying. The grammar is that of the distribution
project's ``reference`` package, which Docker, containerd and Podman share; names with a digest
(``debian@sha256:...``) are not kept: an image's id says the same.
"""

from __future__ import annotations

import re

from layerfs.errors import InvalidID

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_HOST_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LONGEST = 255
_HINT = "a name looks like debian, debian:12 or quay.io/team/tool:v2: lower case, a tag after the colon"


def normalise(text: str) -> str:
    """The full name that ``text`` stands for: ``debian`` is ``docker.io/library/debian:latest``.

    :class:`~layerfs.errors.InvalidID` for what cannot be the name of an image.
    """
    if "@" in text:
        raise InvalidID(f"a name with a digest is not kept: {text!r}", hint="use the image's id, or a tag")
    repository, tag = split_tag(text)
    registry, path = _split_registry(repository)
    name = f"{registry}/{path}"
    fits = (
        len(name) <= _LONGEST
        and _REGISTRY.fullmatch(registry)
        and _PATH.fullmatch(path)
        and _TAG.fullmatch(tag or DEFAULT_TAG)
    )
    if not fits or text.endswith(":"):
        raise InvalidID(f"not the name of an image: {text!r}", hint=_HINT)
    if re.fullmatch(r"[0-9a-f]{64}", repository):
        raise InvalidID(f"64 hex digits are an id, not a name: {text!r}")
    return f"{name}:{tag or DEFAULT_TAG}"


def familiar(name: str) -> str:
    """A full name as people write it: ``docker.io/library/debian:latest`` is ``debian:latest``."""
    short = name.removeprefix(f"{DEFAULT_REGISTRY}/")
    for candidate in (short.removeprefix("library/"), short):
        if _means(candidate, name):
            return candidate
    return name


def split_tag(name: str) -> tuple[str, str]:
    """``debian:12`` is ``debian`` and ``12``. A colon before a slash is a port, not a tag."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "")


def _means(text: str, name: str) -> bool:
    try:
        return normalise(text) == name
    except InvalidID:
        return False


def _split_registry(repository: str) -> tuple[str, str]:
    first, slash, rest = repository.partition("/")
    if not slash or not _looks_like_registry(first):
        first, rest = DEFAULT_REGISTRY, repository
    if first == "index.docker.io":
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _looks_like_registry(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost" or first != first.lower()

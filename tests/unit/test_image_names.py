"""Names as people write them are the names the store keeps."""

from __future__ import annotations

import pytest

from layerfs.errors import InvalidID
from layerfs.image.names import familiar, normalise

NAMES = [
    ("debian", "docker.io/library/debian:latest", "debian:latest"),
    ("debian:12", "docker.io/library/debian:12", "debian:12"),
    ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
    ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
    ("index.docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
    ("team/tool", "docker.io/team/tool:latest", "team/tool:latest"),
    ("quay.io/team/tool:v2", "quay.io/team/tool:v2", "quay.io/team/tool:v2"),
    ("localhost/tool", "localhost/tool:latest", "localhost/tool:latest"),
    ("localhost:5000/tool", "localhost:5000/tool:latest", "localhost:5000/tool:latest"),
    ("[::1]:5000/tool:V1", "[::1]:5000/tool:V1", "[::1]:5000/tool:V1"),
    ("Host/tool", "Host/tool:latest", "Host/tool:latest"),
    ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
    ("docker.io/quay.io/a", "docker.io/quay.io/a:latest", "docker.io/quay.io/a:latest"),
    ("library/" + "0" * 64, f"docker.io/library/{'0' * 64}:latest", f"library/{'0' * 64}:latest"),
    ("a__b/c.d-e--f", "docker.io/a__b/c.d-e--f:latest", "a__b/c.d-e--f:latest"),
]


@pytest.mark.parametrize(("text", "full", "short"), NAMES)
def test_a_name_is_completed_and_shortened(text: str, full: str, short: str) -> None:
    assert normalise(text) == full
    assert familiar(full) == short
    assert normalise(short) == full


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":tag", "Debian", "debian:", "debian:-x", "a b", "a//b", "/a", "a/", "../a", "a/../b",
        "a:b:c", "a" * 256, "x:" + "t" * 129, "debian@sha256:" + "0" * 64, "0" * 64,
        "quay.io/", "a.-b", "näme", "a\n",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidID):
        normalise(text)

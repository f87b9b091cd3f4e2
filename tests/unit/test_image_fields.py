"""JSON of the wrong shape is refused, naming the file and the field."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from layerfs.errors import ImageError
from layerfs.image.fields import MAX_JSON, Field


def field(text: str) -> Field:
    return Field.parse(text.encode(), "index.json")


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ('{"a": 1}', lambda f: f.need("a").text(), "index.json: a: a string is wanted, this is a number"),
        ('{"a": [{}]}', lambda f: f.need("a").items()[0].need("b"), "index.json: a[0].b: missing"),
        ("[]", lambda f: f.need("a"), "index.json: an object is wanted, this is a list"),
        ('{"a": null}', lambda f: f.need("a"), "index.json: a: missing"),
        ('{"a": "x"}', lambda f: f.need("a").items(), "index.json: a: a list is wanted, this is a string"),
        ('{"a": true}', lambda f: f.need("a").size(), "index.json: a: an integer is wanted"),
        ('{"a": 1.5}', lambda f: f.need("a").size(), "index.json: a: an integer is wanted"),
        ('{"a": -1}', lambda f: f.need("a").size(), "index.json: a: -1 cannot be a size"),
        ('{"a": 9999999999999999999}', lambda f: f.need("a").size(), "cannot be a size"),
        ('{"a": {"b": 1}}', lambda f: f.need("a").mapping(), "index.json: a.b: a string is wanted"),
        ('{"a": "sha256:../../etc/passwd"}', lambda f: f.need("a").digest(), "not a digest"),
        ('{"a": "sha512:00"}', lambda f: f.need("a").digest(), "not a digest"),
        ('{"a": "\\ud800"}', lambda f: f.need("a").text(), "surrogate"),
    ],
)
def test_a_wrong_field_is_named(text: str, read: Callable[[Field], object], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(field(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe{", b"[" * 100_000, b" " * (MAX_JSON + 1), b"1" * 5000]
)
def test_what_is_no_json_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^index\.json: "):
        Field.parse(data, "index.json").need("x")

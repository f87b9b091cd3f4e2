"""Sizes, tables, JSON and files as the command line writes them."""

from __future__ import annotations

import argparse
import enum
import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from layerfs.cli import output
from layerfs.cli.tables import Column, table
from layerfs.errors import InvalidInput, SystemFailure


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512B", 512),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("512MiB", 512 << 20),
        ("1.5T", 3 << 39),
        ("10KB", 10_000),
        ("2 GiB", 2 << 30),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert output.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "10X", "1.2.3G", "10GB B", "ten", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        output.parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 << 20, "1.5 GiB"), (1 << 60, "1024.0 PiB")],
)
def test_a_size_is_written_for_people(size: int, text: str) -> None:
    assert output.size(size) == text


def test_a_table_in_a_pipe_has_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    table([Column("NAME"), Column("SIZE", number=True)], [("short", "1 B"), ("x" * 300, "12 KiB"), ("", "")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["NAME", "SIZE"]
    assert lines[1].split("  ", 1)[0] == "short"
    assert lines[1].endswith("   1 B")
    assert lines[2] == "x" * 300 + "  12 KiB"


def test_a_table_without_rows_is_its_titles(capsys: pytest.CaptureFixture[str]) -> None:
    table([Column("NAME"), Column("SIZE", number=True)], [])
    assert capsys.readouterr().out == "NAME  SIZE\n"


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Thing:
    path: Path
    colour: Colour
    raw: bytes
    inner: tuple[int, ...]


def test_values_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.json_document([Thing(Path("/a"), Colour.RED, b"\xff", (1, 2))])
    assert json.loads(capsys.readouterr().out) == [
        {"path": "/a", "colour": "red", "raw": "\\xff", "inner": [1, 2]}
    ]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_comes_one_by_one_becomes_a_list(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    output.json_document({"numbers": iter(range(count)), "more": []})
    assert json.loads(capsys.readouterr().out) == {"numbers": list(range(count)), "more": []}


def test_long_lists_are_written_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    written = 0

    def names(count: int) -> Iterator[str]:
        nonlocal written
        for number in range(count):
            written += len(capsys.readouterr().out.splitlines())
            yield f"name {number}"

    output.json_document(names(10))
    assert written >= 8
    written = 0
    table([Column("NAME")], ((name,) for name in names(2000)))
    assert written >= 1990


def test_a_file_appears_only_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    target.write_bytes(b"before")
    with pytest.raises(RuntimeError), output.binary(str(target)) as sink:
        sink.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"before"
    with output.binary(str(target)) as sink:
        sink.write(b"whole")
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_device_is_written_to_not_replaced() -> None:
    with output.binary("/dev/null") as sink:
        sink.write(b"gone")
    assert Path("/dev/null").is_char_device()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemFailure, match="no/such"), output.binary(str(tmp_path / "no/such")):
        pass


def test_a_tar_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(InvalidInput, match="terminal"), output.binary(None):
        pass

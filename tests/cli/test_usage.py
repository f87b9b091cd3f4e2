"""What the command line says to words that make no command, and where it says it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.cli.command import Parser, Session, UsageError
from layerfs.cli.main import GROUPS, main
from tests.cli.conftest import environment


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "layerfs.cli", *words],
        capture_output=True,
        text=True,
        env={**environment(), **environ},
    )


def test_help_goes_to_stdout_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for commands in GROUPS.values():
        for name, (_, summary) in commands.items():
            assert f"  {name} " in shown
            assert summary in shown


@pytest.mark.parametrize("name", [name for commands in GROUPS.values() for name in commands])
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: layerfs {name}" in capsys.readouterr().out


def test_without_a_command_the_overview_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "COMMAND" in captured.err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["mont", "c1"], "no command 'mont'", "did you mean 'mount'"),
        (["frobnicate"], "no command 'frobnicate'", "'layerfs --help' lists the commands"),
        (["--rot", "/x", "images"], "no option '--rot'", "'--root'"),
        (["--json", "images"], "no option '--json'", "--json stands after the command"),
        (["images", "--root", "/x"], "images: no option '--root'", "--root stands before the command"),
        (["images", "--jsn"], "images: no option '--jsn'", "did you mean '--json'?"),
        (["images", "one"], "images: one argument too many: 'one'", "usage: layerfs images"),
        (["mount"], "mount: the following arguments are required: NAME", "usage: layerfs mount"),
        (["create", "i", "--size", "10Q"], "'10Q' is no size", "usage: layerfs create"),
        (["create", "i", "--inodes", "0"], "'0' is no number above zero", "usage: layerfs create"),
        (["save", "i", "-o", "d", "--format", "oic"], "'oic' is none of oci, docker", "usage: layerfs save"),
        (["--root", "", "images"], "an empty --root", "a variable that is not set?"),
        (["--option", "size", "images"], "--option 'size' is not K=V", "K is DRIVER.OPTION"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(
    words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()[:2]
    assert first.startswith("layerfs: ")
    assert message in first
    assert second.startswith("  hint: ")
    assert hint in second


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", "--js"]) == 2


def test_a_store_that_is_not_there_is_not_made_by_looking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "none"
    runroot = tmp_path / "run"
    for command in (["images"], ["mount", "c1"], ["du"], ["info"], ["prune"], ["rm", "c1"]):
        assert main(["--root", str(root), "--runroot", str(runroot), *command]) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"layerfs: there is no store at {root}\n  hint: 'layerfs load' makes one" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_ends_with_the_status_and_an_empty_stdout(tmp_path: Path) -> None:
    done = run("--root", str(tmp_path / "none"), "--runroot", str(tmp_path / "run"), "images")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Traceback" not in done.stderr


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    done = run("--root", str(tmp_path / "none"), "--runroot", str(tmp_path), "images", LAYERFS_DEBUG="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert "layerfs: there is no store" in done.stderr


def test_version_is_one_line() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("layerfs ")


def test_a_reader_who_goes_away_is_no_error() -> None:
    """``layerfs --help | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "layerfs.cli", "--version"],
            stdout=closed,
            stderr=subprocess.PIPE,
            env=environment(),
        )
    assert (done.returncode, done.stderr) == (141, b"")


def session(environ: dict[str, str], **options: str) -> Session:
    given = {"root": None, "runroot": None, "driver": None, **options}
    return Session.of(
        environ, root=given["root"], runroot=given["runroot"], driver=given["driver"], options=[]
    )


def test_an_option_wins_over_the_environment() -> None:
    environ = {"LAYERFS_ROOT": "/e", "LAYERFS_RUNROOT": "/er", "LAYERFS_DRIVER": "vfs"}
    assert session(environ) == Session(Path("/e"), Path("/er"), "vfs", {})
    assert session(environ, root="/o", runroot="/or", driver="overlay") == Session(
        Path("/o"), Path("/or"), "overlay", {}
    )


def test_an_ordinary_user_has_places_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    environ = {"XDG_DATA_HOME": "/home/u/data", "XDG_RUNTIME_DIR": "/run/user/1000"}
    assert session(environ) == Session(Path("/home/u/data/layerfs"), Path("/run/user/1000/layerfs"), None, {})


def test_a_relative_root_is_that_of_the_caller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert session({}, root="store", runroot="run").root == tmp_path / "store"


def test_the_parser_never_ends_the_process_itself() -> None:
    parser = Parser(prog="layerfs x", description="")
    parser.add_argument("--count", type=int)
    with pytest.raises(UsageError):
        parser.parse(["--count", "many"])
    assert parser.parse(["--count", "3"]) == argparse.Namespace(count=3)

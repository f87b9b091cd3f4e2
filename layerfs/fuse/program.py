"""The program ``layerfs-fuse``: called as ``fuse-overlayfs`` is, and by mount(8) as ``mount.fuse.layerfs``.

Without ``-f`` it returns when the file system is mounted and can be used. What goes on behind are two
processes: one answers, the other waits for its end and writes into the log how it came. Until then they die
with the program: who starts it, and kills it because it takes too long, need not look for them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from layerfs.errors import InvalidOption, LayerfsError
from layerfs.fuse.options import Options, parse, split_options
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_READY = b"\0"
"""What the server says when it can be used; anything else is why it cannot."""

_FAILED = 1

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@frozen
class _Call:
    """One call of the program."""

    options: Options
    source: str
    target: Path
    foreground: bool


def main(argv: Sequence[str] | None = None) -> int:
    try:
        call = _parse(sys.argv[1:] if argv is None else argv)
        if not call.target.is_dir():
            raise InvalidOption(
                f"{call.target} is not a directory", hint=f"make it first: mkdir {call.target}"
            )
        if call.foreground:
            _log_to_stderr()
            _serve(call, lambda: None)
            return 0
        return _in_background(call)
    except LayerfsError as error:
        sys.stderr.write(_told(error))
        return error.exit_code


def _parse(argv: Sequence[str]) -> _Call:
    parser = argparse.ArgumentParser(
        prog="layerfs-fuse",
        description="Show directories as one: those of lowerdir below, upperdir on top for all writes.",
        epilog="Unmount it to end it: umount TARGET, or fusermount3 -u TARGET.",
        allow_abbrev=False,
        # Asking for the terminal's width would import shutil, and all it compresses with.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
    )
    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPTION,...",
        action="append",
        default=[],
        help="lowerdir=TOP:BELOW,upperdir=DIR,workdir=DIR; ro, allow_other, volatile, userxattr, "
        "whiteouts=aufs, uidmapping=IN:OUT:COUNT, gidmapping=, squash_to_root, squash_to_uid=, "
        "squash_to_gid=, log=FILE; a backslash before a colon or comma in a path",
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay, and tell on standard error")
    parser.add_argument("-t", dest="type", help=argparse.SUPPRESS)  # mount(8) names itself
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="say which this is")
    parser.add_argument("source", nargs="?", default="layerfs", help="how lists of mounts call it")
    parser.add_argument("target", help="a directory to show it at")
    words = parser.parse_args(argv)
    options = [option for text in words.options for option in split_options(text)]
    return _Call(parse(options), words.source, Path(os.path.realpath(words.target)), words.foreground)


class _Version(argparse.Action):
    """Looking it up takes longer than mounting."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        parser.exit(message=f"{parser.prog} {version('layerfs')}\n")


def _serve(call: _Call, ready: Callable[[], None]) -> None:
    from layerfs.fuse.serve import serve

    serve(call.options, call.source, call.target, ready)


def _in_background(call: _Call) -> int:
    heard, said = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _die_with(parent)
        _run(lambda: _watch(call, said))
    os.close(said)
    with os.fdopen(heard, "rb") as stream:
        words = stream.read()
    if words == _READY:
        return 0
    sys.stderr.write(words.decode(errors="replace") or "layerfs-fuse: it ended before it was ready\n")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) or _FAILED


def _run(work: Callable[[], int]) -> NoReturn:
    """Be a child: end with ``work``, whatever happens, and run nothing of the parent's."""
    status = _FAILED
    try:
        status = work()
    except BaseException:
        logging.getLogger(__name__).exception("layerfs-fuse")
    finally:
        os._exit(status)


def _watch(call: _Call, said: int) -> int:
    """Start the server, hand on what it says, and write its end into the log."""
    os.setsid()
    os.chdir("/")
    _keep_only(said, call.options.log)
    _log_to_stderr()
    heard, answers = os.pipe()
    parent, server = os.getpid(), os.fork()
    if server == 0:
        _die_with(parent)
        os.close(said)
        os.close(heard)
        _run(lambda: _answer(call, answers))
    os.close(answers)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _write(f"process {server} serves {call.target}")
    with os.fdopen(heard, "rb") as stream:
        words = stream.read()
    _outlive_parent()
    with contextlib.suppress(OSError):  # nobody waits any more
        os.write(said, words)
    os.close(said)
    _, status = os.waitpid(server, 0)
    code = os.waitstatus_to_exitcode(status)
    _write(f"process {server} ended with " + (f"status {code}" if code >= 0 else f"signal {-code}"))
    return code if code >= 0 else _FAILED


def _answer(call: _Call, said: int) -> int:
    def tell(words: bytes) -> None:
        _outlive_parent()
        os.write(said, words)
        os.close(said)

    try:
        _serve(call, lambda: tell(_READY))
    except LayerfsError as error:
        _write(_told(error).rstrip())
        os.write(said, _told(error).encode(errors="replace"))
        return error.exit_code
    return 0


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it is dead already
        os._exit(_FAILED)


def _outlive_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def _keep_only(pipe: int, log: Path | None) -> None:
    """Let go of all that was inherited, but for ``pipe``; what is written goes to ``log``."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    written = nothing
    if log is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        written = os.open(log, flags, 0o600)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, 1 << 16)


def _write(line: str) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(2, f"{when} {line}\n".encode(errors="backslashreplace"))


def _log_to_stderr() -> None:
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", level=logging.WARNING, force=True
    )


def _told(error: LayerfsError) -> str:
    hint = f"\nhint: {error.hint}" if error.hint else ""
    return f"layerfs-fuse: {error}{hint}\n"

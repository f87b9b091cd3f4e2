"""Mounts by layerfs-fuse without waiting for an interpreter each time: for suites that make hundreds.

The program is loaded once, in a process that forks for each mount. The child serves it as always, but nobody
writes its end into the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from layerfs.errors import CommandFailed
from layerfs.fuse import program
from layerfs.linux import fuseserver
from tests.require import need

_CHECKOUT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def loaded_once() -> Iterator[None]:
    """Mounts that drivers make in the block, also in child processes, start so."""
    need.fuse()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # the kernel chooses a name
        listener.listen(64)
        code = f"from tests.fusestart import serve; serve({listener.fileno()})"
        environment = {"PATH": os.environ["PATH"]}
        environment["PYTHONPATH"] = os.pathsep.join([str(_CHECKOUT), *(path for path in sys.path if path)])
        process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-c", code], pass_fds=[listener.fileno()], env=environment
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fuseserver, "run", _Client(listener.getsockname()))
            try:
                yield
            finally:
                process.kill()
                process.wait()


class _Client:
    """In the place of :func:`layerfs.linux.command.run`."""

    def __init__(self, address: bytes) -> None:
        self._address = address

    def __call__(self, argv: Sequence[str], *, doing: str, environment: Mapping[str, str]) -> str:
        assert list(argv[2:4]) == ["-m", "layerfs.fuse"], argv
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._address)
            connection.sendall(json.dumps(list(argv[4:])).encode())
            connection.shutdown(socket.SHUT_WR)
            said = _received(connection)
        if said != program._READY:
            words = said.decode().strip()
            raise CommandFailed(f"cannot {doing}: {words}", argv=argv, status=1, stderr=words)
        return ""


def _received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def serve(fd: int) -> None:
    """Fork for each connection: the child serves the mount that the words from there ask for."""
    import layerfs.fuse.edge
    import layerfs.fuse.serve  # noqa: F401

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    listener = socket.socket(fileno=fd)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            program._run(lambda connection=connection: _serve(connection))
        connection.close()


def _serve(connection: socket.socket) -> int:
    os.setsid()
    os.chdir("/")
    call = program._parse(json.loads(_received(connection)))
    program._keep_only(connection.fileno(), call.options.log)
    program._log_to_stderr()
    return program._answer(call, connection.detach())

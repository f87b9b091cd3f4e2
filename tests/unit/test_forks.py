"""Forks of a process with threads: nobody waits for what a child took along by accident."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from layerfs.linux import forks
from layerfs.linux.command import run
from layerfs.testing.conformance.base import in_child


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The writing end is the thread's own."""
    ends: list[int] = []

    def open_pipe() -> int:
        ends.extend(os.pipe())
        return ends[1]

    forks.own(open_pipe)
    yield ends[0], ends[1]
    os.close(ends[0])


def test_a_child_of_another_thread_closes_what_is_ours(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(in_child(lambda: state(writer))))
    thread.start()
    thread.join()
    assert found == ["closed"]
    forks.close(writer)
    assert os.read(reader, 1) == b""


def test_a_child_of_our_own_keeps_it(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    assert in_child(lambda: state(writer)) == "open"
    forks.close(writer)


def state(fd: int) -> str:
    try:
        os.fstat(fd)
    except OSError as error:
        assert error.errno == errno.EBADF
        return "closed"
    return "open"


def test_the_end_of_a_tool_is_seen_whoever_was_forked_meanwhile() -> None:
    """A child that lives on would keep the tool's pipe open, if it had one."""
    stop = threading.Event()
    children: list[int] = []

    def fork_on_and_on() -> None:
        while not stop.is_set() and len(children) < 300:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)

    thread = threading.Thread(target=fork_on_and_on)
    thread.start()
    try:
        for number in range(40):
            assert run(["echo", str(number)], doing="count", longest=20) == f"{number}\n"
    finally:
        stop.set()
        thread.join()
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

"""Running a tool: what comes back when it fails, hangs or is not there."""

from __future__ import annotations

import os
import threading
import time

import pytest

from layerfs.errors import CommandFailed, NotSupported
from layerfs.linux.command import find, run


def test_output_comes_back() -> None:
    assert run(["echo", "hello"], doing="greet") == "hello\n"


def test_tools_of_the_administrator_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert find("mount.nothing-of-that-name") is None
    assert find("ldconfig") is not None


def test_a_failure_tells_what_was_tried_and_what_the_tool_said() -> None:
    with pytest.raises(CommandFailed, match=r"cannot list it: .*no-such-file") as caught:
        run(["ls", "no-such-file"], doing="list it")
    assert caught.value.argv == ("ls", "no-such-file")
    assert caught.value.status == 2
    assert "no-such-file" in caught.value.stderr


def test_a_silent_failure_tells_the_status() -> None:
    with pytest.raises(CommandFailed, match="false ended with status 1"):
        run(["false"], doing="try")


def test_a_tool_that_is_not_installed_is_not_supported() -> None:
    with pytest.raises(NotSupported, match="no program 'nothing-of-that-name'") as caught:
        run(["nothing-of-that-name"], doing="try", hint="install it")
    assert caught.value.hint == "install it"


def test_a_tool_that_hangs_is_killed() -> None:
    with pytest.raises(CommandFailed, match="did not end within") as caught:
        run(["sleep", "1000"], doing="wait", longest=0.1)
    assert caught.value.status == -9


def test_a_process_that_was_forked_meanwhile_holds_nothing_up() -> None:
    """It has every descriptor that was open, and may wait for what its parent has locked."""
    reader, writer = os.pipe()
    runs = threading.Thread(target=lambda: [run(["sleep", "0.01"], doing="wait") for _ in range(50)])
    runs.start()
    children = []
    while runs.is_alive() and len(children) < 50:
        children.append(os.fork())
        if not children[-1]:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        time.sleep(0.005)
    try:
        runs.join(60)
        assert not runs.is_alive()
    finally:
        os.close(writer)
        for child in children:
            os.waitpid(child, 0)

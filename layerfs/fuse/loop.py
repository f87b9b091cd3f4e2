"""pyfuse3, run without an event loop.

pyfuse3 serves requests in coroutines of trio, which cost three times as much as all else it does for a
request. Here no request ever waits for another, so its coroutines never yield, and what they ask of trio
can be answered at once. :mod:`pyfuse3.asyncio` changes pyfuse3's loop in the same way, by putting itself in
trio's place.

Importing trio would take longer than mounting does, so it is this that pyfuse3 gets when it asks for it; and
so with what else it imports for nothing that is done here: half of the time until a mount is ready.
"""

from __future__ import annotations

import contextlib
import importlib
import select
import sys
import types
from collections.abc import Awaitable, Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ClosedResourceError(Exception):
    """What pyfuse3 expects of a descriptor that is closed while it waits for it."""


class _Lock:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *raised: object) -> None:
        pass


class _Nursery:
    """Of the one task that serves: it is run when the block ends."""

    async def __aenter__(self) -> _Nursery:
        self._tasks: list[Awaitable[None]] = []
        return self

    async def __aexit__(self, *raised: object) -> None:
        for task in self._tasks:
            await task

    def start_soon(
        self, function: Callable[..., Awaitable[None]], *arguments: object, name: str | None = None
    ) -> None:
        self._tasks.append(function(*arguments))


async def _wait_readable(fd: int) -> None:
    # Reading itself would wait without letting other threads run.
    poll = _POLLS.get(fd)
    if poll is None:
        poll = _POLLS[fd] = select.poll()
        poll.register(fd, select.POLLIN)
    poll.poll()


_POLLS: dict[int, select.poll] = {}


def import_pyfuse3() -> Any:
    """pyfuse3, with this module in the place of its event loop. ImportError when it is not installed."""
    with _instead(_LOOP, _METADATA, _PICKLE):
        pyfuse3 = importlib.import_module("pyfuse3")
    vars(pyfuse3)["trio"] = _LOOP
    return pyfuse3


def _module(name: str, **contents: object) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(contents)
    return module


_TASK = types.SimpleNamespace(name="layerfs-fuse")
_LOOP = _module(
    "trio",
    Lock=_Lock,
    open_nursery=_Nursery,
    ClosedResourceError=ClosedResourceError,
    lowlevel=types.SimpleNamespace(
        current_task=lambda: _TASK,
        current_trio_token=lambda: None,
        notify_closing=lambda fd: None,
        wait_readable=_wait_readable,
    ),
)
# Where it asks for its own version, and what it refuses to be pickled with.
_METADATA = _module("importlib.metadata", PackageNotFoundError=LookupError, version=lambda name: "?")
_PICKLE = _module("pickle", PicklingError=TypeError)


@contextlib.contextmanager
def _instead(*modules: types.ModuleType) -> Iterator[None]:
    """In the block ``modules`` are what is imported by their names."""
    before = {module.__name__: sys.modules.get(module.__name__) for module in modules}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def run(coroutine: Any) -> None:
    """Run a coroutine that never yields to its end."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
        raise RuntimeError("a request waited for something, and there is no loop to wait in")

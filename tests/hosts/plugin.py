"""Runs tests under the kernels they ask for, in the background, as part of one ordinary pytest run.

``pytest.mark.host("thin")`` is a test that runs on that host alone, ``pytest.mark.host("here", "thin")`` one
that runs in both places, as an item for each: ``test_x`` and ``test_x[thin]``. Outside, items of hosts come
last; their kernels (:mod:`tests.hosts.uml`) start before the first test, and each item reports as soon as it
has run inside. Inside, pytest runs the same files, keeps to the items it was sent, and tells its reports.

What is collected must not depend on the kernel: an item that is not there inside fails.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence

import pytest

from tests.hosts.machines import HOSTS
from tests.hosts.uml import JOB, Kernel, check, tell
from tests.require import need

HERE = "here"
INSIDE = os.environ.get("LAYERFS_HOST", "")
_BOOT = 120  # seconds of silence, upon what one test may take
_SPLIT = 200  # items: where a processor is free, fewer are not worth a kernel of their own


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "host(*names): where to run: 'here', hosts of tests/hosts/machines.py")
    config.pluginmanager.register(Inside(config) if INSIDE else Outside(config), "hosts")


@pytest.fixture(autouse=True)
def host(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    return getattr(request, "param", HERE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("host")
    if not marker:
        return
    names = marker.args
    if unknown := sorted(set(names) - {HERE, *HOSTS}):
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: no host is named {', '.join(unknown)}")
    ids = [pytest.HIDDEN_PARAM if name == HERE else name for name in names]
    metafunc.parametrize("host", names, ids=ids, indirect=True)


def host_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("host", HERE)) if callspec else HERE


class Inside:
    """Runs what it was sent and tells how it went."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = {nodeid: number for number, nodeid in enumerate(JOB.read_text().splitlines())}
        items[:] = sorted((i for i in items if i.nodeid in wanted), key=lambda i: wanted[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        tell((nodeid, None))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        tell((report.nodeid, data))


class Run:
    """Some items of one host, in one kernel."""

    def __init__(self, host: str, items: Sequence[pytest.Item], config: pytest.Config) -> None:
        self.host = HOSTS[host]
        self.config = config
        self.items = {item.nodeid: item for item in items}
        self.silence = _BOOT + max(_time_limit(item) for item in items)
        self.kernel: Kernel | None = None

    def start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key.startswith("LAYERFS_")}
        environment |= {"LAYERFS_HOST": self.host.name, "LAYERFS_REQUIRE": "all"}
        self.kernel = Kernel(
            self.host, self._command(), "\n".join(self.items), environment, self.config.invocation_params.dir
        )
        self.current = ""
        self.reports: list[pytest.TestReport] = []
        self.heard = time.monotonic()

    def _command(self) -> list[str]:
        """pytest upon the same files, with what was asked for here about how failures are shown."""
        option = self.config.option
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--no-header"]
        command += ["-o", "tmp_path_retention_policy=none", "--basetemp=/run/scratch/pytest"]
        command.append(f"--rootdir={self.config.rootpath}")
        if self.config.inipath:
            command.append(f"--config-file={self.config.inipath}")
        command.append(f"--color={'yes' if self.config.get_terminal_writer().hasmarkup else 'no'}")
        command += [f"--tb={option.tbstyle}", *["-v"] * option.verbose, *["-l"] * option.showlocals]
        if getattr(option, "timeout", None) is not None:
            command.append(f"--timeout={option.timeout}")
        return [*command, *dict.fromkeys(str(item.path) for item in self.items.values())]

    def done(self) -> Iterator[tuple[pytest.Item, list[pytest.TestReport]]]:
        """The items that ended since the last call."""
        assert self.kernel
        running = self.kernel.running()  # asked first: what it told before its end must be read
        for nodeid, data in self.kernel.told():
            self.heard = time.monotonic()
            self.current = nodeid
            if data is None:
                self.reports = []
                continue
            report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
            self.reports.append(report)
            if report.when == "teardown":
                self.current = ""
                yield self.items.pop(nodeid), self.reports
        why = ""
        if not running:
            why = "the host stopped"
        elif time.monotonic() > self.heard + self.silence:
            why = f"the host said nothing for {self.silence:.0f} s"
        if why or not self.items:
            console = self.kernel.console()
            self.kernel.stop()
            self.kernel = None
        for nodeid in list(self.items) if why else ():
            item = self.items.pop(nodeid)
            then = "while this test ran" if nodeid == self.current else "and did not run this test"
            text = f"{self.host.name}: {why} {then}; its console:\n{console}"
            yield item, [_failure(item, text)]


class Outside:
    """Boots the hosts and passes on what they report."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.waiting: deque[Run] = deque()
        self.running: list[Run] = []
        self.done: deque[tuple[pytest.Item, list[pytest.TestReport]]] = deque()
        self.awaited: set[str] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: (host_of(item) != HERE, host_of(item)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        option = self.config.option
        if not option.collectonly and (option.continue_on_collection_errors or not session.testsfailed):
            self._plan(session.items)
        try:
            self._boot(_processors() - 1)
            return (yield)
        finally:
            for run in self.running:
                if run.kernel:
                    run.kernel.stop()

    def _plan(self, items: Sequence[pytest.Item]) -> None:
        runs: dict[str, list[pytest.Item]] = {}
        for item in items:
            if host_of(item) != HERE:
                runs.setdefault(host_of(item), []).append(item)
        parts: list[tuple[str, list[pytest.Item]]] = []
        for host, its in runs.items():
            try:
                self._check(host)
            except (pytest.skip.Exception, pytest.fail.Exception):
                continue  # each of its items will say so
            parts.append((host, its))
        while parts and len(parts) < _processors() - 1:
            host, its = max(parts, key=lambda part: len(part[1]))
            if len(its) < 2 * _SPLIT:
                break
            parts.remove((host, its))
            parts += [(host, its[: len(its) // 2]), (host, its[len(its) // 2 :])]
        self.waiting.extend(
            Run(host, its, self.config) for host, its in sorted(parts, key=lambda part: -len(part[1]))
        )
        self.awaited = {item.nodeid for _, its in parts for item in its}

    def _check(self, host: str) -> None:
        if hasattr(self.config, "workerinput"):
            need.missing("hosts", "a worker of pytest-xdist boots none; run without -n")
        check(HOSTS[host])

    def _boot(self, most: int) -> None:
        """See what the hosts did; let up to ``most`` run, at least one."""
        for run in list(self.running):
            self.done.extend(run.done())
            if not run.kernel:
                self.running.remove(run)
        while self.waiting and len(self.running) < max(1, most):
            self.running.append(self.waiting.popleft())
            self.running[-1].start()

    def pytest_runtest_logfinish(self) -> None:
        self._boot(_processors() - 1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if host_of(item) != HERE:
            self._check(host_of(item))
            pytest.fail("its host was not booted", pytrace=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if item.nodeid not in self.awaited:
            return None
        # Whichever is ready stands in for this one: each item comes up once, in the order they ended.
        while not self.done:
            if not self.running and not self.waiting:
                return None
            self._boot(_processors())
            time.sleep(0.05)
        ready, reports = self.done.popleft()
        hook = ready.ihook
        hook.pytest_runtest_logstart(nodeid=ready.nodeid, location=ready.location)
        for report in reports:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=ready.nodeid, location=ready.location)
        return True


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _time_limit(item: pytest.Item) -> float:
    """What pytest-timeout lets the item take, inside. Outside the time it is waited for is not limited."""
    marker = item.get_closest_marker("timeout")
    if marker and marker.args:
        limit = marker.args[0]
    else:
        limit = getattr(item.config.option, "timeout", None)
        limit = item.config.getini("timeout") if limit is None else limit
    item.add_marker(pytest.mark.timeout(0), append=False)
    return float(limit or 0) or float("inf")


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(
        item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", text, "call"
    )

"""Which driver a store gets: installed ones by their entry points, what works, what was there before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from layerfs import registry
from layerfs.driver import DriverInfo
from layerfs.errors import (
    DriverNotFound,
    InvalidOption,
    NotSupported,
    PriorDrivers,
    StoreDamaged,
    SystemFailure,
)
from layerfs.opening import default_paths, open_store
from tests.storekit import BASE, stream

SOURCE = """
import attrs
from layerfs.driver import Fallback
from layerfs.errors import NotSupported, SystemFailure
from tests.dirdriver import DirInfo

@attrs.frozen
class Info(DirInfo):
    refuses: object = None
    fallback: object = None

    def probe(self, home, runroot):
        if self.refuses:
            raise self.refuses
        return self.fallback

best = Info("best", 1000)
good = Info("good", 900)
second = Info("second", 1500, fallback=Fallback("by other means", 950))
lacking = Info("lacking", 2000, refuses=NotSupported("the kernel lacks it", hint="get another kernel"))
failing = Info("failing", 3000, refuses=SystemFailure("the disk is on fire"))
liar = Info("another name", 1000)
thing = object()
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with drivers; those of other packages are out of sight."""
    site = tmp_path / "site"

    def install(**points: str) -> None:
        info = site / "someone-1.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someone\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[layerfs.drivers]", *lines]))
        (site / "someone_drivers.py").write_text(SOURCE)

    def entry_points(*, group: str) -> metadata.EntryPoints:
        found = [
            point for package in metadata.distributions(path=[str(site)]) for point in package.entry_points
        ]
        return metadata.EntryPoints(found).select(group=group)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    monkeypatch.syspath_prepend(str(site))
    install()
    yield install
    sys.modules.pop("someone_drivers", None)


def names(drivers: list[DriverInfo]) -> list[str]:
    return [info.name for info in drivers]


def test_drivers_come_by_priority(install: Install) -> None:
    install(good="someone_drivers:good", best="someone_drivers:best", lacking="someone_drivers:lacking")
    assert names(registry.drivers()) == ["lacking", "best", "good"]
    assert registry.find("good").entry_point == "someone_drivers:good"
    with pytest.raises(DriverNotFound) as caught:
        registry.find("goood")
    assert caught.value.near == ("good",)


def test_a_driver_that_cannot_be_loaded_does_not_break_the_rest(install: Install, tmp_path: Path) -> None:
    install(
        good="someone_drivers:good",
        gone="not_installed_any_more:DRIVER",
        missing="someone_drivers:nothing",
        liar="someone_drivers:liar",
        thing="someone_drivers:thing",
    )
    probes = {probe.info.name: probe for probe in registry.probe_all(lambda info: tmp_path, tmp_path)}
    assert probes["good"].reason is None
    assert "not_installed_any_more" in (probes["gone"].reason or "")
    assert "nothing" in (probes["missing"].reason or "")
    assert "another name" in (probes["liar"].reason or "")
    assert "not a DriverInfo" in (probes["thing"].reason or "")
    assert all(probe.hint for name, probe in probes.items() if name != "good")
    assert registry.choose(tmp_path, tmp_path).info.name == "good"


def test_every_driver_is_asked_and_says_why_not(install: Install, tmp_path: Path) -> None:
    install(lacking="someone_drivers:lacking", failing="someone_drivers:failing", good="someone_drivers:good")
    told = [
        (probe.info.name, probe.reason, probe.hint)
        for probe in registry.probe_all(lambda info: tmp_path / info.name, tmp_path)
    ]
    assert told == [
        ("failing", "the disk is on fire", ""),
        ("lacking", "the kernel lacks it", "get another kernel"),
        ("good", None, ""),
    ]


def test_the_best_that_works_is_chosen(install: Install, tmp_path: Path) -> None:
    install(lacking="someone_drivers:lacking", good="someone_drivers:good", best="someone_drivers:best")
    with open_store(tmp_path / "s", runroot=tmp_path / "run") as store:
        assert store.driver.name == "best"


def test_where_none_works_every_reason_is_told(install: Install, tmp_path: Path) -> None:
    install(lacking="someone_drivers:lacking", gone="not_there:DRIVER")
    with pytest.raises(NotSupported, match=r"(?s)lacking: the kernel lacks it.*gone: not_there"):
        open_store(tmp_path / "s", runroot=tmp_path / "run")
    assert not (tmp_path / "s").exists()
    install()
    with pytest.raises(NotSupported, match="none is installed"):
        registry.choose(tmp_path, tmp_path)


def test_another_error_than_not_supported_ends_the_choice(install: Install, tmp_path: Path) -> None:
    install(failing="someone_drivers:failing", good="someone_drivers:good")
    with pytest.raises(SystemFailure, match="on fire"):
        registry.choose(tmp_path, tmp_path)
    assert registry.choose(tmp_path, tmp_path, "good").info.name == "good"


def test_a_driver_that_falls_back_is_taken_by_the_priority_of_that(install: Install, tmp_path: Path) -> None:
    install(second="someone_drivers:second", best="someone_drivers:best")
    assert registry.choose(tmp_path, tmp_path).info.name == "best"
    install(second="someone_drivers:second", good="someone_drivers:good", lacking="someone_drivers:lacking")
    assert registry.choose(tmp_path, tmp_path).info.name == "second"
    found = {probe.info.name: probe for probe in registry.probe_all(lambda info: tmp_path, tmp_path)}
    assert found["second"].reason is None and found["second"].fallback == "by other means"


def test_a_stores_driver_wins_over_priority(install: Install, tmp_path: Path) -> None:
    install(good="someone_drivers:good", best="someone_drivers:best")
    paths = {"root": tmp_path / "s", "runroot": tmp_path / "run"}
    with open_store(**paths, driver="good") as store:  # type: ignore[arg-type]
        store.register(stream(BASE))
    with open_store(**paths) as store:  # type: ignore[arg-type]
        assert store.driver.name == "good"
    with pytest.raises(PriorDrivers, match="good"):
        open_store(**paths, driver="best")  # type: ignore[arg-type]


def test_state_without_a_database_wins_over_priority(install: Install, tmp_path: Path) -> None:
    install(good="someone_drivers:good", best="someone_drivers:best")
    (tmp_path / "good").mkdir()
    assert registry.choose(tmp_path, tmp_path).info.name == "best"
    (tmp_path / "good" / "layer").mkdir()
    assert registry.choose(tmp_path, tmp_path).info.name == "good"
    with pytest.raises(PriorDrivers, match="good"):
        registry.choose(tmp_path, tmp_path, "best")
    (tmp_path / "best" / "layer").mkdir(parents=True)
    with pytest.raises(PriorDrivers, match="best, good"):
        registry.choose(tmp_path, tmp_path)


def test_a_driver_that_moved_is_found_again(install: Install, tmp_path: Path) -> None:
    install(good="someone_drivers:good")
    assert registry.load("good", "where_it_was:DRIVER").entry_point == "someone_drivers:good"
    with pytest.raises(DriverNotFound):
        registry.load("gone", "where_it_was:DRIVER")


def test_options_are_the_chosen_drivers(install: Install, tmp_path: Path) -> None:
    install(good="someone_drivers:good", best="someone_drivers:best")
    paths = {"root": tmp_path / "s", "runroot": tmp_path / "run"}
    for options, told in (
        ({"good.depth": "5"}, "is for driver good"),
        ({"depth": "5"}, "not a driver option"),
        ({"best.deep": "5"}, "no option 'deep'"),
        ({"best.depth": "five"}, "invalid literal"),
    ):
        with pytest.raises(InvalidOption, match=told):
            open_store(**paths, options=options)  # type: ignore[arg-type]
    with open_store(**paths, options={"best.depth": "5"}) as store:  # type: ignore[arg-type]
        assert store.driver.capabilities.max_depth == 5


def test_read_only_there_must_be_a_store(install: Install, tmp_path: Path) -> None:
    install(good="someone_drivers:good")
    with pytest.raises(StoreDamaged, match="no store"):
        open_store(tmp_path / "s", runroot=tmp_path / "run", read_only=True)
    with open_store(tmp_path / "s", runroot=tmp_path / "run"):
        pass
    with open_store(tmp_path / "s", runroot=tmp_path / "run", read_only=True) as store:
        assert store.read_only


def test_default_paths_of_an_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    told = default_paths({"XDG_DATA_HOME": "/data", "XDG_RUNTIME_DIR": "/runtime"})
    assert (told.root, told.runroot) == (Path("/data/layerfs"), Path("/runtime/layerfs"))
    told = default_paths({"HOME": "/home/somebody"})
    assert told.root == Path("/home/somebody/.local/share/layerfs")
    assert told.runroot == Path("/run/user/4242/layerfs")


def test_default_paths_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("layerfs.linux.userns.in_user_namespace", lambda: False)
    told = default_paths({"XDG_DATA_HOME": "/data"})
    assert (told.root, told.runroot) == (Path("/var/lib/layerfs"), Path("/run/layerfs"))

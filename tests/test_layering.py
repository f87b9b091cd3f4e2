"""Who may import whom: the rule of docs/architecture.md, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# room -> rooms it may import. A room is a module or package below layerfs, or a driver.
BOTTOM = {"ids", "errors", "progress", "values"}
KERNEL = BOTTOM | {"linux"}
ARCHIVE = KERNEL | {"archive"}
CONTRACT = ARCHIVE | {"driver", "naivediff", "mountcount", "union"}
MOUNTERS = CONTRACT | {"fuse", "overlay"}
STORE = CONTRACT | {"store"}
IMAGE = STORE | {"image"}
MAY_IMPORT: dict[str, set[str]] = {
    "ids": {"errors"},
    "errors": set(),
    "progress": set(),
    "values": set(),
    "linux": KERNEL,
    "archive": ARCHIVE,
    "driver": CONTRACT,
    "naivediff": CONTRACT,
    "mountcount": CONTRACT,
    "union": ARCHIVE | {"driver", "union"},
    "fuse": ARCHIVE | {"union", "fuse"},
    "overlay": MOUNTERS,
    "store": STORE,
    "registry": BOTTOM | {"driver"},
    "image": IMAGE,
    "testing": CONTRACT | {"testing"},
    "opening": STORE | {"registry"},
    "__init__": IMAGE | {"registry", "opening"},
    "cli": IMAGE | {"registry", "opening", "cli", "fuse", "__init__"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """(room, file) of every module of the two packages."""
    for file in sorted((ROOT / "layerfs").rglob("*.py")):
        yield file.relative_to(ROOT / "layerfs").parts[0].removesuffix(".py"), file
    for file in sorted((ROOT / "drivers" / "layerfs_drivers").rglob("*.py")):
        yield (
            "driver:" + file.relative_to(ROOT / "drivers/layerfs_drivers").parts[0].removesuffix(".py"),
            file,
        )


def imports(file: Path) -> Iterator[str]:
    """Dotted names a module imports, also inside functions, ``from x import y`` as ``x.y``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where things come from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("room", "file"), [pytest.param(r, f, id=str(f.relative_to(ROOT))) for r, f in modules()]
)
def test_a_module_imports_only_from_rooms_below_it(room: str, file: Path) -> None:
    for name in imports(file):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if package == "layerfs":
            allowed = MOUNTERS if room.startswith("driver:") else MAY_IMPORT[room]
            if not (ROOT / "layerfs" / target).is_dir() and not (ROOT / "layerfs" / f"{target}.py").exists():
                target = "__init__"
            assert target in allowed, f"{room} may not import {name}"
        elif package == "layerfs_drivers":
            assert room == f"driver:{target}", f"{room} may not import the driver {name}"


def test_only_the_command_line_prints() -> None:
    for room, file in modules():
        if room == "cli":
            continue
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), file


def test_only_the_command_line_reads_the_environment() -> None:
    for room, file in modules():
        if room != "cli":
            assert not any(name in ("os.environ", "os.getenv") for name in imports(file)), file
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                    pytest.fail(f"{file}:{node.lineno} reads the environment")

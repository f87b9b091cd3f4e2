"""``mount`` and ``umount``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

from layerfs.cli import names, output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.targets import Targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerfs.driver import Mount
    from layerfs.ids import GraphID
    from layerfs.store.layer import Layer, RWLayer
    from layerfs.store.store import Store


def _mount_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=names.HELP)
    parser.add_argument(
        "target", metavar="TARGET", nargs="?", type=Path, help="a directory to show it at, too; must be there"
    )
    parser.add_argument("--read-only", action="store_true", help="take no writes")
    parser.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="print the mounts as commands for a shell, and make none",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; with --print: the mounts as data")


def _mount(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        thing = _mountable(store, args.name, read_only=args.read_only)
        if args.print_only:
            _print(thing.mounts(), args.target, as_json=args.json)
            return 0
        root = thing.mount()
        if args.target is not None:
            try:
                Targets(session.runroot, thing.key).bind(root, args.target, read_only=args.read_only)
            except BaseException:
                thing.umount()
                raise
            root = args.target.absolute()
    if args.json:
        output.json_document({"name": args.name, "root": root})
    else:
        output.line(str(root))
    return 0


def _umount_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=names.HELP)


def _umount(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        thing = _mountable(store, args.name)
        Targets(session.runroot, thing.key).unbind()
        thing.umount()
    return 0


class _Mountable(Protocol):
    """What NAME stands for, as far as mounting goes."""

    @property
    def key(self) -> GraphID:
        """What the driver knows it by."""

    def mount(self) -> Path: ...
    def umount(self) -> None: ...
    def mounts(self) -> Sequence[Mount]: ...


@attrs.frozen
class _Container:
    layer: RWLayer
    read_only: bool

    @property
    def key(self) -> GraphID:
        return self.layer.info.mount_id

    def mount(self) -> Path:
        return self.layer.mount(read_only=self.read_only)

    def umount(self) -> None:
        self.layer.umount()

    def mounts(self) -> Sequence[Mount]:
        return self.layer.mounts(read_only=self.read_only)


@attrs.frozen
class _ReadOnly:
    layer: Layer
    store: Store

    @property
    def key(self) -> GraphID:
        return self.store.layer_info(self.layer.chain_id).cache_id

    def mount(self) -> Path:
        return self.layer.mount()

    def umount(self) -> None:
        self.layer.umount()

    def mounts(self) -> Sequence[Mount]:
        return self.store.driver.mounts(self.key, read_only=True)


def _mountable(store: Store, name: str, *, read_only: bool = False) -> _Mountable:
    found = names.find(store, name)
    if found.container is not None:
        return _Container(found.container, read_only)
    if found.image is not None:
        return _ReadOnly(store.get(names.top_layer(found.image)), store)
    assert found.layer is not None
    return _ReadOnly(store.get(found.layer.chain_id), store)


def _print(mounts: Sequence[Mount], target: Path | None, *, as_json: bool) -> None:
    if as_json:
        output.json_document(mounts)
        return
    for mount in mounts:
        output.line(_shell_command(mount, str(target.absolute()) if target else "TARGET"))


def _shell_command(mount: Mount, target: str) -> str:
    """The mount as a command of mount(8) to paste into a shell."""
    if mount.fstype == "bind":
        words = ["mount", "-o", ",".join(("bind", *mount.options)), mount.source, target]
    else:
        options = ["-o", ",".join(_quoted(option) for option in mount.options)] if mount.options else []
        words = ["mount", "-t", mount.fstype, mount.source, *options, target]
    return shlex.join(words)


def _quoted(option: str) -> str:
    """mount(8) parts options at commas but for those inside double quotes."""
    name, equals, value = option.partition("=")
    return f'{name}{equals}"{value}"' if "," in value else option


COMMANDS = {
    "mount": Command(
        _mount_arguments,
        _mount,
        "The mount is counted: mount it twice, unmount it twice. It stays when layerfs ends. "
        "Images and layers are mounted read-only. Without TARGET the driver picks the place.",
    ),
    "umount": Command(
        _umount_arguments,
        _umount,
        "One call gives one mount back, those at a TARGET first and the latest of them first; "
        "the last call unmounts.",
    ),
}

"""``mount`` and ``umount``."""

from __future__ import annotations

import argparse
from pathlib import Path

from layerfs.cli import names, output
from layerfs.cli.command import Command, Parser, Session
from layerfs.errors import NotFound
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerfs.driver import Mount
    from layerfs.ids import GraphID
    from layerfs.store.store import Store


def _mount_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=names.HELP)
    parser.add_argument(
        "target", metavar="TARGET", nargs="?", type=Path, help="a directory to show it at, too; must be there"
    )
    parser.add_argument("--read-only", action="store_true", help="take no writes")
    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPTIONS",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="what the mount forbids to all who have it: nodev, nosuid, noexec, with commas between",
    )
    parser.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="print the mounts as commands for a shell, and make none",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; with --print: the mounts as data")


def _mount(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        thing = _mountable(store, args.name, read_only=args.read_only, options=args.options)
        if args.print_only:
            _print(thing.mounts(), args.target, as_json=args.json)
            return 0
        root = thing.mount()
        if args.target is not None:
            from layerfs.cli.targets import Targets

            try:
                Targets(session.runroot, thing.id).bind(root, args.target, read_only=args.read_only)
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
    from layerfs.cli.targets import Targets

    with session.store() as store:
        thing = _mountable(store, args.name)
        mounted = store.driver.mounted(thing.id)
        Targets(session.runroot, thing.id).unbind()
        if not mounted:
            raise NotFound(f"{args.name} is not mounted", hint="'layerfs containers' lists the mounts")
        thing.umount()
    return 0


@frozen
class _Mountable:
    """What NAME stands for, as far as mounting goes."""

    id: GraphID
    """What the driver knows it by."""
    mount: Callable[[], Path]
    umount: Callable[[], None]
    mounts: Callable[[], Sequence[Mount]]


def _mountable(
    store: Store, name: str, *, read_only: bool = False, options: Sequence[str] = ()
) -> _Mountable:
    from layerfs.store.rwlayer import RWLayer

    found = names.find(store, name)
    if isinstance(found, RWLayer):
        return _Mountable(
            found.info.mount_id,
            lambda: found.mount(read_only=read_only, options=options),
            found.umount,
            lambda: found.mounts(read_only=read_only, options=options),
        )
    layer = store.get(names.top_layer(found))
    id = layer.info.cache_id
    return _Mountable(
        id,
        lambda: layer.mount(options=options),
        layer.umount,
        lambda: layer.mounts(options=options),
    )


def _print(mounts: Sequence[Mount], target: Path | None, *, as_json: bool) -> None:
    if as_json:
        output.json_document(mounts)
        return
    for mount in mounts:
        output.line(_shell_command(mount, str(target.absolute()) if target else "TARGET"))


def _shell_command(mount: Mount, target: str) -> str:
    """The mount as a command of mount(8) to paste into a shell."""
    from shlex import join

    if mount.fstype == "bind":
        kinds = [] if {"bind", "rbind"} & set(mount.options) else ["bind"]
        words = ["mount", "-o", ",".join((*kinds, *mount.options)), mount.source, target]
    elif mount.fstype == "fuse.layerfs":
        # The program itself: mount(8) finds it only when it is installed where helpers of mount(8) are.
        options = ",".join(_quoted(option) for option in mount.options)
        words = ["layerfs-fuse", "-o", options, mount.source, target]
    else:
        joined = ",".join(_quoted(option) for option in mount.options)
        words = ["mount", "-t", mount.fstype, mount.source, *(["-o", joined] if joined else []), target]
    return join(words)


def _quoted(option: str) -> str:
    """An option for mount(8), which parts options at commas: a label is quoted, and overlay takes the
    backslash away from a comma in a path."""
    name, _, value = option.partition("=")
    if "," not in value or value.startswith('"'):
        return option
    if name.endswith("context"):
        return f'{name}="{value}"'
    return f"{name}={value}".replace(",", "\\,")


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

"""``layerfs``: reads argv and environment, runs one command, turns errors into words and a status.

Exit status: that of the error (see :mod:`layerfs.errors`), 2 for wrong usage, 130 after Ctrl-C, 141
when the reader of standard output went away, 70 for a fault in layerfs itself. ``doctor`` ends with
1 when it found something, ``check`` with 7.

Start-up is part of the product: only the arguments of the chosen command are built, and only its
module is imported.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from errno import EPIPE

from layerfs.cli.command import Command, Parser, RawHelp, Session, UsageError, did_you_mean
from layerfs.errors import LayerfsError, SystemFailure, from_os_error

INTERRUPTED = 130
PIPE_CLOSED = 141
INTERNAL_ERROR = 70

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Images": {
        "load": ("images", "bring the images of an OCI layout or docker-archive into the store"),
        "save": ("images", "write images out as OCI layout or docker-archive"),
        "images": ("images", "list images"),
        "rmi": ("images", "remove images or names of images"),
    },
    "Containers": {
        "create": ("containers", "make a writable layer upon an image; prints its name"),
        "containers": ("containers", "list containers"),
        "mount": ("mounts", "mount a container, image or layer; prints its root"),
        "umount": ("mounts", "give one mount back"),
        "changes": ("containers", "list what a container changed"),
        "diff": ("containers", "write what a container changed as a tar"),
        "commit": ("containers", "keep a container's changes as a layer, and an image when named"),
        "rm": ("containers", "remove containers"),
    },
    "Layers": {
        "layers": ("layers", "list layers"),
        "prune": ("layers", "remove the layers that nothing references"),
    },
    "The store": {
        "inspect": ("inspection", "everything known of an image, container or layer, as JSON"),
        "du": ("space", "space and inodes, shared and own"),
        "info": ("host", "the store and its driver"),
        "drivers": ("host", "every driver: whether it works here, or why not and the mend"),
        "doctor": ("host", "what is wrong here, why, and the mend"),
        "bench": ("benchmark", "measure every driver here, beside other engines"),
        "check": ("checks", "verify the store"),
        "repair": ("checks", "heal what check finds"),
        "migrate": ("migration", "move the store to another driver"),
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path of the host need not be UTF-8, and a shell wants it as it is.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except LayerfsError as error:
        if isinstance(error, SystemFailure) and error.errno == EPIPE:
            return _reader_gone()
        return _complain(error)
    except OSError as error:
        return _complain(from_os_error(error, "go on"))
    except Exception as error:
        if os.environ.get("LAYERFS_DEBUG"):
            raise
        from layerfs.cli.complaint import say

        say(
            f"internal error: {type(error).__name__}: {error}",
            "this is a fault in layerfs; set LAYERFS_DEBUG=1 to see where",
        )
        return INTERNAL_ERROR


def _complain(error: LayerfsError) -> int:
    from layerfs.cli.complaint import complain

    return complain(error)


def _reader_gone() -> int:
    """What is still buffered would raise again when the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE_CLOSED


def _run(argv: Sequence[str]) -> int:
    parser = _global_parser()
    args = parser.parse(argv)
    if args.version:
        print(f"layerfs {_version()}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    name: str = args.command
    command, summary = _command(name)
    command_parser = Parser(prog=f"layerfs {name}", description=_sentence(summary, command.details))
    command.arguments(command_parser)
    command_args = command_parser.parse(args.arguments, elsewhere=parser)
    session = Session.of(
        os.environ, root=args.root, runroot=args.runroot, driver=args.driver, options=args.option
    )
    return command.run(session, command_args)


def _global_parser() -> Parser:
    parser = Parser(
        prog="layerfs",
        usage="layerfs [--root DIR] [--runroot DIR] [--driver NAME] [--option K=V]... COMMAND ...",
        description="Image layers in, root file systems up, layers out: storage for containers.",
        epilog=_overview(),
        formatter_class=RawHelp,
    )
    parser.add_argument("--root", metavar="DIR", help="where the store is (LAYERFS_ROOT)")
    parser.add_argument(
        "--runroot", metavar="DIR", help="state that must not outlive a boot (LAYERFS_RUNROOT)"
    )
    parser.add_argument("--driver", metavar="NAME", help="the driver of a new store (LAYERFS_DRIVER)")
    parser.add_argument(
        "--option",
        metavar="K=V",
        action="append",
        default=[],
        help="an option of the driver; may be repeated",
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("layerfs")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _overview() -> str:
    lines: list[str] = []
    for group, commands in GROUPS.items():
        lines.append(f"{group}:")
        lines += [f"  {name:<12} {summary}" for name, (_, summary) in commands.items()]
        lines.append("")
    lines += [
        "First steps:",
        "  layerfs load image.tar",
        "  layerfs create debian:12 --name work",
        "  root=$(layerfs mount work)",
        "  layerfs umount work",
        "",
        "'layerfs COMMAND --help' tells more of one. Commands that list take --json.",
    ]
    return "\n".join(lines)


def _command(name: str) -> tuple[Command, str]:
    from importlib import import_module

    known = {name: found for commands in GROUPS.values() for name, found in commands.items()}
    if name not in known:
        raise UsageError(
            f"no command {name!r}",
            hint=did_you_mean(name, known) or "'layerfs --help' lists the commands",
        )
    module, summary = known[name]
    commands: dict[str, Command] = import_module(f"layerfs.cli.{module}").COMMANDS
    return commands[name], summary


def _sentence(summary: str, details: str) -> str:
    first = summary[0].upper() + summary[1:] + "."
    return f"{first} {details}" if details else first

"""What every command is made of: its arguments, what it runs, and the session it runs in."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs

from layerfs.errors import InvalidInput, InvalidOption, NotFound

if TYPE_CHECKING:
    from layerfs.store import Store


class UsageError(InvalidInput):
    """Words on the command line that make no command."""


@attrs.frozen
class Session:
    """Where this command line works, from its options and the environment."""

    root: Path
    runroot: Path
    driver: str | None
    options: Mapping[str, str]

    @classmethod
    def of(
        cls,
        environ: Mapping[str, str],
        *,
        root: str | None,
        runroot: str | None,
        driver: str | None,
        options: Sequence[str],
    ) -> Session:
        """An option wins over the environment, that over the default of whoever calls."""
        root = root or environ.get("LAYERFS_ROOT")
        runroot = runroot or environ.get("LAYERFS_RUNROOT")
        return cls(
            Path(root).absolute() if root else _default_root(environ),
            Path(runroot).absolute() if runroot else _default_runroot(environ),
            driver or environ.get("LAYERFS_DRIVER") or None,
            dict(_option(text) for text in options),
        )

    def store(self, *, create: bool = False) -> Store:
        """The store, open; the caller closes it. Only with ``create`` one is made where none is."""
        if not create and not self.root.is_dir():
            raise NotFound(
                f"there is no store at {self.root}",
                hint="'layerfs load' makes one; --root or LAYERFS_ROOT names another place",
            )
        from layerfs.opening import open_store

        return open_store(self.root, self.runroot, driver=self.driver, options=self.options)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidOption(f"--option {text!r} is not K=V", hint="such as --option overlay.size=10G")
    return name, value


def _privileged() -> bool:
    """Root of the host. Root of a user namespace is an ordinary user in disguise, with that user's
    places."""
    from layerfs.linux.userns import in_user_namespace

    return os.geteuid() == 0 and not in_user_namespace()


def _default_root(environ: Mapping[str, str]) -> Path:
    if _privileged():
        return Path("/var/lib/layerfs")
    data = environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path("~/.local/share").expanduser()) / "layerfs"


def _default_runroot(environ: Mapping[str, str]) -> Path:
    if _privileged():
        return Path("/run/layerfs")
    runtime = environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise InvalidInput(
            "no place for state that must not outlive a boot: XDG_RUNTIME_DIR is not set",
            hint="name a directory of your own on a tmpfs with --runroot or LAYERFS_RUNROOT",
        )
    return Path(runtime) / "layerfs"


@attrs.frozen
class Command:
    """One command: ``arguments`` declares them, ``run`` does it and returns the exit status."""

    arguments: Callable[[Parser], None]
    run: Callable[[Session, argparse.Namespace], int]
    details: str = ""
    """Sentences for its help, after the first, which the overview of commands holds."""


class Parser(argparse.ArgumentParser):
    """Raises :class:`UsageError`, with the near word, instead of printing and ending the process."""

    def __init__(
        self,
        *,
        prog: str,
        usage: str | None = None,
        description: str,
        epilog: str | None = None,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
    ) -> None:
        # Abbreviated options would break scripts on the day a second option begins alike.
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=formatter_class,
            allow_abbrev=False,
        )

    def add_json(self) -> None:
        """``--json``, as every command that lists has it."""
        self.add_argument("--json", action="store_true", help="print JSON")

    def parse(self, words: Sequence[str], *, elsewhere: Parser | None = None) -> argparse.Namespace:
        """Parse all ``words``. ``elsewhere`` is the parser of the options that stand before a command."""
        args, unknown = self.parse_known_args(words)
        if unknown:
            raise self._unknown(unknown[0], elsewhere)
        return args

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self._command}{message}", hint=self.format_usage().strip())

    @property
    def _command(self) -> str:
        _, _, command = self.prog.partition(" ")
        return f"{command}: " if command else ""

    def _options(self) -> list[str]:
        return re.findall(r"(?<![\w-])--[a-z][a-z-]*", self.format_usage())

    def _unknown(self, word: str, elsewhere: Parser | None) -> UsageError:
        if not word.startswith("-"):
            return UsageError(
                f"{self._command}one argument too many: {word!r}", hint=self.format_usage().strip()
            )
        option = word.partition("=")[0]
        if elsewhere is not None and option in elsewhere._options():
            hint = f"{option} stands before the command: layerfs {option} ... {self._command[:-2]}"
        elif elsewhere is None and option == "--json":
            hint = "--json stands after the command: layerfs images --json"
        else:
            hint = did_you_mean(option, self._options()) or f"'{self.prog} --help' lists the options"
        return UsageError(f"{self._command}no option {option!r}", hint=hint)


def one_of(*choices: str) -> Callable[[str], str]:
    """An argument type: one of these words; suggests the near one."""

    def check(text: str) -> str:
        if text not in choices:
            near = did_you_mean(text, choices)
            raise argparse.ArgumentTypeError(
                f"{text!r} is none of {', '.join(choices)}" + (f"; {near}" if near else "")
            )
        return text

    return check


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the words most like ``word``; empty when none is."""
    near = near_names(word, known)
    return "did you mean " + " or ".join(repr(name) for name in near) + "?" if near else ""


def near_names(word: str, known: Iterable[str]) -> list[str]:
    """The names most like ``word``, best first."""
    from difflib import get_close_matches

    return get_close_matches(word, list(dict.fromkeys(known)), n=3, cutoff=0.6)

"""What every command is made of: its arguments, what it runs, and the session it runs in."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from layerfs.errors import InvalidInput, InvalidOption, NotFound, ReadOnly, translated
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from layerfs.store.store import Store


class UsageError(InvalidInput):
    """Words on the command line that make no command."""


@frozen
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
        """An option wins over the environment, that over the default."""
        from layerfs.opening import default_paths

        if "" in (root, runroot):
            raise UsageError("an empty --root or --runroot", hint="a variable that is not set?")
        default = default_paths(environ)
        return cls(
            Path(root or environ.get("LAYERFS_ROOT") or default.root).absolute(),
            Path(runroot or environ.get("LAYERFS_RUNROOT") or default.runroot).absolute(),
            driver or environ.get("LAYERFS_DRIVER") or None,
            dict(_option(text) for text in options),
        )

    def has_store(self) -> bool:
        """Whether there is a store at the root."""
        from layerfs.store.metadata import FILE_NAME

        with translated(f"look for a store in {self.root}"):
            return (self.root / FILE_NAME).exists()

    def store(self, *, create: bool = False, exclusive: bool = False) -> Store:
        """The store, open; the caller closes it. Only with ``create`` one is made where none is."""
        from layerfs.opening import open_store

        if not create and not self.has_store():
            raise NotFound(
                f"there is no store at {self.root}",
                hint="'layerfs load' makes one; --root or LAYERFS_ROOT names another place",
            )
        try:
            return open_store(
                self.root,
                runroot=self.runroot,
                driver=self.driver,
                options=self.options,
                exclusive=exclusive,
            )
        except ReadOnly:
            if create or exclusive:
                raise
            # A store on a read-only file system can still be looked at, and its layers mounted.
            return open_store(
                self.root, runroot=self.runroot, driver=self.driver, options=self.options, read_only=True
            )


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidOption(
            f"--option {text!r} is not K=V", hint="K is DRIVER.OPTION; 'layerfs drivers --json' lists them"
        )
    return name, value


@frozen
class Command:
    """One command: ``arguments`` declares them, ``run`` does it and returns the exit status."""

    arguments: Callable[[Parser], None]
    run: Callable[[Session, argparse.Namespace], int]
    details: str = ""
    """Sentences for its help, after the first, which the overview of commands holds."""


class Help(argparse.HelpFormatter):
    """As wide as the terminal. argparse asks shutil for the width whenever an argument is added, and
    that import alone takes as long as mounting a container."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=terminal_width() - 2)


class RawHelp(Help, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of description and epilog as they are."""


class Parser(argparse.ArgumentParser):
    """Raises :class:`UsageError`, with the near word, instead of printing and ending the process."""

    def __init__(
        self,
        *,
        prog: str,
        usage: str | None = None,
        description: str,
        epilog: str | None = None,
        formatter_class: type[Help] = Help,
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


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(2).columns)
    except (ValueError, OSError):
        return 80


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

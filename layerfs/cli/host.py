"""``info``, ``drivers`` and ``doctor``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from layerfs.cli import output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.tables import Column, table

if TYPE_CHECKING:
    from layerfs.cli.diagnosis import Finding
    from layerfs.registry import Probe
    from layerfs.store.store import Store

FOUND_SOMETHING = 1


def _arguments(parser: Parser) -> None:
    parser.add_json()


def _info(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        facts = _facts(session, store)
    if args.json:
        output.json_document(facts)
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            output.line(f"{name}:")
            for key, text in value.items():
                output.line(f"  {key + ':':<20} {_text(text)}")
        elif name == "content_bytes" and isinstance(value, int):
            output.line(f"{'content:':<22} {output.size(value)}")
        else:
            output.line(f"{name + ':':<22} {_text(value)}")
    return 0


def _facts(session: Session, store: Store) -> dict[str, object]:
    capabilities = output.fields(store.driver.capabilities)
    layers = list(store.layers())
    return {
        "root": store.root,
        "runroot": session.runroot,
        "images": len(list(store.images())),
        "containers": len(list(store.rw_layers())),
        "layers": len(layers),
        "content_bytes": sum(layer.size for layer in layers),
        "driver": store.driver.name,
        **_moving(store),
        "status": dict(store.driver.status()),
        "capabilities": {name: value for name, value in capabilities.items() if value != ""},
    }


def _moving(store: Store) -> dict[str, object]:
    """The other driver that holds something of the store, while it moves."""
    pending = store.migration()
    if pending is None:
        return {}
    return {"migration": f"{'to' if pending.copying else 'away from'} driver {pending.driver}, unfinished"}


def _text(value: object) -> str:
    match output.plain(value):
        case True:
            return "yes"
        case False:
            return "no"
        case None:
            return "no limit"
        case plain:
            return str(plain)


def _drivers(session: Session, args: argparse.Namespace) -> int:
    probes = _probes(session)
    if args.json:
        output.json_document([_as_json(probe) for probe in probes])
        return 0
    table(
        [Column("DRIVER"), Column("WORKS"), Column("BECAUSE"), Column("MEND")],
        [
            (
                probe.info.name,
                "no" if probe.reason else "yes",
                probe.reason or probe.fallback or probe.info.summary,
                probe.hint or "-",
            )
            for probe in probes
        ],
    )
    if not probes:
        output.note("no driver is installed; reinstall layerfs, whose package brings some")
    return 0


def _probes(session: Session) -> list[Probe]:
    from layerfs.registry import probe_all

    return probe_all(lambda info: session.root / info.name, session.runroot)


def _as_json(probe: Probe) -> dict[str, object]:
    return {
        "name": probe.info.name,
        "works": probe.reason is None,
        "reason": probe.reason,
        "fallback": probe.fallback,
        "hint": probe.hint,
        "summary": probe.info.summary,
        "priority": probe.info.priority,
        "options": [output.fields(option) for option in probe.info.options],
    }


def _doctor(session: Session, args: argparse.Namespace) -> int:
    from layerfs.cli.diagnosis import Level

    found = sorted(_findings(session), key=lambda finding: finding.level is Level.NOTE)
    problems = sum(finding.level is Level.PROBLEM for finding in found)
    if args.json:
        output.json_document(found)
    else:
        for finding in found:
            output.line(f"{finding.level.value}: {finding.about}: {finding.what}")
            if finding.mend:
                output.line(f"  mend: {finding.mend}")
        output.note(output.count(problems, "problem") if problems else "nothing is wrong here")
    return FOUND_SOMETHING if problems else 0


def _findings(session: Session) -> Iterator[Finding]:
    from layerfs.cli import diagnosis
    from layerfs.errors import LayerfsError

    yield from diagnosis.of_privilege()
    yield from diagnosis.of_drivers(_probes(session))
    yield from diagnosis.of_space(session.root)
    try:
        if not session.has_store():
            yield diagnosis.no_store(session.root)
            return
        with session.store() as store:
            yield from diagnosis.of_driver(store)
            yield from diagnosis.of_store(store)
            yield from diagnosis.of_mounts(store, session.runroot)
    except LayerfsError as error:
        yield diagnosis.of_error(error)


COMMANDS = {
    "info": Command(_arguments, _info),
    "drivers": Command(_arguments, _drivers),
    "doctor": Command(
        _arguments,
        _doctor,
        "A problem keeps something from working, a note is good to know. Ends with 1 when there is "
        "a problem.",
    ),
}

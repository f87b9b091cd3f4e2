"""Searches with ``atheris`` (libFuzzer) for inputs that break a target::

    python -m tests.fuzz TARGET [--corpus DIR] [FILE | -libfuzzer_option=value ...]

Starts from :func:`tests.fuzz.targets.seeds`, and what ``DIR`` holds, where it keeps what it finds worth
keeping. ``-max_total_time=60`` ends it; given a FILE it runs that alone. What breaks a target is kept as
``crash-...`` in the working directory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["layerfs"]):
    from tests.fuzz.targets import TARGETS, TARS, mended, scratch_in, seeds


def main(words: list[str]) -> None:
    program, name, *rest = words
    target = TARGETS[name]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="layerfs-fuzz-", dir=memory if memory.is_dir() else None
    ) as place:
        corpus = Path(place) / "corpus"
        if rest[:1] == ["--corpus"]:
            corpus, rest = Path(rest[1]), rest[2:]
        corpus.mkdir(parents=True, exist_ok=True)
        if not any(Path(word).is_file() for word in rest):
            for number, seed in enumerate(seeds(name)):
                (corpus / f"seed-{number}").write_bytes(seed)
            rest = [str(corpus), *rest]

        def once(data: bytes) -> None:
            with scratch_in(Path(place)) as scratch:
                target(data, scratch)

        def mutated(data: bytes, most: int, seed: int) -> bytes:
            found = atheris.Mutate(data, len(data))[:most]
            return mended(found) if name in TARS and seed % 4 else found

        limits = ["-rss_limit_mb=1024", "-timeout=30", "-max_len=20000", "-print_final_stats=1"]
        atheris.Setup([program, *limits, *rest], once, custom_mutator=mutated)
        atheris.Fuzz()


main(sys.argv)

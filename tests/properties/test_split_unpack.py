"""The recorder with the unpacker: a tar whose entries replace one another still comes back exactly."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.split import Recorder, replay
from layerfs.archive.unpack import unpack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.errors import ArchiveError
from tests.require import need
from tests.unit.test_split import tar_of

NAMES = st.sampled_from(
    [b"a", b"d", b"d/a", b"d/e", b"d/e/a", b"l", b"l/a", b"m/a", b"d/.wh.a", b"./a", b"d/"]
)
FILES = st.tuples(NAMES.filter(lambda name: not name.endswith(b"/")), st.binary(max_size=3))
OTHERS = st.one_of(
    st.builds(Entry, name=NAMES, type=st.just(EntryType.DIRECTORY), mode=st.just(0o755)),
    st.builds(Entry, name=NAMES, type=st.just(EntryType.HARDLINK), linkname=NAMES),
    st.builds(
        Entry,
        name=NAMES,
        type=st.just(EntryType.SYMLINK),
        linkname=st.sampled_from([b"d", b"d/e", b"a", b"e"]),
    ),
    st.builds(Entry, name=NAMES, type=st.just(EntryType.FIFO)),
)


@settings(deadline=None)
@given(st.lists(st.one_of(FILES, FILES, OTHERS), min_size=1, max_size=12), st.sampled_from(WhiteoutFormat))
def test_entries_that_replace_one_another(
    members: list[tuple[bytes, bytes] | Entry], whiteouts: WhiteoutFormat
) -> None:
    need.root()
    tar = tar_of(*members)
    record = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, Recorder(io.BytesIO(tar), record) as recorder:
        root = Path(scratch, "root")
        root.mkdir()
        try:
            unpack(recorder, root, whiteouts=whiteouts, displaced=recorder.displaced)
        except ArchiveError:
            return
        recorded = recorder.finish()
        record.seek(0)
        with replay(record, lambda name: Path(root, name.decode()).open("rb"), recorded.diff_id) as stream:
            assert stream.read() == tar

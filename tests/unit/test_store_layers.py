"""Layers: registered, given back byte for byte, found, mounted, refused."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from layerfs.driver import Capabilities
from layerfs.errors import (
    ArchiveError,
    BadData,
    DepthExceeded,
    DigestMismatch,
    InvalidID,
    LayerNotFound,
    PathEscape,
    StoreDamaged,
)
from layerfs.ids import ChainID, DiffID, chain_id, digest_of
from layerfs.naivediff import NaiveDiff
from layerfs.store import durability
from layerfs.store.store import Store
from tests.dirdriver import DirProto
from tests.storekit import ABOVE, BASE, DRIVERS, held, make_tar, open_store, stream

ABSENT = ChainID(digest_of(b"nothing has this digest"))


@pytest.fixture(params=DRIVERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, request.param) as store:
        yield store


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


def test_a_layer_is_named_by_its_content_and_gives_its_exact_tar_back(store: Store) -> None:
    tars = [make_tar(BASE), make_tar(ABOVE)]
    base = store.register(io.BytesIO(tars[0]))
    above = store.register(io.BytesIO(tars[1]), base.chain_id)
    assert {str(base.diff_id), str(base.chain_id)} == {digest_of(tars[0])}
    assert above.chain_id == chain_id(base.chain_id, DiffID(digest_of(tars[1])))
    for layer, tar in zip((base, above), tars, strict=True):
        assert layer.tar_size == len(tar)
        with layer.tar() as replayed:
            assert replayed.read() == tar


def test_an_odd_tar_comes_back_too(store: Store) -> None:
    """The same path twice, no end blocks, bytes behind the end."""
    twice = make_tar({"a": b"first" * 1000, "b": b"-"})[:-10240].rstrip(b"\0")
    twice += b"\0" * (-len(twice) % 512)
    for tar in (
        twice,
        twice + make_tar({"a": b"second"}) + b"trailing",
        make_tar({"d": None, "d/f": b"1", ".wh.d": b"what a whiteout should not hold"}),
    ):
        layer = store.register(io.BytesIO(tar))
        with layer.tar() as replayed:
            assert replayed.read() == tar


def test_mounted_it_shows_what_lies_below_too(store: Store) -> None:
    base = store.register(stream(BASE))
    above = store.register(stream(ABOVE), base.chain_id)
    with above.mounted() as root:
        assert sorted(path.name for path in (root / "etc").iterdir()) == ["group"]
        assert (root / "bin/sh").read_bytes() == BASE["bin/sh"]
    with base.mounted() as root:
        assert (root / "etc/passwd").read_bytes() == b"root\n"


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress]
)
def test_compression_does_not_change_what_a_layer_is(
    plain: Store, compress: Callable[[bytes], bytes]
) -> None:
    tar = make_tar(BASE)
    assert plain.register(io.BytesIO(compress(tar))).diff_id == DiffID(digest_of(tar))


def test_the_same_layer_twice_is_there_once(store: Store) -> None:
    first = store.register(stream(BASE))
    before = held(store)
    second = store.register(stream(BASE))
    assert second.info == first.info
    assert held(store) == before
    assert len(list(store.layers())) == 1


def test_a_layer_that_is_expected_and_there_is_not_read(plain: Store) -> None:
    base = plain.register(stream(BASE))
    unread = io.BytesIO(b"never looked at")
    assert plain.register(unread, expected=base.diff_id).chain_id == base.chain_id
    assert unread.tell() == 0


@pytest.mark.parametrize(
    ("tar", "error"),
    [
        (make_tar(BASE)[:3000], ArchiveError),
        (gzip.compress(make_tar(BASE))[:-20], BadData),
        (make_tar({"etc": None, "../escape": b""}), PathEscape),
        (b"no tar at all, though it is long enough" * 100, ArchiveError),
    ],
)
def test_a_bad_tar_leaves_nothing(store: Store, tar: bytes, error: type[BadData]) -> None:
    base = store.register(stream(ABOVE))
    before = held(store)
    with pytest.raises(error):
        store.register(io.BytesIO(tar), base.chain_id)
    assert held(store) == before
    assert store.check() == []


def test_another_diff_id_than_expected_leaves_nothing(store: Store) -> None:
    wrong = DiffID(digest_of(b"something else"))
    with pytest.raises(DigestMismatch) as caught:
        store.register(stream(BASE), expected=wrong)
    assert caught.value.expected == wrong
    assert caught.value.actual == digest_of(make_tar(BASE))
    assert held(store) == []
    assert store.check() == []


def test_an_error_of_the_callers_stream_leaves_nothing(plain: Store) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(min(size or 1000, 1000))
            if not data:
                raise DigestMismatch("blob", expected="a", actual="b")
            return data

    with pytest.raises(DigestMismatch):
        plain.register(Failing(make_tar(BASE)))
    assert held(plain) == []


def test_a_parent_that_is_not_there(plain: Store) -> None:
    with pytest.raises(LayerNotFound):
        plain.register(stream(BASE), ABSENT)
    with pytest.raises(LayerNotFound):
        plain.get(ABSENT)
    assert held(plain) == []


def test_the_depth_limit_leaves_room_for_a_container(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    driver = NaiveDiff(DirProto(root / "dir", Capabilities(max_depth=4)))
    with Store.open(root, driver) as store:
        first = store.register(stream({"1": b""}))
        second = store.register(stream({"2": b""}), first.chain_id)
        with pytest.raises(DepthExceeded):
            store.register(stream({"3": b""}), second.chain_id)
        store.create_rw("c", second.chain_id)


def test_layers_are_listed_parents_first_and_found_by_the_beginning_of_their_id(plain: Store) -> None:
    base = plain.register(stream(BASE))
    above = plain.register(stream(ABOVE), base.chain_id)
    listed = list(plain.layers())
    assert [info.chain_id for info in listed] == [base.chain_id, above.chain_id]
    assert [info.depth for info in listed] == [1, 2]
    assert listed[1].parent == base.chain_id
    assert listed[0].size == len(b"root\n") + 10_000
    assert plain.layer_info(above.chain_id[:20]) == listed[1]
    assert plain.layer_info(above.chain_id.removeprefix("sha256:")[:4]) == listed[1]
    for text in ("sha256:123", "zzzz", ABSENT):
        with pytest.raises(LayerNotFound):
            plain.layer_info(text)


def test_a_beginning_that_fits_several_layers_is_refused(plain: Store) -> None:
    seen: dict[str, bytes] = {}
    for number in itertools.count():
        tar = make_tar({str(number): b""})
        beginning = digest_of(tar)[: len("sha256:") + 4]
        if beginning in seen:
            break
        seen[beginning] = tar
    for one in (tar, seen[beginning]):
        plain.register(io.BytesIO(one))
    with pytest.raises(InvalidID, match="several"):
        plain.layer_info(beginning)


def test_progress_counts_the_bytes_as_given(plain: Store) -> None:
    told = []
    data = gzip.compress(make_tar(BASE))
    plain.register(io.BytesIO(data), progress=lambda *args: told.append(args), what="base")
    assert told[-1] == ("base", len(data), None)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_file_that_changed_on_the_disk_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        layer = store.register(stream(BASE))
        path = tmp_path / "root/dir" / layer.info.cache_id / "bin/sh"
        path.write_bytes(b"?" + path.read_bytes()[1:])
        with layer.tar() as replayed, pytest.raises(StoreDamaged, match="bin/sh"):
            replayed.read()


def test_a_lost_record_is_told(plain: Store) -> None:
    layer = plain.register(stream(BASE))
    (plain.root / "split" / layer.info.cache_id).unlink()
    with pytest.raises(StoreDamaged, match="record"):
        layer.tar()


def test_flushed_layers_are_durable(plain: Store) -> None:
    layer = plain.register(stream(BASE))
    assert not layer.info.durable
    plain.flush()
    assert plain.layer_info(layer.chain_id).durable


def test_what_is_written_back_beside_the_work_is_durable_after_a_flush_only(plain: Store) -> None:
    with plain.writing_back() as read:
        layer = plain.register(stream(BASE))
        read(durability.PORTION)
    assert not plain.layer_info(layer.chain_id).durable
    plain.flush()
    assert plain.layer_info(layer.chain_id).durable


def test_only_its_owner_looks_into_a_store(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Store.open(tmp_path / "deep" / "down" / "store", NaiveDiff(DirProto(home))) as store:
        assert store.root.stat().st_mode & 0o777 == 0o700

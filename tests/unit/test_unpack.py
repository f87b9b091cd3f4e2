"""A layer tar becomes a directory tree, exactly."""

from __future__ import annotations

import io
import os
import pwd
import stat
import subprocess
import tarfile
from pathlib import Path

import attrs
import pytest

from layerfs.archive.unpack import unpack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.errors import ArchiveTooLarge, EntryRefused, LayerfsError, MalformedArchive, NoSpace
from layerfs.testing.entries import (
    ACL,
    CAP_NET_RAW,
    DAY,
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    symlink,
    tar_bytes,
    tar_stream,
    whiteout,
)
from layerfs.testing.model import EMPTY, Item, apply, differences, read_tree
from tests.require import need
from tests.unpackkit import applied, displacements, fresh, names, upper


@pytest.fixture(autouse=True)
def root_user() -> None:
    need.root()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fresh(tmp_path / "root")


EVERYTHING: list[Item] = [
    directory(b"./", mode=0o711, uid=3),
    directory(b"d", mode=0o1777, xattrs={b"user.x": b"d", b"system.posix_acl_default": ACL}),
    file(
        b"d/suid", b"content", mode=0o6755, uid=1000, gid=2000, xattrs={b"security.capability": CAP_NET_RAW}
    ),
    file(b"d/acl", b"", mode=0o775, xattrs={b"system.posix_acl_access": ACL, b"trusted.x": b"\0\xff"}),
    file(b"d/before 1970", b"x", mtime_ns=-1_500_000_000),
    file(b"closed", b"x", mode=0),
    directory(b"locked", mode=0o500),
    file(b"locked/in", b"x"),
    symlink(b"link", b"/nowhere", uid=7),
    hard_link(b"d/again", b"d/suid"),
    hard_link(b"link2", b"link"),
    fifo(b"fifo", mode=0o622),
    device(b"null", 1, 3, mode=0o666),
    device(b"disk", 7, 300, block=True, mode=0o660),
    file(b"caf\xe9 \xff\n", b"no UTF-8"),
]


def test_every_kind_of_file_with_every_attribute(root: Path) -> None:
    done = applied(root, *EVERYTHING)
    times = os.stat(root / "closed")
    assert times.st_atime_ns == times.st_mtime_ns == DAY
    assert not differences(read_tree(root), apply(EMPTY, EVERYTHING))
    assert done.entries == len(EVERYTHING)
    assert done.size == sum(len(content) for _, content in EVERYTHING)


def test_the_umask_has_no_say(root: Path) -> None:
    before = os.umask(0o077)
    try:
        applied(root, *EVERYTHING)
    finally:
        os.umask(before)
    assert not differences(read_tree(root), apply(EMPTY, EVERYTHING))


def test_a_root_that_inherited_an_acl_hands_it_to_nothing(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    layer = upper(tmp_path / "layer", EVERYTHING[2:])
    assert not differences(read_tree(layer), apply(EMPTY, EVERYTHING[2:]))


def test_an_acl_of_the_parent_tree_is_not_inherited_and_stays(root: Path) -> None:
    below = [directory(b"shared", mode=0o2775, gid=9, xattrs={b"system.posix_acl_default": ACL})]
    items = [file(b"shared/new", b"", mode=0o600), directory(b"shared/sub"), whiteout(b"shared/old")]
    applied(root, *below)
    applied(root, *items)
    assert not differences(read_tree(root), apply(apply(EMPTY, below), items))


def test_trusted_xattrs_of_links_and_devices(root: Path) -> None:
    """They are set on the link, not on what it leads to."""
    items = [
        (attrs.evolve(entry, xattrs={b"trusted.x": entry.name}), content)
        for entry, content in (symlink(b"link", b"file"), fifo(b"fifo"), device(b"null", 1, 3))
    ]
    applied(root, file(b"file", b""), *items)
    for entry, _ in items:
        path = root / os.fsdecode(entry.name)
        assert os.getxattr(path, "trusted.x", follow_symlinks=False) == entry.name
    assert not os.listxattr(root / "file")


def test_the_hosts_label_is_not_the_layers(root: Path) -> None:
    applied(root, file(b"f", b"", xattrs={b"security.selinux": b"system_u:object_r:bin_t:s0\0"}))
    assert "security.selinux" not in os.listxattr(root / "f")


def test_holes_stay_holes(tmp_path: Path, root: Path) -> None:
    need.tool("tar")
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as stream:
        for place in range(0, 80 << 20, 4 << 20):
            stream.seek(place)
            stream.write(b"data at %d" % place)
        stream.truncate(90 << 20)
    for number, form in enumerate(["gnu", "pax"]):
        tar = subprocess.run(
            ["tar", "-C", tmp_path, f"--format={form}", "--sparse", "-cf", "-", "sparse"],
            check=True,
            capture_output=True,
        )
        assert unpack(io.BytesIO(tar.stdout), root, whiteouts=WhiteoutFormat.APPLY).size == 90 << 20
        made = root / "sparse"
        assert made.read_bytes() == sparse.read_bytes()
        assert made.stat().st_blocks <= sparse.stat().st_blocks + 64, number


def test_parents_may_be_listed_late_or_never(tmp_path: Path, root: Path) -> None:
    below = [directory(b"etc", mode=0o750, uid=4, xattrs={b"user.x": b"1"}), directory(b"var", mode=0o700)]
    items = [
        file(b"etc/new", b""),
        file(b"new/deep/file", b""),
        file(b"var/file", b""),
        directory(b"var", uid=2),
    ]
    expected = apply(apply(EMPTY, below), items)
    applied(root, *below)
    applied(root, *items)
    assert not differences(read_tree(root), expected)
    first = upper(tmp_path / "first", below)
    layer = upper(tmp_path / "second", items, [first])
    for path, node in read_tree(layer).nodes.items():
        assert node == expected.nodes[path]


def test_the_later_entry_wins(root: Path) -> None:
    items = [
        file(b"a", b"first"),
        file(b"a", b"second"),
        directory(b"b"),
        file(b"b/gone", b""),
        symlink(b"b", b"a"),
        symlink(b"c", b"a"),
        directory(b"c"),
        file(b"d", b""),
        file(b"d/below a file", b""),
        directory(b"e"),
        file(b"e/gone", b""),
        file(b"e", b""),
        directory(b"e"),
        directory(b"f", mode=0o700, xattrs={b"user.x": b""}),
        directory(b"f"),
    ]
    applied(root, *items)
    assert not differences(read_tree(root), apply(EMPTY, items))
    assert names(root) == {"a", "b", "c", "d", "d/below a file", "e", "f"}


@pytest.mark.parametrize("target", [b"d", b"./d", b"other/../d", b"e/to/../../d"])
def test_links_of_the_layer_are_followed_inside_it(root: Path, target: bytes) -> None:
    applied(
        root,
        directory(b"d"),
        directory(b"e/to"),
        directory(b"other"),
        symlink(b"l", target),
        file(b"l/f", b"x"),
    )
    assert (root / "d" / "f").read_bytes() == b"x"
    assert (root / "l").is_symlink()


def test_links_of_the_parent_are_replaced_by_directories(root: Path) -> None:
    applied(root, directory(b"d"), symlink(b"l", b"d"))
    applied(root, file(b"l/f", b"x"))
    assert names(root) == {"d", "l", "l/f"}


def test_a_hard_link_to_itself_or_to_what_it_replaces(root: Path) -> None:
    applied(root, file(b"a", b"a"), hard_link(b"a", b"a"), file(b"d/f", b"f"), hard_link(b"d", b"d/f"))
    assert names(root) == {"a", "d"}
    assert (root / "d").read_bytes() == b"f"


def test_aufs_pseudo_links_become_hard_links_and_vanish(root: Path) -> None:
    items = [
        file(b".wh..wh.plnk/77.1", b"linked", uid=5),
        directory(b".wh..wh.orph"),
        file(b".wh..wh.orph/x", b""),
        file(b".wh..wh.aufs", b""),
        hard_link(b"a", b".wh..wh.plnk/77.1"),
        hard_link(b"d/b", b"/.wh..wh.plnk/77.1"),
    ]
    applied(root, *items)
    assert names(root) == {"a", "d", "d/b"}
    assert (root / "a").read_bytes() == b"linked"
    assert (root / "a").stat().st_nlink == 2
    assert not differences(read_tree(root), apply(EMPTY, items))


@pytest.mark.parametrize(
    "items",
    [
        [file(b"a", b"old"), file(b"a", b"new")],
        [file(b"a", b"old"), symlink(b"a", b"b")],
        [file(b"a", b"old"), directory(b"a")],
        [file(b"a", b"old"), file(b"a/below", b"new")],
        [file(b"a/b/c", b"old"), file(b"a", b"new")],
        [file(b"a", b"old"), file(b"b", b"new"), hard_link(b"a", b"b")],
        [file(b"a", b"old"), hard_link(b"b", b"a"), file(b"a", b"new")],
        [file(b"d/f", b"old"), hard_link(b"d", b"d/f")],
    ],
)
def test_content_is_told_of_before_it_is_replaced(root: Path, items: list[Item]) -> None:
    assert displacements(root, *items) == {0: b"old"}


def test_content_is_told_of_when_its_name_leads_through_a_link(root: Path) -> None:
    """The link may be replaced later, so the name is not a way to read the content back."""
    assert displacements(root, directory(b"d"), symlink(b"l", b"d"), file(b"l/f", b"x")) == {2: b"x"}


MANY: list[Item] = [file(b"d/%d" % number, b"%d" % number) for number in range(200)]
ELSEWHERE = file(b"elsewhere", b"")


def test_an_archive_comes_back_to_a_directory_of_many_files(root: Path) -> None:
    items = [
        *MANY,
        ELSEWHERE,
        file(b"d/7", b"new"),
        hard_link(b"link", b"d/8"),
        symlink(b"d/9", b"8"),
        directory(b"d/10"),
        whiteout(b"d/11"),
        whiteout(b"d/1000"),
        file(b"d/200", b""),
        ELSEWHERE,
        file(b"d/7", b"newer"),
        hard_link(b"d/200", b"d/12"),
    ]
    applied(root, *items)
    assert not differences(read_tree(root), apply(EMPTY, items))
    assert (root / "d/7").read_bytes() == b"newer"
    assert (root / "d/11").exists()


def test_content_of_many_files_is_told_of_before_it_is_replaced(root: Path) -> None:
    told = displacements(root, *MANY, ELSEWHERE, file(b"d/7", b"new"), ELSEWHERE, file(b"d", b""))
    new = {len(MANY) + 1: b"new", len(MANY): b""}
    assert told == {number: b"%d" % number for number in range(len(MANY))} | new


@pytest.mark.parametrize(
    "items",
    [
        [file(b"a", b"stays"), hard_link(b"b", b"a"), file(b"b", b"new")],
        [file(b"a", b"stays"), hard_link(b"a", b"a")],
        [file(b"d/a", b"stays"), directory(b"d"), whiteout(b"d"), whiteout(b"d/a"), opaque(b"d")],
    ],
)
def test_content_that_stays_is_not_told_of(root: Path, items: list[Item]) -> None:
    assert displacements(root, *items) == {}


def test_the_tar_is_read_to_its_end(root: Path) -> None:
    stream = io.BytesIO(tar_bytes([file(b"f", b"x")]) + b"\0" * 70_000)
    unpack(stream, root, whiteouts=WhiteoutFormat.APPLY)
    assert not stream.read()


def test_a_bomb_stops_at_the_limit(root: Path) -> None:
    items = [file(b"a", b"12345"), file(b"b", b"12345"), file(b"x/y/z", b"")]
    tar = tar_bytes(items)
    for limits in ({"max_bytes": 10, "max_entries": 5}, {"max_bytes": None, "max_entries": None}):
        unpack(io.BytesIO(tar), root, whiteouts=WhiteoutFormat.APPLY, **limits)
    with pytest.raises(ArchiveTooLarge, match="b: more than 9 bytes"):
        unpack(io.BytesIO(tar), root, whiteouts=WhiteoutFormat.APPLY, max_bytes=9)
    with pytest.raises(ArchiveTooLarge):
        unpack(io.BytesIO(tar), root, whiteouts=WhiteoutFormat.APPLY, max_entries=2)
    nest = tar_bytes([file(b"%d" % n + b"/d" * 50 + b"/f", b"") for n in range(10)])
    with pytest.raises(ArchiveTooLarge):
        unpack(io.BytesIO(nest), root, whiteouts=WhiteoutFormat.APPLY, max_entries=100)


def test_a_full_file_system_is_not_the_archives_fault(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(NoSpace, match="big"):
            applied(tmp_path, file(b"small", b"x"), file(b"big", bytes(1 << 20)))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (file(b"f", b"", xattrs={b"nonsense.x": b"v"}), "nonsense.x"),
        (file(b"f", b"", xattrs={b"user.big": bytes(60_000)}), "user.big"),
        (symlink(b"f", b""), ""),
        (symlink(b"f", b"x" * 5000), ""),
        (device(b"f", 0, 0), "whiteout"),
        (hard_link(b"f", b"missing"), "does not hold"),
        (hard_link(b"f", b"dir"), "does not hold"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(root: Path, item: Item, words: str) -> None:
    with pytest.raises(EntryRefused, match=f"^f: .*{words}") as caught:
        applied(root, directory(b"dir"), item)
    assert caught.value.entry == b"f"


def test_a_link_to_a_file_of_the_parent_is_refused(root: Path) -> None:
    """An overlay layer could not hold it, and a layer means the same everywhere."""
    applied(root, file(b"below", b""))
    with pytest.raises(EntryRefused):
        applied(root, hard_link(b"link", b"below"))


def test_a_sparse_map_that_tells_of_less_than_there_is(root: Path) -> None:
    entry = tarfile.TarInfo("f")
    entry.size = 1024
    entry.pax_headers = {"GNU.sparse.size": "4096", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,512"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(bytes(1024)))
    out.seek(0)
    with pytest.raises(MalformedArchive):
        unpack(out, root, whiteouts=WhiteoutFormat.APPLY)


def _as_nobody(tmp_path: Path, *items: Item) -> str:
    """Unpack as an ordinary user; the answer is the error, with its hint."""
    nobody = pwd.getpwnam("nobody")
    root = tmp_path / "theirs"
    root.mkdir()
    os.chown(root, nobody.pw_uid, nobody.pw_gid)
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(above.stat().st_mode | stat.S_IXOTH)
    tar = tar_stream(items)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        answer = "nothing at all"
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            unpack(tar, root, whiteouts=WhiteoutFormat.APPLY)
            answer = ""
        except LayerfsError as error:
            answer = f"{type(error).__name__}: {error} [{error.hint}]"
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)
    with open(reading) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return answer


def test_an_ordinary_user_is_told_what_would_help(tmp_path: Path) -> None:
    answer = _as_nobody(tmp_path, file(b"etc/shadow", b"", uid=0))
    assert answer.startswith("EntryRefused: etc/shadow: cannot be given to 0:0")
    assert "user namespace" in answer


def test_an_ordinary_user_unpacks_what_is_his_own(tmp_path: Path) -> None:
    """Also into directories that the layer closes to writing."""
    uid, gid = pwd.getpwnam("nobody")[2:4]
    assert not _as_nobody(
        tmp_path,
        directory(b"./", uid=uid, gid=gid),
        directory(b"ro", mode=0o555, uid=uid, gid=gid),
        file(b"ro/f", b"x", mode=0o444, uid=uid, gid=gid),
    )
    assert (tmp_path / "theirs/ro").stat().st_mode & 0o777 == 0o555

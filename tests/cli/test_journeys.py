"""A user's ways through the store, each command as they would type it."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.cli.archives import digest, tarred
from tests.cli.conftest import APP, BASE, OTHER, Cli, environment


def test_load_prints_names_or_ids_and_images_lists_them(empty: Cli, layout: Path) -> None:
    loaded = empty("load", layout).lines
    assert loaded[:2] == ["base:1", "quay.io/team/app:v2"]
    assert loaded[2].startswith("sha256:")
    listed = empty("images", "--json").json
    assert {(*image["names"], image["id"])[0] for image in listed} == {
        "docker.io/library/base:1",
        "quay.io/team/app:v2",
        loaded[2],
    }
    titles, *rows = empty("images").lines
    assert titles.split() == ["NAME", "ID", "LAYERS", "SIZE", "LOADED"]
    assert {row.split()[0] for row in rows} == {"base:1", "quay.io/team/app:v2", "-"}


def test_load_reads_standard_input(empty: Cli, layout: Path) -> None:
    done = empty.process("load", "-", "--json", input=tarred(layout))
    assert done.returncode == 0, done.stderr
    assert b"quay.io/team/app:v2" in done.stdout


def test_layers_are_listed_parents_first(cli: Cli) -> None:
    layers = cli("layers", "--json").json
    assert {layer["diff_id"] for layer in layers} == {digest(BASE), digest(APP), digest(OTHER)}
    [base] = [layer for layer in layers if layer["diff_id"] == digest(BASE)]
    [app] = [layer for layer in layers if layer["diff_id"] == digest(APP)]
    assert app["parent"] == base["chain_id"]
    assert layers.index(base) < layers.index(app)
    shown = cli("layers", "--tree").lines
    [row] = [number for number, line in enumerate(shown) if line.startswith(base["chain_id"][7:19])]
    assert shown[row].endswith("base:1")
    assert shown[row + 1].startswith("└─" + app["chain_id"][7:19])
    assert shown[row + 1].endswith("quay.io/team/app:v2")


def test_a_container_from_create_to_rm(cli: Cli) -> None:
    assert cli("create", "quay.io/team/app:v2", "--name", "c1").lines == ["c1"]
    [root] = cli("mount", "c1").lines
    assert (Path(root) / "app/main").read_bytes() == b"x" * 5000
    assert not (Path(root) / "etc/passwd").is_symlink()
    (Path(root) / "etc/passwd").write_text("changed")
    (Path(root) / "etc/new").mkdir()
    (Path(root) / "bin/sh").unlink()
    cli("umount", "c1")
    assert cli("changes", "c1").lines == ["C /bin", "D /bin/sh", "C /etc", "A /etc/new", "C /etc/passwd"]
    assert cli("changes", "c1", "--json").json[1] == {"kind": "D", "path": "/bin/sh"}
    [listed] = cli("containers", "--json").json
    assert listed["name"] == "c1"
    assert cli("containers").lines[1].split()[:2] == ["c1", "quay.io/team/app:v2"]
    assert cli("rm", "c1").lines == ["c1"]
    assert cli("containers", "--json").json == []
    assert cli.mounted() == []


def test_a_container_without_a_name_is_given_one(cli: Cli) -> None:
    [name] = cli("create", "base:1").lines
    assert cli("inspect", name).json["name"] == name


def test_the_shell_takes_the_root_from_mount(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    done = cli.process("mount", "c1")
    assert done.stderr == b""
    assert (Path(done.stdout.decode().rstrip("\n")) / "etc/passwd").read_bytes() == b"root\n"


def test_mounts_are_counted_across_processes(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    [root] = cli("mount", "c1").lines
    assert cli.process("mount", "c1").stdout.decode() == f"{root}\n"
    cli("umount", "c1")
    assert (Path(root) / "etc").is_dir()
    assert cli("rm", "c1", status=4).err.startswith("layerfs: ")
    cli("umount", "c1")
    assert cli.mounted() == []


def test_umount_of_what_is_not_mounted_says_so(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    assert "c1 is not mounted" in cli("umount", "c1", status=3).err


def test_a_target_is_one_mount_more_and_umount_gives_it_back(cli: Cli, tmp_path: Path) -> None:
    cli("create", "base:1", "--name", "c1")
    target = tmp_path / "target"
    target.mkdir()
    [root] = cli("mount", "c1").lines
    assert cli("mount", "c1", target).lines == [str(target)]
    (target / "etc/written").write_text("here")
    assert (Path(root) / "etc/written").read_text() == "here"
    cli("umount", "c1")
    assert list(target.iterdir()) == []
    assert (Path(root) / "etc/written").exists()
    cli("umount", "c1")
    assert cli.mounted() == []
    assert cli("changes", "c1").lines == ["C /etc", "A /etc/written"]


def test_a_target_that_somebody_else_unmounted_is_forgotten(cli: Cli, tmp_path: Path) -> None:
    cli("create", "base:1", "--name", "c1")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    cli("mount", "c1", one)
    cli("mount", "c1", two)
    subprocess.run(["umount", str(two)], check=True)
    cli("umount", "c1")
    cli("umount", "c1")
    assert cli.mounted() == []


def test_a_read_only_target_takes_no_writes(cli: Cli, tmp_path: Path) -> None:
    cli("create", "base:1", "--name", "c1")
    target = tmp_path / "target"
    target.mkdir()
    cli("mount", "c1")
    cli("mount", "c1", target, "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").touch()


def test_a_target_in_use_stays_mounted_and_counted(cli: Cli, tmp_path: Path) -> None:
    cli("create", "base:1", "--name", "c1")
    target = tmp_path / "target"
    target.mkdir()
    cli("mount", "c1", target)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=target) as holder:
        refused = cli("umount", "c1", status=4)
        assert holder.stdin is not None
        holder.stdin.close()
    assert f"{target} is in use by {holder.pid} (" in refused.err
    assert (target / "etc").is_dir()
    cli("umount", "c1")
    assert cli.mounted() == []


def test_a_target_that_is_not_there_leaves_no_mount(cli: Cli, tmp_path: Path) -> None:
    cli("create", "base:1", "--name", "c1")
    failed = cli("mount", "c1", tmp_path / "none", status=2)
    assert failed.err.splitlines() == [
        f"layerfs: {tmp_path / 'none'} is not a directory",
        f"  hint: make it first: mkdir {tmp_path / 'none'}",
    ]
    assert cli.mounted() == []


def test_an_image_and_a_layer_are_mounted_read_only(cli: Cli) -> None:
    [base] = [each for each in cli("layers", "--json").json if each["diff_id"] == digest(BASE)]
    for name in ("quay.io/team/app:v2", base["chain_id"], base["chain_id"][7:19]):
        [root] = cli("mount", name).lines
        assert (Path(root) / "etc/passwd").read_bytes() == b"root\n"
        assert (Path(root) / "etc/hostname").exists() == (name != "quay.io/team/app:v2")
        with pytest.raises(OSError, match="Read-only"):
            (Path(root) / "file").touch()
        cli("umount", name)
    assert cli.mounted() == []


def test_printed_mounts_are_commands_that_mount(cli: Cli, tmp_path: Path) -> None:
    cli("create", "base:1", "--name", "c1")
    target = tmp_path / "odd 'place'"
    target.mkdir()
    printed = cli("mount", "c1", target, "--print").out
    assert cli.mounted() == []
    assert printed.startswith("mount ")
    subprocess.run(["sh", "-e", "-c", printed], check=True)
    assert (target / "etc/passwd").read_bytes() == b"root\n"
    subprocess.run(["umount", str(target)], check=True)
    for mount in cli("mount", "c1", "--print", "--json").json:
        assert set(mount) == {"fstype", "source", "options"}


def test_paths_with_commas_and_colons_can_be_mounted_and_pasted(cli: Cli, layout: Path) -> None:
    odd = Cli(cli.base / "a,b:c d\\e", cli.driver, cli.capsys)
    odd.base.mkdir()
    odd("load", layout)
    odd("create", "base:1", "--name", "c1")
    [root] = odd("mount", "c1").lines
    assert (Path(root) / "etc/passwd").read_bytes() == b"root\n"
    odd("umount", "c1")
    target = odd.base / "target"
    target.mkdir()
    subprocess.run(["sh", "-e", "-c", odd("mount", "c1", target, "--print").out], check=True)
    assert (target / "etc/passwd").read_bytes() == b"root\n"


def test_a_root_that_is_not_utf8_reaches_the_shell_as_it_is(cli: Cli, layout: Path) -> None:
    odd = Cli(cli.base / "caf\udce9", cli.driver, cli.capsys)
    odd.base.mkdir()
    odd.process("load", layout)
    odd.process("create", "base:1", "--name", "c1")
    root = odd.process("mount", "c1").stdout.rstrip(b"\n")
    assert b"caf\xe9" in root
    assert Path(os.fsdecode(root), "etc/passwd").read_bytes() == b"root\n"


@pytest.mark.parametrize("words", [("diff", "c1"), ("save", "base:1"), ("images",)])
def test_a_reader_who_goes_away_is_no_error(cli: Cli, words: tuple[str, ...]) -> None:
    cli("create", "base:1", "--name", "c1")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = cli.process(*words, stdout=closed, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_is_quiet_and_leaves_nothing(empty: Cli, layout: Path) -> None:
    """Ctrl-C while an archive comes in through a pipe."""
    with empty.start("load", "-") as loading:
        assert loading.stdin is not None
        loading.stdin.write(tarred(layout)[:2048])
        loading.stdin.flush()
        while not list(empty.base.glob("root/layerfs.db")):
            time.sleep(0.01)
        time.sleep(0.3)
        loading.send_signal(signal.SIGINT)
        assert loading.stderr is not None
        assert loading.stderr.read() == b""
    assert loading.returncode == 130
    assert empty("images", "--json").json == []
    assert empty("check", "--json").json == []


def test_diff_is_a_tar_of_the_changes(cli: Cli, tmp_path: Path) -> None:
    cli("create", "base:1", "--name", "c1")
    [root] = cli("mount", "c1").lines
    (Path(root) / "etc/passwd").unlink()
    (Path(root) / "etc/new").write_text("content")
    cli("umount", "c1")
    cli("diff", "c1", "-o", tmp_path / "diff.tar")
    with tarfile.open(tmp_path / "diff.tar") as tar:
        assert tar.getnames() == ["etc", "etc/new", "etc/.wh.passwd"]
    done = cli.process("diff", "c1")
    assert done.stdout == (tmp_path / "diff.tar").read_bytes()
    assert done.stderr == b""


def test_a_name_that_is_not_utf8_can_be_read_and_got_exactly(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    [root] = cli("mount", "c1").lines
    (Path(root) / "etc/caf\udce9\n").touch()
    cli("umount", "c1")
    assert cli("changes", "c1").lines == ["C /etc", r"A /etc/caf\xe9\n"]
    [_, change] = cli("changes", "c1", "--json").json
    assert change == {"kind": "A", "path": r"/etc/caf\xe9\n", "path_base64": "L2V0Yy9jYWbpCg=="}


def test_commit_makes_an_image(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    [root] = cli("mount", "c1").lines
    (Path(root) / "new").write_text("content")
    cli("umount", "c1")
    [id] = cli("commit", "c1", "mine:v1").lines
    [image] = [image for image in cli("images", "--json").json if image["id"] == id]
    assert image["names"] == ["docker.io/library/mine:v1"]
    assert len(image["layers"]) == 2
    [root] = cli("mount", "mine:v1").lines
    assert (Path(root) / "new").read_text() == "content"
    cli("umount", "mine:v1")


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_what_is_saved_can_be_loaded_again(cli: Cli, tmp_path: Path, form: str) -> None:
    before = {image["id"] for image in cli("images", "--json").json if image["names"]}
    archive = tmp_path / "saved.tar"
    done = cli("save", "base:1", "quay.io/team/app:v2", "-o", archive, "--format", form)
    assert done.out == ""
    cli("rmi", "base:1", "quay.io/team/app:v2")
    cli("prune")
    assert set(cli("load", archive).lines) == {"base:1", "quay.io/team/app:v2"}
    assert {image["id"] for image in cli("images", "--json").json if image["names"]} == before


def test_save_writes_a_layout_into_a_directory_and_a_tar_to_a_pipe(cli: Cli, tmp_path: Path) -> None:
    cli("save", "base:1", "-o", f"{tmp_path}/out/", "--compression", "zstd")
    assert (tmp_path / "out/index.json").is_file()
    done = cli.process("save", "base:1")
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert "index.json" in tar.getnames()


def test_rmi_takes_the_name_and_prune_the_layers(cli: Cli) -> None:
    [other] = [image["id"] for image in cli("images", "--json").json if not image["names"]]
    assert cli("rmi", "quay.io/team/app:v2").lines[0] == "quay.io/team/app:v2"
    assert cli("rmi", other[7:17]).lines == [other]
    pruned = cli("prune", "--json").json
    assert {layer["diff_id"] for layer in pruned["layers"]} == {digest(APP), digest(OTHER)}
    assert pruned["bytes"] == 5000 + len(b"other")
    assert [layer["diff_id"] for layer in cli("layers", "--json").json] == [digest(BASE)]


def test_an_image_in_use_is_removed_only_by_force(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    refused = cli("rmi", "base:1", status=4)
    assert "c1" in refused.err
    assert "hint" in refused.err
    cli("rmi", "--force", "base:1")
    cli("prune")
    [root] = cli("mount", "c1").lines
    assert (Path(root) / "etc/passwd").exists()


def test_removing_many_goes_on_after_one_that_fails(cli: Cli) -> None:
    cli("create", "base:1", "--name", "one")
    cli("create", "base:1", "--name", "two")
    done = cli("rm", "one", "tow", "two", status=3)
    assert done.lines == ["one", "two"]
    assert "'tow'" in done.err
    assert cli("rm", "--json", "none", status=3).json["errors"][0]["name"] == "none"


def test_inspect_tells_of_each_kind(cli: Cli) -> None:
    cli("create", "quay.io/team/app:v2", "--name", "c1")
    container = cli("inspect", "c1").json
    assert container["kind"] == "container"
    assert container["mounts"]
    image = cli("inspect", "quay.io/team/app:v2").json
    assert image["kind"] == "image"
    assert image["config"]["config"]["Cmd"] == ["/bin/sh"]
    assert image["containers"] == ["c1"]
    assert [layer["diff_id"] for layer in image["layers"]] == [digest(BASE), digest(APP)]
    layer = cli("inspect", image["layers"][1]["chain_id"]).json
    assert layer["kind"] == "layer"
    assert "container c1" in layer["users"]


def test_du_counts_a_shared_layer_once(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    spaces = cli("du", "--json").json
    once = [space["own"]["bytes"] for space in spaces if space["kind"] in ("layer", "container")]
    [total] = [space["own"]["bytes"] for space in spaces if space["kind"] == "total"]
    assert total == sum(once)
    [base] = [space for space in spaces if space["name"] == "base:1"]
    assert base["own"]["bytes"] == 0
    assert base["shared"]["bytes"] > 0
    assert cli("du").lines[-1].split()[0] == "total"


def test_info_drivers_and_doctor_answer(cli: Cli) -> None:
    info = cli("info", "--json").json
    assert info["driver"] == cli.driver
    assert info["images"] == 3
    assert f"{cli.driver}" in cli("info").out
    works = {driver["name"]: driver["works"] for driver in cli("drivers", "--json").json}
    assert works[cli.driver]
    rows = cli("drivers").lines[1:]
    assert sorted(row.split()[0] for row in rows) == sorted(works)
    cli("doctor")


def test_doctor_names_who_holds_a_mount(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    [root] = cli("mount", "c1").lines
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=root) as holder:
        found = cli("doctor", "--json").json
        assert holder.stdin is not None
        holder.stdin.close()
    [held] = [each["what"] for each in found if "container c1 is mounted once" in each["what"]]
    assert f"{holder.pid} (" in held


def test_doctor_finds_a_mount_that_nobody_counts(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    cli("mount", "c1")
    for file in cli.runroot.glob("*/counts/*"):
        file.unlink()
    found = cli("doctor", "--json", status=1).json
    [leaked] = [each for each in found if each["level"] == "problem"]
    assert "container c1" in leaked["what"]
    subprocess.run(leaked["mend"].split(), check=True)
    cli("doctor")


def test_doctor_does_not_mind_what_a_runtime_mounts_inside(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    [root] = cli("mount", "c1").lines
    subprocess.run(["mount", "-t", "tmpfs", "none", f"{root}/etc"], check=True)
    mounts = [each for each in cli("doctor", "--json").json if each["about"] == "mounts"]
    assert [each["what"].split(" at ")[0] for each in mounts] == ["container c1 is mounted once"]


def test_a_mount_that_somebody_took_away_by_hand_is_made_afresh(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    [root] = cli("mount", "c1").lines
    subprocess.run(["umount", root], check=True)
    assert cli("containers", "--json").json[0]["mounts"] == 0
    assert cli("mount", "c1").lines == [root]


def test_check_and_repair_take_away_what_belongs_to_nothing(cli: Cli) -> None:
    assert cli("check", "--json").json == []
    (cli.base / "root/split/stray").write_bytes(b"")
    [problem] = cli("check", "--json", status=7).json
    assert problem["kind"] == "stray-record"
    assert "stray-record: stray" in cli("check", status=7).out
    assert cli("doctor", status=1).out.startswith("problem: store: stray-record")
    assert cli("repair").lines == ["mended stray-record: stray"]
    assert cli("check").out == ""


def damage(cli: Cli) -> None:
    """Change a file of the layer that two images share."""
    for layer in cli("layers", "--json").json:
        home = cli.base / "root" / cli.driver / layer["cache_id"]
        file = (home / "diff" if cli.driver == "overlay" else home) / "etc/passwd"
        if layer["depth"] == 1 and file.exists():
            file.write_bytes(b"damaged")


def test_a_damaged_layer_is_healed_from_an_archive(cli: Cli, layout: Path) -> None:
    cli("create", "quay.io/team/app:v2", "--name", "c1")
    [root] = cli("mount", "c1").lines
    Path(root, "mine").write_text("mine")
    damage(cli)
    cli("check")
    found = cli("check", "--deep", "--json", status=7).json
    assert {problem["kind"] for problem in found} == {"damaged-layer"}
    assert any("'etc/passwd'" in problem["detail"] for problem in found)
    assert "container c1" in cli("repair", "--from", layout, status=7).err, "it is mounted"
    cli("umount", "c1")
    assert "nowhere to be had" in cli("repair", "--deep", status=7).err
    assert "mended damaged-layer" in cli("repair", "--from", layout).out
    assert cli("check", "--deep").out == ""
    [root] = cli("mount", "c1").lines
    assert Path(root, "mine").read_text() == "mine"
    assert Path(root, "etc/passwd").read_bytes() == b"root\n"


def test_what_cannot_be_healed_is_given_up_when_told(cli: Cli) -> None:
    cli("create", "base:1", "--name", "c1")
    damage(cli)
    done = cli("repair", "--deep", "--drop")
    assert "given up" in done.err and "container c1" in done.err
    assert cli("containers", "--json").json == []
    assert cli("check", "--deep").out == ""


def test_a_layer_past_its_limit_is_refused(empty: Cli, layout: Path) -> None:
    assert (
        "more than 2048 bytes in one layer" in empty("load", layout, "--max-layer-size", "2K", status=6).err
    )
    assert empty("layers", "--json").json == []
    empty("load", layout, "--max-layer-size", "1M", "--max-layer-entries", "100")


def test_a_signal_while_modules_load_shows_no_traceback() -> None:
    script = """
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "layerfs.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from layerfs.cli import run
run()
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_near_name_is_suggested(cli: Cli) -> None:
    cli("create", "base:1", "--name", "webserver")
    missing = cli("mount", "webservr", status=3)
    assert missing.err.splitlines() == [
        "layerfs: no container, image or layer 'webservr'",
        "  hint: did you mean 'webserver'?",
    ]
    assert "bas:1" in cli("create", "bas:1", status=3).err


def test_a_limit_is_kept_or_refused(cli: Cli) -> None:
    limits = cli("info", "--json").json["capabilities"]["size_limit"]
    done = cli("create", "base:1", "--name", "c1", "--size", "100M", status=0 if limits else 5)
    assert ("layerfs: " in done.err) != limits
    assert [each["name"] for each in cli("containers", "--json").json] == (["c1"] if limits else [])


def test_another_driver_than_the_store_has_is_refused(cli: Cli) -> None:
    other = {"overlay": "vfs", "vfs": "overlay"}[cli.driver]
    done = cli("--driver", other, "images", status=4)
    assert cli.driver in done.err
    assert other in done.err


def test_a_store_on_a_read_only_file_system_can_be_looked_at_and_mounted(cli: Cli) -> None:
    store = cli.base / "root"
    subprocess.run(["mount", "--bind", str(store), str(store)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(store)], check=True)
    try:
        assert [image["names"] for image in cli("images", "--json").json]
        [root] = cli("mount", "base:1").lines
        assert (Path(root) / "etc").is_dir()
        cli("umount", "base:1")
        assert "read-only" in cli("create", "base:1", "--name", "c1", status=8).err.lower()
    finally:
        subprocess.run(["umount", str(store)], check=True)


def test_prune_names_the_layer_that_is_mounted_and_only_that(cli: Cli) -> None:
    cli("mount", "base:1")
    for image in cli("images", "--json").json:
        cli("rmi", "--force", image["id"])
    refused = cli("prune", status=4)
    assert refused.err.count("layerfs: ") == 1 and "is mounted at" in refused.err
    assert "still used" not in refused.err


def test_a_store_moves_to_another_driver(cli: Cli, tmp_path: Path) -> None:
    other = Cli(cli.base, {"overlay": "vfs", "vfs": "overlay"}[cli.driver], cli.capsys)
    cli("create", "quay.io/team/app:v2", "--name", "c1")
    [root] = cli("mount", "c1").lines
    (Path(root) / "etc/passwd").write_text("changed")
    os.mknod(Path(root) / "socket", stat.S_IFSOCK | 0o777)
    assert "container c1" in cli("migrate", "--to", other.driver, status=4).err
    cli("umount", "c1")
    cli("save", "quay.io/team/app:v2", "-o", tmp_path / "before.tar")
    images = cli("images", "--json").out
    changes = cli("changes", "c1").lines

    moved = cli("migrate", "--to", other.driver)
    assert moved.lines == [f"moved 3 layers and 1 container from driver {cli.driver} to {other.driver}"]
    assert "warning: container c1: /socket is a socket" in moved.err
    assert other("info", "--json").json["driver"] == other.driver
    assert other("images", "--json").out == images
    assert other("changes", "c1").lines == [line for line in changes if line != "A /socket"]
    other("save", "quay.io/team/app:v2", "-o", tmp_path / "after.tar")
    assert (tmp_path / "before.tar").read_bytes() == (tmp_path / "after.tar").read_bytes()
    other("check")
    assert "belongs to driver" in other("migrate", "--to", other.driver, status=4).err
    back = other("migrate", "--to", cli.driver, "--json").json
    assert (back["source"], back["target"], back["layers"]) == (other.driver, cli.driver, 3)
    cli("check")


def test_an_interrupted_move_says_how_it_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerfs.store.migration import _Move

    def interrupted(self: _Move) -> None:
        raise KeyboardInterrupt

    target = "vfs" if cli.driver == "overlay" else "overlay"
    with monkeypatch.context() as patch:
        patch.setattr(_Move, "copy", interrupted)
        assert f"'layerfs migrate --to {target}' goes on" in cli("migrate", "--to", target, status=130).err
    assert cli("info", "--json").json["migration"] == f"to driver {target}, unfinished"
    assert f"'layerfs migrate --to {cli.driver}' gives it up" in cli("check", status=7).out
    assert "on its way" in cli("doctor", status=1).out
    assert "nothing of it with" in cli("migrate", "--to", cli.driver).out
    assert "migration" not in cli("info", "--json").json
    cli("check")

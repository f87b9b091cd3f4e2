"""Which images an archive holds, and what makes one unreadable."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from layerfs.errors import BadData, DigestMismatch, ImageError
from layerfs.image import docker, oci
from layerfs.image.directory import DirectorySource
from layerfs.image.model import FoundImage
from layerfs.image.platform import host_platform, parse_platform
from tests.imaging import (
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    Document,
    Layout,
    config_of,
    digest,
    docker_files,
    simple_layout,
    tar_of,
    with_platform,
    zipped,
)

ONE = tar_of({"one": b"1"})
TWO = tar_of({"two": b"2"})
HOST = str(host_platform())
OTHER = "linux/s390x"


def found(layout: Layout, where: Path, platform: str | None = None) -> list[FoundImage]:
    source = DirectorySource(layout.write(where))
    try:
        return oci.find_images(source, parse_platform(platform) if platform else None)
    finally:
        source.close()


def names(images: Sequence[FoundImage]) -> list[tuple[str, ...]]:
    return [image.names for image in images]


def test_an_image_comes_with_its_config_name_layers_and_annotations(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.image([ONE, TWO], annotations={"org.example.colour": "green"}), "demo:v1")
    [image] = found(layout, tmp_path)
    assert image.config == config_of([ONE, TWO])
    assert image.id == digest(image.config)
    assert image.names == ("docker.io/library/demo:v1",)
    assert [layer.diff_id for layer in image.layers] == [digest(ONE), digest(TWO)]
    assert image.annotations == {"org.example.colour": "green"}


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({REF_NAME: "v1", "io.containerd.image.name": "quay.io/a/b:v1"}, "quay.io/a/b:v1"),
        ({REF_NAME: "docker.io/library/x:1"}, "docker.io/library/x:1"),
        ({REF_NAME: "latest"}, "docker.io/library/latest:latest"),
        ({REF_NAME: "Not A Name"}, None),
        ({}, None),
    ],
)
def test_names_are_read_where_tools_write_them(
    tmp_path: Path, annotations: dict[str, str], name: str | None
) -> None:
    layout = Layout()
    layout.add(layout.image([ONE]), **annotations)
    assert names(found(layout, tmp_path)) == [(name,) if name else ()]


def test_all_images_of_a_layout_are_found(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.image([ONE]), "a:1")
    layout.add(layout.image([TWO]), "b:1")
    layout.add(layout.image([]))
    assert names(found(layout, tmp_path)) == [
        ("docker.io/library/a:1",),
        ("docker.io/library/b:1",),
        (),
    ]


# platforms


def several(layout: Layout, platforms: Sequence[str]) -> list[Document]:
    return [
        with_platform(layout.image([tar_of({platform: b""})], platform=platform), platform)
        for platform in platforms
    ]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("wanted", [None, HOST, OTHER])
def test_of_several_platforms_one_is_taken(tmp_path: Path, nested: bool, wanted: str | None) -> None:
    layout = Layout()
    members = several(layout, [OTHER, HOST])
    for member in [layout.index(members)] if nested else members:
        layout.add(member, "demo")
    [image] = found(layout, tmp_path, wanted)
    assert str(parse_platform(wanted or HOST)) in tar_platform(image)


def tar_platform(image: FoundImage) -> str:
    config = json.loads(image.config)
    return f"{config['os']}/{config['architecture']}"


def test_the_closest_generation_is_taken(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.index(several(layout, ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"])), "demo")
    [image] = found(layout, tmp_path, "linux/arm/v6")
    assert json.loads(image.config)["variant"] == "v6"


def test_a_lone_image_is_taken_whatever_it_is_for(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.index(several(layout, [OTHER])), "a")
    layout.add(layout.image([TWO], platform="windows/amd64"), "b")
    assert len(found(layout, tmp_path)) == 2


def test_no_fitting_platform_lists_what_there_is(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.index(several(layout, [OTHER, "linux/mips64le"])), "demo")
    with pytest.raises(ImageError, match=r"no image for .*, only for linux/mips64le, linux/s390x"):
        found(layout, tmp_path)


def test_a_platform_asked_for_is_not_replaced_by_the_only_one(tmp_path: Path) -> None:
    layout, _ = simple_layout()
    with pytest.raises(ImageError, match="only for linux/amd64"):
        found(layout, tmp_path, OTHER)


def test_a_platform_whose_blobs_were_not_copied_is_no_candidate(tmp_path: Path) -> None:
    layout = Layout()
    members = several(layout, [HOST, OTHER])
    layout.add(layout.index(members), "demo")
    del layout.files["blobs/" + str(members[0]["digest"]).replace(":", "/")]
    [image] = found(layout, tmp_path)
    assert tar_platform(image) == OTHER


def test_attestations_and_artifacts_beside_an_image_are_passed_over(tmp_path: Path) -> None:
    layout = Layout()
    statement = layout.image([], layers=[layout.blob(b"{}", "application/vnd.in-toto+json")])
    attestation = with_platform(statement, "unknown/unknown")
    layout.add(layout.index([attestation, *several(layout, [HOST])]), "demo")
    layout.add({**statement, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}})
    layout.add(artifact(layout), "demo:signature")
    assert names(found(layout, tmp_path)) == [("docker.io/library/demo:latest",)]


def artifact(layout: Layout) -> Document:
    config = layout.blob(b"{}", "application/vnd.cncf.helm.config.v1+json")
    return layout.json(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}, OCI_MANIFEST
    )


def test_an_artifact_alone_is_said_to_be_one(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(artifact(layout))
    with pytest.raises(ImageError, match=r"no image: an artifact of type .*helm"):
        found(layout, tmp_path)


def test_indexes_may_nest_but_not_without_end(tmp_path: Path) -> None:
    layout = Layout()
    entry = layout.index(several(layout, [HOST]))
    for _ in range(oci.MAX_NESTING - 1):
        entry = layout.index([entry, entry])
    layout.add(entry, "demo")
    assert len(found(layout, tmp_path / "fits")) == 1
    layout.entries.clear()
    layout.add(layout.index([entry]))
    with pytest.raises(ImageError, match="nested"):
        found(layout, tmp_path / "deep")


# what is wrong with an archive


def spoilt_size(layout: Layout) -> str:
    layout.entries[0]["size"] = 7
    return r"blobs/sha256/[0-9a-f]{64}: \d+ bytes, its descriptor says 7"


def spoilt_manifest(layout: Layout) -> str:
    name = "blobs/" + str(layout.entries[0]["digest"]).replace(":", "/")
    layout.files[name] = layout.files[name].replace(b"schemaVersion", b"SchemaVersion")
    return f"{name}: expected sha256:[0-9a-f]+, found sha256:"


def missing_config(layout: Layout) -> str:
    name = digest(config_of([ONE]))
    del layout.files["blobs/" + name.replace(":", "/")]
    return f"config: {name} is not in the archive"


def slash_in_digest(layout: Layout) -> str:
    layout.entries[0]["digest"] = "sha256:../../../etc/passwd"
    return r"index.json: manifests\[0\].digest: not a digest"


def other_version(layout: Layout) -> str:
    layout.files["oci-layout"] = b'{"imageLayoutVersion": "2.0.0"}'
    return "oci-layout: imageLayoutVersion: a layout of version 2.0.0"


def no_entries(layout: Layout) -> str:
    layout.entries.clear()
    return "index.json: no image: it is empty"


def schema1(layout: Layout) -> str:
    layout.entries[0]["mediaType"] = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    return "schema 1"


def replaced(make: Callable[[Layout], Document], message: str) -> Callable[[Layout], str]:
    def spoil(layout: Layout) -> str:
        layout.entries[:] = [make(layout)]
        return message

    return spoil


SPOILT = {
    "size": spoilt_size,
    "manifest": spoilt_manifest,
    "missing config": missing_config,
    "slash in digest": slash_in_digest,
    "version": other_version,
    "empty": no_entries,
    "schema 1": schema1,
    "fewer diff_ids": replaced(
        lambda layout: layout.image([ONE, TWO], config=config_of([ONE])),
        "2 layers, but its config has 1 diff_ids",
    ),
    "no rootfs": replaced(lambda layout: layout.image([], config=b"{}"), "rootfs: missing"),
    "rootfs type": replaced(
        lambda layout: layout.image([], config=b'{"rootfs":{"type":"erofs"}}'), "'erofs' is not 'layers'"
    ),
    "encrypted": replaced(
        lambda layout: layout.image([ONE], layers=[layout.blob(zipped(ONE), OCI_LAYER + "+encrypted")]),
        r"layers\[0\]: an encrypted layer",
    ),
    "layer type": replaced(
        lambda layout: layout.image([ONE], layers=[layout.blob(b"PK", "application/zip")]),
        r"layers\[0\]: 'application/zip' is not the media type of a layer",
    ),
    "index and image in one": replaced(
        lambda layout: layout.image([ONE], manifests=[]), "may not have 'manifests'"
    ),
    "type lies": replaced(
        lambda layout: {**layout.image([ONE]), "mediaType": "application/vnd.oci.image.index.v1+json"},
        "mediaType is .* its descriptor says",
    ),
    "manifest is a list": replaced(lambda layout: layout.blob(b"[]", OCI_MANIFEST), "an object is wanted"),
    "config is no json": replaced(lambda layout: layout.image([], config=b"\xff"), "not JSON"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_wrong_is_named_with_file_and_field(tmp_path: Path, how: str) -> None:
    layout = Layout()
    layout.add(layout.image([ONE]), "demo")
    message = SPOILT[how](layout)
    with pytest.raises((ImageError, DigestMismatch), match=message) as caught:
        found(layout, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_config_that_is_a_directory_of_config_type_is_refused(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.image([ONE]), "demo")
    layout.write(tmp_path)
    config = tmp_path / "blobs" / digest(config_of([ONE])).replace(":", "/")
    config.unlink()
    config.mkdir()
    source = DirectorySource(tmp_path)
    with pytest.raises(ImageError, match="not a regular file"):
        oci.find_images(source, None)
    source.close()


# docker-archives


def docker_found(files: dict[str, bytes], where: Path, platform: str | None = None) -> list[FoundImage]:
    for name, data in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(data)
    source = DirectorySource(where)
    try:
        return docker.find_images(source, parse_platform(platform) if platform else None)
    finally:
        source.close()


def saved(tags: Sequence[str] = ("demo:v1",)) -> dict[str, bytes]:
    return {name: data for name, data in docker_files([ONE, TWO], tags).items() if isinstance(data, bytes)}


def test_a_docker_archive_gives_config_layers_and_names(tmp_path: Path) -> None:
    [image] = docker_found(saved(["demo:v1", "quay.io/demo:v2"]), tmp_path)
    assert image.id == digest(config_of([ONE, TWO]))
    assert image.names == ("docker.io/library/demo:v1", "quay.io/demo:v2")
    assert [layer.diff_id for layer in image.layers] == [digest(ONE), digest(TWO)]


def changed(change: Callable[[Document], object]) -> dict[str, bytes]:
    files = saved()
    manifest = json.loads(files["manifest.json"])
    change(manifest[0])
    return {**files, "manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (changed(lambda entry: entry.update(Layers=["a"])), r"\[0\].Config: 2 diff_ids .*, but 1 layers"),
        (changed(lambda entry: entry.pop("Config")), r"manifest.json: \[0\].Config: missing"),
        (changed(lambda entry: entry.update(Config="../x")), "climb"),
        (changed(lambda entry: entry.update(RepoTags="x")), r"\[0\].RepoTags: a list is wanted"),
        ({**saved(), "manifest.json": b"[]"}, "manifest.json: no image"),
        ({**saved(), "manifest.json": b'{"schemaVersion": 2}'}, "skopeo's dir: format"),
        ({**saved(), digest(config_of([ONE, TWO]))[7:] + ".json": config_of([ONE])}, "expected sha256:"),
    ],
)
def test_what_is_wrong_with_a_docker_archive_is_named(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(BadData, match=message):
        docker_found(files, tmp_path)


def test_a_docker_archive_for_another_platform_is_refused_when_one_is_asked_for(tmp_path: Path) -> None:
    assert docker_found(saved(), tmp_path, "linux/amd64")
    with pytest.raises(ImageError, match="an image for linux/amd64, not for linux/s390x"):
        docker_found(saved(), tmp_path, OTHER)


def test_a_config_of_another_name_is_taken(tmp_path: Path) -> None:
    files = changed(lambda entry: entry.update(Config="image-config"))
    files["image-config"] = config_of([ONE, TWO])
    assert docker_found(files, tmp_path)[0].id == digest(config_of([ONE, TWO]))


def test_media_types_of_docker_are_read(tmp_path: Path) -> None:
    layout = Layout()
    layers = [layout.blob(zipped(ONE), "application/vnd.docker.image.rootfs.diff.tar.gzip")]
    config = layout.blob(config_of([ONE]), "application/vnd.docker.container.image.v1+json")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = layout.json({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}, kind)
    layout.add(manifest, "demo")
    assert found(layout, tmp_path)[0].id == digest(config_of([ONE]))

"""Images in the store: bytes it keeps for others, names, and the layers they stand upon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from layerfs.errors import Conflict, ImageNotFound, InvalidID, LayerInUse, LayerNotFound, NotFound
from layerfs.ids import ChainID, Digest, digest_of
from layerfs.store import rows
from layerfs.store.metadata import Database
from layerfs.values import frozen


@frozen
class BlobInfo:
    """A layer as it was shipped."""

    media_type: str
    digest: Digest
    size: int


@frozen(kw_only=True)
class ImageRecord:
    """An image: what it says of itself, and the layers it stands upon."""

    id: Digest
    """Digest of ``config``."""
    config: bytes
    """Byte for byte as it was shipped."""
    layers: tuple[ChainID, ...]
    """The whole chain, first layer first."""
    blobs: tuple[BlobInfo | None, ...] = ()
    """For each layer how it was shipped, None where that is not known; empty: not known for any."""
    annotations: Mapping[str, str] = MappingProxyType({})
    """Of its manifest."""


@frozen(kw_only=True)
class ImageInfo:
    """An image in a list."""

    id: Digest
    names: tuple[str, ...]
    layers: tuple[ChainID, ...]
    size: int
    """Bytes of file content of all its layers, those it shares with other images too."""
    created_ns: int
    """When it came into this store."""


def add(db: Database, image: ImageRecord, names: Sequence[str]) -> None:
    """Keep an image and point names at it. What the record does not tell of one
    that is there already (annotations, how a layer was shipped) stays."""
    if digest_of(image.config) != image.id:
        raise InvalidID(f"{image.id} is not the digest of the image's config")
    if image.blobs and len(image.blobs) != len(image.layers):
        raise InvalidID(f"image {image.id} has {len(image.layers)} layers but {len(image.blobs)} blobs")
    blobs = image.blobs or (None,) * len(image.layers)
    with db.transaction(sync=True):
        cache_ids = [_cache_id(db, chain_id) for chain_id in image.layers]
        db.execute(
            "INSERT INTO images (id, config, annotations, created_ns) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET annotations = excluded.annotations"
            " WHERE excluded.annotations != '{}'",
            image.id,
            image.config,
            json.dumps(dict(image.annotations)),
            time.time_ns(),
        )
        for position, (cache_id, blob) in enumerate(zip(cache_ids, blobs, strict=True)):
            _put_layer(db, image.id, position, cache_id, blob)
        for name in names:
            _point(db, name, image.id)


def find(db: Database, name_or_id: str) -> Digest:
    """The id of an image by its full id, one of its names, or an unambiguous beginning of its id of at
    least 4 hex digits, in this order.

    Errors: :class:`ImageNotFound` with near names; :class:`InvalidID` when several ids begin so.
    """
    row = db.row("SELECT id FROM images WHERE id = ?", name_or_id) or db.row(
        "SELECT image FROM image_names WHERE name = ?", name_or_id
    )
    if row is not None:
        return Digest(row[0])
    prefix = rows.id_prefix(name_or_id)
    if prefix is not None:
        found = db.rows("SELECT id FROM images WHERE substr(id, 1, ?) = ? LIMIT 2", len(prefix), prefix)
        if len(found) > 1:
            raise InvalidID(f"several images begin with {name_or_id!r}", hint="give more digits")
        if found:
            return Digest(found[0][0])
    raise _no_image(db, name_or_id)


def record(db: Database, name_or_id: str) -> ImageRecord:
    """Everything that was added. Errors as :func:`find`."""
    with db.snapshot():
        id = find(db, name_or_id)
        row = db.row("SELECT config, annotations FROM images WHERE id = ?", id)
        assert row is not None
        layers = db.rows(
            "SELECT chain_id, blob_media_type, blob_digest, blob_size"
            " FROM image_layers JOIN layers ON cache_id = layer WHERE image = ? ORDER BY position",
            id,
        )
    blobs = tuple(
        None if digest is None else BlobInfo(kind, digest, size) for _, kind, digest, size in layers
    )
    return ImageRecord(
        id=id,
        config=row[0],
        annotations=json.loads(row[1]),
        layers=tuple(ChainID(chain_id) for chain_id, *_ in layers),
        blobs=blobs if any(blobs) else (),
    )


def info(db: Database, name_or_id: str) -> ImageInfo:
    """An image as a list shows it. Errors as :func:`find`."""
    with db.snapshot():
        found = _info(db, find(db, name_or_id))
    assert found is not None
    return found


def infos(db: Database) -> Iterator[ImageInfo]:
    """Every image, the newest first. One that goes meanwhile may be missing."""
    for (id,) in db.rows("SELECT id FROM images ORDER BY created_ns DESC, id"):
        found = _info(db, id)
        if found is not None:
            yield found


def tag(db: Database, name: str, image: str) -> None:
    """Point a name at an image, away from another if need be. Errors as :func:`find` for ``image``."""
    with db.transaction(sync=True):
        _point(db, name, find(db, image))


def untag(db: Database, name: str) -> None:
    """Remove a name; the image stays. :class:`ImageNotFound`: no image is called so."""
    with db.transaction(sync=True):
        if not db.execute("DELETE FROM image_names WHERE name = ?", name):
            raise _no_image(db, name)


def remove(db: Database, name_or_id: str, *, force: bool) -> list[str]:
    """Remove a name, and with its last name the image; by its id, the image with its one name.

    Returns the names removed, then the id if the image itself went. Its layers stay until a prune.
    Without ``force``: :class:`LayerInUse` for the image of a container, :class:`Conflict` for an id with
    several names.
    """
    with db.transaction(sync=True):
        id = find(db, name_or_id)
        names = [
            str(name) for (name,) in db.rows("SELECT name FROM image_names WHERE image = ? ORDER BY name", id)
        ]
        if name_or_id in names and len(names) > 1:
            db.execute("DELETE FROM image_names WHERE name = ?", name_or_id)
            return [name_or_id]
        if not force:
            _refuse_used(db, id, names)
        db.execute("DELETE FROM images WHERE id = ?", id)
        return [*names, id]


def _refuse_used(db: Database, id: Digest, names: Sequence[str]) -> None:
    if len(names) > 1:
        raise Conflict(
            f"image {id} has several names: {', '.join(names)}", hint="remove the names, or force the removal"
        )
    containers = db.rows(
        "SELECT name FROM containers WHERE image = ? AND state != 'removing' ORDER BY name", id
    )
    if containers:
        users = [f"container {name}" for (name,) in containers]
        raise LayerInUse(
            f"image {names[0] if names else id} is used by {', '.join(users)}",
            users=users,
            hint="remove the containers first, or force the removal: they keep their layers",
        )


def _info(db: Database, id: Digest) -> ImageInfo | None:
    with db.snapshot():
        found = db.row("SELECT created_ns FROM images WHERE id = ?", id)
        if found is None:
            return None
        names = db.rows("SELECT name FROM image_names WHERE image = ? ORDER BY name", id)
        layers = db.rows(
            "SELECT chain_id, size FROM image_layers JOIN layers ON cache_id = layer WHERE image = ?"
            " ORDER BY position",
            id,
        )
    return ImageInfo(
        id=id,
        names=tuple(name for (name,) in names),
        layers=tuple(chain_id for chain_id, _ in layers),
        size=sum(size for _, size in layers),
        created_ns=found[0],
    )


def _cache_id(db: Database, chain_id: ChainID) -> str:
    row = db.row("SELECT cache_id FROM layers WHERE state = 'ready' AND chain_id = ?", chain_id)
    if row is None:
        raise LayerNotFound(f"no layer {chain_id}")
    return str(row[0])


def _put_layer(db: Database, image: Digest, position: int, cache_id: str, blob: BlobInfo | None) -> None:
    db.execute(
        "INSERT INTO image_layers (image, position, layer, blob_media_type, blob_digest, blob_size)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (image, position) DO UPDATE SET layer = excluded.layer,"
        " blob_media_type = coalesce(excluded.blob_media_type, blob_media_type),"
        " blob_digest = coalesce(excluded.blob_digest, blob_digest),"
        " blob_size = coalesce(excluded.blob_size, blob_size)",
        image,
        position,
        cache_id,
        *((None, None, None) if blob is None else (blob.media_type, blob.digest, blob.size)),
    )


def _point(db: Database, name: str, image: Digest) -> None:
    db.execute(
        "INSERT INTO image_names (name, image) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET image = excluded.image",
        name,
        image,
    )


def _no_image(db: Database, name: str) -> NotFound:
    known = (str(known) for (known,) in db.rows("SELECT name FROM image_names"))
    return rows.no_such(ImageNotFound, "image", name, known)

"""Images in the store: bytes it keeps for others, names, and the layers they stand upon."""

from __future__ import annotations

import time
from collections.abc import Sequence

from layerfs.errors import Conflict, ImageNotFound, InvalidID, LayerInUse, LayerNotFound, NotFound
from layerfs.ids import ChainID, Digest, digest_of
from layerfs.store import rows
from layerfs.store.metadata import Database
from layerfs.store.records import BlobInfo, ImageInfo, ImageRecord


def add(db: Database, image: ImageRecord, names: Sequence[str]) -> None:
    """Keep an image and point names at it. One that is there already gets the manifest and blobs anew."""
    if digest_of(image.config) != image.id:
        raise InvalidID(f"{image.id} is not the digest of the image's config")
    if image.blobs and len(image.blobs) != len(image.layers):
        raise InvalidID(f"image {image.id} has {len(image.layers)} layers but {len(image.blobs)} blobs")
    blobs = image.blobs or (None,) * len(image.layers)
    with db.transaction(sync=True):
        cache_ids = [_cache_id(db, chain_id) for chain_id in image.layers]
        db.execute(
            "INSERT INTO images (id, config, manifest, created_ns) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET manifest = coalesce(excluded.manifest, manifest)",
            image.id,
            image.config,
            image.manifest,
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
    id = find(db, name_or_id)
    row = db.row("SELECT config, manifest FROM images WHERE id = ?", id)
    if row is None:
        raise _no_image(db, name_or_id)
    layers = db.rows(
        "SELECT chain_id, blob_digest, blob_size, blob_media_type"
        " FROM image_layers JOIN layers ON cache_id = layer WHERE image = ? ORDER BY position",
        id,
    )
    blobs = tuple(None if digest is None else BlobInfo(digest, size, kind) for _, digest, size, kind in layers)
    return ImageRecord(
        id=id,
        config=row[0],
        manifest=row[1],
        layers=tuple(ChainID(chain_id) for chain_id, *_ in layers),
        blobs=blobs if any(blobs) else (),
    )


def info(db: Database, name_or_id: str) -> ImageInfo:
    """An image as a list shows it. Errors as :func:`find`."""
    id = find(db, name_or_id)
    for image in _infos(db, id):
        return image
    raise _no_image(db, name_or_id)


def infos(db: Database) -> list[ImageInfo]:
    """Every image, the newest first."""
    return _infos(db, None)


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
        names = [str(name) for (name,) in db.rows("SELECT name FROM image_names WHERE image = ? ORDER BY name", id)]
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
    containers = db.rows("SELECT name FROM containers WHERE image = ? AND state != 'removing' ORDER BY name", id)
    if containers:
        users = [f"container {name}" for (name,) in containers]
        raise LayerInUse(
            f"image {names[0] if names else id} is used by {', '.join(users)}",
            users=users,
            hint="remove the containers first, or force the removal: they keep their layers",
        )


def _infos(db: Database, only: Digest | None) -> list[ImageInfo]:
    names: dict[str, list[str]] = {}
    for image, name in db.rows("SELECT image, name FROM image_names ORDER BY name"):
        names.setdefault(image, []).append(name)
    layers: dict[str, list[tuple[ChainID, int]]] = {}
    for image, chain_id, size in db.rows(
        "SELECT image, chain_id, size FROM image_layers JOIN layers ON cache_id = layer ORDER BY image, position"
    ):
        layers.setdefault(image, []).append((chain_id, size))
    found = db.rows("SELECT id, created_ns FROM images ORDER BY created_ns DESC, id")
    return [
        ImageInfo(
            id=id,
            names=tuple(names.get(id, ())),
            layers=tuple(chain_id for chain_id, _ in layers.get(id, ())),
            size=sum(size for _, size in layers.get(id, ())),
            created_ns=created_ns,
        )
        for id, created_ns in found
        if only in (None, id)
    ]


def _cache_id(db: Database, chain_id: ChainID) -> str:
    row = db.row("SELECT cache_id FROM layers WHERE state = 'ready' AND chain_id = ?", chain_id)
    if row is None:
        raise LayerNotFound(f"no layer {chain_id}")
    return str(row[0])


def _put_layer(db: Database, image: Digest, position: int, cache_id: str, blob: BlobInfo | None) -> None:
    db.execute(
        "INSERT INTO image_layers (image, position, layer, blob_digest, blob_size, blob_media_type)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (image, position) DO UPDATE SET layer = excluded.layer,"
        " blob_digest = coalesce(excluded.blob_digest, blob_digest),"
        " blob_size = coalesce(excluded.blob_size, blob_size),"
        " blob_media_type = coalesce(excluded.blob_media_type, blob_media_type)",
        image,
        position,
        cache_id,
        *((None, None, None) if blob is None else (blob.digest, blob.size, blob.media_type)),
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

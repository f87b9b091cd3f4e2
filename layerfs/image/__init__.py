"""Images in and out of a store: OCI layouts, docker-archives, names, and commits.

:func:`layerfs.image.load.load`, :func:`layerfs.image.save.save`, :func:`layerfs.image.commit.commit`
and :func:`layerfs.image.find.find` are the doors.
"""

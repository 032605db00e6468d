"""Thumbnails; the decoder processes load this module, so it imports little."""

import io

from captioner.images import OpenedImage

THUMBNAIL_SIDE = 480
"""Longest side, in pixels."""


def make_thumbnail(opened: OpenedImage) -> bytes:
    """A small JPEG of a photo."""
    photo, stream = opened.image, io.BytesIO()
    photo.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    photo.save(stream, "JPEG", quality=80)
    return stream.getvalue()

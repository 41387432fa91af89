"""Small squares of photos: upright, without metadata, as JPEG."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from sslgh.data.decoding import BROKEN, opened_image, upright_rgb


def thumbnail(path: Path, side: int) -> Image.Image | None:
    """The middle of a photo as a square of ``side`` pixels; None if it cannot be read.

    Nothing but pixels is kept: no EXIF data, so no place and no camera.
    """
    try:
        with opened_image(path) as opened:
            if opened.format == "JPEG":
                opened.draft("RGB", (2 * side, 2 * side))  # decodes a fraction of the pixels
            image = upright_rgb(opened)
    except BROKEN:
        return None
    fitted = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    bare = Image.new("RGB", fitted.size)
    bare.paste(fitted)
    return bare


def data_uri(image: Image.Image, quality: int = 72) -> str:
    """The image as a JPEG inside a ``data:`` address."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

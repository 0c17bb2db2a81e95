"""Images out of files and archives that may come from anywhere: bounded, and in eight bits per colour."""

from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError

from infoprune.errors import UserError

# A file of some kilobytes can announce terabytes. 2²⁶ pixels are 8,192 x 8,192, or 200 MB once decoded.
MOST_PIXELS, MOST_BYTES = 1 << 26, 1 << 26
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_rgb(file: Path | str | IO[bytes], name: str, remedy: str) -> Image.Image:
    """Decodes an image to red, green and blue; transparency is dropped, 16 bits become the upper 8.

    Args:
        file: to be decoded.
        name: of it, for messages.
        remedy: what to do about a broken file.

    Raises:
        UserError: for a file that is broken, larger than `MOST_PIXELS`, or of colours in floating point.
    """
    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, {MOST_PIXELS:,} at most")
            if image.mode == "F":
                raise OSError("its pixels are floating-point numbers, expected integers")
            if image.mode in DEEP:  # Pillow's own conversion cuts off at 255, so that all but black is white
                pixels = np.asarray(image)
                upper = (pixels >> (8 if pixels.max(initial=0) > 255 else 0)).astype(np.uint8)
                return Image.fromarray(upper).convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as broken:  # all of these come from Pillow
        # Pillow's own words for a file that it does not know name the file again, or an object in memory.
        why = "of no format that Pillow knows" if isinstance(broken, UnidentifiedImageError) else broken
        raise UserError(f"'{name}' cannot be read as an image ({why}); {remedy}") from broken


def read_entry(archive: ZipFile, name: str) -> bytes:
    """Unpacks one file of an archive, where that is no larger than `MOST_BYTES`.

    Raises:
        OSError: where it is.
    """
    size = archive.getinfo(name).file_size
    if size > MOST_BYTES:
        raise OSError(f"'{name}' unpacks to {size:,} bytes, {MOST_BYTES:,} at most")
    return archive.read(name)

"""Image files as trainers of other people read them: upright, 8 bits, grey or red, green, blue."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.corrections.export.pages import ExportPage
from backend.errors import DatasetVersionError

_ORIENTATION = 0x0112


def pixels_of(page: ExportPage, content: bytes) -> NDArray[np.uint8]:
    """The pixels that were annotated, as the model sees them: what a mask's pixels lie over.

    Args:
        page: of the export.
        content: its image file, in any format of `medsam3_model.images.reading`.

    Returns:
        uint8 (H, W), or (H, W, 3) red, green, blue where the image has colours.

    Raises:
        DatasetVersionError: the file cannot be read, or is not as large as its masks.
    """
    from medsam3_model.errors import ImageError
    from medsam3_model.images.reading import read_image

    try:
        pixels = read_image(content)
    except ImageError as error:
        raise DatasetVersionError(
            f"the image of task {page.item.task.task_id} is in no format that can be read "
            f"({error}): skip the task in Label Studio"
        ) from error
    _check_size(page, pixels.shape[:2])
    red = pixels[..., 0]
    # Strict: an image with a single coloured pixel has colours.
    return red.copy() if (pixels == red[..., None]).all() else pixels


def upright_file(page: ExportPage, content: bytes) -> tuple[bytes, str]:
    """An image as PNG or JPEG without an orientation, and its suffix.

    A file that is one already is left as it is; others become PNG (`pixels_of`, whose errors it
    has too).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            plain = (
                image.mode in ("L", "RGB")
                and image.format in ("PNG", "JPEG")  # and not MPO, which begins like one
                and getattr(image, "n_frames", 1) == 1
                and not image.has_transparency_data
                and image.getexif().get(_ORIENTATION, 1) == 1
            )
            kind, (width, height) = image.format, image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        plain = False
    if plain:
        _check_size(page, (height, width))
        return content, ".png" if kind == "PNG" else ".jpg"
    return png(pixels_of(page, content)), ".png"


def png(pixels: NDArray[Any]) -> bytes:
    """A PNG of uint8 (H, W) or (H, W, 3), or uint16 (H, W)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def _check_size(page: ExportPage, size: tuple[int, ...]) -> None:
    if size != page.size:
        raise DatasetVersionError(
            f"the image of task {page.item.task.task_id} has {size[1]} × {size[0]} pixels, its "
            f"masks {page.size[1]} × {page.size[0]}: annotate it again, or skip it in Label Studio"
        )

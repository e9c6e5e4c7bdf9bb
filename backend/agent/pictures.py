"""Pictures for a language model: the image, and numbered masks on it with a closer look at one.

They are drawn anew from pixels, so nothing of the file goes along: no name, no metadata. Outlines
have a dark rim and numbers stand on a plate, so that both can be seen on grey images.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from backend.agent.candidates import Candidate

# Far apart in hue, all of them bright: none looks like a grey of the image.
_COLOURS = (
    (255, 60, 60),
    (60, 220, 255),
    (255, 220, 0),
    (90, 255, 90),
    (255, 90, 255),
    (255, 150, 40),
    (150, 150, 255),
    (0, 255, 190),
)
_TINT = 0.15
# What a closer look shows around a mask: this share of its box, and at least so many pixels.
_MARGIN = 0.2
_LEAST_MARGIN = 16
_QUALITY = 92


@dataclass(frozen=True)
class SentPicture:
    """A picture as it is sent: a data URI, (height, width), and the JPEG file with its hash."""

    uri: str
    size: tuple[int, int]
    sha256: str
    jpeg: bytes


def sent_picture(picture: Image.Image) -> SentPicture:
    """A JPEG of a picture, without any metadata."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    content = buffer.getvalue()
    uri = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    digest = hashlib.sha256(content).hexdigest()
    return SentPicture(uri, (picture.height, picture.width), digest, content)


def blanked(image: NDArray[np.uint8], border: float) -> NDArray[np.uint8]:
    """The image with black borders, where names and dates are burnt in.

    Args:
        image: (H, W, 3).
        border: share of width and height that is blacked out along each side, 0 to 0.4.
    """
    if border <= 0:
        return image
    height, width = image.shape[:2]
    rows, columns = round(height * border), round(width * border)
    kept = np.zeros_like(image)
    inner = (slice(rows, height - rows), slice(columns, width - columns))
    kept[inner] = image[inner]
    return kept


def plain(image: NDArray[np.uint8], longest: int) -> Image.Image:
    """The image, its longer side at most `longest` pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((longest, longest))
    return picture


def numbered(
    image: NDArray[np.uint8],
    candidates: Sequence[Candidate],
    longest: int,
    closer: Candidate | None = None,
) -> Image.Image:
    """The image with outlines and numbers of masks, and a closer look at one of them beside it.

    Args:
        image: (H, W, 3).
        candidates: to be drawn; small ones on top.
        longest: of the whole picture's sides, in pixels.
        closer: shown enlarged in a second panel, right of the first or below it.
    """
    height, width = image.shape[:2]
    if closer is None:
        return _panel(image, candidates, (longest, longest))
    beside = height >= width
    gap = 4
    half = (longest - gap) // 2
    space = (half, longest) if beside else (longest, half)
    whole = _panel(image, candidates, space)
    x0, y0, x1, y1 = _around(closer.mask)
    enlarged = replace(closer, found=replace(closer.found, mask=closer.mask[y0:y1, x0:x1]))
    space = (half, whole.height) if beside else space
    zoom = _panel(image[y0:y1, x0:x1], [enlarged], space)
    size = (
        (whole.width + gap + zoom.width, max(whole.height, zoom.height))
        if beside
        else (max(whole.width, zoom.width), whole.height + gap + zoom.height)
    )
    both = Image.new("RGB", size, (255, 255, 255))
    both.paste(whole, (0, 0))
    both.paste(zoom, (whole.width + gap, 0) if beside else (0, whole.height + gap))
    return both


def _panel(
    image: NDArray[np.uint8], candidates: Sequence[Candidate], space: tuple[int, int]
) -> Image.Image:
    """The image in a space (width, height), enlarged or reduced, with its masks drawn on."""
    height, width = image.shape[:2]
    scale = min(space[0] / width, space[1] / height)
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    picture = Image.fromarray(np.ascontiguousarray(image)).resize(size)
    ordered = sorted(candidates, key=lambda c: int(c.mask.sum()), reverse=True)
    plates: list[tuple[int, int, int]] = []
    for candidate in ordered:
        colour = _colour(candidate.number)
        mask = Image.fromarray(candidate.mask).convert("L").resize(size, Image.Resampling.NEAREST)
        inner, outer = mask.filter(ImageFilter.MinFilter(5)), mask.filter(ImageFilter.MaxFilter(5))
        drawn = np.asarray(picture).copy()
        inside, core, rim = (np.asarray(part) > 0 for part in (mask, inner, outer))
        drawn[inside] = (1 - _TINT) * drawn[inside] + _TINT * np.array(colour)
        drawn[inside & ~core] = colour
        drawn[rim & ~inside] = (0, 0, 0)
        picture = Image.fromarray(drawn)
        rows, columns = np.nonzero(inside)
        if len(rows):
            middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            plates.append((candidate.number, int(columns[middle]), int(rows[middle])))
    _write_numbers(picture, plates)
    return picture


def _write_numbers(picture: Image.Image, plates: Sequence[tuple[int, int, int]]) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(14, min(picture.size) // 24))
    for number, x, y in plates:
        left, top, right, bottom = draw.textbbox((x, y), str(number), font=font, anchor="mm")
        plate = (left - 3, top - 3, right + 3, bottom + 3)
        draw.rectangle(plate, fill=(0, 0, 0), outline=_colour(number))
        draw.text((x, y), str(number), font=font, fill=(255, 255, 255), anchor="mm")


def _colour(number: int) -> tuple[int, int, int]:
    return _COLOURS[(number - 1) % len(_COLOURS)]


def _around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask's box with a margin, within the image."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    x0, x1, y0, y1 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
    margin_x = max(_LEAST_MARGIN, round(_MARGIN * (x1 - x0)))
    margin_y = max(_LEAST_MARGIN, round(_MARGIN * (y1 - y0)))
    height, width = mask.shape
    return (
        max(0, x0 - margin_x),
        max(0, y0 - margin_y),
        min(width, x1 + margin_x),
        min(height, y1 + margin_y),
    )

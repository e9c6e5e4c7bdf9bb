"""Rendering of pages: a slice's values as the eight bits that an annotator's browser shows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsam3_model.errors import ImageError
from medsam3_model.images.geometry import Plane, StackGeometry, square_size
from medsam3_model.images.intensity import to_bytes
from medsam3_model.images.limits import ImageLimits

# The lowest and the highest Hounsfield unit that is shown, by name (center ∓ half the width).
WINDOWS = {
    "abdomen": (-150.0, 250.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
    "lung": (-1350.0, 150.0),
    "mediastinum": (-125.0, 225.0),
    "stroke": (20.0, 60.0),
}
# A task of more pages is more than a browser and an annotator go through.
MOST_PAGES = 5000
# All voxels of a volume that is cut in another plane than its files, as 32 bits.
_MOST_VOLUME_BYTES = 2 * 2**30

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class StackOptions:
    """What the caller chooses.

    Attributes:
        plane: in which pages are cut.
        window: values that become black and white; None: the usual one, else what the source
            names, else its range.
        usual_window: the same for deep grey values alone; bytes, colours and videos stay as is.
        time: which volume of a series in time, from 0.
        frame_step: of a video, every such frame becomes a page.
    """

    plane: Plane = "source"
    window: tuple[float, float] | None = None
    usual_window: tuple[float, float] | None = None
    time: int | None = None
    frame_step: int = 1


@dataclass(frozen=True)
class SourceStack:
    """A volume or video that becomes one task, its pixels still unread.

    Attributes:
        name: of the task's files; nothing of a DICOM header but digests of its UIDs.
        sha256: of the source's content.
        geometry: of the pages.
        notes: what the reader decided, one sentence each.
        pages: the rendered pages one after the other, uint8 (H, W) or (H, W, 3); raises ImageError
            where a slice is damaged.
    """

    name: str
    sha256: str
    geometry: StackGeometry
    pages: Callable[[], Iterator[Pixels]] = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusedStack:
    """What no task is made of, and why, in a sentence.

    Attributes:
        name: of the file, or as a stack's.
        reason: what is wrong, and what to do.
        left_out: nothing is wrong, it is only no picture: a report, a localizer.
    """

    name: str
    reason: str
    left_out: bool = False


def parse_window(text: str) -> tuple[float, float]:
    """A name of `WINDOWS`, or `center,width`, as the values that become black and white.

    Raises:
        ImageError: it is neither.
    """
    if text in WINDOWS:
        return WINDOWS[text]
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        center = width = float("nan")
    if not np.isfinite(center) or not 0 < width < np.inf:
        raise ImageError(
            f"{text!r} is no window: give center,width, such as 40,400, or one of "
            f"{', '.join(WINDOWS)}"
        )
    return center - width / 2, center + width / 2


def windowed(values: npt.NDArray[np.generic], window: tuple[float, float]) -> Pixels:
    """Values as bytes: `window[0]` and less is black, `window[1]` and more white."""
    return to_bytes(values, *window)


def at_page_size(pixels: Pixels, geometry: StackGeometry) -> Pixels:
    """A page with square pixels, linear between the source's; the same where they are square.

    The middle of a source pixel stays where it is, so that masks of the page go back by
    `medsam3_model.images.geometry.masks_to_source`.
    """
    height, width = geometry.page_size
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


def checked_page_size(
    size: tuple[int, int], spacing: tuple[float, float] | None, pages: int, limits: ImageLimits
) -> tuple[int, int]:
    """The size of the rendered pages.

    Raises:
        ImageTooLargeError: a page has too many pixels.
        ImageError: there are too many pages.
    """
    if pages > MOST_PAGES:
        raise ImageError(
            f"it has {pages:,} pages and a task holds at most {MOST_PAGES:,}: for a video choose "
            "every n-th frame (--frame-step), else cut the file into parts"
        )
    page = square_size(size, spacing) if spacing else size
    limits.check_pixels(page[1], page[0])
    return page


def check_volume(shape: tuple[int, ...]) -> None:
    """Raises ImageError for a volume that does not fit in memory as a whole."""
    size = 4 * int(np.prod([int(length) for length in shape], dtype=object))
    if size > _MOST_VOLUME_BYTES:
        raise ImageError(
            f"the volume has {size / 2**20:,.0f} MB, too many to be cut in another plane: "
            "import it with --plane source"
        )


def png(pixels: Pixels) -> bytes:
    """A page as a PNG file."""
    file = io.BytesIO()
    # Level 3 takes half the time of the default and a few percent more bytes.
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=3)
    return file.getvalue()

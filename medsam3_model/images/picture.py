"""An opened picture: its size and pages from the header, its pixels when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsam3_model.errors import ImageError


@dataclass(frozen=True)
class Picture:
    """One page of a file whose header has been read and checked against the limits.

    Attributes:
        height, width: of the page, upright, in pixels: those of what `decode` returns.
        page, pages: which one it is, from 0, of how many.
        decode: the pixels, red, green, blue, uint8 (H, W, 3); as long as the file is open.
    """

    height: int
    width: int
    page: int
    pages: int
    decode: Callable[[], npt.NDArray[np.uint8]]

    def rgb(self) -> npt.NDArray[np.uint8]:
        """The pixels; raises ImageError where they are damaged or not of the announced size."""
        pixels = self.decode()
        if pixels.shape != (self.height, self.width, 3):
            raise ImageError(
                f"the image is damaged: it announces {self.width} × {self.height} pixels and "
                f"holds {pixels.shape[1]} × {pixels.shape[0]}"
            )
        return pixels


def chosen_page(page: int | None, pages: int, whole: str, unit: str, *, volume: bool = True) -> int:
    """The page that is asked for; where none is, a volume's middle one, and else the first.

    Raises:
        ImageError: there is no such page.
    """
    if page is None:
        return pages // 2 if volume else 0
    if not 0 <= page < pages:
        kind = unit.rpartition(" ")[2]
        raise ImageError(f"the {whole} has {pages} {unit}s, there is no {kind} {page} (from 0)")
    return page

"""Limits of what is read as an image; headers are checked against them before decoding."""

from dataclasses import dataclass

from medsam3_model.errors import ImageError, ImageTooLargeError

# Sixteen bits of red, green, blue and alpha, or one double.
_DECODED_BYTES_PER_PIXEL = 8


@dataclass(frozen=True)
class ImageLimits:
    """What is too large to be read.

    Attributes:
        max_bytes: of the file, and of what a compressed volume unpacks to.
        max_pixels: of one page, slice or frame.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 100_000_000

    def check_size(self, size: int) -> None:
        """Raises ImageTooLargeError for a file of too many bytes."""
        if size > self.max_bytes:
            raise ImageTooLargeError(
                f"the image's file has {size / 2**20:,.0f} MB, more than the limit of "
                f"{self.max_bytes / 2**20:,.0f} MB"
            )

    def check_unpacked(self, size: int) -> None:
        """Raises ImageTooLargeError for a compressed file that unpacks to too many bytes."""
        if size > self.max_bytes:
            raise ImageTooLargeError(
                f"the compressed file unpacks to more than the limit of "
                f"{self.max_bytes / 2**20:,.0f} MB"
            )

    def check_pixels(self, width: int, height: int, *, bits: int = 8) -> None:
        """Raises ImageTooLargeError for too many pixels, ImageError for none.

        Args:
            width, height: of one page.
            bits: of one pixel with all of its samples; deep pictures may have fewer pixels.
        """
        if width < 1 or height < 1:
            raise ImageError(f"the image is empty: {width} × {height} pixels")
        if width * height > self.max_pixels:
            raise ImageTooLargeError(
                f"the image has {width:,} × {height:,} pixels, more than the limit of "
                f"{self.max_pixels / 1e6:,.0f} million"
            )
        decoded, most = width * height * bits // 8, self.max_pixels * _DECODED_BYTES_PER_PIXEL
        if decoded > most:
            raise ImageTooLargeError(
                f"the image has {width:,} × {height:,} pixels of {bits} bits, "
                f"{decoded / 2**20:,.0f} MB, more than the limit of {most / 2**20:,.0f} MB"
            )


DEFAULT_LIMITS = ImageLimits()

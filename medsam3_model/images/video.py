"""Video files as stacks: frames through PyAV, which the extra `video` installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medsam3_model.errors import ImageError
from medsam3_model.images.geometry import StackGeometry
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.rendering import (
    Pixels,
    SourceStack,
    StackOptions,
    at_page_size,
    checked_page_size,
)


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of a video file's container, by its first bytes; None for other files.

    Said to FFmpeg by name, because some of the formats that it would guess (playlists) have it
    open other files and addresses.
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and head[8:12] not in (b"avif", b"avis"):
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"\x00\x00\x01\xba":
        return "mpeg"
    if head[:4] == b"\x30\x26\xb2\x75":
        return "asf"
    return None


def video_stack(
    path: Path, name: str, sha256: str, options: StackOptions, limits: ImageLimits
) -> SourceStack:
    """A video's frames, every `options.frame_step`-th, as pages.

    Raises:
        ImageTooLargeError: its frames have too many pixels.
        ImageError: PyAV is not installed; no video, damaged, turned, too many frames, or options
            that a video has no use for.
    """
    if options.plane != "source" or options.window is not None or options.time is not None:
        raise ImageError("a video has neither planes nor windows nor volumes in time")
    step = options.frame_step
    with _decoding(path, limits) as (frames, ratio):
        first = next(frames, None)
        if first is None:
            raise ImageError("the video holds no frame")
        if first.rotation:
            raise ImageError(
                f"the video is to be shown turned by {abs(first.rotation)} degrees: store it "
                "upright first (ffmpeg -i IN OUT does)"
            )
        height, width = first.height, first.width
        count = 1
        for frame in frames:
            count += 1
            if (frame.height, frame.width) != (height, width):
                raise ImageError("the video changes its size on the way")
    # A pixel's height is 1, its width the ratio.
    spacing = (1.0, ratio) if ratio else None
    size = checked_page_size((height, width), spacing, -(-count // step), limits)
    geometry = StackGeometry(
        "video", (count, height, width), None, 0, 1, 2, False, False, False, size, page_step=step
    )

    def pages() -> Iterator[Pixels]:
        with _decoding(path, limits) as (frames, _):
            for index, frame in enumerate(frames):
                if index % step == 0:
                    pixels: Any = frame.to_ndarray(format="rgb24")
                    yield at_page_size(np.ascontiguousarray(pixels), geometry)

    return SourceStack(name, sha256, geometry, pages)


@contextmanager
def _decoding(path: Path, limits: ImageLimits) -> Iterator[tuple[Iterator[Any], float | None]]:
    """The frames of a video, one after the other, and the width of a pixel by its height."""
    try:
        import av
    except ImportError as error:
        raise ImageError(
            "videos are read by PyAV, which is not installed: "
            "pip install 'medsam3-label-studio[video]'"
        ) from error
    with path.open("rb") as file:
        container_name = container_of(file.read(16))
        file.seek(0)
        try:
            with av.open(file, mode="r", format=container_name) as container:
                if not container.streams.video:
                    raise ImageError("the file holds no video")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                limits.check_pixels(stream.codec_context.width, stream.codec_context.height)
                ratio = stream.codec_context.sample_aspect_ratio
                yield container.decode(stream), float(ratio) if ratio else None
        except av.FFmpegError as error:
            raise ImageError(
                f"the video is damaged or truncated ({type(error).__name__})"
            ) from error

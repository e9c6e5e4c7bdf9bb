"""Decoders of compressed DICOM pixels that pydicom lacks, from imagecodecs.

JPEG with 12 bits and lossless JPEG (libjpeg-turbo), JPEG-LS (CharLS), JPEG 2000 and its
high-throughput kind (OpenJPEG). RLE is pydicom's own, baseline JPEG Pillow's.
"""

from __future__ import annotations

import imagecodecs
from pydicom import uid
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner

PLUGIN = "imagecodecs"
_JPEG_2000 = (
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
)
_CODECS = {
    uid.JPEGExtended12Bit: imagecodecs.jpeg_decode,
    uid.JPEGLossless: imagecodecs.jpeg_decode,
    uid.JPEGLosslessSV1: imagecodecs.jpeg_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    **dict.fromkeys(_JPEG_2000, imagecodecs.jpeg2k_decode),
}


def is_available(syntax: str) -> bool:
    """pydicom's question to a plugin: whether it decodes this transfer syntax."""
    return syntax in _CODECS


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """One frame's samples by pixel, and to `runner` how they differ from the data set's tags."""
    values = _CODECS[runner.transfer_syntax](source)
    if values.shape[:2] != (runner.rows, runner.columns):
        raise ValueError("the frame has another size than the data set says")
    runner.set_option("bits_allocated", values.dtype.itemsize * 8)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
        colours = str(runner.photometric_interpretation)
        jpeg = runner.transfer_syntax == uid.JPEGExtended12Bit
        if colours in ("YBR_ICT", "YBR_RCT") or (jpeg and colours.startswith("YBR_FULL")):
            # The decoder has undone it.
            runner.set_option("photometric_interpretation", "RGB")
    return bytearray(values.tobytes())


for _syntax in _CODECS:
    get_decoder(_syntax).add_plugin(PLUGIN, (__name__, "decode_frame"))

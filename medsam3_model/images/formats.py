"""Which format a file is of, by its first bytes: names lie, and uploads often have no suffix."""

import struct
import zlib

# Of a NIfTI header the magic stands last; DICOM's follows 128 bytes.
HEAD_BYTES = 4096
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
)
_AVIF_BRANDS = (b"avif", b"avis")


def image_suffix(head: bytes) -> str | None:
    """The suffix of an image file, such as `.png`, `.nii.gz` or `.dcm`.

    Args:
        head: the file's content, or its first `HEAD_BYTES`.

    Returns:
        None where it is of no format that `medsam3_model.images.reading` reads.
    """
    # First: a DICOM file of a microscope begins like a TIFF, to be readable as both.
    if is_dicom(head):
        return ".dcm"
    for start, suffix in _STARTS:
        if head.startswith(start):
            return suffix
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#":
        return ".ppm" if len(head) > 2 else None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:8] == b"ftyp":
        # The first brand, or one of those that it is compatible with.
        box = head[8 : int.from_bytes(head[:4], "big")]
        brands = [box[at : at + 4] for at in range(0, len(box), 4)]
        return ".avif" if any(brand in _AVIF_BRANDS for brand in brands) else None
    if head.startswith(b"\x1f\x8b"):
        return ".nii.gz" if is_nifti(_inflated(head)) else None
    return ".nii" if is_nifti(head) else None


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 352)
    except zlib.error:
        return b""


def is_dicom(head: bytes) -> bool:
    """Whether a file begins as DICOM does: with the preamble, or at once with its elements.

    Older files have no preamble, and some begin with the group of identification (0008).
    """
    if head[128:132] == b"DICM":
        return True
    if head[:2] == b"\x02\x00":
        return head[2:4] == b"\x00\x00" and head[4:6] in (b"UL", b"\x04\x00")
    if head[:2] not in (b"\x08\x00", b"\x00\x08") or len(head) < 12:
        return False
    little = head[0] == 8
    element = int.from_bytes(head[2:4], "little" if little else "big")
    length = int.from_bytes(head[4:8], "little")
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"DA", b"TM", b"SH", b"LO", b"SQ", b"AE", b"DT")
    return element <= 0x0070 and (explicit or (little and length <= 256))


def is_nifti(head: bytes) -> bool:
    """Whether a file begins with a NIfTI header: its size, 348 or 540 bytes, and its magic."""
    if len(head) < 348:
        return False
    return any(struct.unpack(f"{order}i", head[:4])[0] in (348, 540) for order in "<>") and (
        head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")
    )

"""Which format a file is of, by its first bytes: names lie, and uploads often have no suffix."""

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
# Groups 2 and 8 begin a DICOM file without its preamble: tag, then a VR or a length.
_DICOM_STARTS = (b"\x02\0", b"\x08\0", b"\0\x08")


def image_suffix(head: bytes) -> str | None:
    """The suffix of an image file, such as `.png`, `.nii.gz` or `.dcm`.

    Args:
        head: the file's content, or its first `HEAD_BYTES`.

    Returns:
        None where it is of no format that `medsam3_model.images.reading` reads.
    """
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
    if head[128:132] == b"DICM":
        return ".dcm"
    if head.startswith(b"\x1f\x8b"):
        return ".nii.gz" if _is_nifti(_inflated(head)) else None
    if _is_nifti(head):
        return ".nii"
    return ".dcm" if _is_bare_dicom(head) else None


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 352)
    except zlib.error:
        return b""


def _is_nifti(head: bytes) -> bool:
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    return (348 in sizes and head[344:347] in (b"n+1", b"ni1")) or (
        540 in sizes and head[4:7] in (b"n+2", b"ni2")
    )


def _is_bare_dicom(head: bytes) -> bool:
    if len(head) < 8 or head[:2] not in _DICOM_STARTS:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") <= 64

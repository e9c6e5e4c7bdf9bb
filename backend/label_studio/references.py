"""What stands in a task for an image: images inside the address itself, and what to show of it."""

import base64
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes, urlsplit

from backend.errors import ImageSourceError

LOCAL_FILES = "/data/local-files"
_MOST_SHOWN = 100
# How base64 of PNG, JPEG, GIF, WebP, TIFF and BMP begins.
_BARE_IMAGE = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK|Qk0)[A-Za-z0-9+/=\s]{40,}")


def cleaned(reference: object) -> str:
    """A reference as a browser reads it: without spaces around it and line breaks inside.

    Raises:
        ImageSourceError: it is not text that an address can be.
    """
    text = re.sub(r"[\t\r\n]", "", str(reference)).strip(_AROUND)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ImageSourceError("it is not a valid address") from None
    if _BARE_IMAGE.match(text):
        raise ImageSourceError("it is base64 alone: put `data:image/png;base64,` before it")
    return text


# Control characters and the space.
_AROUND = "".join(map(chr, range(33)))


def is_inline(reference: str) -> bool:
    """Whether the image is inside the address itself (`data:...`)."""
    return reference[:5].lower() == "data:"


def inline(reference: str, check_size: Callable[[int], None]) -> bytes:
    """The bytes in a `data:` address, read as browsers do.

    The scheme and `;base64` are case-insensitive, percent signs are decoded, a fragment does not
    count; the base64 may hold spaces and line breaks, and lack its padding.

    Args:
        reference: see `cleaned`.
        check_size: raises where so many bytes are too many.

    Raises:
        ImageSourceError: it is damaged or too large.
    """
    header, comma, payload = reference[5:].partition("#")[0].partition(",")
    if not comma:
        raise ImageSourceError("it has no comma before the data")
    # Three characters of it stand for one byte at most where percent signs are used.
    check_size(len(payload) // 4)
    body = unquote_to_bytes(payload)
    if not re.search(r";[ ]*base64[ ]*$", header, re.IGNORECASE):
        check_size(len(body))
        return body
    body = body.translate(None, b" \t\r\n\f")
    check_size(len(body) * 3 // 4)
    if len(body) % 4 == 0:
        body = body.removesuffix(b"=").removesuffix(b"=")
    if len(body) % 4 == 1 or re.search(rb"[^A-Za-z0-9+/]", body):
        raise ImageSourceError("its base64 text is damaged")
    return base64.b64decode(body + b"=" * (-len(body) % 4))


def shown_reference(reference: object) -> str:
    """What a message may show: no query of a signed link, no password, no part of an image."""
    text = str(reference)[:4096].strip(_AROUND)
    if is_inline(re.sub(r"[\t\r\n]", "", text[:20])):
        return "data:..."
    if _BARE_IMAGE.match(text):
        return "of base64 text"
    try:
        parts = urlsplit(text)
    except ValueError:
        return "of an invalid address"
    host = parts.netloc.rpartition("@")[2]
    start = f"{parts.scheme}://{host}" if parts.scheme else ""
    is_local = parts.path.rstrip("/").endswith(LOCAL_FILES)
    shown = f"{start}{parts.path}{f'?{parts.query}' if is_local else ''}"
    if len(shown) > _MOST_SHOWN:
        # The end says most: the file's name.
        shown = f"{shown[: _MOST_SHOWN // 2]}...{shown[-_MOST_SHOWN // 2 :]}"
    return shown or "''"

"""Bodies of answers, read in small pieces that are decompressed within bounds.

Five kilobytes that are compressed twice become gigabytes, so nothing is decompressed at once.
"""

import zlib
from collections.abc import Iterator

import httpx2

_PIECE = 65536
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_KNOWN = ("gzip", "x-gzip", "deflate")
# One that a server chose, and one that lay on the file.
_MOST_LAYERS = 2


def pieces(response: httpx2.Response) -> Iterator[bytes]:
    """The body, decompressed, in pieces of 64 KB at most; count them and stop when it is enough.

    Raises:
        httpx2.DecodingError: it is damaged, or compressed in a way that was not asked for.
        httpx2.TransportError: the connection broke.
    """
    names = response.headers.get("Content-Encoding", "").lower().split(",")
    layers = [name.strip() for name in names if name.strip() not in ("", "identity")]
    if len(layers) > _MOST_LAYERS or not set(layers) <= set(_KNOWN):
        raise httpx2.DecodingError(f"the file was sent compressed as {', '.join(layers)[:60]}")
    body = response.iter_raw(_PIECE)
    for _ in layers:
        body = _inflated(body)
    return body


def _inflated(body: Iterator[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        for raw in body:
            waiting = raw
            while waiting:
                if inflate.eof:  # gzip allows several streams behind each other
                    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
                yield inflate.decompress(waiting, _PIECE)
                waiting = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        while piece := inflate.decompress(inflate.unconsumed_tail, _PIECE):
            yield piece
    except zlib.error as error:
        raise httpx2.DecodingError("the file was sent compressed, and is damaged") from error
    if not inflate.eof:
        raise httpx2.DecodingError("the file was sent compressed, and its end is missing")

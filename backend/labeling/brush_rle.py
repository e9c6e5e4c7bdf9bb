"""Label Studio's run-length code for brush masks, vectorised.

Format (``@thi.ng/rle-pack``, as the editor and ``label_studio_sdk.converter.brush`` write it), a
big-endian bit stream:

* 32 bits: number of values, height · width · 4 (RGBA, row-major);
* 5 bits: word size − 1, always 8 bits here; four fields of 4 bits: run-length sizes − 1;
* packets until all values are there: 1 flag bit, 2 bits that pick one of the four sizes, the
  length − 1 in that many bits, then one value (flag 1, a run) or ``length`` values (flag 0);
* zeros up to the next byte; the SDK adds a whole zero byte when the stream is already aligned.

Alpha alone decides: a pixel is foreground when its alpha is above zero. That is what the editor
paints (it tests alpha for non-zero) and what the SDK's COCO export traces. The SDK's
``mask2rle`` repeats each value over all four channels, and so does :func:`encode`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.errors import RleError

_HEADER_BITS = 32 + 5 + 4 * 4
_HEADER_BYTES = (_HEADER_BITS + 7) // 8
_WORD_SIZE = 8
_RUN_SIZES = (3, 4, 8, 16)
_RUN_SIZES_FIELD = 0x237F  # each size − 1 in 4 bits
_LONGEST_RUN = 1 << 16
# Widths of run packets: flag, index, length, value. Indexed like _RUN_SIZES.
_RUN_WIDTHS = np.array([3 + size + _WORD_SIZE for size in _RUN_SIZES], dtype=np.uint64)

# Below these sizes a loop over Python integers beats the fixed cost of some twenty NumPy calls.
_FEW_RUNS = 96
_SHORT_STREAM_BYTES = 192

# Search for packets in lanes (see _packet_starts). A lane shorter than _LANE_BITS, or fewer of
# them than _FEWEST_LANES, cost more NumPy calls than the steps that they save.
_LANE_BITS = 4096
_FEWEST_LANES = 8
_MOST_LANES = 512
_SYNC_STEPS = 24  # a lane takes these many more small steps until it has fallen in step
_LONGEST_SKIP = 8
# A packet holds one value at least, so no stream of use is longer than this for each value.
_WIDEST_PACKET = 3 + 16 + _WORD_SIZE


def encode(mask: npt.NDArray[Any]) -> list[int]:
    """Encode one mask as the bytes of a ``brushlabels`` region's ``rle``.

    Args:
        mask: ``(H, W)``, bool (true becomes 255) or integers 0..255, which are written as they
            are into all four channels; Label Studio expects 0 and 255.

    Returns:
        Byte values, identical with ``label_studio_sdk.converter.brush.mask2rle``.

    Raises:
        RleError: the mask is empty, not two-dimensional, has other values, or has 2³⁰ pixels or
            more, which the format cannot count.
    """
    pixels = _as_bytes(mask)
    num_values = pixels.size * 4
    ends = np.flatnonzero(pixels[1:] != pixels[:-1])
    if ends.size < _FEW_RUNS:
        return _encode_few_runs(pixels, ends.tolist(), num_values)
    last = np.empty(ends.size + 1, dtype=np.int64)
    last[:-1] = ends
    last[-1] = pixels.size - 1
    lengths = np.diff(last, prepend=-1) * 4
    return _encode_runs(lengths, pixels[last], num_values)


def decode(rle: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode the ``rle`` of a brush region.

    Args:
        rle: byte values, as the editor, the SDK or :func:`encode` writes them; runs of any
            length, literal packets and other run-length sizes are understood.
        height, width: the size of the image in pixels (``original_height``, ``original_width``).

    Returns:
        bool ``(height, width)``: where alpha is above zero.

    Raises:
        RleError: the header does not announce ``height · width · 4`` values (checked before
            anything of that size is allocated), the stream ends early, or a packet runs past the
            last value. Bytes after the last value are ignored, as the editor ignores them.
    """
    run_sizes = _checked_header(rle, height, width)
    longest = (_HEADER_BITS + _WIDEST_PACKET * height * width * 4) // 8 + 1
    try:
        data = bytes(rle[:longest])
    except (TypeError, ValueError):
        raise RleError(
            "The brush RLE holds something other than bytes (integers 0..255)."
        ) from None
    if len(data) <= _SHORT_STREAM_BYTES:
        return _decode_short(data, run_sizes, height, width)
    return _decode_long(data, run_sizes, height, width)


def _as_bytes(mask: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if mask.ndim != 2 or mask.size == 0:
        raise RleError(f"A brush mask must be (height, width) and not empty, not {mask.shape}.")
    if mask.size >= 1 << 30:
        raise RleError(f"A brush mask of {mask.shape} pixels is larger than its RLE can count.")
    flat = np.ascontiguousarray(mask).reshape(-1)
    if flat.dtype == np.bool_:
        return flat.view(np.uint8) * np.uint8(255)
    if flat.dtype == np.uint8:
        return flat
    if flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() > 255:
        raise RleError(f"A brush mask must be bool or integers 0..255, not {mask.dtype}.")
    return flat.astype(np.uint8)


def _header(num_values: int) -> int:
    return (num_values << 21) | ((_WORD_SIZE - 1) << 16) | _RUN_SIZES_FIELD


def _encode_few_runs(pixels: npt.NDArray[np.uint8], ends: list[int], num_values: int) -> list[int]:
    bits, num_bits = _header(num_values), _HEADER_BITS
    ends.append(pixels.size - 1)
    values = pixels[ends].tolist()
    start = -1
    for end, value in zip(ends, values, strict=True):
        length = 4 * (end - start)
        start = end
        if length <= 8:
            bits, num_bits = bits << 14 | 0x2000 | (length - 1) << 8 | value, num_bits + 14
        elif length <= 16:
            bits, num_bits = bits << 15 | 0x5000 | (length - 1) << 8 | value, num_bits + 15
        elif length <= 256:
            bits, num_bits = bits << 19 | 0x60000 | (length - 1) << 8 | value, num_bits + 19
        else:
            # As the SDK: full packets first, then the rest in 16 bits, however short it is.
            while length > _LONGEST_RUN:
                bits, num_bits = bits << 27 | 0x7FFFF00 | value, num_bits + 27
                length -= _LONGEST_RUN
            bits, num_bits = bits << 27 | 0x7000000 | (length - 1) << 8 | value, num_bits + 27
    num_bytes = num_bits // 8 + 1
    return list((bits << (8 * num_bytes - num_bits)).to_bytes(num_bytes, "big"))


def _encode_runs(
    lengths: npt.NDArray[np.int64], values: npt.NDArray[np.uint8], num_values: int
) -> list[int]:
    size_index = (lengths > 8).astype(np.uint8)
    size_index += lengths > 16
    size_index += lengths > 256
    if int(lengths.max()) > _LONGEST_RUN:
        # Like the SDK, full packets first, then the rest in 16 bits, however short it is.
        pieces = (lengths - 1) // _LONGEST_RUN + 1
        rest = lengths - (pieces - 1) * _LONGEST_RUN
        size_index, values = np.repeat(size_index, pieces), np.repeat(values, pieces)
        lengths = np.full(size_index.size, _LONGEST_RUN, dtype=np.int64)
        lengths[np.cumsum(pieces) - 1] = rest

    # Each packet as one integer: flag 1 and size index, then length − 1, then the value.
    widths = _RUN_WIDTHS[size_index]
    code = (lengths.astype(np.uint64) - np.uint64(1)) << np.uint64(8)
    code |= values
    code |= (size_index.astype(np.uint64) | np.uint64(4)) << (widths - np.uint64(3))
    code <<= np.uint64(64) - widths  # first bit of the packet on top

    # Where in the stream each packet begins: its 64-bit word, and the bit within that word.
    ends = np.cumsum(widths)
    ends += np.uint64(_HEADER_BITS)
    num_bits = int(ends[-1])
    offsets = ends - widths
    words = (offsets >> np.uint64(6)).astype(np.int64)
    shifts = offsets & np.uint64(63)

    # Packets that begin in the same 64-bit word are neighbours: OR each group into its word.
    # Of each group at most the last packet reaches into the next word.
    stream = np.zeros(num_bits // 64 + 1, dtype=np.uint64)
    group = np.flatnonzero(np.diff(words, prepend=-1))
    stream[words[group]] = np.bitwise_or.reduceat(code >> shifts, group)
    stream[0] |= np.uint64(_header(num_values) << (64 - _HEADER_BITS))
    across = np.flatnonzero(shifts + widths > 64)
    stream[words[across] + 1] |= code[across] << (np.uint64(64) - shifts[across])
    return list(stream.byteswap().tobytes()[: num_bits // 8 + 1])


def _checked_header(rle: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    if height <= 0 or width <= 0:
        raise RleError(f"An image of {height} x {width} pixels has no brush mask.")
    try:
        header = int.from_bytes(bytes(rle[:_HEADER_BYTES]), "big")
        length = len(rle)
    except (TypeError, ValueError, KeyError):
        raise RleError("The brush RLE is not a list of bytes (integers 0..255).") from None
    if length < _HEADER_BYTES:
        raise RleError(f"The brush RLE ends inside its header, after {length} bytes.")
    header >>= 8 * _HEADER_BYTES - _HEADER_BITS
    num_values, word_size = header >> 21, (header >> 16 & 31) + 1
    if num_values != height * width * 4:
        raise RleError(
            f"The brush RLE announces {num_values} values, but an image of {height} x {width} "
            f"pixels has {height * width * 4}; it belongs to another image or is damaged."
        )
    if word_size != _WORD_SIZE:
        raise RleError(f"The brush RLE has {word_size}-bit values; Label Studio writes 8 bits.")
    return tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0))


def _short_by(missing: int) -> RleError:
    return RleError(f"The brush RLE is cut off: {missing} of its announced values are missing.")


def _long_by(surplus: int) -> RleError:
    return RleError(f"The brush RLE is damaged: its last packet is {surplus} values too long.")


def _decode_short(
    data: bytes, run_sizes: tuple[int, ...], height: int, width: int
) -> npt.NDArray[np.bool_]:
    stream, num_bits = int.from_bytes(data, "big"), 8 * len(data)
    num_values = height * width * 4
    position, bit = 0, _HEADER_BITS
    spans: list[tuple[int, int]] = []  # foreground, in pixels
    while position < num_values:
        # The stream is one big integer, so a field is a shift by the `left` bits behind it.
        left = num_bits - bit - 3
        head = stream >> left & 7 if left >= 0 else 0
        size = run_sizes[head & 3]
        left -= size
        if left < _WORD_SIZE:
            raise _short_by(num_values - position)
        length = (stream >> left & (1 << size) - 1) + 1
        count = 1 if head & 4 else length
        left -= _WORD_SIZE * count
        if left < 0:
            raise _short_by(num_values - position)
        if position + length > num_values:
            raise _long_by(position + length - num_values)
        # Pixel p has its alpha at value 4p + 3, so a run of values [a, b) decides the pixels
        # [a >> 2, b >> 2), and a literal packet those whose alpha it contains.
        if head & 4:
            if stream >> left & 255:
                spans.append((position >> 2, position + length >> 2))
        else:
            for value in range(position | 3, position + length, 4):
                if stream >> left + _WORD_SIZE * (position + length - 1 - value) & 255:
                    spans.append((value >> 2, (value >> 2) + 1))
        position += length
        bit = num_bits - left
    mask = np.zeros(height * width, dtype=np.bool_)
    for start, stop in spans:
        mask[start:stop] = True
    return mask.reshape(height, width)


@lru_cache(maxsize=4)
def _step_table(run_sizes: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """The step to take from each of a byte's 8 bits, by that byte and the next.

    ``(65536,)`` uint64, one byte per bit position, first bit in the lowest address: the width of
    the run packet that begins there, or, where a literal packet would (its flag is 0), how many
    zero bits to skip to the next 1. Widths are 12 to 27, skips 1 to 8.
    """
    pairs = np.arange(1 << 16, dtype=np.uint32)
    steps = np.empty((1 << 16, 8), dtype=np.uint8)
    widths = np.array([3 + size + _WORD_SIZE for size in run_sizes], dtype=np.uint8)
    for offset in range(8):
        window = pairs >> (8 - offset) & 255
        zeros = 8 - np.ceil(np.log2(window + 1)).astype(np.uint8)
        steps[:, offset] = np.where(window >> 7, widths[window >> 5 & 3], zeros)
    return steps.view(np.uint64).reshape(-1)


def _decode_long(
    data: bytes, run_sizes: tuple[int, ...], height: int, width: int
) -> npt.NDArray[np.bool_]:
    num_values, num_bits = height * width * 4, 8 * len(data)
    # Windows of 8 bytes at every byte, so that whatever begins there can be read at once.
    padded = data + bytes(8)
    windows = _every_byte(padded, len(data), ">u8")
    pairs = _every_byte(padded, len(data), ">u2")

    # The starts of the packets depend on each other; all that follows is done at once.
    start = _packet_starts(padded, _step_table(run_sizes)[pairs], run_sizes)
    packet = windows[start >> 3].astype(np.uint64) << (start & 7).astype(np.uint64)
    size = np.array(run_sizes, dtype=np.uint64)[(packet >> np.uint64(61)) & np.uint64(3)]
    length = ((packet << np.uint64(3)) >> (np.uint64(64) - size)).astype(np.int64) + 1
    # Packets behind the last announced value are zeros that fill up the last bytes.
    stop = np.cumsum(length)
    if stop[-1] < num_values:
        raise _short_by(num_values - int(stop[-1]))
    last = int(np.searchsorted(stop, num_values))
    if stop[last] > num_values:
        raise _long_by(int(stop[last]) - num_values)
    is_run = packet >> np.uint64(63) == 1
    words = 1 if is_run[last] else int(length[last])
    if int(start[last]) + 3 + int(size[last]) + _WORD_SIZE * words > num_bits:
        raise _short_by(words)

    kept = slice(0, last + 1)
    packet, size, stop, length = packet[kept], size[kept], stop[kept], length[kept]
    begin = stop - length
    # Values [a, b) contain the alphas of the pixels [a >> 2, b >> 2).
    counts = (stop >> 2) - (begin >> 2)
    mask = np.repeat((packet << (size + np.uint64(3))) >> np.uint64(56) != 0, counts)

    literal = np.flatnonzero(~is_run[kept])
    if literal.size:
        # Literal packets have a value of their own for each pixel: read the alphas one by one.
        counts = counts[literal]
        pixel = begin[literal] >> 2
        bit = start[literal] + 3 + size[literal].astype(np.int64)
        bit += _WORD_SIZE * (4 * pixel + 3 - begin[literal])
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        bit = np.repeat(bit, counts) + 4 * _WORD_SIZE * within
        value = (pairs[bit >> 3].astype(np.uint32) << (bit & 7).astype(np.uint32)) >> 8 & 255
        mask[np.repeat(pixel, counts) + within] = value != 0
    return mask.reshape(height, width)


def _every_byte(padded: bytes, count: int, dtype: str) -> npt.NDArray[Any]:
    """``(count,)`` overlapping big-endian integers, one beginning at each byte; a view."""
    return np.ndarray((count,), dtype=dtype, buffer=padded, strides=(1,))


def _packet_starts(
    padded: bytes, steps_per_byte: npt.NDArray[np.uint64], run_sizes: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Bit positions of all packets, padding read as packets included.

    Each packet begins where the one before it ends, which is a chain of dependent steps. To take
    many steps at once, the stream is cut into segments, and one lane per segment walks from its
    first bit, although no packet need begin there; it skips zeros where a literal packet would
    begin, which brings it in step at the next background run. Chains that meet never part again:
    the true chain, when it enters a segment, is followed by hand until it meets the lane (after a
    few packets), and then goes on as the lane did. Literal packets, which masks of one value per
    pixel do not have, are always taken by hand.
    """
    num_bits = 8 * steps_per_byte.size
    flat_steps = steps_per_byte.view(np.uint8)
    steps = flat_steps.tobytes()
    lanes = min(_MOST_LANES, num_bits // _LANE_BITS)
    if lanes < _FEWEST_LANES:
        by_hand, _ = _walk(padded, steps, run_sizes, _HEADER_BITS, num_bits, bytes(num_bits))
        return np.array(by_hand, dtype=np.int64)

    # All lanes walk at once, one step of every lane for each pass of the loop.
    bounds = np.linspace(_HEADER_BITS, num_bits, lanes + 1).astype(np.int64)
    num_steps = int(np.diff(bounds).max()) // (3 + min(run_sizes) + _WORD_SIZE) + _SYNC_STEPS
    visited = np.empty((num_steps, lanes), dtype=np.int64)
    taken = np.empty((num_steps, lanes), dtype=np.uint8)
    position = bounds[:-1].copy()
    for step in range(num_steps):
        visited[step] = position
        flat_steps.take(position, mode="clip", out=taken[step])
        position += taken[step]
    # A skip shows that the lane was out of step, or at a literal packet: only runs count.
    is_packet = (taken > _LONGEST_SKIP) & (visited < bounds[1:])
    is_packet[-1] = False  # every path must have an end
    met_here = np.zeros(num_bits, dtype=np.bool_)
    met_here[visited[is_packet]] = True
    meets = met_here.tobytes()
    paths, is_packet = np.ascontiguousarray(visited.T), np.ascontiguousarray(is_packet.T)

    pieces: list[npt.NDArray[np.int64]] = []
    bit = _HEADER_BITS
    for lane, end in enumerate(bounds[1:].tolist()):
        while bit < end:
            # By hand, until the true chain meets a bit that some lane took for a packet's start.
            by_hand, bit = _walk(padded, steps, run_sizes, bit, end, meets)
            pieces.append(np.array(by_hand, dtype=np.int64))
            if bit < end:
                # From there on the chains are the same, up to the lane's next skip.
                first = int(np.searchsorted(paths[lane], bit))
                stop = first + int(is_packet[lane, first:].argmin())
                pieces.append(paths[lane, first:stop])
                bit = int(paths[lane, stop])
    return np.concatenate(pieces)


def _walk(
    padded: bytes, steps: bytes, run_sizes: tuple[int, ...], bit: int, end: int, stop_at: bytes
) -> tuple[list[int], int]:
    """Packet starts from ``bit`` up to ``end`` or to the first bit marked in ``stop_at``, and the
    start of the packet that follows them."""
    starts: list[int] = []
    while bit < end and not stop_at[bit]:
        starts.append(bit)
        step = steps[bit]
        bit += step if step > _LONGEST_SKIP else _literal_width(padded, run_sizes, bit)
    return starts, bit


def _literal_width(padded: bytes, run_sizes: tuple[int, ...], bit: int) -> int:
    """Bits of the literal packet at ``bit``: it announces how many values follow."""
    window = int.from_bytes(padded[bit >> 3 : (bit >> 3) + 4], "big") << (bit & 7) & 0xFFFFFFFF
    size = run_sizes[window >> 29 & 3]
    length = (window << 3 & 0xFFFFFFFF) >> (32 - size)
    return 3 + size + _WORD_SIZE * (length + 1)

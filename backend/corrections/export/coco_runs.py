"""COCO's run-length code for masks, as `pycocotools` writes it (`rleEncode`, `rleToString`)."""

import numpy as np
from numpy.typing import NDArray


def pack(mask: NDArray[np.bool_]) -> dict[str, object]:
    """A mask bool (H, W) as `{"size": [H, W], "counts": "..."}`, columns first.

    The counts are written six bits a character: differences to the last but one from the fourth
    on, five bits of value and one that says that more follow, from 48 ("0") upwards.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(changes, prepend=0, append=flat.size).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)  # runs begin with background
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            characters.append(chr((bits | 32 if more else bits) + 48))
    return {"size": [int(side) for side in mask.shape], "counts": "".join(characters)}

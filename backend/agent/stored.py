"""What a loop asks, answers and does as JSON: for a worker that goes on where another was killed.

Masks are packed bits, compressed; they are read back only from our own database.
"""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.agent.candidates import Found, FoundMask
from backend.agent.tools import (
    Action,
    Choose,
    RefineWithClicks,
    ReportAbsent,
    SegmentBox,
    SegmentPhrase,
    Stop,
)

_ACTIONS = {
    kind.__name__: kind
    for kind in (SegmentPhrase, SegmentBox, RefineWithClicks, Choose, ReportAbsent, Stop)
}


def mask_json(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask, bool (H, W)."""
    packed = zlib.compress(np.packbits(mask).tobytes())
    return {"size": list(mask.shape), "bits": base64.b64encode(packed).decode()}


def mask_of_json(stored: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask that `mask_json` wrote, bool (H, W)."""
    height, width = stored["size"]
    packed = zlib.decompress(base64.b64decode(stored["bits"]))
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=height * width)
    return bits.reshape(height, width).astype(np.bool_)


def found_json(found: Found) -> list[dict[str, Any]]:
    """What a segmenter found: first the figures of the whole, then one entry for each mask."""
    whole = {"presence": found.presence, "expected_area": found.expected_area}
    return [
        whole,
        *(
            {**mask_json(m.mask), "score": m.score, "support": m.support, "own": m.own}
            for m in found.masks
        ),
    ]


def found_of_json(stored: list[Mapping[str, Any]]) -> Found:
    """What `found_json` wrote."""
    whole, *masks = stored
    return Found(
        tuple(FoundMask(mask_of_json(m), m["score"], m["support"], m["own"]) for m in masks),
        whole["presence"],
        whole["expected_area"],
    )


def action_json(action: Action) -> dict[str, Any]:
    """An action by its name, with its arguments."""
    return {"name": type(action).__name__, **asdict(action)}


def action_of_json(stored: Mapping[str, Any]) -> Action:
    """What `action_json` wrote."""
    arguments = {name: _as_tuple(value) for name, value in stored.items() if name != "name"}
    action: Action = _ACTIONS[stored["name"]](**arguments)
    return action


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value

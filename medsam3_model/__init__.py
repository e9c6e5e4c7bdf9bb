"""MedSAM-3: masks of medical concepts from text and boxes.

Importing the package is cheap: torch is loaded when a name below is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3
    from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding

__all__ = ["Detections", "ImageEmbedding", "MedSAM3", "TextEmbedding"]

_HOME = {
    "MedSAM3": "medsam3_model.predictor",
    "Detections": "medsam3_model.types",
    "ImageEmbedding": "medsam3_model.types",
    "TextEmbedding": "medsam3_model.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

"""`backend.labeling.brush_rle` under the short name by which other programs import it."""

from backend.labeling.brush_rle import decode, encode

__all__ = ["decode", "encode"]

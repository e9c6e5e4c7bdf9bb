"""The tokenizer of the full-size SAM 3: CLIP's byte pair encoding of 49,408 entries.

facebook's `sam3.pt` comes without a vocabulary. All of CLIP's follows from its table of merges,
which is bundled: 256 bytes, the same bytes at a word's end, one entry per merge, two special ones.
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

VOCABULARY_SIZE = 49408
_MERGES = Path(__file__).parents[1] / "weights" / "clip" / "merges.txt.gz"


@lru_cache(maxsize=1)
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, as `facebook/sam3` uses it; no network."""
    from transformers import CLIPTokenizer

    text = gzip.decompress(_MERGES.read_bytes()).decode("utf-8")
    merges: list[Any] = [tuple(line.split(" ")) for line in text.split("\n")[:-1]]
    symbols = _byte_symbols()
    entries = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *("".join(merge) for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)


def _byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes, in the order of CLIP's vocabulary.

    Bytes that print well stand for themselves; the others take the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]

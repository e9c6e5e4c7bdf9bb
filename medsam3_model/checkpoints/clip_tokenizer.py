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
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    text = gzip.decompress(_MERGES.read_bytes()).decode("utf-8")
    merges: list[Any] = [tuple(line.split(" ")) for line in text.split("\n")[:-1]]
    symbols = bytes_to_unicode().values()
    entries = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *("".join(merge) for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)

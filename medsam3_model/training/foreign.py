"""Foreign names: what an image does not show, so that a trained model goes on denying it.

A detector that is trained on one concept learns to answer, whatever it is asked for. Training asks
for some names that the model before it denied; the gate asks for others, which no run trains on.
"""

from collections.abc import Iterable, Sequence

TRAINED_ON = (
    "liver", "kidney", "spine", "tooth", "stomach", "hippocampus", "placenta", "spinal cord",
    "blood vessel", "surgical instrument", "dog", "car", "chair", "tree",
)  # fmt: skip
JUDGED_BY = (
    "polyp", "skin lesion", "cell nucleus", "optic disc", "brain", "breast tumor", "lungs", "heart",
)  # fmt: skip
_ASKED = 5


def unrelated(names: Iterable[str], phrases: Iterable[str]) -> list[str]:
    """The names that have no word in common with any of the phrases, in their order."""
    words = {_stem(word) for phrase in phrases for word in phrase.split()}
    return [name for name in names if words.isdisjoint(_stem(word) for word in name.split())]


def foreign_concepts(phrases: Sequence[str]) -> list[str]:
    """Five names for the gate to ask, of nothing that the phrases name."""
    return unrelated(JUDGED_BY, phrases)[:_ASKED]


def _stem(word: str) -> str:
    return word.lower().removesuffix("s")

"""Entries of a result, sorted: what outlines something, what only points at it, and their labels.

An entry that is none of the known kinds is refused: left out, its image would count as one that
does not show what the annotator marked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import QuarantineError, Trouble

# `magicwand` is what the tool without labels of its own writes: a brush mask.
_OUTLINES = frozenset(
    {
        f"{shape}{labels}"
        for shape in ("brush", "bitmask", "polygon", "rectangle", "ellipse", "vector")
        for labels in ("", "labels")
    }
    | {"magicwand"}
)
_POINTS = frozenset({"keypoint", "keypointlabels"})
# They say something about an image or a region; a region's outline is an entry of its own.
_OTHER_WORDS = frozenset(
    {"choices", "textarea", "taxonomy", "number", "rating", "datetime", "pairwise", "ranker"}
    | {"relation"}
)
# What is marked in media that are no still images.
_OTHER_MEDIA = frozenset(
    {"hypertextlabels", "paragraphlabels", "timeserieslabels", "timelinelabels", "videorectangle"}
    | {"labels"}
)
# Of an id or label.
_MOST_CHARACTERS = 1000


@dataclass(frozen=True, eq=False)
class Entry:
    """One outline or point of a result, with all labels that the result gives it.

    Attributes:
        id: as in the result; a repeated one has `#2` and so on behind it, a missing one is `#1`.
        labels: its own and those of `<Labels>` entries that belong to it.
        is_outline: false for key points and open paths, which have no area.
        fields: as Label Studio's JSON has them.
    """

    id: str
    shape: str
    labels: tuple[str, ...]
    is_outline: bool
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For messages."""
        return f"region {self.id[:40]!r} ({self.shape})"


def sort_entries(result: Sequence[Mapping[str, Any]], images: Mapping[str, int]) -> list[Entry]:
    """The outlines and points of a result.

    Args:
        result: of an annotation or prediction.
        images: names of the image tags; other entries of the same object are left alone.

    Raises:
        QuarantineError: names the first entry that is not understood.
    """
    drawn: list[_Drawn] = []
    separate: list[tuple[Mapping[str, Any], list[str]]] = []
    for entry in result:
        kind, value = entry.get("type"), entry.get("value")
        if not isinstance(kind, str):
            raise _refusal(entry, "has no type that is a text")
        elsewhere = kind in _OTHER_MEDIA and entry.get("to_name") not in list(images)
        if kind in _OTHER_WORDS or (elsewhere and kind != "labels"):
            continue
        if kind not in _OUTLINES | _POINTS | {"labels"}:
            raise _refusal(entry, "is of a type that is not understood: draw it with another tool")
        if not isinstance(value, Mapping):
            raise _refusal(entry, "cannot be read: it has no value")
        if kind != "labels":
            _add(drawn, _Drawn(entry, kind, value, _labels(entry, kind, value)))
        elif not (elsewhere and "start" in value):
            separate.append((entry, _labels(entry, kind, value)))
    for entry, labels in separate:
        _owner(drawn, entry).labels.extend(labels)
    return _numbered(drawn)


@dataclass(eq=False)
class _Drawn:
    entry: Mapping[str, Any]
    kind: str
    value: Mapping[str, Any]
    labels: list[str]


def _add(drawn: list[_Drawn], new: _Drawn) -> None:
    """The same outline twice, as a tool's and as its labels' entry, is one region."""
    for other in drawn:
        # Regions without an id have nothing but their outline to be told apart by.
        if _id(other.entry) == _id(new.entry) and _same_place(other.entry, new.entry):
            other.labels.extend(new.labels)
            return
    drawn.append(new)


def _owner(drawn: Sequence[_Drawn], entry: Mapping[str, Any]) -> _Drawn:
    """The outline or point that an entry of `<Labels>` belongs to: of its id, then of its place."""
    of_id = [one for one in drawn if _id(one.entry) == _id(entry)]
    if len(of_id) == 1 and _id(entry) is not None:
        return of_id[0]
    there = [one for one in of_id if _same_place(one.entry, entry)]
    if len(there) == 1:
        return there[0]
    raise _refusal(entry, "belongs to no region of the annotation: give each region its own id")


def _same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    keys = ("to_name", "item_index", "original_width", "original_height")
    return all(one.get(key) == other.get(key) for key in keys) and _geometry(one) == _geometry(
        other
    )


def _geometry(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in entry["value"].items() if not key.endswith("labels")}


def _id(entry: Mapping[str, Any]) -> str | None:
    """Imports have ids that are numbers, or none."""
    id_ = entry.get("id")
    if id_ is None or id_ == "":
        return None
    if isinstance(id_, float) and id_.is_integer():
        id_ = int(id_)
    if isinstance(id_, bool) or not isinstance(id_, str | int) or not _storable(f"{id_}"):
        raise _refusal(entry, "has an id that is neither text nor number that can be kept")
    return f"{id_}"


def _storable(text: str) -> bool:
    """PostgreSQL takes no null characters, and no halves of a sign."""
    odd = any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text)
    return len(text) <= _MOST_CHARACTERS and not odd


def _labels(entry: Mapping[str, Any], kind: str, value: Mapping[str, Any]) -> list[str]:
    labels: list[str] = []
    for key in dict.fromkeys((kind, f"{kind.removesuffix('labels')}labels", "labels")):
        listed = value.get(key) if key.endswith("labels") else None
        if listed is None:
            continue
        if not isinstance(listed, list) or not all(
            isinstance(label, str | int) and not isinstance(label, bool) for label in listed
        ):
            raise _refusal(entry, "has labels that are no list of texts")
        labels += [f"{label}" for label in listed]
    if not all(map(_storable, labels)):
        raise _refusal(entry, "has a label that is no short text")
    return labels


def _numbered(drawn: Sequence[_Drawn]) -> list[Entry]:
    taken = {_id(one.entry) for one in drawn}
    seen: set[str | None] = set()
    entries = []
    for one in drawn:
        id_ = _id(one.entry)
        if id_ is None or id_ in seen:
            number = 1 if id_ is None else 2
            while f"{id_ or ''}#{number}" in taken:
                number += 1
            id_ = f"{id_ or ''}#{number}"
            taken.add(id_)
        seen.add(id_)
        is_open = one.value.get("closed") is False
        labels = tuple(dict.fromkeys(one.labels))
        is_outline = one.kind in _OUTLINES and not is_open
        entries.append(Entry(id_, one.kind, labels, is_outline, one.entry))
    return entries


def _refusal(entry: Mapping[str, Any], what: str) -> QuarantineError:
    id_, kind = entry.get("id"), entry.get("type")
    shown = f"region {str(id_)[:40]!r}" if isinstance(id_, str | int) else "a region without id"
    return QuarantineError(Trouble.CONTENT, f"{shown} ({str(kind)[:40]}) {what}")

"""Codes of labels: which structure a label means, in a coding scheme such as SNOMED CT.

A `<Label>` says so with `code="SCHEME:VALUE"` or `code="SCHEME:VALUE:MEANING"`, and with `category`
in the same form what kind of thing it is. The schemes are DICOM's designators (PS3.16, 8): `SCT` is
SNOMED CT, `DCM` DICOM's own. On one of a label's controls it holds for all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from backend.errors import LabelConfigError
from backend.labeling.config import read_tags

# A code's text is CODE VALUE or LONG CODE VALUE, its designator a SHORT STRING (PS3.3, 8.8).
_FORM = re.compile(r"([A-Za-z0-9_.-]{1,16}):([^\s:\\]{1,64})(?::([^:\\]{1,64}))?")
_ADVICE = 'write code="SCHEME:VALUE" or code="SCHEME:VALUE:MEANING", such as "SCT:10200004:Liver"'
# Verhoeff's products and permutations, by which SNOMED CT forms the last digit of an identifier.
_PRODUCTS = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_PERMUTATIONS = (
    "0123456789", "1576283094", "5803796142", "8916043527",
    "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


@dataclass(frozen=True)
class LabelCode:
    """One code.

    Attributes:
        scheme: DICOM's designator of the coding scheme.
        value: in the scheme.
        meaning: for people, as the labeling config has it; empty where it says none.
    """

    scheme: str
    value: str
    meaning: str = ""


@dataclass(frozen=True)
class SegmentCode:
    """What a label's segment is: its type, and the category of that where the config says one."""

    type: LabelCode
    category: LabelCode | None = None


def segment_codes(xml: str) -> Mapping[str, SegmentCode]:
    """The codes of a labeling config's labels, by the value that regions carry.

    Labels without a code are left out.

    Raises:
        LabelConfigError: the config cannot be read, a code is malformed, or a label has two.
    """
    codes: dict[str, SegmentCode] = {}
    for label, tag in read_tags(xml)[0].labels():
        if not tag.get("code"):
            if tag.get("category"):
                raise LabelConfigError(
                    f'The label "{label}" has a category and no code: {_ADVICE}.'
                )
            continue
        category = _parsed(label, tag.get("category"), "category") if tag.get("category") else None
        code = SegmentCode(_parsed(label, tag.get("code"), "code"), category)
        if codes.setdefault(label, code) != code:
            raise LabelConfigError(
                f'The label "{label}" has two codes or categories: write them on one control, '
                "they hold for all."
            )
    return codes


def _parsed(label: str, text: str, attribute: str) -> LabelCode:
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise LabelConfigError(
            f'The label "{label}" has {attribute}="{text[:80]}", which is no code: {_ADVICE}.'
        )
    scheme, value, meaning = parts.groups()
    if scheme == "SCT" and not _is_snomed(value):
        raise LabelConfigError(
            f'The label "{label}" has {attribute}="{text[:80]}", and {value} is no identifier of '
            "SNOMED CT (6 to 18 digits, of which the last one checks the others): look it up again."
        )
    return LabelCode(scheme, value, (meaning or "").strip())


def _is_snomed(value: str) -> bool:
    if not re.fullmatch(r"[0-9]{6,18}", value):
        return False
    check = 0
    for place, digit in enumerate(reversed(value)):
        check = int(_PRODUCTS[check][int(_PERMUTATIONS[place % 8][int(digit)])])
    return check == 0

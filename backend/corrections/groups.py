"""Groups: what must stay on one side of a split, such as the images of one patient.

The same group comes in several spellings: an import from CSV makes 101.0 of 101 as soon as one row
is empty, and 7 of 007. Whatever may be the same is taken for the same: two patients in one group
do no harm, one patient in two groups is on both sides of the split.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.corrections.tables import Image

_OF_IMAGE = "image:"
_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d{0,300})?")
# How programs write that there is nothing.
_NOTHING = frozenset({"", "nan", "none", "null", "n/a", "<na>", "nat"})


def group_of(
    data: Mapping[str, Any], reference: str, image_hash: str, *, field: str, pattern: str | None
) -> str:
    """The group of a task.

    In this order: the field `field` of the task's data, what `pattern` matches in the image's
    address, and else the image itself, so that a copy of an image is in its original's group.

    Args:
        data: the task's data.
        reference: address of its (first) image.
        image_hash: SHA-256 of that image.
        field: name of the data field that holds a patient's or sequence's id.
        pattern: regular expression; its first group counts, or all it matches.

    Returns:
        The id in its normal form, or `image:` and the first 16 digits of the hash.
    """
    match = re.search(pattern, reference) if pattern else None
    found = match.group(1 if match.re.groups else 0) if match else None
    return normal_form(data.get(field)) or normal_form(found) or f"{_OF_IMAGE}{image_hash[:16]}"


def normal_form(value: Any) -> str | None:
    """One spelling for all that may mean the same group; None for what means no group.

    Numbers lose zeros in front and behind (`101.0`, `"0101"` → `101`), texts the space around and
    double space inside, and booleans are `true` and `false`. Lists and objects are their JSON.
    """
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False) if value else None
    if isinstance(value, float):
        # Not 1e+22, which would be another text than the number that somebody wrote.
        value = format(Decimal(repr(value)), "f") if math.isfinite(value) else None
    text = unicodedata.normalize("NFKC", "" if value is None else str(value))
    text = " ".join(text.replace("\ufeff", "").split())
    if text.lower() in ("true", "false"):
        return text.lower()
    if text.lower() in _NOTHING:
        return None
    if _NUMBER.fullmatch(text):
        plain = format(Decimal(text), "f")
        plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
        return "0" if plain == "-0" else plain
    return text


def count_groups(session: Session) -> dict[int, tuple[int, int, int]]:
    """By project: its groups, its images, and those of them that are in no group but their own."""
    own = Image.task_group.startswith(_OF_IMAGE)
    counted = select(
        Image.project_id,
        func.count(Image.task_group.distinct()).filter(~own),
        func.count(),
        func.count().filter(own),
    ).group_by(Image.project_id)
    return {
        project: (groups, images, alone)
        for project, groups, images, alone in session.execute(counted.order_by(Image.project_id))
    }

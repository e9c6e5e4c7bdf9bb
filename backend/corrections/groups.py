"""What must stay on one side of a split: the images of one patient, of one sequence.

In this order: the field `MEDSAM3_GROUP_FIELD` of the task's data (`group` by default), what
`MEDSAM3_GROUP_PATTERN` finds in the image's address, and else the image itself, so that a copy of
an image is in its original's group.
"""

import re
from collections.abc import Mapping
from typing import Any


def group_of(
    data: Mapping[str, Any], reference: str, image_hash: str, *, field: str, pattern: str | None
) -> str:
    """The group of a task.

    Args:
        data: the task's data.
        reference: address of its (first) image.
        image_hash: SHA-256 of that image.
        field: name of the data field that holds a patient's or sequence's id.
        pattern: regular expression for the address; its first group counts, or all it matches.

    Returns:
        The id as found, or `image:` and the first 16 digits of the hash.
    """
    given = data.get(field)
    if isinstance(given, str | int) and not isinstance(given, bool) and str(given).strip():
        return str(given).strip()
    found = re.search(pattern, reference) if pattern else None
    if found:
        id_ = found.group(1) if found.re.groups else found.group(0)
        if id_:
            return id_
    return f"image:{image_hash[:16]}"

"""Label Studio's names of a project."""

import re

_UID = re.compile(r"([0-9]{1,10})(\.[0-9]*)?")


def project_number(project: object) -> int:
    """The id in Label Studio's `"<id>.<created>"`, or the bare id.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(project, int) and not isinstance(project, bool):
        return project
    match = _UID.fullmatch(project) if isinstance(project, str) else None
    if match is None:
        raise ValueError("a project is its id, or a text such as 7.1795421465")
    return int(match[1])

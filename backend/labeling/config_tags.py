"""The tags of a labeling config: XML read safely, names without regard to case.

The standard library alone: the web process reads configs, and external entities are refused
before the parser sees them.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from backend.errors import LabelConfigError

_MOST_CHARACTERS = 4_000_000


class ConfigTag:
    """One tag; its own name and its attributes' names are lower-case, as the editor has them."""

    def __init__(self, element: ET.Element) -> None:
        self._element = element
        self.tag = element.tag.lower()
        self.attributes = {key.lower(): value.strip() for key, value in element.attrib.items()}

    def get(self, name: str) -> str:
        """An attribute without surrounding space, empty where it is not set."""
        return self.attributes.get(name.lower(), "")

    def is_true(self, name: str) -> bool:
        return self.get(name).lower() == "true"

    def flag(self, name: str) -> bool | None:
        """An attribute that must be `true` or `false`; None where it is not set.

        Raises:
            LabelConfigError: it is something else.
        """
        text = self.get(name).lower()
        if text not in ("", "true", "false"):
            raise LabelConfigError(f'{self}: {name}="{text}" must be "true" or "false".')
        return text == "true" if text else None

    def within(self, tag: str) -> "Iterator[ConfigTag]":
        """The tags of that (lower-case) name at any depth inside this one."""
        for element in self._element.iter():
            if isinstance(element.tag, str) and element.tag.lower() == tag:
                yield ConfigTag(element)

    def __str__(self) -> str:
        name = f' name="{self.get("name")}"' if self.get("name") else ""
        return f"<{self._element.tag}{name}>"


def read_tags(xml: str) -> list[ConfigTag]:
    """All tags of a labeling config, outermost first, comments left out.

    Raises:
        LabelConfigError: it is empty, too long, not XML, or declares a document type or entities.
    """
    if not isinstance(xml, str) or not xml.strip():
        raise LabelConfigError("The labeling config is empty: set one in the project's settings.")
    if len(xml) > _MOST_CHARACTERS:
        raise LabelConfigError(f"The labeling config is longer than {_MOST_CHARACTERS} characters.")
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", xml, re.IGNORECASE):
        raise LabelConfigError("The labeling config has a DOCTYPE or an ENTITY: remove it.")
    try:
        root = ET.fromstring(xml.strip())  # noqa: S314 - entities are refused above
    except (ET.ParseError, ValueError) as error:  # ValueError: lone surrogates, null bytes
        raise LabelConfigError(f"The labeling config is not well-formed XML: {error}.") from None
    return [ConfigTag(element) for element in root.iter() if isinstance(element.tag, str)]

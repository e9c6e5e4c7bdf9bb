"""Label rules: what a project's labeling config says about submitted regions."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from backend.corrections.entries import Entry
from backend.corrections.submissions import Pages, SubmittedRegion
from backend.errors import ImageSourceError, LabelConfigError, QuarantineError, Trouble
from backend.labeling.config import LabelConfig, parse_label_config, read_tags


def pages_of(xml: str, task_data: Mapping[str, Any]) -> Pages:
    """Where the images of a task are, in the order of the config's image tags.

    Raises:
        QuarantineError: the config cannot be read, or the task has no such image.
    """
    first: dict[str, int] = {}
    references: list[str] = []
    for image in _parsed(xml).images:
        first[image.name] = len(references)
        try:
            references += image.references(task_data)
        except ImageSourceError as error:
            raise QuarantineError(Trouble.IMAGE, str(error)) from None
    return Pages(first, tuple(references))


def outlines(regions: Iterable[SubmittedRegion], xml: str) -> list[SubmittedRegion]:
    """The regions that say where their concept is.

    Left out is what a prompt tool drew: a box for a smart tool, or one that says what the concept
    is not.
    """
    config = _parsed(xml)

    def is_outline(region: SubmittedRegion) -> bool:
        control = config.control(region.control)
        if control is None or not region.labels:
            return True
        return not control.negative and any(
            control in config.outputs_of(label) or label not in control.label_values
            for label in region.labels
        )

    return [region for region in regions if is_outline(region)]


def check_outlined(
    regions: Iterable[SubmittedRegion],
    points: Iterable[tuple[int, Entry]],
    submitted: Iterable[SubmittedRegion],
    xml: str,
) -> None:
    """Refuse an annotation that says that something is there, and does not say which pixels.

    Args:
        regions: those that say where their concept is, see `outlines`.
        points: page and entry of what has no area.
        submitted: all regions, those of prompt tools included.
        xml: the labeling config.

    Raises:
        QuarantineError: names the first region that has no label, or whose label has an output
            and is outlined nowhere on its page.
    """
    config = _parsed(xml)
    outlined = {(region.item_index, label) for region in regions for label in region.labels}
    for region in regions:
        if not any(label.strip() for label in region.labels):
            raise QuarantineError(
                Trouble.CONTENT,
                f"region {region.id[:40]!r} ({region.shape}) has no label: give it one",
            )
    hints = [(page, e.labels, e.name, str(e.fields.get("from_name"))) for page, e in points]
    hints += [
        (r.item_index, r.labels, f"region {r.id[:40]!r} ({r.shape})", r.control) for r in submitted
    ]
    for page, labels, name, control_name in hints:
        control = config.control(control_name)
        for label in labels:
            if control is not None and control.negative:
                continue
            if config.outputs_of(label) and (page, label) not in outlined:
                raise QuarantineError(
                    Trouble.CONTENT,
                    f"{name} says that {label[:40]!r} is there, but nothing outlines it on its "
                    "image: draw its outline, or delete the region",
                )


def missing_label(labels: Iterable[tuple[str, str]], xml: str) -> str | None:
    """Why labels are not (any more) in a labeling config; None when all are.

    Args:
        labels: pairs of a control tag's name and a label.
        xml: the config.
    """
    known = _labels_by_control(xml)
    for control, label in sorted(labels):
        if control not in known:
            return (
                f"the labeling config has no control tag {control[:40]!r} (any more): bring it "
                "back, or draw the region with another one"
            )
        if label and label not in known[control]:
            return (
                f"the labeling config has no label {label[:40]!r} in {control[:40]!r} (any more): "
                "bring it back, or relabel the region"
            )
    return None


def _parsed(xml: str) -> LabelConfig:
    try:
        return parse_label_config(xml)
    except LabelConfigError as error:
        raise QuarantineError(Trouble.CONFIG, str(error)) from None


@lru_cache(maxsize=64)
def _labels_by_control(xml: str) -> Mapping[str, frozenset[str]]:
    """All control tags, served or not; one without labels of its own uses those of `<Labels>`."""
    try:
        parse_label_config(xml)
    except LabelConfigError:
        return {}
    of_control: dict[str, frozenset[str]] = {}
    shared: set[str] = set()
    for tag in read_tags(xml):
        if tag.get("toName"):
            of_control[tag.get("name")] = frozenset(value for value, _ in tag.labels())
            if tag.tag == "labels":
                shared |= of_control[tag.get("name")]
    return {name: labels or frozenset(shared) for name, labels in of_control.items()}

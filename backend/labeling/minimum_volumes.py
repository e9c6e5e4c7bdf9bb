"""`min_volume_ml` of labels: the volume below which an object of a stack is left out."""

import math
from collections.abc import Collection, Iterable, Mapping

from backend.errors import LabelConfigError


def read_minimum_volumes(written: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Millilitres by label value; one that is written on one control holds for all.

    Args:
        written: value and `min_volume_ml` of every `<Label>`; the second is empty where it is not
            set.

    Raises:
        LabelConfigError: it is no number of millilitres, or a label has two.
    """
    volumes: dict[str, float] = {}
    for label, text in written:
        if not text:
            continue
        try:
            volume = float(text)
        except ValueError:
            volume = math.nan
        if not 0 <= volume < math.inf:
            raise LabelConfigError(
                f'The label "{label}" has min_volume_ml="{text}", which must be a number of '
                "millilitres, 0 or more."
            )
        if volumes.setdefault(label, volume) != volume:
            raise LabelConfigError(
                f'The label "{label}" has two minimum volumes, {volumes[label]:g} and {volume:g} '
                "ml: write one, it holds for all controls."
            )
    return volumes


def check_stacks(volumes: Mapping[str, float], on_stacks: Collection[str]) -> None:
    """Refuse a minimum that could never do anything.

    Args:
        volumes: of `read_minimum_volumes`.
        on_stacks: values of the labels that can be predicted on an image with pages.

    Raises:
        LabelConfigError: a label with a minimum is on single images only, which have no volume.
    """
    for label, volume in volumes.items():
        if volume and label not in on_stacks:
            raise LabelConfigError(
                f'The label "{label}" has a min_volume_ml, but predictions of it go to no '
                '<Image valueList="$...">, and only a stack has volumes: remove it.'
            )

"""Drafts: annotations that are decoded and compared, and not stored yet."""

from collections.abc import Mapping
from dataclasses import dataclass

from backend.corrections.baselines import Baseline
from backend.corrections.comparison import ComparedRegion
from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.source import ImageFacts
from backend.corrections.submissions import AnnotationRecord, SubmittedRegion


@dataclass(frozen=True, eq=False)
class Draft:
    """A revision before it is stored: what was submitted, and what that did to the suggestion.

    Attributes:
        content_hash: of the record.
        group: what must stay on one side of a split, see `groups.group_of`.
        images: address and facts, one per page.
        concepts: union of the regions by page and label.
        baseline: the suggested regions; `outcomes` says what became of each.
    """

    record: AnnotationRecord
    content_hash: str
    group: str
    images: tuple[tuple[str, ImageFacts], ...]
    regions: tuple[SubmittedRegion, ...]
    concepts: Mapping[tuple[int, str], CroppedMask]
    baseline: Baseline
    outcomes: tuple[ComparedRegion, ...]

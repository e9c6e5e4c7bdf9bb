"""What an annotator did to a suggestion, region by region.

Regions are recognised by their ids first: the editor keeps the id of a predicted region, and of a
smart tool's suggestion that was accepted. What the ids leave over is compared by geometry, since
an annotator may delete a region and draw it anew. The region's `origin` is not asked: it says
"manual" for an accepted smart suggestion.

Every suggested region gets one outcome, and so does every final region without a suggestion:

* *accepted*: same label and same pixels;
* *edited*: the same object with another shape or another label. After a split one suggestion has
  several final regions, after a merge several suggestions share one; the masks compared are then
  the unions;
* *rejected*: nothing of it was kept;
* *added*: drawn without a suggestion.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backend.corrections.cropped_mask import CroppedMask, common_windows, iou, overlap, union
from backend.corrections.tables import OutcomeKind, Relation

# The usual threshold for "the same object" in detection (Everingham et al. 2010), and for "most
# of it" where parts are concerned.
SAME_OBJECT_IOU = 0.5
MOST = 0.5
# The editor rounds the percentages of a polygon or rectangle that nobody touched; brush masks it
# passes on bit by bit.
ROUNDING_DICE = 0.998
DRAWN_SHAPES = frozenset({"brushlabels", "bitmasklabels", "brush", "bitmask"})


@dataclass(frozen=True, eq=False)
class SuggestedRegion:
    """A region that the model suggested."""

    id: str
    label: str
    item_index: int
    mask: CroppedMask
    suggestion_id: str | None
    model_version: str | None
    interactive: bool = False


@dataclass(frozen=True, eq=False)
class FinalRegion:
    """A region that the annotator submitted; `shape` is its Label Studio type."""

    id: str
    labels: tuple[str, ...]
    item_index: int
    mask: CroppedMask
    shape: str


@dataclass(frozen=True)
class Scores:
    """Suggested against final mask; distances and lengths in pixels."""

    dice: float
    surface_dice: float
    hd95: float
    added_path_length: float


@dataclass(frozen=True)
class ComparedRegion:
    """One row of the comparison; see `backend.corrections.tables.RegionOutcome`."""

    outcome: OutcomeKind
    relation: Relation
    item_index: int
    label: str
    label_changed: bool
    interactive: bool
    suggestion_id: str | None
    model_version: str | None
    region_id: str | None
    final_ids: tuple[str, ...]
    dice: float | None = None
    surface_dice: float | None = None
    hd95: float | None = None
    added_path_length: float | None = None


def compare(
    suggested: Sequence[SuggestedRegion], final: Sequence[FinalRegion]
) -> list[ComparedRegion]:
    """The outcomes of all regions, in an order that does not depend on the order of the input.

    Args:
        suggested: with unique ids; of one task, all pages.
        final: with unique ids; the masks of one page have one size, also the suggested ones.
    """
    outcomes: list[ComparedRegion] = []
    pages = {one.item_index for one in suggested} | {one.item_index for one in final}
    for page in sorted(pages):
        outcomes += _compare_page(
            sorted((one for one in suggested if one.item_index == page), key=lambda one: one.id),
            sorted((one for one in final if one.item_index == page), key=lambda one: one.id),
        )
    return outcomes


class _Links:
    """Which final regions stand for which suggestions, as indices."""

    def __init__(self, suggested: Sequence[SuggestedRegion], final: Sequence[FinalRegion]) -> None:
        self.suggested, self.final = suggested, final
        self.finals_of: list[set[int]] = [set() for _ in suggested]
        self.suggestions_of: list[set[int]] = [set() for _ in final]

    def add(self, suggestion: int, final: int) -> None:
        self.finals_of[suggestion].add(final)
        self.suggestions_of[final].add(suggestion)

    def free_suggestions(self) -> list[int]:
        return [index for index, linked in enumerate(self.finals_of) if not linked]

    def free_finals(self) -> list[int]:
        return [index for index, linked in enumerate(self.suggestions_of) if not linked]

    def same_label(self, suggestion: int, final: int) -> bool:
        return self.suggested[suggestion].label in self.final[final].labels

    def masks_of_finals(self, indices: Iterable[int]) -> list[CroppedMask]:
        return [self.final[index].mask for index in sorted(indices)]

    def masks_of_suggestions(self, indices: Iterable[int]) -> list[CroppedMask]:
        return [self.suggested[index].mask for index in sorted(indices)]


def _compare_page(
    suggested: Sequence[SuggestedRegion], final: Sequence[FinalRegion]
) -> list[ComparedRegion]:
    links = _Links(suggested, final)
    _link_ids(links)
    _link_same_objects(links)
    _link_parts(links)
    _link_wholes(links)
    outcomes = [
        outcome
        for suggestions, finals in _components(links)
        for outcome in _changed(
            [suggested[index] for index in suggestions], [final[index] for index in finals]
        )
    ]
    outcomes += [_rejected(suggested[index]) for index in links.free_suggestions()]
    outcomes += [_added(final[index]) for index in links.free_finals()]
    return outcomes


def _link_ids(links: _Links) -> None:
    finals = {region.id: index for index, region in enumerate(links.final)}
    for index, region in enumerate(links.suggested):
        if region.id in finals:
            links.add(index, finals[region.id])


def _link_same_objects(links: _Links) -> None:
    """One to one, best first; a pair with the same label before any without."""
    pairs = []
    for suggestion in links.free_suggestions():
        for final in links.free_finals():
            found = iou(links.suggested[suggestion].mask, links.final[final].mask)
            if found >= SAME_OBJECT_IOU:
                pairs.append((not links.same_label(suggestion, final), -found, suggestion, final))
    for _, _, suggestion, final in sorted(pairs):
        if not links.finals_of[suggestion] and not links.suggestions_of[final]:
            links.add(suggestion, final)


def _link_parts(links: _Links) -> None:
    """A split: new regions that take over what their suggestion's own region gave up."""
    parts: dict[int, list[int]] = {}
    for final in links.free_finals():
        mask = links.final[final].mask
        taken_over = [
            (
                overlap(
                    mask,
                    region.mask,
                    without=links.masks_of_finals(links.finals_of[index]),
                ),
                -index,
            )
            for index, region in enumerate(links.suggested)
            if links.same_label(index, final)
        ]
        shared, index = max(taken_over, default=(0, 0))
        if shared and shared >= MOST * mask.area:
            parts.setdefault(-index, []).append(final)
    for suggestion, finals in parts.items():
        whole = links.suggested[suggestion].mask
        if links.finals_of[suggestion] or (
            iou(whole, union(links.masks_of_finals(finals))) >= SAME_OBJECT_IOU
        ):
            for final in finals:
                links.add(suggestion, final)


def _link_wholes(links: _Links) -> None:
    """A merge: suggestions that lie in a region which grew beyond its own suggestion."""
    wholes: dict[int, list[int]] = {}
    for suggestion in links.free_suggestions():
        mask = links.suggested[suggestion].mask
        covered = [
            (
                overlap(
                    mask,
                    region.mask,
                    without=links.masks_of_suggestions(links.suggestions_of[index]),
                ),
                -index,
            )
            for index, region in enumerate(links.final)
            if links.same_label(suggestion, index)
        ]
        shared, index = max(covered, default=(0, 0))
        if shared and shared >= MOST * mask.area:
            wholes.setdefault(-index, []).append(suggestion)
    for final, suggestions in wholes.items():
        whole = links.final[final].mask
        if links.suggestions_of[final] or (
            iou(whole, union(links.masks_of_suggestions(suggestions))) >= SAME_OBJECT_IOU
        ):
            for suggestion in suggestions:
                links.add(suggestion, final)


def _components(links: _Links) -> list[tuple[list[int], list[int]]]:
    """Suggestions and finals that hang together, as sorted lists of indices."""
    found = []
    visited: set[int] = set()
    for start, linked in enumerate(links.finals_of):
        if not linked or start in visited:
            continue
        suggestions, finals, waiting = {start}, set[int](), [start]
        while waiting:
            for final in links.finals_of[waiting.pop()] - finals:
                finals.add(final)
                new = links.suggestions_of[final] - suggestions
                suggestions |= new
                waiting += new
        visited |= suggestions
        found.append((sorted(suggestions), sorted(finals)))
    return found


def _changed(
    suggested: Sequence[SuggestedRegion], final: Sequence[FinalRegion]
) -> Iterable[ComparedRegion]:
    relation = Relation.ONE
    if len(suggested) > 1:
        relation = Relation.MERGED
    elif len(final) > 1:
        relation = Relation.SPLIT
    scores = score(
        union([region.mask for region in suggested]), union([region.mask for region in final])
    )
    labels = sorted({label for region in final for label in region.labels})
    redrawn = any(region.shape in DRAWN_SHAPES for region in final)
    same_pixels = scores.dice == 1.0 or (not redrawn and scores.dice >= ROUNDING_DICE)
    for position, region in enumerate(suggested):
        label_changed = region.label not in labels
        accepted = relation is Relation.ONE and same_pixels and not label_changed
        yield ComparedRegion(
            outcome=OutcomeKind.ACCEPTED if accepted else OutcomeKind.EDITED,
            relation=relation,
            item_index=region.item_index,
            label=labels[0] if label_changed and labels else region.label,
            label_changed=label_changed,
            interactive=region.interactive,
            suggestion_id=region.suggestion_id,
            model_version=region.model_version,
            region_id=region.id,
            final_ids=tuple(one.id for one in final),
            dice=scores.dice,
            surface_dice=scores.surface_dice,
            hd95=scores.hd95,
            # The contour of merged suggestions was drawn once.
            added_path_length=scores.added_path_length if position == 0 else 0.0,
        )


def _rejected(region: SuggestedRegion) -> ComparedRegion:
    return ComparedRegion(
        outcome=OutcomeKind.REJECTED,
        relation=Relation.NONE,
        item_index=region.item_index,
        label=region.label,
        label_changed=False,
        interactive=region.interactive,
        suggestion_id=region.suggestion_id,
        model_version=region.model_version,
        region_id=region.id,
        final_ids=(),
    )


def _added(region: FinalRegion) -> ComparedRegion:
    from medsam3_model.evaluation.metrics import boundary

    (window,) = common_windows([region.mask])
    return ComparedRegion(
        outcome=OutcomeKind.ADDED,
        relation=Relation.NONE,
        item_index=region.item_index,
        label=min(region.labels, default=""),
        label_changed=False,
        interactive=False,
        suggestion_id=None,
        model_version=None,
        region_id=None,
        final_ids=(region.id,),
        added_path_length=float(boundary(window).sum()),
    )


def score(suggested: CroppedMask, final: CroppedMask) -> Scores:
    """Figures of `evaluation.metrics`, computed where one of the masks has something."""
    from medsam3_model.evaluation.metrics import score_mask

    if suggested.same(final):
        return Scores(dice=1.0, surface_dice=1.0, hd95=0.0, added_path_length=0.0)
    if not suggested.area or not final.area:
        # The distance to nothing is the image's diagonal, not the window's.
        found = score_mask(suggested.full(), final.full())
    else:
        found = score_mask(*common_windows([suggested, final], margin=1))
    return Scores(found.dice, found.surface_dice, found.hd95, found.added_path_length)

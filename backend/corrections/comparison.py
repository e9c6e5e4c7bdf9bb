"""The comparison: what an annotator did to a suggestion, region by region.

Regions are recognised by their ids first: the editor keeps the id of a predicted region, and of a
smart tool's suggestion that was accepted. What the ids leave over is compared by geometry, since
an annotator may delete a region and draw it again. The region's `origin` does not help: it says
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
from typing import TYPE_CHECKING

from backend.corrections.cropped_mask import CroppedMask, common_windows, iou, overlap, union
from backend.corrections.submissions import SubmittedRegion
from backend.corrections.tables import OutcomeKind, Relation

if TYPE_CHECKING:
    from medsam3_model.evaluation.metrics import MaskScores

# The usual threshold for "the same object" in detection (Everingham et al. 2010), and for "most
# of it" where parts are concerned.
SAME_OBJECT_IOU = 0.5
MOST = 0.5
# The editor rounds the percentages of a polygon or rectangle that nobody touched; brush masks it
# passes on bit by bit.
ROUNDING_DICE = 0.998
DRAWN_SHAPES = frozenset({"brushlabels", "bitmasklabels", "brush", "bitmask", "magicwand"})


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


@dataclass(frozen=True)
class ComparedRegion:
    """One row of the comparison; see `backend.corrections.tables.RegionOutcome`."""

    outcome: OutcomeKind
    relation: Relation
    item_index: int
    label: str
    label_changed: bool = False
    interactive: bool = False
    suggestion_id: str | None = None
    model_version: str | None = None
    region_id: str | None = None
    final_ids: tuple[str, ...] = ()
    dice: float | None = None
    surface_dice: float | None = None
    hd95: float | None = None
    added_path_length: float | None = None


def compare(
    suggested: Sequence[SuggestedRegion], final: Sequence[SubmittedRegion]
) -> list[ComparedRegion]:
    """The outcomes of all regions, in an order that does not depend on the order of the input.

    Args:
        suggested: with unique ids; of one task, all pages.
        final: with unique ids; the masks of one page have one size, also the suggested ones.
    """
    outcomes: list[ComparedRegion] = []
    pages = {region.item_index for region in suggested} | {region.item_index for region in final}
    for page in sorted(pages):
        outcomes += _compare_page(
            sorted((r for r in suggested if r.item_index == page), key=lambda region: region.id),
            sorted((r for r in final if r.item_index == page), key=lambda region: region.id),
        )
    return outcomes


# The two sides of the links.
_SUGGESTED, _FINAL = 0, 1


class _Links:
    """Which final regions stand for which suggestions, as indices on two sides."""

    def __init__(
        self, suggested: Sequence[SuggestedRegion], final: Sequence[SubmittedRegion]
    ) -> None:
        self.masks = [region.mask for region in suggested], [region.mask for region in final]
        self.labels = (
            [{region.label} for region in suggested],
            [set(region.labels) for region in final],
        )
        # For each region of a side the indices on the other side.
        self.linked: tuple[list[set[int]], list[set[int]]] = (
            [set() for _ in suggested],
            [set() for _ in final],
        )

    def add(self, suggestion: int, final: int) -> None:
        self.linked[_SUGGESTED][suggestion].add(final)
        self.linked[_FINAL][final].add(suggestion)

    def free(self, side: int) -> list[int]:
        return [index for index, linked in enumerate(self.linked[side]) if not linked]

    def same_label(self, side: int, index: int, other: int) -> bool:
        return bool(self.labels[side][index] & self.labels[1 - side][other])


def _compare_page(
    suggested: Sequence[SuggestedRegion], final: Sequence[SubmittedRegion]
) -> list[ComparedRegion]:
    links = _Links(suggested, final)
    # Each step leaves alone what an earlier one linked: an id is certain, geometry is a guess.
    _link_ids(links, suggested, final)
    _link_same_objects(links)
    # A split: new regions take over what their suggestion's own region gave up.
    _link_pieces(links, _FINAL)
    # A merge: suggestions are in a region that grew beyond its own suggestion.
    _link_pieces(links, _SUGGESTED)
    outcomes = [
        outcome
        for suggestions, finals in _components(links)
        for outcome in _changed(
            [suggested[index] for index in suggestions], [final[index] for index in finals]
        )
    ]
    outcomes += [_rejected(suggested[index]) for index in links.free(_SUGGESTED)]
    outcomes += [_added(final[index]) for index in links.free(_FINAL)]
    return outcomes


def _link_ids(
    links: _Links, suggested: Sequence[SuggestedRegion], final: Sequence[SubmittedRegion]
) -> None:
    finals = {region.id: index for index, region in enumerate(final)}
    for index, region in enumerate(suggested):
        if region.id in finals:
            links.add(index, finals[region.id])


def _link_same_objects(links: _Links) -> None:
    """One to one, best first; a pair with the same label before any without."""
    pairs = []
    for suggestion in links.free(_SUGGESTED):
        for final in links.free(_FINAL):
            share = iou(links.masks[_SUGGESTED][suggestion], links.masks[_FINAL][final])
            if share >= SAME_OBJECT_IOU:
                relabelled = not links.same_label(_SUGGESTED, suggestion, final)
                pairs.append((relabelled, -share, suggestion, final))
    for _, _, suggestion, final in sorted(pairs):
        # A better pair may have taken either of them.
        if not links.linked[_SUGGESTED][suggestion] and not links.linked[_FINAL][final]:
            links.add(suggestion, final)


def _link_pieces(links: _Links, side: int) -> None:
    """Link the free regions of a side that are pieces of a region of the other side.

    Final regions are pieces after a split of their suggestion, suggestions after a merge into
    their final region.
    """
    pieces_of: dict[int, list[int]] = {}
    masks, wholes, linked = links.masks[side], links.masks[1 - side], links.linked[1 - side]
    for piece in links.free(side):
        best, best_shared = -1, 0
        for index, whole in enumerate(wholes):
            if not links.same_label(side, piece, index):
                continue
            # What is already linked with the whole has its place: only the rest can be this piece.
            shared = overlap(masks[piece], whole, without=[masks[i] for i in sorted(linked[index])])
            if shared > best_shared:
                best, best_shared = index, shared
        if best_shared and best_shared >= MOST * masks[piece].area:
            pieces_of.setdefault(best, []).append(piece)
    for index, pieces in pieces_of.items():
        # A whole without a counterpart of its own needs proof: the pieces together must be that
        # object, or a large region would swallow whatever is in it.
        if linked[index] or (
            iou(wholes[index], union([masks[piece] for piece in pieces])) >= SAME_OBJECT_IOU
        ):
            for piece in pieces:
                links.add(*((piece, index) if side == _SUGGESTED else (index, piece)))


def _components(links: _Links) -> list[tuple[list[int], list[int]]]:
    """Suggestions and finals that hang together, as sorted lists of indices."""
    components = []
    visited: set[int] = set()
    for start, linked in enumerate(links.linked[_SUGGESTED]):
        if not linked or start in visited:
            continue
        suggestions, finals, waiting = {start}, set[int](), [start]
        # From side to side until nothing new is reached.
        while waiting:
            for final in links.linked[_SUGGESTED][waiting.pop()] - finals:
                finals.add(final)
                new = links.linked[_FINAL][final] - suggestions
                suggestions |= new
                waiting += new
        visited |= suggestions
        components.append((sorted(suggestions), sorted(finals)))
    return components


def _changed(
    suggested: Sequence[SuggestedRegion], final: Sequence[SubmittedRegion]
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
            final_ids=tuple(part.id for part in final),
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
        interactive=region.interactive,
        suggestion_id=region.suggestion_id,
        model_version=region.model_version,
        region_id=region.id,
    )


def _added(region: SubmittedRegion) -> ComparedRegion:
    from medsam3_model.evaluation.metrics import boundary

    (window,) = common_windows([region.mask])
    return ComparedRegion(
        outcome=OutcomeKind.ADDED,
        relation=Relation.NONE,
        item_index=region.item_index,
        label=min(region.labels, default=""),
        final_ids=(region.id,),
        added_path_length=float(boundary(window).sum()),
    )


def score(suggested: CroppedMask, final: CroppedMask) -> "MaskScores":
    """Suggested against final mask, computed where one of them has something."""
    from medsam3_model.evaluation.metrics import MaskScores, score_mask

    if suggested.same(final):
        # Most suggestions are accepted; this saves their distance transforms.
        return MaskScores(1.0, 1.0, 1.0, hd95=0.0, added_path_length=0.0)
    if not suggested.area or not final.area:
        # The distance to nothing is the image's diagonal, not the window's.
        return score_mask(suggested.full(), final.full())
    # One pixel around both, so that a boundary at the window's edge is one.
    return score_mask(*common_windows([suggested, final], margin=1))

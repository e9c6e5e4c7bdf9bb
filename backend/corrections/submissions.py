"""Submissions: annotations as Label Studio's API gives them, read into regions with masks.

What is read here is what was submitted, and nothing else: the same JSON gives the same regions,
whatever the store holds already.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError

from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.entries import Entry, sort_entries
from backend.errors import BackendError, QuarantineError, Trouble

BOX_SHAPES = frozenset({"rectangle", "rectanglelabels"})
# Erased again, they hold nothing; the other shapes always enclose something.
_PAINTED = frozenset({"brush", "brushlabels", "bitmask", "bitmasklabels", "magicwand"})
# What the masks of one annotation may hold at the same time, each cut to what it shows: a few
# megabytes of run lengths unpack to thousands of times as much.
MAX_UNPACKED_BYTES = 2**29
# Pixels of all its regions before they are cut: a minute or two of work.
_MAX_PAINTED_PIXELS = 10**11
_Utc = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


class AnnotationRecord(BaseModel):
    """The fields of Label Studio's annotation that corrections are made of."""

    model_config = ConfigDict(extra="ignore")

    id: int
    task: int
    project: int
    result: list[dict[str, Any]]
    completed_by: int | dict[str, Any] | None = None
    updated_by: int | dict[str, Any] | None = None
    created_at: _Utc
    updated_at: _Utc
    lead_time: float | None = None
    was_cancelled: bool = False
    ground_truth: bool = False
    parent_prediction: int | None = None

    @property
    def annotator(self) -> int | None:
        """Id of the user who completed it; some endpoints send the user instead."""
        sent = self.completed_by
        return sent.get("id") if isinstance(sent, dict) else sent

    @property
    def from_prediction(self) -> bool:
        """Made by "create annotations from predictions": with a prediction, but by nobody."""
        return (
            self.parent_prediction is not None
            and self.lead_time is None
            and self.updated_by is None
        )

    def content_hash(self) -> str:
        """32 hex digits over everything that an annotator can change."""
        content = {
            "result": self.result,
            "lead_time": self.lead_time,
            "was_cancelled": self.was_cancelled,
            "ground_truth": self.ground_truth,
            "annotator": self.annotator,
            "parent_prediction": self.parent_prediction,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class SubmittedRegion:
    """One outlined region.

    Attributes:
        labels: may be several, and none where the config has none.
        control: name of the control tag.
        item_index: page, counted over all images of the task.
        shape: Label Studio's region type.
    """

    id: str
    labels: tuple[str, ...]
    control: str
    item_index: int
    shape: str
    mask: CroppedMask


@dataclass(frozen=True)
class Pages:
    """Where each image tag's pages are in one count over all images of a task.

    Attributes:
        first: image tag's name → index of its first page.
        references: addresses of all pages, in that order.
    """

    first: Mapping[str, int]
    references: tuple[str, ...]


def read_annotation(payload: object) -> AnnotationRecord:
    """Check the API's answer.

    Raises:
        QuarantineError: it is no annotation as Label Studio documents it.
    """
    try:
        return AnnotationRecord.model_validate(payload)
    except ValidationError as error:
        fields = {".".join(map(str, fault["loc"])) or "the whole" for fault in error.errors()}
        where = ", ".join(sorted(fields))
        raise QuarantineError(
            Trouble.CONTENT, f"Label Studio's answer is no annotation: look at {where[:200]}"
        ) from None


def read_regions(
    result: Sequence[Mapping[str, Any]],
    pages: Pages,
    *,
    max_pixels: float,
    image_sizes: Mapping[int, tuple[int, int]] | None = None,
    decoded: Mapping[str, CroppedMask] | None = None,
) -> list[SubmittedRegion]:
    """Decode the outlined regions of a result.

    Args:
        result: of an annotation or prediction.
        pages: of its task.
        max_pixels: largest image, in pixels; checked before anything is decoded.
        image_sizes: height and width of the pages' images, where they are known; checked likewise.
        decoded: masks that are known already, by the id of their region.

    Raises:
        QuarantineError: a region is damaged or was drawn on another size than its image's, regions
            of one page disagree about it, or all masks together are too large.
    """
    from backend.labeling.region_masks import region_mask

    regions: dict[str, SubmittedRegion] = {}
    sizes: dict[int, tuple[int, int]] = {}
    unpacked = painted = 0
    for outline in sort_entries(result, pages.first):
        if not outline.is_outline:
            continue
        entry, id_, name = outline.fields, outline.id, outline.name
        size = _size(entry, name, max_pixels)
        page = _page(entry, pages, name)
        image_size = (image_sizes or {}).get(page, size)
        if size != image_size:
            raise QuarantineError(
                Trouble.CONTENT,
                f"{name} was drawn on {size[1]}×{size[0]} pixels, but the image has "
                f"{image_size[1]}×{image_size[0]}: draw it again on this image",
            )
        # Masks of one page must fit on each other: their union is a concept's mask.
        if sizes.setdefault(page, size) != size:
            first = sizes[page]
            raise QuarantineError(
                Trouble.CONTENT,
                f"{name} was drawn on an image of {size[1]}×{size[0]} pixels, others on "
                f"{first[1]}×{first[0]}: draw it again",
            )
        painted += size[0] * size[1]
        if painted > _MAX_PAINTED_PIXELS:
            raise QuarantineError(
                Trouble.CONTENT,
                f"the regions are too many for an image of {size[1]}×{size[0]} pixels: "
                f"{_MAX_PAINTED_PIXELS // (size[0] * size[1])} can be read",
            )
        mask = decoded.get(id_) if decoded else None
        if mask is None:
            try:
                mask = CroppedMask.of(region_mask(entry, *size))
            except BackendError as error:
                raise QuarantineError(Trouble.CONTENT, f"{name} cannot be read: {error}") from None
            if mask.pixels.size == 0 and outline.shape not in _PAINTED:
                raise QuarantineError(
                    Trouble.CONTENT, f"{name} encloses no pixel of its image: draw it again"
                )
            unpacked += mask.pixels.nbytes
            if unpacked > MAX_UNPACKED_BYTES:
                raise QuarantineError(
                    Trouble.CONTENT,
                    f"the masks up to {name} take more than {MAX_UNPACKED_BYTES >> 20} MB: draw "
                    "fewer or smaller regions",
                )
        regions[id_] = SubmittedRegion(
            id=id_,
            labels=outline.labels,
            control=str(entry.get("from_name") or ""),
            item_index=page,
            shape=outline.shape,
            mask=mask,
        )
    return list(regions.values())


def regions_of_concepts(
    regions: Sequence[SubmittedRegion],
) -> dict[tuple[int, str], list[SubmittedRegion]]:
    """The regions whose union is a concept's mask, by page and label.

    A region with several labels belongs to each. Boxes count where a label has nothing but boxes
    on the page; beside an outline they only say where the thing is.
    """
    concepts: dict[tuple[int, str], list[SubmittedRegion]] = {}
    for region in regions:
        for label in region.labels:
            concepts.setdefault((region.item_index, label), []).append(region)
    for key, members in concepts.items():
        concepts[key] = [region for region in members if region.shape not in BOX_SHAPES] or members
    return dict(sorted(concepts.items()))


def points_of(result: Sequence[Mapping[str, Any]], pages: Pages) -> list[tuple[int, Entry]]:
    """Key points and open paths that say "here", with their page; see `read_regions`."""
    return [
        (_page(entry.fields, pages, entry.name), entry)
        for entry in sort_entries(result, pages.first)
        if not entry.is_outline
        and entry.fields.get("is_positive") is not False
        and entry.fields.get("positive") is not False
    ]


def _size(entry: Mapping[str, Any], name: str, max_pixels: float) -> tuple[int, int]:
    height, width = entry.get("original_height"), entry.get("original_width")
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (height, width))
    if not (whole and isinstance(height, int) and isinstance(width, int)):
        raise QuarantineError(
            Trouble.CONTENT, f"{name} has no original_width and original_height in whole pixels"
        )
    if height * width > max_pixels:
        raise QuarantineError(
            Trouble.CONTENT,
            f"{name} belongs to an image of {f'{width}'[:20]}×{f'{height}'[:20]} pixels: raise "
            "MEDSAM3_MAX_IMAGE_MEGAPIXELS if that is right",
        )
    return height, width


def _page(entry: Mapping[str, Any], pages: Pages, name: str) -> int:
    index = 0 if entry.get("item_index") is None else entry["item_index"]
    image = str(entry.get("to_name") or "")
    if image not in pages.first:
        raise QuarantineError(
            Trouble.CONFIG,
            f"{name} belongs to the image tag {image[:40]!r}, which the labeling config does not "
            "have (any more)",
        )
    is_index = isinstance(index, int) and not isinstance(index, bool) and index >= 0
    page = pages.first[image] + index if is_index else -1
    if not 0 <= page < len(pages.references):
        raise QuarantineError(
            Trouble.CONTENT, f"{name} is on page {repr(index)[:40]}, which the task does not have"
        )
    return page

"""Pictures of corrections and of samples: masks on the image, as a small PNG.

They show patients' images. Nothing of them is kept: not here, not by a browser. One is drawn at a
time, so that however many a page asks for, one image is in memory.
"""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections.tables import RegionMask, RegionOutcome, Revision
from backend.errors import CorrectionsError
from backend.services import Services
from backend.tables import Delivery, LabelConfigText, Suggestion, SuggestionState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZE = 240
# What is shown around the masks: this share of their box.
_MARGIN = 0.25
_LEAST_MARGIN = 12
_SUGGESTED, _CORRECTED = (255, 150, 40), (60, 220, 255)
# Pixels of the suggestion's outline that are drawn, and left out.
_DASH = 4
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class _Facts:
    """What a picture is drawn of; `suggested` is a region of a prediction."""

    project_id: int
    task_id: int
    reference: str
    suggested: dict[str, Any]
    mask_hashes: Sequence[str]


def correction_png(services: Services, revision_id: int, ordinal: int) -> bytes:
    """The picture of one outcome of a revision, at most `SIZE` × `SIZE` pixels.

    Raises:
        CorrectionsError: there is no such outcome, or suggestion or masks are gone or damaged.
        LabelStudioError, ImageSourceError: the image cannot be had.
        ImageError: it cannot be read.
    """
    # Decoders are loaded with the first picture: a console without a gallery stays small.
    from backend.corrections.mask_store import MaskStore
    from backend.label_studio.client import LabelStudio
    from backend.label_studio.images import decode, fetch_image
    from backend.labeling.region_masks import region_mask

    with services.database.reading() as session:
        facts = _facts(session, revision_id, ordinal)
    with _one_at_a_time:
        store = MaskStore(services.settings.storage)
        with LabelStudio.from_settings(services.settings) as client:
            content = fetch_image(
                facts.reference,
                client=client,
                settings=services.settings,
                task_id=facts.task_id,
                project_id=facts.project_id,
            )
        image = decode(content, services.settings, task_id=facts.task_id)
        size = image.shape[0], image.shape[1]
        drawn = [store.get(name) for name in facts.mask_hashes]
        if any(mask.shape != size for mask in drawn):
            raise CorrectionsError("The masks do not fit the image any more.")
        suggested = region_mask(facts.suggested, *size)
        corrected = drawn[0]
        for mask in drawn[1:]:
            corrected = corrected | mask
        return draw(image, suggested, corrected)


def sample_png(services: Services, row_id: str) -> bytes:
    """The picture of one task of a sample, with its regions in the colours of their labels.

    Raises:
        CorrectionsError: there is no such prediction, or no sample's.
        LabelStudioError, ImageSourceError: the image cannot be had.
        ImageError: it cannot be read.
    """
    from backend.label_studio.client import LabelStudio
    from backend.labeling.config import parse_label_config
    from backend.predictions.preview import PreviewedTask
    from backend.predictions.preview_sheet import picture_of

    with services.database.reading() as session:
        row = session.get(Suggestion, row_id)
        if row is None or row.delivery != Delivery.PREVIEW or row.state != SuggestionState.DONE:
            raise CorrectionsError("This prediction is not kept any more.")
        config = parse_label_config(session.get_one(LabelConfigText, row.config_hash).xml)
    task = PreviewedTask(row.task_id or 0, row.task_data, row.result or [], row.score or 0.0, None)
    with _one_at_a_time, LabelStudio.from_settings(services.settings) as client:
        buffer = io.BytesIO()
        picture_of(services, client, row.project_id, config, task).save(buffer, "PNG")
        return buffer.getvalue()


def draw(
    image: "NDArray[np.uint8]", suggested: "NDArray[np.bool_]", corrected: "NDArray[np.bool_]"
) -> bytes:
    """A PNG of the part of an image around two masks, each as an outline.

    Args:
        image: RGB uint8 (H, W, 3).
        suggested, corrected: bool (H, W); the first is dashed, the second solid.
    """
    import numpy as np
    from PIL import Image

    from backend.labeling.masks import extent

    height, width = corrected.shape
    top, left, bottom, right = extent(suggested | corrected) or (0, 0, height, width)
    margin = max(_LEAST_MARGIN, int(_MARGIN * max(bottom - top, right - left)))
    window = np.s_[
        max(0, top - margin) : bottom + margin,
        max(0, left - margin) : right + margin,
    ]
    part = Image.fromarray(np.ascontiguousarray(image[window]))
    scale = SIZE / max(part.size)
    small = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    canvas = np.array(part.resize(small))

    def outline(mask: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
        """Two pixels along the inner border of a mask, at the picture's size."""
        scaled = np.array(Image.fromarray(np.ascontiguousarray(mask[window])).resize(small))
        inner = np.pad(scaled, 2)
        shrunk = scaled.copy()
        for down, across in ((0, 2), (4, 2), (2, 0), (2, 4)):
            shrunk &= inner[down : down + small[1], across : across + small[0]]
        return scaled & ~shrunk

    rows, columns = np.mgrid[: small[1], : small[0]]
    dashes = (rows + columns) // _DASH % 2 == 0
    canvas[outline(suggested) & dashes] = _SUGGESTED
    canvas[outline(corrected)] = _CORRECTED
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG")
    return buffer.getvalue()


def _facts(session: Session, revision_id: int, ordinal: int) -> _Facts:
    outcome = session.get(RegionOutcome, (revision_id, ordinal))
    if outcome is None:
        raise CorrectionsError("There is no such correction.")
    revision = session.get_one(Revision, revision_id)
    suggestion = session.get(Suggestion, outcome.suggestion_id) if outcome.suggestion_id else None
    region = next(
        (
            entry
            for entry in (suggestion.result if suggestion else None) or []
            if entry.get("id") == outcome.region_id and entry.get("type") != "labels"
        ),
        None,
    )
    hashes = session.scalars(
        select(RegionMask.mask_hash).where(
            RegionMask.revision_id == revision_id,
            RegionMask.region_id.in_([str(id_) for id_ in outcome.final_ids]),
            RegionMask.item_index == outcome.item_index,
        )
    ).all()
    if region is None or not hashes or outcome.item_index >= len(revision.images):
        raise CorrectionsError("The suggestion or the correction is not kept any more.")
    return _Facts(
        revision.project_id,
        revision.task_id,
        revision.images[outcome.item_index][0],
        region,
        hashes,
    )
